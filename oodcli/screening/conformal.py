"""Conformal p-values: how extreme a score is among the scores of ID images."""

from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray


def conformal_p_values(id_scores: NDArray[np.float64], scores: ArrayLike) -> NDArray[np.float64]:
    """Return the conformal p-value of every score, float64 ``(m,)``; small = unlike ID images.

    Parameters
    ----------
    id_scores
        Scores of ID images that the network was not trained on (the calibration set), ascending,
        ``(n,)``; larger = more in-distribution.
    scores
        Scores of new images, ``(m,)``.

    References
    ----------
    Vovk, Gammerman, Shafer. "Algorithmic Learning in a Random World". Springer, 2005, equation 2.3.

    Bates, Candès, Lei, Romano, Sesia. "Testing for Outliers with Conformal p-values". The Annals of
    Statistics 51(1), 2023, arXiv:2104.08279, equation 1.

    Notes
    -----
    ``p = (1 + #{ID scores <= s}) / (n + 1)``: a multiple of ``1 / (n + 1)``. For a new ID image,
    exchangeable with the calibration images, ``P(p <= t) <= t`` for every ``t``, over the draw of
    both. Equal scores count as smaller, so that ties make p-values larger, never too small.
    The p-values of several images share the calibration set and are therefore dependent; given the
    calibration set, ``P(p <= t)`` varies around ``t`` with a standard deviation of about
    ``sqrt(t (1 - t) / n)``.

    Examples
    --------
    >>> conformal_p_values(np.array([1.0, 2.0, 3.0]), [0.0, 2.0, 9.0]).tolist()
    [0.25, 0.75, 1.0]
    """
    below = np.searchsorted(id_scores, np.asarray(scores, dtype=np.float64), side="right")
    return (1 + below) / (len(id_scores) + 1)


class PValueCounts:
    """How often every p-value occurs: all that the Benjamini-Hochberg procedure needs.

    Conformal p-values of ``n`` ID images are multiples of ``1 / (n + 1)``, so that memory depends
    on ``n``, not on the number of images.
    """

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}

    @property
    def total(self) -> int:
        """Number of p-values."""
        return sum(self._counts.values())

    def add(self, p_values: ArrayLike) -> None:
        """Count p-values, ``(m,)``; NaN is skipped."""
        array = np.asarray(p_values, dtype=np.float64)
        for value, count in zip(
            *np.unique(array[~np.isnan(array)], return_counts=True), strict=True
        ):
            self._counts[float(value)] = self._counts.get(float(value), 0) + int(count)

    def at_most(self, cutoff: float | None) -> int:
        """Return the number of p-values of at most ``cutoff``; 0 if it is None."""
        if cutoff is None:
            return 0
        return sum(count for value, count in self._counts.items() if value <= cutoff)

    def cutoff(self, rate: float) -> float | None:
        """Return the largest p-value of a discovery at a false discovery rate; None without one.

        References
        ----------
        Benjamini, Hochberg. "Controlling the False Discovery Rate: A Practical and Powerful
        Approach to Multiple Testing". Journal of the Royal Statistical Society B 57(1), 1995,
        procedure (1): of ``m`` ordered p-values, the largest ``p_(k) <= k rate / m``.

        Bates et al., 2023, as in :func:`conformal_p_values`, theorem 2 and corollary 1: conformal
        p-values that share a calibration set are positively dependent (PRDS), so that the procedure
        keeps its rate, over the draw of the calibration set and of the new images.

        Notes
        -----
        The rate holds on average over calibration sets. For one calibration set the expected share
        of false discoveries varies around it, the more the smaller the set is; a guarantee for the
        set at hand needs corrected p-values (Bates et al., section 3), which are not used here. ID
        images must be independent of each other and drawn like the calibration images.

        p-values on the boundary are compared as fractions.
        """
        wanted = Fraction(str(rate))
        total = self.total
        found, rank = None, 0
        for value in sorted(self._counts):
            rank += self._counts[value]
            difference = value * total - rate * rank
            if abs(difference) <= 1e-9 * value * total:
                # A p-value k / (n + 1) is the nearest float of that fraction.
                exact = Fraction(value).limit_denominator(10**7)
                difference = float(exact * total - wanted * rank)
            if difference <= 0:
                found = value
        return found

    @property
    def simes(self) -> float:
        """p-value of the hypothesis that all images are ID; 1 without images.

        References
        ----------
        Simes. "An Improved Bonferroni Procedure for Multiple Tests of Significance". Biometrika
        73(3), 1986: ``min m p_(k) / k``, the smallest false discovery rate with a discovery. It is
        valid under the same positive dependence (Sarkar, The Annals of Statistics 26(2), 1998).
        """
        total, rank, smallest = self.total, 0, 1.0
        for value in sorted(self._counts):
            rank += self._counts[value]
            smallest = min(smallest, value * total / rank)
        return smallest
