"""Thresholds: the minimum score of in-distribution images, set by a share or directly."""

import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError

TPR = 0.95


@dataclass(frozen=True)
class Threshold:
    """The minimum score of images that count as in-distribution.

    Parameters
    ----------
    value
        The score.
    tpr
        Share of ID images with at least that score.
    n
        Number of ID scores that determine the threshold.
    below
        Number of them below the threshold.
    given
        Whether the threshold was given, not derived from ``tpr``.
    stderr
        Standard error of the score; None for a given one.
    share_stderr
        Standard error of the share of other ID images with at least that score; None for a given
        one.
    """

    value: float
    tpr: float
    n: int
    below: int
    given: bool = False
    stderr: float | None = None
    share_stderr: float | None = None


@dataclass(frozen=True)
class ThresholdRule:
    """The rule for a threshold: a share of accepted ID images, or a fixed score.

    Parameters
    ----------
    tpr
        Share of ID images to accept, above 0 and at most 1; 0.95 if neither is given.
    threshold
        The fixed score.

    Raises
    ------
    InvalidInputError
        If both are given, one is not a number, the share is out of range, or the score is not
        finite.

    Examples
    --------
    >>> ThresholdRule(tpr=0.75).on(np.array([1.0, 2.0, 3.0, 4.0])).value
    2.0
    >>> ThresholdRule(threshold=2.5).on(np.array([1.0, 2.0, 3.0, 4.0])).tpr
    0.5
    """

    tpr: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.tpr is not None and self.threshold is not None:
            raise InvalidInputError(
                "--tpr and --threshold both set the threshold; give one of them"
            )
        for option, given in (("--tpr", self.tpr), ("--threshold", self.threshold)):
            if not isinstance(given, Real | None):  # callers from Python may give anything
                raise InvalidInputError(f"{option} must be a number, not {given!r}")
        if self.tpr is not None and not 0 < self.tpr <= 1:
            raise InvalidInputError(f"--tpr must be above 0 and at most 1, not {self.tpr:g}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InvalidInputError(f"--threshold must be a finite number, not {self.threshold}")

    def on(self, id_scores: NDArray[np.float64]) -> Threshold:
        """Return the threshold for a detector.

        Parameters
        ----------
        id_scores
            Scores of ID images, ascending, float64, ``(n,)``, at least one.

        Notes
        -----
        For a share ``p``, the threshold is the highest score that at least this share of the ID
        images reaches, as in :func:`oodcli.metrics.fpr_at_tpr` with the rule ``first_ge``. The
        number of ``n`` ID scores below the true quantile has the standard deviation
        ``s = sqrt(n p (1 - p))``; the standard error of the threshold is half the difference of the
        scores ``s`` ranks above and below it. The standard error of the share of other ID images is
        ``sqrt(p (1 - p) / n)``.
        """
        if self.threshold is not None:
            return _given(self.threshold, id_scores)
        return _reached_by(TPR if self.tpr is None else self.tpr, id_scores)


DEFAULT_RULE = ThresholdRule()


def _given(value: float, scores: NDArray[np.float64]) -> Threshold:
    n = len(scores)
    below = int(np.searchsorted(scores, value, side="left"))
    return Threshold(value, 1 - below / n, n, below, given=True)


def _reached_by(tpr: float, scores: NDArray[np.float64]) -> Threshold:
    n = len(scores)
    rank = n - math.ceil(Fraction(str(tpr)) * n)
    spread = math.sqrt(n * tpr * (1 - tpr))
    low, high = max(rank - spread, 0.0), min(rank + spread, n - 1.0)
    stderr = 0.0
    if high > low:
        ends = np.interp([low, high], np.arange(n), scores)
        # If one side has fewer ranks, the difference is extrapolated from the available ranks.
        stderr = float(ends[1] - ends[0]) / (high - low) * spread
    return Threshold(
        float(scores[rank]),
        tpr,
        n,
        rank,
        stderr=stderr,
        share_stderr=math.sqrt(tpr * (1 - tpr) / n),
    )
