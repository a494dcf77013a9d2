"""Outliers in training: taken from a set, or made from the training images of each step.

Random numbers are derived from the seed and the number of the epoch, so that a resumed training has
the same outliers, and several processes have those of a single one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from oodcli.compute.processes import Processes
from oodcli.data.views import NOISE_SD, NOISE_WIDTH, place_tiles, reordered, whole
from oodcli.training.augment import augmented
from oodcli.training.objectives.base import OutlierObjective
from oodcli.training.recipes import Recipe
from oodcli.training.seeds import derived_seed
from oodcli.training.streaming import TrainingImages, after_crop, agreeing

TILES = 3
# Kinds of outliers that are made from training images, with descriptions that continue "every
# image is"; an extension of this tool, without a publication.
MADE: Mapping[str, str] = MappingProxyType(
    {
        "jigsaw": f"cut into {TILES}×{TILES} tiles, which are shuffled",
        "pixel-shuffle": "shuffled pixel by pixel",
        "noise": "covered by normal or uniform noise",
        "rotation": "turned by 90, 180 or 270 degrees (by 180 if it is not square)",
        "patch-mix": f"put together from {TILES}×{TILES} tiles of images of its batch",
    }
)
# Which random numbers of an epoch outliers use: those of training have smaller numbers, or none.
_AUGMENTATION, _ORDER = 101, 102


@dataclass(frozen=True, slots=True)
class OutlierShare:
    """The outliers of one step that a process computes.

    Parameters
    ----------
    pixels
        ``(m, 3, h, w)``, uint8 or float32 from 0 to 255; a single row that does not count if the
        process has none.
    shares
        Share of an ID image in each outlier, ``(m,)``; None if they contain none.
    labels
        Class of that ID image, int64 ``(m,)``; None if they contain none.
    mine
        Number of outliers that count for this process.
    images
        Number of outliers of the whole step.
    """

    pixels: Tensor
    shares: Tensor | None
    labels: Tensor | None
    mine: int
    images: int

    def targets(self, classes: int) -> Tensor:
        """Return the probability of every class for each outlier, ``(m, k)``.

        Parameters
        ----------
        classes
            Number of classes, ``k``.
        """
        uniform = torch.full(
            (len(self.pixels), classes), 1 / classes, device=self.pixels.device
        )  # (m, k)
        if self.shares is None or self.labels is None:
            return uniform
        known = torch.nn.functional.one_hot(self.labels, classes).to(uniform.dtype)
        return torch.lerp(uniform, known, self.shares[:, None])


class OutlierFeed(Protocol):
    """The outliers of one epoch, step by step."""

    generator: torch.Generator

    def next(self, arrived: Tensor, /) -> Tensor:
        """Return the augmented outliers of the next step, uint8 ``(m, 3, h, w)``.

        Parameters
        ----------
        arrived
            The ID images of the step before their augmentation, uint8 ``(n, 3, h, w)``.
        """

    def share(self, outliers: int, images: int, /) -> Tensor:
        """Return the positions of the outliers that this process computes, int64.

        Parameters
        ----------
        outliers, images
            Number of outliers and of ID images of the whole step.
        """


class Outliers(Protocol):
    """Outliers for the steps of any epoch."""

    def epoch(
        self, number: int, sizes: Sequence[int], *, device: torch.device, processes: Processes
    ) -> OutlierFeed:
        """Return the outliers of an epoch.

        Parameters
        ----------
        number
            Number of the epoch, from 1.
        sizes
            Number of ID images of every step.
        device
            The device that trains.
        processes
            The processes that train together.
        """


@dataclass(frozen=True)
class SetOutliers:
    """Outliers from a set, in random order; after the last one they begin again in another order.

    Parameters
    ----------
    images
        The set; its labels are ignored.
    recipe
        Recipe of the run.
    seed
        Seed of the run.
    """

    images: TrainingImages
    recipe: Recipe
    seed: int

    def epoch(
        self, number: int, sizes: Sequence[int], *, device: torch.device, processes: Processes
    ) -> OutlierFeed:
        """Return the outliers of an epoch; see :class:`Outliers`."""
        own = [self.recipe.outlier_batch_size or size for size in sizes]
        start = (number - 1) * sum(own)
        rows = torch.tensor(
            list(cycled_rows(len(self.images), start, start + sum(own), seed=self.seed))
        ).to(device)
        return _SetFeed(self, rows.split(own), number, device, processes)


def cycled_rows(count: int, start: int, stop: int, *, seed: int) -> Iterator[int]:
    """Yield rows of a set that is passed through again and again, each time in another order.

    Parameters
    ----------
    count
        Number of rows of the set.
    start, stop
        Positions in the endless sequence.
    seed
        Seed of the orders.
    """
    for turn in range(start // count, -(-stop // count)):
        generator = torch.Generator().manual_seed(derived_seed(seed, turn, _ORDER))
        order = torch.randperm(count, generator=generator).tolist()
        first = turn * count
        yield from order[max(start - first, 0) : stop - first]


class _SetFeed:
    def __init__(
        self,
        of: SetOutliers,
        batches: Sequence[Tensor],
        epoch: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.generator = _generator(of.seed, epoch, device)
        self._recipe = augmentation_of(of.recipe, cropped=of.images.cropped)
        self._processes = processes
        arriving = of.images.arriving(batches, epoch=epoch, views=1, share=self._own)
        self._arriving = agreeing(arriving, processes) if of.images.unread else arriving

    def next(self, _arrived: Tensor) -> Tensor:
        (pixels,) = next(self._arriving)
        return augmented(pixels, self.generator, self._recipe)

    def share(self, outliers: int, _images: int) -> Tensor:
        return self._processes.share(torch.arange(outliers))

    def _own(self, outliers: int) -> Tensor:
        mine = self.share(outliers, 0)
        return mine if len(mine) else mine.new_zeros(1)


@dataclass(frozen=True)
class MadeOutliers:
    """Outliers that are made from the ID images of the same step, before their augmentation.

    Parameters
    ----------
    kind
        How they are made, a key of :data:`MADE`.
    recipe
        Recipe of the run.
    seed
        Seed of the run.
    cropped
        Whether the ID images arrive randomly cropped.
    """

    kind: str
    recipe: Recipe
    seed: int
    cropped: bool = False

    def epoch(
        self,
        number: int,
        sizes: Sequence[int],  # noqa: ARG002
        *,
        device: torch.device,
        processes: Processes,
    ) -> OutlierFeed:
        """Return the outliers of an epoch; see :class:`Outliers`."""
        return _MadeFeed(self, number, device, processes)


class _MadeFeed:
    def __init__(
        self, of: MadeOutliers, epoch: int, device: torch.device, processes: Processes
    ) -> None:
        self.generator = _generator(of.seed, epoch, device)
        self._of = of
        self._recipe = augmentation_of(of.recipe, cropped=of.cropped)
        self._processes = processes

    def next(self, arrived: Tensor) -> Tensor:
        count = self._recipe.outlier_batch_size or len(arrived)
        at = torch.arange(count, device=arrived.device) % len(arrived)
        return augmented(
            made(self._of.kind, arrived, at, self.generator), self.generator, self._recipe
        )

    def share(self, outliers: int, images: int) -> Tensor:
        # An outlier is computed where its ID image is: other processes may not have decoded it.
        positions = torch.arange(outliers)
        return positions[
            torch.isin(positions % images, self._processes.share(torch.arange(images)))
        ]


def outlier_share(
    objective: OutlierObjective,
    feed: OutlierFeed,
    *,
    arrived: Tensor,
    seen: Tensor,
    labels: Tensor,
    processes: Processes,
) -> OutlierShare:
    """Return the outliers of a step that this process computes.

    Parameters
    ----------
    objective
        The objective, which may mix outliers with ID images.
    feed
        The outliers of the epoch.
    arrived, seen
        The ID images of the whole step before and after their augmentation.
    labels
        Their classes, int64 ``(n,)``.
    processes
        The processes that train together.
    """
    pixels, shares = objective.shown(seen, feed.next(arrived), feed.generator)
    images = len(pixels)
    known = None if shares is None else labels
    if not processes.distributed:
        return OutlierShare(pixels, shares, known, images, images)
    mine = feed.share(images, len(labels))
    # Every process runs the network on as many tensors as the others, hence a padding row.
    at = (mine if len(mine) else mine.new_zeros(1)).to(pixels.device)
    return OutlierShare(
        pixels[at],
        None if shares is None else shares[at],
        None if known is None else known[at],
        len(mine),
        images,
    )


def augmentation_of(recipe: Recipe, *, cropped: bool) -> Recipe:
    """Return the recipe with the augmentation of outliers, on the device.

    Parameters
    ----------
    recipe
        Recipe of the run.
    cropped
        Whether the images arrive randomly cropped.
    """
    # The consistency loss of AugMix is not for outliers; they may be augmented by AugMix alone.
    recipe = replace(recipe, augmentation=recipe.outlier_steps, jsd_weight=0.0)
    return replace(recipe, augmentation=after_crop(recipe)) if cropped else recipe


def made(kind: str, pixels: Tensor, at: Tensor, generator: torch.Generator) -> Tensor:
    """Make outliers from images.

    Parameters
    ----------
    kind
        A key of :data:`MADE`.
    pixels
        Images, uint8 ``(n, 3, h, w)``.
    at
        The image that each outlier is made from, int64 ``(m,)``.
    generator
        Random generator, on the device of the images.

    Returns
    -------
    Tensor
        uint8 ``(m, 3, h, w)``; pixels that belong to no tile are those of the image, so that no
        border tells outliers from images.

    Notes
    -----
    The functions are those of the pseudo-OOD images of ``ood recommend`` and NormRatio; here the
    random numbers come from a generator on the device, not from the row of each image.
    """
    m, device = len(at), pixels.device
    mine = pixels[at]
    if kind in ("jigsaw", "patch-mix"):
        orders = torch.rand(m, TILES**2, generator=generator, device=device).argsort(dim=1)
        images = torch.arange(m, device=device)[:, None].expand(m, TILES**2)
        source = mine
        if kind == "patch-mix":
            images = torch.randint(len(pixels), (m, TILES**2), generator=generator, device=device)
            orders = torch.arange(TILES**2, device=device).expand(m, TILES**2)
            source = pixels
        into = mine.clone()
        place_tiles(into, source, images, orders, tiles=TILES)
        return into
    if kind == "pixel-shuffle":
        count = mine.shape[2] * mine.shape[3]
        orders = torch.rand(m, count, generator=generator, device=device).argsort(dim=1)
        shuffled: Tensor = reordered(mine, orders)
        return shuffled.contiguous()
    if kind == "noise":
        normal = torch.randn(mine.shape, generator=generator, device=device) * NOISE_SD
        flat = (torch.rand(mine.shape, generator=generator, device=device) * 2 - 1) * NOISE_WIDTH
        is_normal = torch.rand(m, 1, 1, 1, generator=generator, device=device) < 0.5
        noisy: Tensor = whole(mine + torch.where(is_normal, normal, flat))
        return noisy.to(torch.uint8)
    turns = torch.randint(3, (m,), generator=generator, device=device)
    if mine.shape[2] != mine.shape[3]:
        return mine.rot90(2, (2, 3))
    turned = torch.stack([mine.rot90(k, (2, 3)) for k in (1, 2, 3)])  # (3, m, 3, h, w)
    return turned[turns, torch.arange(m, device=device)]


def _generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(seed, epoch, _AUGMENTATION))
