"""CSD, the score of MODE: the best match of any region of an image with those of training images.

The regions are pooled from the last map inside the forward pass, by a probe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._bank import Bank, by_bank
from oodcli.methods._class_means import directions
from oodcli.methods._needs import Arguments, Need, alike
from oodcli.methods.base import at_least
from oodcli.probes import Output, ProbedNetwork
from oodcli.regions import NEIGHBOUR, REGIONS_KEY, region_bounds
from oodcli.text import counted

# The largest squared distance between two unit vectors.
_FARTHEST = 4.0


@dataclass(frozen=True, slots=True)
class Regions:
    """Six vectors of the last map of every image, ``(n, 6, c)``, float32.

    In this order: the means of the four quadrants, row by row; of the whole map; of its centre. Of
    a map of ``h`` rows, the centre has rows ``⌊h/4⌋`` to ``h - ⌊h/4⌋ - 1``, of columns alike.

    Notes
    -----
    The published code knows maps of 4 × 4 only. On larger ones quadrants are those of adaptive
    average pooling, which share the middle row and column where their number is odd; the centre
    becomes the middle half, or a little more.
    """

    @property
    def key(self) -> str:
        """Name of the array."""
        return REGIONS_KEY

    @property
    def passes(self) -> float:
        """Nothing beyond the ordinary pass."""
        return 0.0

    def maps(self, network: ProbedNetwork) -> tuple[str, ...]:
        """Return the path of the last block.

        Raises
        ------
        UndefinedMethodError
            If the network has no blocks.
        """
        if not network.blocks:
            raise UndefinedMethodError("csd is not defined for a network without blocks")
        return (list(network.blocks.values())[-1],)

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output) -> Tensor:
        """Pool the regions of a batch, ``(n, 6, c)``.

        Raises
        ------
        UndefinedMethodError
            If the last block does not make maps of at least 2 × 2.
        """
        del images
        maps = output.maps[self.maps(network)[0]]
        if maps.ndim != 4 or min(maps.shape[2:]) < 2:
            name = list(network.blocks)[-1]
            shape = " x ".join(map(str, maps.shape[1:]))
            raise UndefinedMethodError(
                f"csd is not defined without a last map of at least 2 x 2 (output of {name}: "
                f"{shape}); use larger images or another network"
            )
        maps = maps.float()
        top, bottom, left, right = region_bounds(5, *maps.shape[2:])
        centre = maps[:, :, top:bottom, left:right]
        quadrants = functional.adaptive_avg_pool2d(maps, 2).flatten(2)  # (n, c, 4)
        others = torch.stack([maps.mean(dim=(2, 3)), centre.mean(dim=(2, 3))], dim=2)
        return torch.cat([quadrants, others], dim=2).mT.contiguous()


REGIONS_PROBE = Regions()


@dataclass(frozen=True, slots=True)
class RegionMatches:
    """The region of every image that comes nearest to the training images, and its neighbours.

    Parameters
    ----------
    regions
        Index of the region in :data:`oodcli.regions.REGIONS`, int64 ``(n,)``; -1 for an image whose
        region vectors all have length zero.
    distances
        Squared distances of its nearest region vectors, ascending, ``(n, k)``.
    rows
        Their rows in the bank, int64 ``(n, k)``: row ``r`` is region ``r % 6`` of training image
        ``r // 6``.
    """

    regions: Tensor
    distances: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class CSD:
    """Negative squared distance to the k-th nearest region, of the region that comes nearest.

    ``max_m -‖u_m - v_(k)‖²``, where ``u_m`` are the region vectors of an image divided by their
    lengths (see :class:`Regions`), and ``v_(k)`` is the k-th nearest to ``u_m`` among all region
    vectors, of whatever region, of all training images.

    Parameters
    ----------
    bank
        Region vectors of all training images, divided by their lengths.
    k
        Which neighbour counts; 10 in the authors' code. With fewer vectors in the bank the farthest
        of them counts, and this is their number.
    probes
        The regions of scored images.

    References
    ----------
    Zhang, Gao, Hao, Huang, Song, Shen. "From Global to Local: Multi-scale Out-of-distribution
    Detection". IEEE TIP 2023, arXiv:2308.10239.

    Notes
    -----
    With the whole map as the only region, of a network whose feature is the mean of its last map,
    this is KNN. As in the published code, regions are compared as the backbone gives them, without
    the projection that ALPA trains. On the same maps, scores of that code (revision 23a3a20, with
    faiss) and of this one agree to 9e-7; both differ from float64 by as much.

    A region vector of length zero has no vote; an image without any vote gets -4, the lowest score
    there can be. In the bank such a vector stays, at distance 1 from every other. An image that is
    itself in the bank meets its own vectors there: training images get scores near 0.
    """

    bank: Bank
    k: int
    probes: tuple[Regions, ...] = (REGIONS_PROBE,)

    @classmethod
    def fit(cls, reference: Reference, *, k: int = NEIGHBOUR) -> Self:
        """Take the regions of all training images.

        Raises
        ------
        UndefinedMethodError
            If the network makes no maps of at least 2 × 2.
        """
        at_least("csd:k", k, 1)
        bank = reference.once("csd", lambda: _bank(reference))
        return cls(bank, min(k, bank.size))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative squared distance, ``(n,)``."""
        return self.score_all([self], batch)[0]

    @staticmethod
    def score_all(detectors: Sequence["CSD"], batch: Activations) -> list[Tensor]:
        """Return the scores of each, ``(n,)``, from one search for the largest ``k``."""
        units, silent = _units(batch)

        def search(bank: Bank, ks: Sequence[int]) -> list[Tensor]:
            distances = bank.nearest(units.flatten(0, 1), max(ks)).view(*silent.shape, -1)
            votes = distances.masked_fill_(silent[:, :, None], _FARTHEST).amin(dim=1)
            return [-votes[:, k - 1] for k in ks]

        return by_bank([(each.bank, each.k) for each in detectors], search)

    def matches(self, batch: Activations, k: int) -> RegionMatches:
        """Return the region that gives each image its score, and its ``k`` nearest regions.

        Parameters
        ----------
        batch
            Activations with the array of :class:`Regions`.
        k
            Number of neighbours; all if the bank has fewer vectors.
        """
        units, silent = _units(batch)
        distances, rows = self.bank.neighbours(units.flatten(0, 1), max(k, self.k))
        distances = distances.view(*silent.shape, -1)  # (n, m, k)
        votes = distances[:, :, self.k - 1].masked_fill(silent, torch.inf)
        chosen = votes.argmin(dim=1)
        every = torch.arange(len(chosen), device=chosen.device)
        return RegionMatches(
            chosen.masked_fill(silent.all(dim=1), -1),
            distances[every, chosen, :k],
            rows.view(*silent.shape, -1)[every, chosen, :k],
        )


def _units(batch: Activations) -> tuple[Tensor, Tensor]:
    """Return region vectors of length 1 or 0 ``(n, m, c)``, and which have length 0, ``(n, m)``."""
    regions = batch.extra[Regions().key]
    units = directions(regions.flatten(0, 1)).view(regions.shape)
    return units, (units == 0).all(dim=2)


def _all_alike(reference: Reference, _arguments: Arguments) -> str | None:
    train = reference.probed("train", Regions())
    if not alike(chunk.extra[Regions().key] for chunk in train.chunks()):
        return None
    return f"those of {counted(len(train), 'image')} do not"


DIFFERENT_REGIONS = Need(
    "training images whose regions differ from image to image",
    _all_alike,
    "train on more images, or check the weights",
)


def _bank(reference: Reference) -> Bank:
    probe = Regions()
    train = reference.probed("train", probe)
    per_image = next((chunk.extra[probe.key].shape[1] for chunk in train.chunks()), 0)
    return Bank.of(
        train,
        lambda images: directions(images.extra[probe.key].flatten(0, 1)),
        size=per_image * len(train),
    )
