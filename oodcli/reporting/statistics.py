"""Uncertainty of the metrics: intervals, paired tests, and further values of the scores.

Intervals describe the sampling of images only: other ID and OOD images in the same numbers, the
same network. AUROC has a closed form, based on DeLong's variance; FPR95 and AUPR are bootstrapped
in :mod:`oodcli.reporting.bootstrap`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, erfc, lgamma, log, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oodcli.errors import InvalidInputError
from oodcli.reporting.binormal import placement_variance, spread_share

Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution

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
    """The rank of every image among those of the other side: DeLong's structural components.

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
    """Return the placements of ID scores among OOD scores and vice versa, with two sorts.

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
            f"scores of {sorted(sizes)} ID and OOD images are not of the same images; report them "
            "separately"
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
    placed perfectly, and is too small where another sample would have had more of them; so it is
    averaged, their number being its weight, with that of normal scores, which weighs
    ``_STEADYING`` images. Over several OOD sets all AUROCs move by the same normal quantile. An
    AUROC nearer to 0 or 1 than half an image of the smaller side stands for one that is half an
    image away.

    Coverage, for simulated normal scores, AUROC 0.6 to 0.99, sides of 50 to 1,000 images, equal
    spread or twice that of the other side: 0.93 to 0.97. Published intervals in such simulations:
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
    return mean_auroc_difference([first], [second])


def mean_auroc_difference(firsts: Sequence[Placements], seconds: Sequence[Placements]) -> Estimate:
    """Return the mean AUROC of the first method over OOD sets less that of the second.

    Parameters
    ----------
    firsts, seconds
        Placements of the same ID images against every OOD set, in the same order.

    Raises
    ------
    InvalidInputError
        If the images are not as many in both.

    Notes
    -----
    As in :func:`auroc_interval`: ID placements are averaged over the sets, which share the ID
    images; the variances of the OOD sides, which are independent samples, add up over the square
    of the number of sets.
    """
    for first, second in zip(firsts, seconds, strict=True):
        if len(first.id_side) != len(second.id_side) or len(first.ood_side) != len(second.ood_side):
            raise InvalidInputError(
                "two methods can only be compared on the same images; score both on all of them"
            )
    id_side = _mean([one.id_side - two.id_side for one, two in zip(firsts, seconds, strict=True)])
    variance = (
        _variance_of_mean(id_side)
        + sum(
            _variance_of_mean(one.ood_side - two.ood_side)
            for one, two in zip(firsts, seconds, strict=True)
        )
        / len(firsts) ** 2
    )
    return Estimate(float(np.mean(id_side)), sqrt(variance))


def _mean(rows: Sequence[NDArray[np.float32]]) -> Floats:
    return np.asarray(np.mean(rows, axis=0, dtype=np.float64))


def _variance_of_mean(values: NDArray[np.floating[Any]]) -> float:
    if len(values) < 2:
        return 0.0
    return float(np.var(values, ddof=1, dtype=np.float64)) / len(values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's correction for their number, in the given order.

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
    """Return the probability of at least this many flagged images if all judged images are ID.

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


def combined_p(p_values: Sequence[float]) -> float:
    """Return one p-value of independent tests; 1 without any.

    References
    ----------
    Fisher. "Statistical Methods for Research Workers". 4th edition, 1932, section 21.1: minus twice
    the sum of the logarithms has a chi-square distribution with two degrees of freedom per test.
    p-values that are too large at most, as those of discrete tests, make it too large at most.

    Examples
    --------
    >>> round(combined_p([0.01, 0.2]), 4)
    0.0144
    """
    from scipy.special import chdtrc

    if not p_values:
        return 1.0
    logs = -2 * sum(log(max(p, 5e-324)) for p in p_values)
    return float(chdtrc(2 * len(p_values), logs))


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
        Scores of ID images, ``(n,)``, larger = more confident.
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
    """Return the expected calibration error over bins of equal width.

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
            f"confidences from {probability.min()} to {probability.max()} are not probabilities; "
            "give those of the predicted class"
        )
    bins = np.clip(np.ceil(probability * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    gap = np.bincount(bins, probability - np.asarray(correct, dtype=bool), minlength=n_bins)
    return float(np.sum(np.abs(gap)) / len(probability))
