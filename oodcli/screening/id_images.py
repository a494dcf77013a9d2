"""Images of a run that an explanation shows: training images by row, and ID images of a class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.activations import Activations
from oodcli.data.decoding.drafts import drafted
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import InvalidInputError, OodError, UnreadableImageError
from oodcli.images import ImageSet, Part, evenly_spaced, image_name
from oodcli.methods._bank import Bank
from oodcli.probes import Probe
from oodcli.scoring.open_run import OpenRun

# ID images of a class that the mean of the energies and the typical image come from.
ID_IMAGES = 100
# Largest squared distance between the vector of a training image and its row in the bank that
# rounding can cause.
_ROUNDING = {"float32": 1e-5, "bfloat16": 1e-2}

Pixels = NDArray[np.uint8]
Extract = Callable[[NDArray[np.uint8], Sequence[Probe]], Activations]


@dataclass(frozen=True)
class ShownTraining:
    """Training images by their row in a bank of training vectors.

    Parameters
    ----------
    run
        The run.
    extract
        Function that returns the activations of images ``(n, 3, h, w)``.
    """

    run: OpenRun
    extract: Extract

    @cached_property
    def _part(self) -> Part:
        data = self.run.data
        if "train" not in data.dataset.parts:
            raise InvalidInputError(f"{data.dataset.name} has no training images")
        return data.dataset.parts["train"]

    @cached_property
    def _present(self) -> NDArray[np.int64]:
        """Row in the data of every training image that could be read when it was prepared."""
        images = replace(self.run.data, decode=False).images("train")
        return np.concatenate([shard.indices for shard in images.shards])

    def rows(self, rows: Sequence[int], *, of: int) -> NDArray[np.int64]:
        """Return the rows in the data of training images.

        Parameters
        ----------
        rows
            Row numbers among the training images that a method was fitted on.
        of
            Number of these images.

        Raises
        ------
        OodError
            If the data cannot be opened, or has another number of training images.
        """
        if len(self._present) != of:
            raise InvalidInputError(
                f"there are {len(self._present):,} training images now, and the method was fitted "
                f"on {of:,}"
            )
        return self._present[np.asarray(rows, dtype=np.int64)]

    def name(self, row: int) -> str:
        """Return the name of a training image by its row in the data."""
        return image_name(self._part.source, row)

    def label(self, row: int) -> str | None:
        """Return the name of its class."""
        labels = self._part.labels
        return None if labels is None else self.run.data.dataset.class_names[int(labels[row])]

    def pixels(self, row: int) -> Pixels | None:
        """Return it as the network sees it, ``(h, w, 3)``; None if it cannot be read any more."""
        pre = self.run.record.preprocess
        resizing = Resizing(pre.size, pre.resize)
        try:
            (image,) = drafted(self._part.source, resizing).read(row, row + 1)
        except OodError:
            return None
        if isinstance(image, UnreadableImageError):
            return None
        return resizing.apply(image)

    def check(
        self,
        images: Sequence[Pixels | None],
        bank: Bank,
        rows: Sequence[int],
        vectors: Callable[[Activations], Tensor],
        probes: Sequence[Probe] = (),
    ) -> None:
        """Check that images are those whose vectors are in a bank.

        Parameters
        ----------
        images
            The images; those that are None are not checked.
        bank
            The bank.
        rows
            Row of the vector of each image in the bank.
        vectors
            Function that returns the unit vectors of the images that are not None, ``(m, d)``.
        probes
            Probes that it needs.

        Raises
        ------
        InvalidInputError
            If an image has another vector.
        """
        known = [at for at, image in enumerate(images) if image is not None]
        if not known:
            return
        pixels = np.stack([image for image in images if image is not None])
        batch = self.extract(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), probes)
        units = vectors(batch)
        at = torch.tensor([rows[each] for each in known], device=units.device)
        distances = bank.distances(units, torch.arange(len(known), device=units.device), at)
        if float(distances.max()) > _ROUNDING[self.run.compute.precision]:
            raise InvalidInputError("the training images have changed since the method was fitted")


@dataclass(frozen=True)
class IdImages:
    """ID images that the network was not trained on, of one class or of all.

    Parameters
    ----------
    label
        Name of the class; None for images of all classes.
    images
        The images.
    part
        The part of the data that they belong to.
    activations
        Their activations with the arrays of the requested probes.
    classes
        Names of all classes.
    """

    label: str | None
    images: ImageSet
    part: Part
    activations: Activations
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls, run: OpenRun, part: str, predicted: int | None, probes: Sequence[Probe]
    ) -> "IdImages":
        """Return up to ``ID_IMAGES`` images, evenly spaced, with their activations.

        Parameters
        ----------
        run
            The run.
        part
            Part of its data: ``val`` or that of the test images.
        predicted
            Index of the class; all classes if None, or if there is no image of this class.
        probes
            Further observations.

        Raises
        ------
        OodError
            If the data of the run cannot be opened or read.
        """
        whole = run.data.dataset.parts[part]
        rows = np.arange(len(whole), dtype=np.int64)
        label = None
        if predicted is not None and whole.labels is not None:
            of_class = np.flatnonzero(whole.labels == predicted).astype(np.int64)
            if len(of_class):
                rows, label = of_class, run.record.class_names[predicted]
        chosen = rows[evenly_spaced(len(rows), ID_IMAGES)]
        images = run.data.apart(part, chosen)
        activations = run.activator.activations(images, probes=probes)
        (every,) = activations.chunks(len(images))
        return cls(label, images, whole, every, run.record.class_names)

    def name(self, at: int) -> str:
        """Return the name of an image by its position."""
        return image_name(self.part.source, int(self._places[at]))

    def label_of(self, at: int) -> str | None:
        """Return the name of the class of an image; None without labels."""
        labels = self.images.labels
        return None if labels is None else self.classes[int(labels[at])]

    def pixels(self, at: int) -> Pixels:
        """Return an image as the network sees it, ``(h, w, 3)``."""
        one = self.images.take(np.array([at], dtype=np.int64)).pixels()
        return np.ascontiguousarray(one[0].transpose(1, 2, 0))

    @property
    def _places(self) -> NDArray[np.int64]:
        return np.concatenate([shard.indices for shard in self.images.shards])
