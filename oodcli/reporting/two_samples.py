"""Whether two samples have the same distribution: shares, scores, features and classes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# A permutation test stops after this many permutations that are at least as extreme.
_ENOUGH = 20
_BATCH = 100
# The chi-square distribution is used if every expected count is at least this.
_LEAST_EXPECTED = 5.0


@dataclass(frozen=True)
class TestResult:
    """The result of a test.

    Parameters
    ----------
    statistic
        The statistic.
    p
        Its p-value.
    """

    __test__ = False  # no test of pytest

    statistic: float
    p: float


def share_interval(flagged: int, judged: int, level: float = 0.95) -> tuple[float, float]:
    """Return an interval of a share.

    References
    ----------
    Clopper, Pearson. "The Use of Confidence or Fiducial Limits Illustrated in the Case of the
    Binomial". Biometrika 26(4), 1934: exact, so that its coverage is at least ``level``.

    Examples
    --------
    >>> [round(end, 4) for end in share_interval(0, 10)]
    [0.0, 0.3085]
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = betaincinv(flagged, judged - flagged + 1, tail) if flagged else 0.0
    high = betaincinv(flagged + 1, judged - flagged, 1 - tail) if flagged < judged else 1.0
    return float(low), float(high)


def expected_interval(
    judged: int, *, below: int, of: int, level: float = 0.95
) -> tuple[float, float]:
    """Return in which interval the share of flagged ID images lies.

    Parameters
    ----------
    judged
        Number of images.
    below, of
        As for :func:`oodcli.reporting.statistics.surplus_p`.

    Notes
    -----
    The number of flagged ID images has the beta-binomial distribution of
    :func:`oodcli.reporting.statistics.surplus_p`, which includes the uncertainty of the threshold.
    """
    from scipy.stats import betabinom

    if below >= of:  # all images are flagged
        return 1.0, 1.0
    law = betabinom(judged, below + 1, of - below)
    tail = (1 - level) / 2
    return float(law.ppf(tail)) / judged, float(law.ppf(1 - tail)) / judged


def scores_test(scores: Floats, reference: Floats) -> TestResult:
    """Return the two-sample test of Kolmogorov and Smirnov, two-sided.

    References
    ----------
    Smirnov. "Table for Estimating the Goodness of Fit of Empirical Distributions". The Annals of
    Mathematical Statistics 19(2), 1948. Exact for up to 10,000 values on either side.
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(scores, reference)
    return TestResult(float(found.statistic), float(found.pvalue))


def features_test(
    features: NDArray[np.float32],
    reference: NDArray[np.float32],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> TestResult:
    """Return the maximum mean discrepancy of two samples, and the p-value of a permutation test.

    Parameters
    ----------
    features, reference
        ``(m, d)`` and ``(n, d)``; memory is proportional to ``(m + n) ** 2``.
    permutations
        Maximum number of permutations.
    rng
        Draws them.

    References
    ----------
    Gretton, Borgwardt, Rasch, Schölkopf, Smola. "A Kernel Two-Sample Test". JMLR 13, 2012: the
    biased estimate, equation 5, with a Gaussian kernel whose bandwidth is the median distance
    between all points (section 8); the statistic is its square root.

    Besag, Clifford. "Sequential Monte Carlo p-values". Biometrika 78(2), 1991: the test stops at
    the 20th permutation that is at least as extreme.
    """
    both = np.concatenate([features, reference]).astype(np.float64)
    both -= both.mean(axis=0)
    squares = (both * both).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * both @ both.T, 0.0)
    between = distances[np.triu_indices(len(both), 1)]
    width = float(np.median(between)) or float(np.mean(between)) or 1.0
    kernel = np.exp(distances / (-2 * width))
    m, n = len(features), len(reference)
    weights = np.concatenate([np.full(m, 1 / m), np.full(n, -1 / n)])
    observed = float(weights @ kernel @ weights)

    def permuted(count: int) -> Floats:
        drawn = rng.permuted(np.tile(weights, (count, 1)), axis=1)
        return np.asarray(np.einsum("ij,ij->i", drawn @ kernel, drawn))

    # Permutations that give the same samples again differ from it by rounding.
    p = _monte_carlo(permuted, observed - 1e-12, permutations)
    return TestResult(max(observed, 0.0) ** 0.5, p)


def classes_test(
    counts: NDArray[np.int64],
    reference: NDArray[np.int64],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> TestResult:
    """Return Pearson's chi-square test of whether two histograms come from one distribution.

    Parameters
    ----------
    counts, reference
        Number of images of every class, ``(k,)``.
    permutations
        Maximum number of tables that are drawn.
    rng
        Draws them.

    References
    ----------
    Pearson. "On the Probability that Two Independent Distributions of Frequency are Really Samples
    from the Same Population". Biometrika 8, 1911. If an expected count is below 5, the p-value is
    that of random tables with the same margins, stopped as in :func:`features_test`.
    """
    from scipy.special import chdtrc

    some = (counts + reference) > 0
    rows = np.stack([counts[some], reference[some]]).astype(np.float64)
    totals, columns = rows.sum(axis=1), rows.sum(axis=0)
    if rows.shape[1] < 2 or not totals.all():
        return TestResult(0.0, 1.0)
    expected = np.outer(totals, columns) / totals.sum()
    observed = float(((rows - expected) ** 2 / expected).sum())
    if expected.min() >= _LEAST_EXPECTED:
        return TestResult(observed, float(chdtrc(rows.shape[1] - 1, observed)))

    def drawn(count: int) -> Floats:
        tables = rng.multivariate_hypergeometric(
            columns.astype(np.int64), int(totals[0]), size=count
        )
        parts = (tables - expected[0]) ** 2 / expected[0]
        others = (columns - tables - expected[1]) ** 2 / expected[1]
        return np.asarray(parts.sum(axis=1) + others.sum(axis=1))

    return TestResult(observed, _monte_carlo(drawn, observed * (1 - 1e-12), permutations))


def _monte_carlo(draw: Callable[[int], Floats], observed: float, most: int) -> float:
    """Return the p-value of a statistic by draws of it, of which few are needed if it is large."""
    done, extreme = 0, 0
    while done < most:
        hits = np.cumsum(draw(min(_BATCH, most - done)) >= observed)
        if extreme + hits[-1] >= _ENOUGH:
            last = int(np.searchsorted(hits, _ENOUGH - extreme)) + 1
            return _ENOUGH / (done + last)
        done, extreme = done + len(hits), extreme + int(hits[-1])
    return (extreme + 1) / (done + 1)
