"""Training images that are decoded on the fly, for data sets that do not fit in memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.data.decoding.crops import RandomCrops
from oodcli.data.decoding.random_access import Change, Decoders, Originals, Prepared
from oodcli.data.decoding.scaling import Resizing
from oodcli.images import ImageSource
from oodcli.training.recipes import Recipe

# Larger data sets are streamed, and so are those that need more than half of the free memory.
MOST_BYTES_IN_MEMORY = 8 * 1024**3


class TrainingImages(Protocol):
    """Labelled images for training and evaluation, in memory or streamed."""

    @property
    def labels(self) -> Tensor:
        """Class of every image, int64 ``(n,)``, on the training device."""

    @property
    def cropped(self) -> bool:
        """Whether images are already randomly cropped from their originals."""

    @property
    def waited(self) -> float:
        """Seconds that training waited for images in the last epoch."""

    def __len__(self) -> int:
        """Return the number of images."""

    def arriving(
        self,
        batches: Sequence[Tensor],
        *,
        epoch: int,
        views: int,
        share: Callable[[int], Tensor],
    ) -> Iterator[list[Tensor]]:
        """Yield the images of each batch of an epoch.

        Parameters
        ----------
        batches
            Rows of the images of each batch, int64 ``(m,)`` each.
        epoch
            Number of the epoch, from 1.
        views
            Number of views of each image.
        share
            Given the size ``m`` of a batch, returns the positions in it that this process needs.

        Yields
        ------
        list of Tensor
            One tensor per view, uint8 ``(m, 3, h, w)``, on the training device, before the
            augmentation on that device; positions that this process does not need may be black.
        """

    def spans(self, spans: Sequence[slice]) -> Iterator[Tensor]:
        """Yield the resized images of each range of rows, uint8 ``(m, 3, h, w)``."""


def crops_originals(recipe: Recipe) -> bool:
    """Return whether a recipe crops before any step that needs images of equal size.

    Notes
    -----
    Mirroring may come first: cropping a mirrored image and mirroring a crop have the same
    distribution.
    """
    steps = [step for step in recipe.augmentation if step != "flip"]
    return steps[:1] == ["resized-crop"]


def after_crop(recipe: Recipe) -> tuple[str, ...]:
    """Return the augmentation steps of a recipe without ``resized-crop``."""
    steps = list(recipe.augmentation)
    steps.remove("resized-crop")
    return tuple(steps)


def fits(images: int, size: tuple[int, int], free: int | None) -> bool:
    """Return whether images should be held in memory.

    Parameters
    ----------
    images
        Number of images.
    size
        Height and width in pixels.
    free
        Free memory in bytes; None if unknown.
    """
    needed = images * 3 * size[0] * size[1]
    return needed <= MOST_BYTES_IN_MEMORY and (free is None or needed <= free // 2)


class StreamedImages:
    """Labelled images that worker processes decode, a few batches ahead.

    Parameters
    ----------
    source
        The original images.
    rows
        Row of every image in the source, int64 ``(n,)``.
    labels
        Class of every image, int64 ``(n,)``, on the training device.
    resizing
        Image size of the run, and how images are resized to it.
    decoders
        The processes that decode.
    crop_scale
        Smallest and largest area of random crops, as a fraction of the original image; None: images
        are not cropped at random but resized by ``resizing``.
    seed
        Seed of the crops.

    Notes
    -----
    A crop depends only on the seed, the epoch, the row of the image and the view. It does not
    depend on the number of workers or processes, or on interruptions of training.
    """

    def __init__(
        self,
        source: ImageSource,
        rows: NDArray[np.int64],
        labels: Tensor,
        *,
        resizing: Resizing,
        decoders: Decoders,
        crop_scale: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        self._originals = Originals(source)
        self._rows = rows
        self._labels = labels
        self._device = labels.device
        self._resizing = resizing
        self._decoders = decoders
        self._scale = crop_scale
        self._seed = seed
        self._waited = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labels(self) -> Tensor:
        """Class of every image, int64 ``(n,)``, on the training device."""
        return self._labels

    @property
    def cropped(self) -> bool:
        """Whether images are already randomly cropped from their originals."""
        return self._scale is not None

    @property
    def waited(self) -> float:
        """Seconds that training waited for images in the last epoch."""
        return self._waited

    def arriving(
        self,
        batches: Sequence[Tensor],
        *,
        epoch: int,
        views: int,
        share: Callable[[int], Tensor],
    ) -> Iterator[list[Tensor]]:
        """Yield the views of each batch; see :class:`TrainingImages`.

        Raises
        ------
        UnreadableImageError
            If an image cannot be read.
        """
        self._waited, before = 0.0, self._decoders.waited
        change: Change = Prepared(self._resizing)
        if self._scale is not None:
            to, filter_ = self._resizing.size, self._resizing.way.used
            change = RandomCrops(to, self._scale, self._seed, epoch, views, filter_)
        sizes = [len(batch) for batch in batches]
        order = torch.cat(list(batches)).cpu().split(sizes)  # a single copy from the device
        places = [share(size) for size in sizes]
        wanted = [self._rows[rows[at].numpy()] for rows, at in zip(order, places, strict=True)]
        decoded = self._decoded(wanted, change)
        for size, at, pixels in zip(sizes, places, decoded, strict=True):
            self._waited = self._decoders.waited - before
            whole = pixels
            if len(at) < size:
                whole = pixels.new_zeros((len(pixels), size, *pixels.shape[2:]))
                whole[:, at.to(self._device)] = pixels
            seen = list(whole.unbind())
            yield seen if len(seen) == views else seen * views

    def spans(self, spans: Sequence[slice]) -> Iterator[Tensor]:
        """Yield the resized images of each range of rows, uint8 ``(m, 3, h, w)``.

        Raises
        ------
        UnreadableImageError
            If an image cannot be read.
        """
        for pixels in self._decoded([self._rows[at] for at in spans], Prepared(self._resizing)):
            yield pixels[0]

    def _decoded(self, batches: Sequence[NDArray[np.int64]], change: Change) -> Iterator[Tensor]:
        """Yield the images of batches of rows on the device, uint8 ``(v, m, 3, h, w)``."""
        for pixels in self._decoders.batches(self._originals, batches, change, settle=self._settle):
            views = torch.from_numpy(pixels)
            if self._device.type == "cuda":
                # From pinned memory the copy is asynchronous.
                pinned = torch.empty(views.shape, dtype=torch.uint8, pin_memory=True)
                views = pinned.copy_(views).to(self._device, non_blocking=True)
            yield views.contiguous().to(self._device)

    def _settle(self) -> None:
        """Wait until the device is idle, so that any further waiting is for images."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
