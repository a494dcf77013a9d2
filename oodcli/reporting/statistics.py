"""Uncertainty of the metrics: intervals, paired tests, and further values of the scores.

Intervals stand for the images alone: another draw of as many ID and OOD images, the same network.
AUROC has a closed form, from DeLong's variance; FPR95 and the two areas of precision are resampled.
Scores enter by their ranks only, so that a thousand resamples of all methods cost seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, erfc, exp, lgamma, log, sqrt
from statistics import NormalDist
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oodcli.errors import InvalidInputError
from oodcli.metrics import Convention, PrecisionArea
from oodcli.reporting.binormal import placement_variance, spread_share

Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution
RESAMPLED = ("fpr95", "aupr_in", "aupr_out")
# How finely ranks are binned: in the middle this many bins, towards both ends ever finer ones.
_MIDDLE_BINS = 400
_GROWTH = 32

# Images that the variance of normal scores counts for, beside those not placed perfectly.
_STEADYING = 30
# Normal quantiles are not moved further than this.
_FAR = 15.0
# An AUROC nearer to 0 or 1 counts as this far from it.
_TINY = 1e-12

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Placements:
    """Where every image stands among those of the other side; DeLong's structural components.

    Parameters
    ----------
    id_side
        Share of the OOD scores below the score of every ID image, ties half, ``(n_id,)``.
    ood_side
        Share of the ID scores above the score of every OOD image, ties half, ``(n_ood,)``.
    """

    id_side: NDArray[np.float32]
    ood_side: NDArray[np.float32]

    @property
    def auroc(self) -> float:
        """The mean of either side, which is AUROC."""
        return float(np.mean(self.id_side, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its standard error.

    Parameters
    ----------
    value
        The number.
    stderr
        Its standard error.
    """

    value: float
    stderr: float

    @property
    def p(self) -> float:
        """Two-sided p-value of the number being zero, by the normal distribution."""
        if self.stderr == 0:
            return 1.0 if self.value == 0 else 0.0
        return erfc(abs(self.value) / self.stderr / sqrt(2))

    def interval(self, *, low: float, high: float) -> tuple[float, float]:
        """Return the 95 % interval, cut off at ``low`` and ``high``."""
        reach = Z_95 * self.stderr
        return max(low, self.value - reach), min(high, self.value + reach)


def placements(id_scores: ArrayLike, ood_scores: ArrayLike) -> Placements:
    """Compare every ID score with all OOD scores and the other way round, from two sorts.

    Parameters
    ----------
    id_scores
        Finite scores of ID images, ``(n_id,)``, larger = more ID.
    ood_scores
        Finite scores of OOD images, ``(n_ood,)``.
    """
    id_array, ood_array = np.asarray(id_scores), np.asarray(ood_scores)
    below = _twice_below(id_array, np.sort(ood_array))
    above = 2 * len(id_array) - _twice_below(ood_array, np.sort(id_array))
    return Placements(
        (below / (2 * len(ood_array))).astype(np.float32),
        (above / (2 * len(id_array))).astype(np.float32),
    )


def _twice_below(values: NDArray[np.generic], others: NDArray[np.generic]) -> Counts:
    """Return twice the number of sorted ``others`` below every value; equal ones count once."""
    # Sorted look-ups run through the table once, which is several times faster than jumping in it.
    order = np.argsort(values)
    rising = values[order]
    twice = np.empty(len(values), dtype=np.int64)
    twice[order] = np.searchsorted(others, rising) + np.searchsorted(others, rising, side="right")
    return twice


def average(parts: Sequence[Placements]) -> Placements:
    """Return the placements of the mean AUROC over networks that scored the same images.

    Raises
    ------
    InvalidInputError
        If the images are not as many in all.
    """
    sizes = {(len(part.id_side), len(part.ood_side)) for part in parts}
    if len(sizes) != 1:
        raise InvalidInputError(
            f"scores of {sorted(sizes)} ID and OOD images are not of the same images; "
            "report them one by one"
        )
    return Placements(
        _mean([part.id_side for part in parts]).astype(np.float32),
        _mean([part.ood_side for part in parts]).astype(np.float32),
    )


def auroc_interval(parts: Sequence[Placements]) -> tuple[float, float]:
    """Return the 95 % interval of the mean AUROC over OOD sets that share their ID images.

    Parameters
    ----------
    parts
        Placements of the same ID images against each OOD set; one for a plain AUROC.

    References
    ----------
    Newcombe. "Confidence Intervals for an Effect Size Measure Based on the Mann-Whitney Statistic.
    Part 2". Statistics in Medicine 25(4), 2006, method 5: the AUROCs whose own variance reaches the
    one observed, as Wilson's interval of a share (score interval).

    DeLong, DeLong, Clarke-Pearson. "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves: A Nonparametric Approach". Biometrics 44(3), 1988: the variance
    observed.

    Notes
    -----
    DeLong's variance is that of the ID placements over ``n_id`` plus that of the OOD placements
    over ``n_ood``, each with one degree of freedom less. For several OOD sets, which are
    independent samples, ID placements are averaged over the sets first, and the OOD parts add up
    over the square of the number of sets. A side of one image has no variance and counts as known.

    Departure from Newcombe: his variance is that of exponential scores, the same for both sides.
    Here it is that of normal scores (:mod:`oodcli.reporting.binormal`), whose spreads may
    differ, times what
    DeLong's variance is of it at the AUROC observed, on either side by itself; so that with many
    images it is DeLong's, whatever the scores. Near 1 DeLong's rests on the few images that are not
    placed perfectly, and is too small where another draw would have had more of them; so it is
    averaged, their number being its weight, with that of normal scores, which weighs
    ``_STEADYING`` images. Over several OOD sets all AUROCs move by the same normal quantile. An
    AUROC nearer to 0 or 1 than half an image of the smaller side stands for one that is half an
    image away.

    Coverage, of draws of normal scores, AUROC 0.6 to 0.99, sides of 50 to 1,000 images, equal
    spread or twice that of the other side: 0.93 to 0.97. Published intervals in such draws:
    DeLong's 0.67 to 0.95, on the logit scale 0.84 to 0.98 (Qin and Hotilovac, 2008; Perme and
    Manevski, 2019), Newcombe's method 5 0.85 to 1.00. Heavy tails are not seen by 50 images: with
    scores of Student's t (3 degrees of freedom) it is 0.7 at AUROC 0.98 with 50 and 1,000 images,
    0.94 with 300 and 300.
    """
    from scipy.optimize import brentq

    curve = _ScoreCurve.of(parts)
    value = float(np.mean(_mean([part.id_side for part in parts])))
    inside = min(max(value, _TINY), 1 - _TINY)
    start = brentq(lambda shift: curve.at(shift)[0] - inside, -_FAR, _FAR)

    def beyond(shift: float) -> float:
        auroc, variance = curve.at(shift)
        return (inside - auroc) ** 2 - Z_95**2 * variance

    low, high = (
        curve.at(brentq(beyond, start, end))[0] if beyond(end) > 0 else limit
        for end, limit in ((-_FAR, 0.0), (_FAR, 1.0))
    )
    return min(low, value), max(high, value)


@dataclass(frozen=True, slots=True, eq=False)
class _ScoreCurve:
    """The variance of an AUROC if it were another one.

    Parameters
    ----------
    probits
        Normal quantile of the AUROC of every OOD set, ``(k,)``.
    shares
        Share of the variance of both sides that the ID side has, ``(k,)``.
    id_ratio
        Variance of the mean ID placement over that of one image of normal scores.
    ood_ratios
        The same for the OOD images of every set, ``(k,)``.
    """

    probits: Floats
    shares: Floats
    id_ratio: float
    ood_ratios: Floats

    @classmethod
    def of(cls, parts: Sequence[Placements]) -> "_ScoreCurve":
        """Hold DeLong's variances against those of normal scores."""
        n = len(parts[0].id_side)
        edge = 0.5 / min(n, *(len(part.ood_side) for part in parts))
        normal = NormalDist()
        probits = np.array([normal.inv_cdf(min(max(part.auroc, edge), 1 - edge)) for part in parts])
        shares = np.array([_id_share(*pair) for pair in zip(parts, probits, strict=True)])
        id_side = _mean([part.id_side for part in parts])
        id_normal = float(np.mean(placement_variance(probits, shares)))
        ood_normal = placement_variance(probits, 1 - shares)
        return cls(
            probits,
            shares,
            _ratio(id_side, id_normal),
            np.array(
                [
                    _ratio(part.ood_side, own) / len(parts) ** 2
                    for part, own in zip(parts, ood_normal, strict=True)
                ]
            ),
        )

    def at(self, shift: float) -> tuple[float, float]:
        """Return mean AUROC and variance if every normal quantile were larger by ``shift``."""
        probits = self.probits + shift
        variance = self.id_ratio * float(np.mean(placement_variance(probits, self.shares)))
        variance += float(self.ood_ratios @ placement_variance(probits, 1 - self.shares))
        return float(np.mean([erfc(-probit / sqrt(2)) / 2 for probit in probits])), variance


def _id_share(part: Placements, probit: float) -> float:
    """Return which share of the variance the ID side has, from the placements of fewer images."""
    n_id, n_ood = len(part.id_side), len(part.ood_side)
    if n_id <= n_ood:
        return spread_share(part.id_side, n_ood, probit)
    return 1 - spread_share(part.ood_side, n_id, probit)


def _ratio(side: NDArray[np.floating[Any]], normal: float) -> float:
    """Return the variance of a mean placement over that of one of normal scores."""
    if len(side) < 2:
        return 0.0
    imperfect = int(min(np.count_nonzero(side < 1), np.count_nonzero(side > 0)))
    observed = imperfect * _variance_of_mean(side) / normal
    return (observed + _STEADYING / len(side)) / (imperfect + _STEADYING)


def auroc_difference(first: Placements, second: Placements) -> Estimate:
    """Return AUROC of the first method less that of the second on the same images.

    Parameters
    ----------
    first, second
        Placements of the same images in the same order.

    Raises
    ------
    InvalidInputError
        If the images are not as many in both.

    References
    ----------
    DeLong, DeLong, Clarke-Pearson, 1988, as in :func:`auroc_interval`.

    Notes
    -----
    The variance of the image-wise differences holds the covariance of the two methods.

    Examples
    --------
    >>> one, other = (placements(scores, [0.5, 0.3]) for scores in ([0.9, 0.4], [0.6, 0.2]))
    >>> auroc_difference(one, other).value
    0.25
    """
    if len(first.id_side) != len(second.id_side) or len(first.ood_side) != len(second.ood_side):
        raise InvalidInputError(
            "two methods can only be compared on the same images; score both on all of them"
        )
    id_side = first.id_side - second.id_side
    variance = _variance_of_mean(id_side) + _variance_of_mean(first.ood_side - second.ood_side)
    return Estimate(float(np.mean(id_side, dtype=np.float64)), sqrt(variance))


def _mean(rows: Sequence[NDArray[np.float32]]) -> Floats:
    return np.asarray(np.mean(rows, axis=0, dtype=np.float64))


def _variance_of_mean(values: NDArray[np.floating[Any]]) -> float:
    if len(values) < 2:
        return 0.0
    return float(np.var(values, ddof=1, dtype=np.float64)) / len(values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many there are, in the order given.

    References
    ----------
    Holm. "A Simple Sequentially Rejective Multiple Test Procedure". Scandinavian Journal of
    Statistics 6(2), 1979.

    Notes
    -----
    The smallest of m values is multiplied by m, the next by m - 1 and so on; none becomes smaller
    than the one before it, nor larger than 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    left = len(p_values) - np.arange(len(p_values))
    raised = np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * left)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(raised, 1.0)
    return [float(value) for value in corrected]


def surplus_p(flagged: int, judged: int, *, below: int, of: int) -> float:
    """Return how likely so many flagged images are, or more, if all judged images are ID.

    Parameters
    ----------
    flagged, judged
        How many of how many judged images score below a threshold.
    below, of
        How many of how many ID images do: those that the threshold is from, which the network was
        not trained on. For the threshold that is the ``i``-th smallest of their scores ``i - 1``.

    Notes
    -----
    Fisher's exact test of the two shares, one-sided (Fisher, "The Logic of Inductive Inference",
    Journal of the Royal Statistical Society 98, 1935). The share of all ID images below the
    ``(below + 1)``-th smallest of ``of`` scores has the distribution Beta(below + 1, of - below);
    given that share the number of flagged ones is binomial; and the tail of that mixture, the
    beta-binomial one, equals Fisher's. So the uncertainty of the threshold is in it, whatever the
    distribution of scores; equal scores make it too large at most. It takes images for independent,
    which successive frames of a camera are not.

    Examples
    --------
    >>> round(surplus_p(6, 20, below=5, of=100), 4)  # 30 % where 5 % are expected
    0.0028
    """
    if flagged == 0:
        return 1.0
    lowest = below + flagged
    first = _log_choices(judged, flagged) + _log_choices(of, below)
    first -= _log_choices(judged + of, lowest)
    more = np.arange(flagged, min(judged, lowest), dtype=np.float64)
    steps = np.log((judged - more) * (lowest - more) / ((more + 1) * (of - lowest + more + 1)))
    logs = first + np.cumsum(np.append(0.0, steps))
    return min(1.0, float(np.exp(logs - logs.max()).sum() * np.exp(logs.max())))


def _log_choices(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def mean_ranks(values: ArrayLike) -> Floats:
    """Return the mean rank of every column over all rows; the smallest value of a row has rank 1.

    Parameters
    ----------
    values
        One row per data set, one column per method, ``(s, m)``; smaller is better.

    Notes
    -----
    Equal values share the mean of the ranks they take together.

    Examples
    --------
    >>> mean_ranks([[0.1, 0.2, 0.2], [0.3, 0.1, 0.2]]).tolist()
    [2.0, 1.75, 2.25]
    """
    array = np.asarray(values, dtype=np.float64)
    smaller = (array[:, None, :] < array[:, :, None]).sum(axis=2)  # (s, m)
    equal = (array[:, None, :] == array[:, :, None]).sum(axis=2)  # (s, m)
    return np.asarray(np.mean(smaller + (equal + 1) / 2, axis=0))


def threshold_at(id_scores: ArrayLike, tpr: float = 0.95) -> float:
    """Return the highest score that at least a share ``tpr`` of the ID images reach.

    Examples
    --------
    >>> threshold_at([1.0, 2.0, 3.0, 4.0], 0.75)
    2.0
    """
    array = np.sort(np.asarray(id_scores))
    # As in the metrics: 0.95 n is taken as the decimal it is written as.
    wanted = ceil(round(tpr * len(array), 9))
    return float(array[len(array) - max(wanted, 1)])


def accuracy_above(id_scores: ArrayLike, correct: ArrayLike, *, threshold: float) -> float:
    """Return the accuracy among the ID images that score at least ``threshold``.

    Parameters
    ----------
    id_scores
        Scores of ID images, ``(n,)``.
    correct
        Whether the classifier was right on each, ``(n,)``.
    threshold
        In the unit of the scores; at least one image must reach it.

    Examples
    --------
    >>> accuracy_above([1.0, 2.0, 3.0], [False, True, True], threshold=2.0)
    1.0
    """
    return float(np.mean(np.asarray(correct, dtype=bool)[np.asarray(id_scores) >= threshold]))


def aurc(id_scores: ArrayLike, correct: ArrayLike) -> float:
    """Return the area under the risk-coverage curve; 0 is best, the error rate is what chance gets.

    Parameters
    ----------
    id_scores
        Scores of ID images, ``(n,)``, larger = surer.
    correct
        Whether the classifier was right on each, ``(n,)``.

    References
    ----------
    Geifman, Uziel, El-Yaniv. "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers".
    ICLR 2019, arXiv:1805.08206.

    Notes
    -----
    The mean over images of the error rate among those that score at least as high. Images of equal
    score are accepted together, so that their order does not matter.

    Examples
    --------
    >>> round(aurc([3.0, 2.0, 1.0], [True, True, False]), 4)
    0.1111
    """
    scores = np.asarray(id_scores)
    order = np.argsort(scores)[::-1]
    falling = scores[order]
    wrong = np.cumsum(~np.asarray(correct, dtype=bool)[order])
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], np.True_))
    sizes = np.diff(ends, prepend=-1)
    return float(np.sum(sizes * wrong[ends] / (ends + 1)) / len(scores))


def calibration_error(confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15) -> float:
    """Return how far confidence is from accuracy, on average over equally wide bins.

    Parameters
    ----------
    confidence
        Probability of the predicted class, ``(n,)``, from 0 to 1.
    correct
        Whether the prediction was right, ``(n,)``.
    n_bins
        Number of bins between 0 and 1; a value on an edge belongs to the bin below.

    Raises
    ------
    InvalidInputError
        If a confidence is no probability.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger. "On Calibration of Modern Neural Networks". ICML 2017,
    arXiv:1706.04599, equation 3.

    Examples
    --------
    >>> round(calibration_error([0.9, 0.9], [True, False]), 4)
    0.4
    """
    probability = np.asarray(confidence, dtype=np.float64)
    # Probabilities summed up in single precision may be above 1 by a rounding error.
    if not np.all((probability >= 0) & (probability <= 1 + 1e-5)):
        raise InvalidInputError(
            f"confidences from {probability.min()} to {probability.max()} are no probabilities; "
            "give those of the predicted class"
        )
    bins = np.clip(np.ceil(probability * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    gap = np.bincount(bins, probability - np.asarray(correct, dtype=bool), minlength=n_bins)
    return float(np.sum(np.abs(gap)) / len(probability))


@dataclass(frozen=True, eq=False)
class Resamples:
    """Which ranks of ``n`` images were drawn when ``n`` are drawn with replacement, many times.

    Which images are drawn has nothing to do with their scores; so it is ranks that are drawn, once
    for all methods, and binned.

    Parameters
    ----------
    edges
        Ranks at which a bin ends, from 0 to ``n``, ``(k + 1,)``.
    drawn
        Number of drawn images up to that rank, of every sample, ``(k + 1, samples)``.
    """

    edges: Counts
    drawn: NDArray[np.float32]

    @classmethod
    def draw(cls, n: int, *, samples: int, seed: int, name: str) -> "Resamples":
        """Draw samples of ``n`` images.

        Parameters
        ----------
        n
            Number of images.
        samples
            Number of samples.
        seed
            Seed of all draws.
        name
            What is drawn; other names are drawn independently.
        """
        edges = rank_edges(n)
        rng = np.random.default_rng([seed, crc32(name.encode())])
        counts = rng.multinomial(n, np.diff(edges) / n, size=samples)
        return cls.of_counts(counts, edges)

    @classmethod
    def of_counts(cls, counts: Counts, edges: Counts) -> "Resamples":
        """Take how often each bin was drawn, ``(samples, k)``."""
        drawn = np.zeros((len(edges), len(counts)), dtype=np.float32)
        np.cumsum(counts.T, axis=0, out=drawn[1:])
        return cls(edges, drawn)

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.edges[-1])

    @cached_property
    def flipped(self) -> "Resamples":
        """The same samples with ranks counted from the other end."""
        return Resamples(self.n - self.edges[::-1], self.n - self.drawn[::-1])

    def up_to(self, ranks: Counts) -> NDArray[np.float32]:
        """Return how many images up to each rank were drawn, ``(len(ranks), samples)``."""
        below = self._below(ranks)
        share = self._share(ranks, below)[:, None]
        if not share.any():
            return self.drawn[below]
        start = self.drawn[below]
        step = self.drawn[below + 1]
        step -= start
        step *= share
        step += start
        return step

    def up_to_each(self, ranks: Counts) -> NDArray[np.float32]:
        """Return how many images up to a rank of its own were drawn in every sample."""
        below = self._below(ranks)
        sample = np.arange(len(ranks))
        start, end = self.drawn[below, sample], self.drawn[below + 1, sample]
        return start + self._share(ranks, below) * (end - start)

    def _below(self, ranks: Counts) -> Counts:
        """Return the edge at or below each rank that has another above it."""
        below = np.searchsorted(self.edges, ranks, side="right") - 1
        return np.minimum(below, len(self.edges) - 2)

    def _share(self, ranks: Counts, below: Counts) -> NDArray[np.float32]:
        width = self.edges[below + 1] - self.edges[below]
        return ((ranks - self.edges[below]) / width).astype(np.float32)

    def rank_of(self, count: int | NDArray[np.float32]) -> Counts:
        """Return the rank at which ``count`` images have been drawn, from 1, of every sample."""
        at = np.argmax(self.drawn >= count, axis=0)
        sample = np.arange(self.drawn.shape[1])
        before = self.drawn[at - 1, sample]
        share = (count - before) / (self.drawn[at, sample] - before)
        width = self.edges[at] - self.edges[at - 1]
        return self.edges[at - 1] + np.ceil(share * width).astype(np.int64)


def rank_edges(n: int) -> Counts:
    """Return the ranks at which bins of ``n`` ranks end, finest where metrics look closest.

    The first and last ranks stand alone, since precision moves fastest there; so do those around
    5 % and 95 %, or at least they are binned far below what a resample moves them by.
    """
    if n <= 2 * _MIDDLE_BINS:
        return np.arange(n + 1, dtype=np.int64)
    ranks = [0]
    while ranks[-1] < n / 2:
        ranks.append(ranks[-1] + max(1, min(ranks[-1] // _GROWTH, n // _MIDDLE_BINS)))
    ends = np.array(ranks[:-1], dtype=np.int64)
    spread = sqrt(n * 0.05 * 0.95)
    near = np.arange(-4 * spread, 4 * spread, max(1.0, spread / 16)).astype(np.int64)
    close = np.concatenate([round(0.05 * n) + near, n - round(0.05 * n) + near])
    every = np.concatenate([ends, n - ends, close[(close > 0) & (close < n)]])
    return np.unique(every)


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Ranks of the images that end a bin of the positives, on both sides.

    ``own_end`` and ``other_end`` count what is accepted with the image, ``own_start`` and
    ``other_start`` what is accepted before it; equal scores are accepted together.
    """

    own_end: Counts
    own_start: Counts
    other_end: Counts
    other_start: Counts


def bootstrap(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    *,
    convention: Convention,
    id_resamples: Resamples,
    ood_resamples: Resamples,
) -> Floats:
    """Return FPR95, AUPR-in and AUPR-out of every resample, ``(3, samples)``.

    Parameters
    ----------
    id_scores
        Finite scores of ID images, ``(n_id,)``, in ascending order.
    ood_scores
        Finite scores of OOD images, ``(n_ood,)``, in ascending order.
    convention
        What FPR95 and AUPR mean.
    id_resamples, ood_resamples
        Samples of the two sides, as many of each.

    References
    ----------
    Efron, Tibshirani. "An Introduction to the Bootstrap". Chapman & Hall, 1993, chapter 13.

    Notes
    -----
    ID and OOD images are drawn separately, each side as many as there are. Within a bin of ranks,
    what was drawn is spread evenly; up to 800 images, every rank has its own bin, and nothing is
    lost. Intervals: :func:`percentile_interval` for FPR95, :func:`logit_interval` for both areas.
    """
    id_array, ood_array = np.asarray(id_scores), np.asarray(ood_scores)
    falling = (id_resamples, ood_resamples)
    rising = (ood_resamples.flipped, id_resamples.flipped)
    aupr_in = _areas(id_array, ood_array, falling, area=convention.area, is_id=True)
    aupr_out = _areas(ood_array, id_array, rising, area=convention.area, is_id=False)
    if convention.positive == "id":
        rates = _rates(id_array, ood_array, falling, rule=convention.rule, is_id=True)
    else:
        rates = _rates(ood_array, id_array, rising, rule=convention.rule, is_id=False)
    return np.stack([rates, aupr_in, aupr_out])


def percentile_interval(samples: Floats) -> tuple[float, float]:
    """Return the 2.5 % and the 97.5 % point of resampled values.

    Notes
    -----
    Coverage for FPR95, of draws as in :func:`auroc_interval`: 0.87 to 0.98.
    """
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def logit_interval(value: float, samples: Floats, *, positives: int) -> tuple[float, float]:
    """Return the 95 % interval of an area on the logit scale, from the spread of resampled ones.

    Parameters
    ----------
    value
        The area of the images as they are, from 0 to 1.
    samples
        The area of every resample, ``(samples,)``.
    positives
        Number of positive images.

    References
    ----------
    Boyd, Eng, Page. "Area under the Precision-Recall Curve: Point Estimates and Confidence
    Intervals". ECML PKDD 2013: the logit interval.

    Efron, Tibshirani. "An Introduction to the Bootstrap". Chapman & Hall, 1993, chapter 6: the
    standard error.

    Notes
    -----
    Departure from Boyd et al.: the standard error is that of the logits of the resamples, which are
    kept half the smallest step of an area away from 0 and 1. An area nearer to 0 or 1 than half a
    positive image, whose resamples hardly vary, has their standard error of an area that is half an
    image away, and the interval ends at 0 or 1.

    Coverage for AUPR, of draws as in :func:`auroc_interval`: 0.93 to 0.97 with 200 and 300 images
    of equal spread (percentiles of the same resamples: 0.91 to 0.95), 0.88 to 0.98 of unequal
    spread (0.79 to 0.96), 0.88 to 1.00 where a side has 50 (0.60 to 0.95).
    """
    edge = 0.5 / positives
    inner = min(max(value, edge), 1 - edge)
    if inner == value:
        kept = np.clip(samples, edge / positives, 1 - edge / positives)
        stderr = float(np.std(np.log(kept / (1 - kept)), ddof=1))
    else:
        stderr = 1 / sqrt(positives * inner * (1 - inner))
    centre = log(inner / (1 - inner))
    low, high = (1 / (1 + exp(-centre - sign * Z_95 * stderr)) for sign in (-1, 1))
    return (0.0 if value < edge else low), (1.0 if value > 1 - edge else high)


def _places(
    own: NDArray[np.generic], other: NDArray[np.generic], ranks: Counts, *, is_id: bool
) -> _Places:
    """Look up images of given rank, counted from 1; ID from its highest score, OOD its lowest."""
    if is_id:
        at = own[len(own) - ranks]
        return _Places(
            own_end=len(own) - np.searchsorted(own, at),
            own_start=len(own) - np.searchsorted(own, at, side="right"),
            other_end=len(other) - np.searchsorted(other, at),
            other_start=len(other) - np.searchsorted(other, at, side="right"),
        )
    at = own[ranks - 1]
    return _Places(
        own_end=np.searchsorted(own, at, side="right"),
        own_start=np.searchsorted(own, at),
        other_end=np.searchsorted(other, at, side="right"),
        other_start=np.searchsorted(other, at),
    )


def _areas(
    own: NDArray[np.generic],
    other: NDArray[np.generic],
    resamples: tuple[Resamples, Resamples],
    *,
    area: PrecisionArea,
    is_id: bool,
) -> Floats:
    """Return the area under the precision-recall curve of every sample."""
    own_drawn, other_drawn = resamples
    edges = own_drawn.edges
    places = _places(own, other, edges[1:], is_id=is_id)
    height = _precision(own_drawn, other_drawn, places.own_end, places.other_end, empty=0.0)
    if area != "average_precision":
        at_zero_recall = 1.0 if area == "trapezoid_from_one" else 0.0
        height += _precision(
            own_drawn, other_drawn, places.own_start, places.other_start, empty=at_zero_recall
        )
        height /= 2
    # Precision of the images inside a bin lies on a line between those that end it and the bin
    # before; all images of a bin may also have one score, and so one precision.
    width = np.diff(edges)
    tied = places.own_start <= edges[:-1]
    before = np.where(tied, 0.0, (width - 1) / (2 * width)).astype(np.float32)[:, None]
    mass = np.diff(own_drawn.drawn, axis=0)
    total = np.einsum("kb,kb->b", mass, height * (1 - before), dtype=np.float64)
    total += np.einsum("kb,kb->b", mass[1:], height[:-1] * before[1:], dtype=np.float64)
    return np.asarray(total / own_drawn.n)


def _precision(
    own: Resamples, other: Resamples, own_ranks: Counts, other_ranks: Counts, *, empty: float
) -> NDArray[np.float32]:
    """Return the share of the positives among what is accepted, ``(len(ranks), samples)``."""
    accepted = own.up_to(own_ranks)
    total = other.up_to(other_ranks)
    total += accepted
    return np.divide(accepted, total, out=np.full_like(total, empty), where=total > 0)


def _rates(
    own: NDArray[np.generic],
    other: NDArray[np.generic],
    resamples: tuple[Resamples, Resamples],
    *,
    rule: str,
    is_id: bool,
) -> Floats:
    """Return the false-positive rate of every sample at a true-positive rate of 95 %."""
    own_drawn, other_drawn = resamples
    n = own_drawn.n
    wanted = n - min(round(0.05 * n), n - 1) if rule == "rank" else ceil(round(0.95 * n, 9))
    places = _places(own, other, own_drawn.rank_of(wanted), is_id=is_id)
    if rule == "first_ge":
        ranks = places.other_end
    elif rule == "rank":
        ranks = places.other_start
    else:
        ranks = _nearest(own, other, own_drawn, places, is_id=is_id)
    return np.asarray(other_drawn.up_to_each(ranks) / other_drawn.n, dtype=np.float64)


def _nearest(
    own: NDArray[np.generic],
    other: NDArray[np.generic],
    drawn: Resamples,
    reached: _Places,
    *,
    is_id: bool,
) -> Counts:
    """Return up to which rank the other side is accepted at the recall nearest to 95 %.

    ``reached`` is where 95 % is first reached, or passed; the recall before it may be nearer. The
    lowest threshold of that recall lies just above the next image that was drawn.
    """
    n = drawn.n
    above, below = drawn.up_to_each(reached.own_end), drawn.up_to_each(reached.own_start)
    following = drawn.rank_of(np.minimum(above + 1, n))
    after = _places(own, other, following, is_id=is_id).other_start
    accepted = np.where(above >= n, reached.other_end, after)
    return np.where(0.95 * n - below < above - 0.95 * n, reached.other_start, accepted)
