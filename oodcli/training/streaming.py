"""Training images that are decoded on the fly, for data sets that do not fit in memory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.compute.processes import Processes
from oodcli.data.decoding.crops import RandomCrops
from oodcli.data.decoding.drafts import drafted
from oodcli.data.decoding.gathering import Gathering
from oodcli.data.decoding.random_access import (
    AsStored,
    Both,
    Change,
    Decoders,
    Originals,
    Prepared,
)
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.decoding.shards import StoredPixels
from oodcli.errors import UnreadableImageError
from oodcli.images import ImageSource
from oodcli.training.recipes import Recipe

# Larger data sets are streamed, and so are those that need more than half of the free memory.
MAX_BYTES_IN_MEMORY = 8 * 1024**3


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

    @property
    def unread(self) -> bool:
        """Whether this process has not yet read all images once; some may be unreadable."""

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
    return needed <= MAX_BYTES_IN_MEMORY and (free is None or needed <= free // 2)


def agreeing(arriving: Iterator[list[Tensor]], processes: Processes) -> Iterator[list[Tensor]]:
    """Yield the images of each batch; every process reports the same unreadable image.

    Parameters
    ----------
    arriving
        The images, from :meth:`TrainingImages.arriving`; equally many batches in every process.
    processes
        The processes that train together.

    Raises
    ------
    UnreadableImageError
        If an image of any process cannot be read.
    """
    if not processes.distributed:
        yield from arriving
        return
    while True:
        seen, bad = None, None
        try:
            seen = next(arriving, None)
        except UnreadableImageError as error:
            bad = (error.where, error.reason)
        bad = processes.first_of(bad)
        if bad is not None:
            raise UnreadableImageError(*bad)
        if seen is None:
            return
        yield seen


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
    stored
        Returns the prepared images, if their pixels are stored; called when they are needed.
    gathering
        Begins to gather the prepared images while they are decoded for the first epoch; returns
        None if that is not needed.

    Notes
    -----
    Without random crops, prepared images are decoded for the first epoch, and then read from the
    store, if they are stored. A crop depends only on the seed, the epoch, the row of the image and
    the view. It does not depend on the number of workers or processes, or on interruptions of
    training.
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
        stored: Callable[[], StoredPixels | None] = lambda: None,
        gathering: Callable[[], Gathering | None] = lambda: None,
    ) -> None:
        self._originals = Originals(drafted(source, resizing))
        self._rows = rows
        self._labels = labels
        self._device = labels.device
        self._resizing = resizing
        self._decoders = decoders
        self._scale = crop_scale
        self._seed = seed
        self._waited = 0.0
        self._find_stored = stored
        self._stored: Originals | None = None
        self._gathering = gathering
        self._read = False

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

    @property
    def unread(self) -> bool:
        """Whether this process has not yet read all images once."""
        return not self._read

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
        sizes = [len(batch) for batch in batches]
        order = torch.cat(list(batches)).cpu().split(sizes)  # a single copy from the device
        places = [share(size) for size in sizes]
        wanted = [self._rows[rows[at].numpy()] for rows, at in zip(order, places, strict=True)]
        for size, at, decoded in zip(sizes, places, self._epoch(wanted, epoch, views), strict=True):
            pixels = self._on_device(decoded)
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
        for pixels in self._prepared([self._rows[at] for at in spans]):
            yield self._on_device(pixels)[0]

    def _epoch(
        self, batches: Sequence[NDArray[np.int64]], epoch: int, views: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the images of batches of rows for an epoch, uint8 ``(v, m, 3, h, w)``.

        The images of the first epoch are gathered, and stored before the last batch is yielded.
        """
        gathering = None if self._read else self._gathering()
        if self._scale is None:
            decoded = self._prepared(batches)
        else:
            to, filter_ = self._resizing.size, self._resizing.way.used
            crops = RandomCrops(to, self._scale, self._seed, epoch, views, filter_)
            both = Both(crops, Prepared(self._resizing))
            decoded = self._decoded(batches, crops if gathering is None else both)
        with gathering or contextlib.nullcontext():
            for number, (rows, pixels) in enumerate(zip(batches, decoded, strict=True), start=1):
                last = number == len(batches)
                if gathering is not None:
                    gathering.add(rows, pixels[-1])
                    if last:
                        gathering.store()
                self._read = self._read or last
                yield pixels if gathering is None or self._scale is None else pixels[:-1]

    def _prepared(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the prepared images of batches of rows, from the store if they are there."""
        if self._stored is None:
            pixels = self._find_stored()
            self._stored = None if pixels is None else Originals(pixels)
        if self._stored is None:
            return self._decoded(batches, Prepared(self._resizing))
        return self._decoders.batches(self._stored, batches, AsStored(), settle=self._settle)

    def _decoded(
        self, batches: Sequence[NDArray[np.int64]], change: Change
    ) -> Iterator[NDArray[np.uint8]]:
        return self._decoders.batches(self._originals, batches, change, settle=self._settle)

    def _on_device(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return images on the device, uint8 ``(v, m, 3, h, w)``."""
        views = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            # From pinned memory the copy is asynchronous.
            pinned = torch.empty(views.shape, dtype=torch.uint8, pin_memory=True)
            views = pinned.copy_(views).to(self._device, non_blocking=True)
        return views.contiguous().to(self._device)

    def _settle(self) -> None:
        """Wait until the device is idle, so that any further waiting is for images."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
