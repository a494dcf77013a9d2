"""WeiPer: how unusual the values of a feature, and of its random class projections, are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.compute.products import product
from oodcli.errors import UndefinedMethodError
from oodcli.methods.base import at_least
from oodcli.specs import positive

SEED = 0
# Projections that are held at a time, 4 MB, and images that they are of, at most.
HELD, HELD_ROWS = 2**20, 1024
# Perturbed logits of training images that their density is taken from, at most: with 100
# perturbations, those of 50,000 images of 100 classes.
MAX_VALUES = 2**29
# Added to every bin of a density before logarithms are taken.
FEATURE_FLOOR, PROJECTION_FLOOR = 0.01, 0.025
# Added to the width of all bins together, so that it is never 0.
WIDENED = 1e-8


@dataclass(frozen=True, slots=True)
class Histograms:
    """Densities of training values on bins of equal width, as a mean over images.

    Parameters
    ----------
    features
        Density of the feature's values, ``(bins,)``.
    projections
        Density of the perturbed logits, ``(bins,)``.
    feature_range
        Smallest and largest training feature, which the bins cover.
    projection_range
        Smallest and largest perturbed logit of a training image.
    """

    features: Tensor
    projections: Tensor
    feature_range: tuple[float, float]
    projection_range: tuple[float, float]

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.features)


@dataclass(frozen=True, slots=True)
class WeiPer:
    """Distance of an image's densities from those of training, and MSP of perturbed logits.

    ``-(D(q_f, q) + λ₁ D(q̃_f, q̃) - λ₂ MSP)``. The last layer is perturbed ``repeats`` times: to the
    weight of each class is added a random vector of ``distance`` times its length, which gives
    ``repeats · k`` logits. ``q`` is the histogram of the values of the feature, ``q̃`` that of the
    perturbed logits, both smoothed; ``q_f`` and ``q̃_f`` are the means of the histograms of the
    training images. ``D(p, q) = Σ (p - q)(log p - log q)`` is the symmetric KL divergence, and MSP
    the largest softmax value of each perturbed layer, averaged over the layers.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    noise
        Random vectors of the lengths of the weights, ``(repeats, k, d)``.
    trained
        Densities of the training images.
    distance
        Length of a perturbation over that of the weight.
    lambda_1
        Weight of the projections' divergence, ``λ₁``.
    lambda_2
        Weight of MSP, ``λ₂``.
    smoothing
        Bins that a density of the feature is averaged over.
    smoothing_perturbed
        The same for the perturbed logits.

    References
    ----------
    Granz, Heurich, Landgraf. "WeiPer: OOD Detection using Weight Perturbations of Class
    Projections". NeurIPS 2024, arXiv:2405.17164 (WeiPer+KLD).

    Notes
    -----
    Written from the authors' code and its constants. As there, only the image's densities are
    smoothed, the mean training density is not, and the bias of the layer is kept. Values beyond the
    training range fall into no bin.

    The defaults are those the authors found for CIFAR-10. For CIFAR-100: distance=2.4,
    lambda_1=0.1, lambda_2=1, smoothing_perturbed=40. For ImageNet-1K: distance=2.4, lambda_2=0.25,
    smoothing=40.

    The random vectors are drawn from a fixed seed; the authors draw anew each time. They take
    ``repeats`` times the memory of the last layer, and scoring an image takes that many times the
    cost of it. Where the training images have more than 2^29 perturbed logits (at 100 repeats: more
    than 53,687 images of 100 classes, or 5,368 of 1,000), their density and range are those of as
    many images as have no more, evenly spread; the authors take all.
    """

    head: Head
    noise: Tensor
    trained: Histograms
    distance: float = 1.8
    lambda_1: float = 2.5
    lambda_2: float = 0.1
    smoothing: int = 4
    smoothing_perturbed: int = 15

    @classmethod
    def fit(
        cls,
        reference: Reference,
        *,
        repeats: int = 100,
        distance: float = 1.8,
        bins: int = 100,
        lambda_1: float = 2.5,
        lambda_2: float = 0.1,
        smoothing: int = 4,
        smoothing_perturbed: int = 15,
    ) -> Self:
        """Perturb the last layer, and average the densities of the training images.

        Parameters
        ----------
        reference
            The training images.
        repeats
            How many times the last layer is perturbed.
        distance
            Length of a perturbation over that of the weight.
        bins
            Bins of a density.
        lambda_1
            Weight of the divergence of the perturbed logits.
        lambda_2
            Weight of the mean MSP of the perturbed layers.
        smoothing
            Bins that a density of the feature is averaged over.
        smoothing_perturbed
            Bins that a density of the perturbed logits is averaged over.

        Raises
        ------
        InvalidInputError
            If one of them is not positive, or ``bins`` less than 2.
        UndefinedMethodError
            If all training features, or all perturbed logits, are the same.
        """
        at_least("weiper:repeats", repeats, 1)
        at_least("weiper:bins", bins, 2)
        positive("weiper:distance", distance)
        noise = reference.once(("weiper noise", repeats), lambda: _noise(reference.head, repeats))
        ranges = reference.once(
            ("weiper ranges", repeats, distance), lambda: _ranges(reference, noise, distance)
        )
        _check_spread(ranges)
        trained = reference.once(
            ("weiper densities", repeats, distance, bins),
            lambda: _trained(reference, noise, distance, bins, ranges),
        )
        return cls(
            reference.head,
            noise,
            trained,
            distance,
            positive("weiper:lambda_1", lambda_1),
            positive("weiper:lambda_2", lambda_2),
            at_least("weiper:smoothing", smoothing, 1),
            at_least("weiper:smoothing_perturbed", smoothing_perturbed, 1),
        )

    def score(self, batch: Activations) -> Tensor:
        """Return the negative divergence plus MSP, ``(n,)``."""
        return self.score_all([self], batch)[0]

    @staticmethod
    def score_all(detectors: Sequence["WeiPer"], batch: Activations) -> Sequence[Tensor]:
        """Return the scores of several settings; those of one distance share their projections."""
        # Settings that differ in weights or smoothing alone share their densities too.
        made: dict[tuple[object, ...], Tensor] = {}
        scores = []
        for each in detectors:
            scale = (id(each.noise), each.distance)
            bins = each.trained.bins
            feature_key = ("features", bins, each.smoothing)
            if feature_key not in made:
                found = _densities(batch.features, each.trained.feature_range, bins)
                made[feature_key] = _divergence(
                    each.trained.features, found, each.smoothing, FEATURE_FLOOR
                )
            if (*scale, bins) not in made:
                made[(*scale, bins)], made[scale] = _observe(each, batch)
            projection_key = (*scale, bins, each.smoothing_perturbed)
            if projection_key not in made:
                made[projection_key] = _divergence(
                    each.trained.projections,
                    made[(*scale, bins)],
                    each.smoothing_perturbed,
                    PROJECTION_FLOOR,
                )
            divergence = made[feature_key] + each.lambda_1 * made[projection_key]
            scores.append(each.lambda_2 * made[scale] - divergence)
        return scores


def _noise(head: Head, repeats: int) -> Tensor:
    """Draw vectors of random direction, as long as the weights, ``(repeats, k, d)``."""
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(repeats, *head.weight.shape, generator=generator)
    noise /= noise.norm(dim=2, keepdim=True)
    return noise.to(head.weight).mul_(head.weight.norm(dim=1)[:, None])  # in place: it is large


def _projections(
    features: Tensor, logits: Tensor, noise: Tensor, distance: float
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some images at a time and some of their perturbed logits, ``(n, repeats, k)``.

    They are overwritten when the next are requested.
    """
    repeats, classes, width = noise.shape
    most = max(1, min(HELD_ROWS, HELD // classes))
    for start in range(0, len(features), most):
        rows = slice(start, min(start + most, len(features)))
        count = rows.stop - start
        together = max(1, HELD // (count * classes))
        buffer = features.new_empty(count * together * classes)
        for first in range(0, repeats, together):
            some = noise[first : first + together].reshape(-1, width)  # (repeats * k, d)
            place = buffer[: count * len(some)].view(count, len(some))
            added = product(features[rows], some, out=place).view(count, -1, classes)
            yield rows, added.mul_(distance).add_(logits[rows, None])


def _spread(reference: Reference, noise: Tensor) -> Iterator[tuple[Activations, Tensor]]:
    """Yield all training images with the rows of those whose projections count.

    As many as :data:`MAX_VALUES` allows, evenly spread over the training images.
    """
    total = len(reference.train)
    count = min(total, max(1, MAX_VALUES // (noise.shape[0] * noise.shape[1])))
    chosen = torch.arange(count) * total // count
    first = 0
    for chunk in reference.train.chunks():
        rows = chosen[(chosen >= first) & (chosen < first + len(chunk))] - first
        first += len(chunk)
        yield chunk, rows.to(chunk.features.device)


def _some(batch: Activations, rows: Tensor) -> Activations:
    return batch if len(rows) == len(batch) else batch.map(lambda values: values[rows])


def _ranges(
    reference: Reference, noise: Tensor, distance: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the smallest and largest training feature, and the same of the perturbed logits."""
    features: list[Tensor] = []
    projections: list[Tensor] = []
    for chunk, rows in _spread(reference, noise):
        features += chunk.features.aminmax()
        if len(rows):
            some = _some(chunk, rows)
            for _, found in _projections(some.features, some.logits, noise, distance):
                projections += found.aminmax()
    low, high = torch.stack(features).aminmax()
    least, most = torch.stack(projections).aminmax()
    return (float(low), float(high)), (float(least), float(most))


def _check_spread(ranges: tuple[tuple[float, float], tuple[float, float]]) -> None:
    for what, (low, high) in zip(("features", "perturbed logits"), ranges, strict=True):
        if low >= high:
            raise UndefinedMethodError(
                f"weiper is not defined here: all {what} of the training images are {low:.3g}, and "
                "have no density; use another method"
            )


def _trained(
    reference: Reference,
    noise: Tensor,
    distance: float,
    bins: int,
    ranges: tuple[tuple[float, float], tuple[float, float]],
) -> Histograms:
    """Average the densities of the training images."""
    counts = torch.zeros(2, bins, dtype=torch.float64, device=noise.device)
    images, projected = len(reference.train), 0
    for chunk, rows in _spread(reference, noise):
        for features in chunk.features.split(HELD_ROWS):
            counts[0] += _counts(features, ranges[0], bins).sum(dim=0)
        if len(rows):
            projected += len(rows)
            some = _some(chunk, rows)
            for _, found in _projections(some.features, some.logits, noise, distance):
                counts[1] += _counts(found.flatten(1), ranges[1], bins).sum(dim=0)
    repeats, classes, width = noise.shape
    features, projections = (
        counts[0] / (images * width),
        counts[1] / (projected * repeats * classes),
    )
    return Histograms(features, projections, *ranges)


def _observe(detector: WeiPer, batch: Activations) -> tuple[Tensor, Tensor]:
    """Return the densities of the perturbed logits ``(n, bins)`` and their mean MSP ``(n,)``."""
    noise, trained = detector.noise, detector.trained
    counts = noise.new_zeros(len(batch), trained.bins, dtype=torch.float64)
    msp = noise.new_zeros(len(batch), dtype=torch.float64)
    for rows, found in _projections(batch.features, batch.logits, noise, detector.distance):
        counts[rows] += _counts(found.flatten(1), trained.projection_range, trained.bins)
        # The softmax of the largest is 1 / Σ exp(z - max z): its own term is 1, and small ones
        # beside it keep their digits in a sum in float64.
        below = found.sub_(found.amax(dim=2, keepdim=True)).exp_()
        msp[rows] += below.sum(dim=2, dtype=torch.float64).reciprocal_().sum(dim=1)
    return counts / (noise.shape[0] * noise.shape[1]), msp / len(noise)


def _densities(values: Tensor, within: tuple[float, float], bins: int) -> Tensor:
    """Return for every row the share of its values in each bin, float64, ``(n, bins)``."""
    counts = [_counts(rows, within, bins) for rows in values.split(HELD_ROWS)]
    return torch.cat(counts).double() / values.shape[1]


def _counts(values: Tensor, within: tuple[float, float], bins: int) -> Tensor:
    """Return for every row how many of its values are in each bin, int64, ``(n, bins)``.

    Parameters
    ----------
    values
        ``(n, m)``.
    within
        Where the first bin begins and the last one ends.
    bins
        Number of bins.
    """
    low, high = within
    width = (high - low + WIDENED) / bins
    # What is not a number falls outside too; the logits then make the score not a number.
    places = (values - low).div_(width).floor_().nan_to_num_(nan=-1.0).clamp_(-1, bins)
    # Every row counts into bins of its own; the outer two are for what lies outside.
    own = torch.arange(len(values), device=values.device)[:, None] * (bins + 2) + 1
    counts = torch.bincount(places.long().add_(own).flatten(), minlength=len(values) * (bins + 2))
    return counts.view(len(values), bins + 2)[:, 1:-1]


def _divergence(trained: Tensor, densities: Tensor, smoothing: int, floor: float) -> Tensor:
    """Return the symmetric KL divergence of smoothed densities from the training density, ``(n,)``.

    Parameters
    ----------
    trained
        ``(bins,)``.
    densities
        ``(n, bins)``.
    smoothing
        Bins in the moving average; beyond the ends the outer bins are repeated.
    floor
        Added to every bin.
    """
    bins = len(trained)
    places = torch.arange(bins, device=trained.device)
    average = torch.zeros(bins, bins, dtype=torch.float64, device=trained.device)
    for shift in range(-((smoothing - 1) // 2), smoothing // 2 + 1):
        average[(places + shift).clamp(0, bins - 1), places] += 1 / smoothing
    wanted = trained + floor
    found = densities @ average + floor
    wanted, found = wanted / wanted.sum(), found / found.sum(dim=1, keepdim=True)
    return ((wanted - found) * (wanted.log() - found.log())).sum(dim=1)
