"""The mixing set of a run with PixMix: chosen with its job, and held on its device."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from oodcli.compute.processes import Processes
from oodcli.data.registry import DATASETS
from oodcli.errors import InvalidInputError
from oodcli.store.outlier_source import FRACTALS, OutlierSource
from oodcli.store.preprocess import Preprocess
from oodcli.training.outlier_sets import OutlierSets
from oodcli.training.recipes import Recipe
from oodcli.training.streaming import fits

# The mixing set of the paper, which only a person can download.
PUBLISHED = "pixmix"


def pictures_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of pictures for images of a size, whose crops they give.

    Examples
    --------
    >>> pictures_size((32, 32)), pictures_size((64, 64)), pictures_size((224, 224))
    ((36, 36), (73, 73), (256, 256))
    """
    # The authors and OpenOOD: 36 for 32 pixels, 72 for 64, 256 for 224.
    height, width = (side + side // 7 for side in size)
    return height, width


@dataclass(frozen=True)
class MixingSets:
    """Opens mixing sets at the size of their pictures.

    Parameters
    ----------
    of_run
        Opens sets at the size of the run.
    """

    of_run: OutlierSets

    @property
    def _sets(self) -> OutlierSets:
        own = self.of_run.preprocess
        wanted: Preprocess = replace(
            own, size=pictures_size(own.size), resize="shorter-crop:bilinear"
        )
        return replace(self.of_run, preprocess=wanted, kind="pictures of the mixing set")

    def plan(
        self, wanted: str | None, recipe: Recipe, *, processes: Processes
    ) -> OutlierSource | None:
        """Choose the mixing set of a run, and refuse what is incompatible.

        Parameters
        ----------
        wanted
            A set; None: the published one if its files are in the store, else fractals.
        recipe
            The recipe.
        processes
            The processes that train together.

        Returns
        -------
        OutlierSource
            The set with the digest of its pictures; None if the recipe needs none.

        Raises
        ------
        OodError
            If there is a set but no PixMix, or the set cannot be opened or is too large.
        """
        if "pixmix" not in recipe.augmentation:
            if wanted is not None:
                raise InvalidInputError(
                    "--mixing-set is for recipes with the augmentation pixmix; choose one, such as "
                    "--recipe pixmix-cifar, or omit it"
                )
            return None
        if wanted is None:
            present = DATASETS[PUBLISHED].is_present(self.of_run.store)
            wanted = PUBLISHED if present else FRACTALS
        source = processes.in_turn(partial(self._sets.plan, wanted))
        self._check(source)
        return source

    def _check(self, source: OutlierSource) -> None:
        if source.of_files or not fits(source.images, self._sets.preprocess.size, None):
            raise InvalidInputError(
                f"the mixing set {source.name} has {source.images:,} pictures, which are too many "
                "to hold in memory; give fewer: --mixing-set FOLDER"
            )

    def opened(self, source: OutlierSource, device: torch.device) -> Tensor:
        """Return the pictures on a device, uint8 ``(m, 3, H, W)``.

        Raises
        ------
        InvalidInputError
            If they are not those that the run was started with.
        OodError
            If they cannot be opened.
        """
        _, images = self._sets.reopened(source)
        return torch.from_numpy(np.ascontiguousarray(images.pixels())).to(device)
