"""OpenMax: softmax with a class for the unknown, from the tails of distances to class means."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import chosen_classes
from oodcli.methods._needs import Arguments, Need
from oodcli.methods._softmax import Scale
from oodcli.methods.base import at_least
from oodcli.specs import positive

# What the authors' libmr moves the smallest distance of a tail to before it fits.
_TRANSLATION = 10_000.0
# Shapes between which the one that fits is sought; at the upper end the distribution is a step.
_SHAPES = (1e-3, 1e12)
_HALVINGS = 100
# Below this a difference of probabilities is not lost in its log-odds.
_SMALL = 0.5


@dataclass(frozen=True, slots=True)
class Weibull:
    """Weibull distributions of the largest distances, one for every class.

    Parameters
    ----------
    least
        Smallest distance of the tail, ``(k,)``.
    shape
        ``(k,)``.
    scale
        ``(k,)``.
    translation
        Where the smallest distance of the tail is moved to.
    """

    least: Tensor
    shape: Tensor
    scale: Tensor
    translation: float = _TRANSLATION

    @classmethod
    def of(cls, tails: Tensor, translation: float = _TRANSLATION) -> Self:
        """Fit by maximum likelihood.

        Parameters
        ----------
        tails
            The largest distances of every class, float64, ``(k, tail)``, NaN where there are fewer.
        translation
            Where the smallest distance of the tail is moved to.
        """
        given = ~tails.isnan()
        count = given.sum(dim=1)
        least = tails.masked_fill(~given, torch.inf).amin(dim=1)
        logs = (tails - least[:, None] + translation).log()
        largest = logs.masked_fill(~given, -torch.inf).amax(dim=1, keepdim=True)
        # Relative to the largest, so that no power overflows.
        logs = (logs - largest).masked_fill(~given, 0.0)
        mean = logs.sum(dim=1) / count
        low, high = (torch.full_like(mean, bound).log() for bound in _SHAPES)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            powers = (middle.exp()[:, None] * logs).exp() * given
            excess = (powers * logs).sum(dim=1) / powers.sum(dim=1) - mean - middle.neg().exp()
            low, high = torch.where(excess < 0, middle, low), torch.where(excess < 0, high, middle)
        shape = ((low + high) / 2).exp()
        powers = (shape[:, None] * logs).exp() * given
        scale = (largest[:, 0] + (powers.sum(dim=1) / count).log() / shape).exp()
        return cls(least, shape, scale, translation)

    def hazard(self, distances: Tensor, classes: Tensor) -> Tensor:
        """Return minus the log-probability of a larger distance in the tail of a class, ``(n,)``.

        Parameters
        ----------
        distances
            float64, ``(n,)``.
        classes
            Class of every distance, ``(n,)``.
        """
        moved = (distances - self.least[classes] + self.translation).clamp(min=0)
        return (moved / self.scale[classes]) ** self.shape[classes]

    def cdf(self, distances: Tensor, classes: Tensor) -> Tensor:
        """Return how likely a distance of the tail of a class is no larger, ``(n,)``; see above."""
        return -(-self.hazard(distances, classes)).expm1()


@dataclass(frozen=True, slots=True)
class OpenMax:
    """Probability of the most likely known class less that of the unknown, as log-odds.

    Let ``w_i`` be the probability, under a Weibull distribution of the ``tail`` largest distances
    of training logits of a class to their mean, that a distance is no larger than that of the
    logits to the mean of the class with the ``i``-th largest logit. For ``i ≤ alpha`` the share
    ``w_i (alpha + 1 - i) / alpha`` of that logit is moved to a new logit for the unknown; after a
    softmax over all, the score is ``log((1 + d) / (1 - d))`` with ``d = max_c P_c - P_unknown``,
    which ranks images as ``d`` does.

    Parameters
    ----------
    means
        Mean of the logits of every class, float64, ``(k, m)``; see ``basis``.
    present
        Whether a class has a mean, ``(k,)``.
    tails
        The distributions of distances.
    basis
        Orthonormal directions of the last layer's outputs, ``(k, m)``, if there are more classes
        than features: distances are the same in these ``m`` coordinates.
    tail
        Number of distances that a distribution is fitted to.
    alpha
        Number of logits that are revised; no more than there are.
    scale
        ``log-odds``, or ``probability`` for ``d`` itself, float64.

    References
    ----------
    Bendale, Boult. "Towards Open Set Deep Networks". CVPR 2016, arXiv:1511.06233, algorithms 1
    and 2.

    Notes
    -----
    Weights of ranks, ``(alpha + 1 - i) / alpha``, are those of the authors' code; it has ``alpha``
    10 and a mixture of Euclidean distance and cosine. The Euclidean distance, ``tail`` 20 and
    ``alpha`` 3 are OpenOOD's. Means and tails are of the training images that are classified
    correctly, as in the paper. The paper rejects an image if the unknown is the likeliest, or if
    nothing is likely; the difference of the two probabilities orders images by both. An image is
    wholly unknown (``w = 1``) to a class without correctly classified training images, and such a
    class is excluded from ``max_c``.

    The fit is libmr's: distances are moved so that the smallest of a tail is at ``translation``,
    and shape and scale are the likeliest for them. The libmr that comes with the authors' code, and
    pytorch-ood, move it to 10,000; libmr since 2017, which OpenOOD calls, to 1. On a CIFAR-10
    ResNet-18 this changes AUROC by up to 0.6 points, on EfficientNet-Lite0 by 1.8. With either,
    probabilities of libmr 0.1.9 and of this class differ by at most 1.3e-5, on that network and on
    EfficientNet-Lite0, whose AUROC agree to 0.001 points: libmr ends its search for the shape at
    1e-6. A tail of one distance, or of equal ones, has no best shape: libmr returns an error code
    in place of a probability, and here it is a step.

    A class needs more images than its tail. With two or three, which are near a mean of their own,
    61 % of the photographs and all textures lie beyond the tail of the likeliest class on
    EfficientNet-Lite0. Then ``w = 1``, and the larger the logit that is moved to the unknown, the
    lower the score (rank correlation -0.94): AUROC of 1,000 photographs against 400 textures is 38
    by libmr as here, and with ``w = 1`` everywhere 16. With 14 images a class and a tail of 5 it
    is 89, of 10 it is 85, again by both.

    The difference of probabilities comes near 1 and -1 for large logits, and ties in float64:
    ``scale=probability`` gives that. Its log-odds keep distinct logits distinct.
    """

    means: Tensor
    present: Tensor
    tails: Weibull
    basis: Tensor | None
    tail: int
    alpha: int
    scale: Scale = "log-odds"

    @classmethod
    def fit(
        cls,
        reference: Reference,
        *,
        tail: int = 20,
        alpha: int = 3,
        translation: float = _TRANSLATION,
        scale: Scale = "log-odds",
    ) -> Self:
        """Fit means of logits, and the distribution of distances to them.

        Parameters
        ----------
        reference
            Has the training images, their labels and the last layer.
        tail
            Number of largest distances of a class that a distribution is fitted to.
        alpha
            Number of logits that are revised.
        translation
            What distances are moved by before the fit: 10,000 as the authors, 1 as newer libmr.
        scale
            How the difference of probabilities is written: ``probability`` for itself.

        Raises
        ------
        InvalidInputError
            If a tail or alpha is less than 1, or the translation is not positive.
        UndefinedMethodError
            If no training image is classified correctly.
        """
        at_least("openmax:tail", tail, 1)
        at_least("openmax:alpha", alpha, 1)
        basis, means, counts = _logit_means(reference)
        tails = Weibull.of(
            _largest(reference, means, basis, tail),
            float(positive("openmax:translation", translation)),
        )
        return cls(means, counts > 0, tails, basis, tail, alpha, scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds of the difference of probabilities, or itself, float64, ``(n,)``."""
        revised, unknown = self._revised(batch)
        known, best = revised.masked_fill(~self.present, -torch.inf).max(dim=1, keepdim=True)
        total = torch.cat([revised, unknown], dim=1).logsumexp(dim=1, keepdim=True)
        difference = (known - total).exp() - (unknown - total).exp()
        if self.scale == "probability":
            return difference[:, 0]
        # (1 + d) / (1 - d) with all probabilities but one on both sides: nothing is subtracted.
        above, under = (
            revised.scatter(1, best, one + math.log(2)).logsumexp(dim=1, keepdim=True)
            for one in (known, unknown)
        )
        near_zero = difference.abs() < _SMALL
        return torch.where(near_zero, 2 * difference.atanh(), above - under)[:, 0]

    def _revised(self, batch: Activations) -> tuple[Tensor, Tensor]:
        """Return the revised logits ``(n, k)``, and that of the unknown ``(n, 1)``, float64."""
        points = _coordinates(batch.logits, self.basis)
        logits = batch.logits.double()
        alpha = min(self.alpha, logits.shape[1])
        top, classes = logits.topk(alpha, dim=1)
        left, unknown = [], torch.zeros_like(top[:, :1])
        for rank in range(alpha):
            chosen, weight = classes[:, rank], (alpha - rank) / alpha
            distances = (points - self.means[chosen]).norm(dim=1)
            hazard = self.tails.hazard(distances, chosen).where(self.present[chosen], torch.inf)
            # 1 - weight · w, without rounding where w is near 1.
            left.append((1 - weight + weight * (-hazard).exp()) * top[:, rank])
            unknown = unknown - (weight * (-hazard).expm1() * top[:, rank])[:, None]
        return logits.scatter(1, classes, torch.stack(left, dim=1)), unknown


def _logit_means(reference: Reference) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the basis, the means and the counts of images of every class, made once."""
    basis = reference.once("logit basis", lambda: _basis(reference.head))
    return basis, *reference.once("logit means", lambda: _means(reference, basis))


def _all_tail(reference: Reference, arguments: Arguments) -> str | None:
    tail = arguments["tail"]
    assert isinstance(tail, int)  # its type and its default are
    counts = _logit_means(reference)[2]
    images, classes = int(counts.sum()), int((counts > 0).sum())
    if images > tail * classes:
        return None
    return f"there are {images / classes:.3g} (tail {tail})"


BEYOND_TAIL = Need(
    "more correctly classified training images per class than the tail of their distances has",
    _all_tail,
    "choose a shorter one with openmax:tail=N, or train on more images",
)


def _basis(head: Head) -> Tensor | None:
    classes, width = head.weight.shape
    if classes <= width:
        return None
    return torch.linalg.qr(head.weight.double()).Q  # (k, d)


def _coordinates(logits: Tensor, basis: Tensor | None) -> Tensor:
    wide = logits.double()
    return wide if basis is None else wide @ basis


def _means(reference: Reference, basis: Tensor | None) -> tuple[Tensor, Tensor]:
    classes, width = reference.head.weight.shape
    device = reference.head.weight.device
    # One row more than classes, for the images that are classified wrongly.
    sums = torch.zeros(classes + 1, min(classes, width), dtype=torch.float64, device=device)
    counts = torch.zeros(classes + 1, dtype=torch.int64, device=device)
    for chunk, chosen in chosen_classes(reference, "hits"):
        counts += torch.bincount(chosen, minlength=classes + 1)
        sums.index_add_(0, chosen, _coordinates(chunk.logits, basis))
    counts = counts[:classes]
    if int(counts.sum()) == 0:
        raise UndefinedMethodError(
            "openmax is not defined if no training image is classified correctly: none of "
            f"{len(reference.train):,} is; use a method without class means"
        )
    return sums[:classes] / counts.clamp(min=1)[:, None], counts


def _largest(reference: Reference, means: Tensor, basis: Tensor | None, tail: int) -> Tensor:
    """Return the largest distances to the mean of every class, ``(k, tail)``, NaN where fewer."""
    classes = len(means)
    distances, of = [], []
    for chunk, chosen in chosen_classes(reference, "hits"):
        hit = chosen < classes
        points = _coordinates(chunk.logits[hit], basis)
        distances.append((points - means[chosen[hit]]).norm(dim=1))
        of.append(chosen[hit])
    values, order = torch.cat(distances).sort(descending=True)
    # By class, and within a class still from the largest.
    chosen, by_class = torch.cat(of)[order].sort(stable=True)
    values = values[by_class]
    counts = torch.bincount(chosen, minlength=classes)
    first = counts.cumsum(dim=0) - counts
    place = torch.arange(len(chosen), device=chosen.device) - first[chosen]
    kept = place < tail
    largest = values.new_full((classes, tail), torch.nan)
    largest[chosen[kept], place[kept]] = values[kept]
    return largest
