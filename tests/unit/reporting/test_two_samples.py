"""Two-sample tests against SciPy, and their levels by simulation."""

import numpy as np
import pytest
from scipy.stats import betabinom, binom, binomtest, chi2_contingency, fisher_exact

from oodcli.reporting.two_samples import (
    classes_test,
    expected_interval,
    features_test,
    scores_test,
    share_interval,
)


@pytest.mark.parametrize(("flagged", "judged"), [(0, 7), (3, 7), (7, 7), (12, 400)])
def test_intervals_of_shares_are_those_of_clopper_and_pearson(flagged: int, judged: int) -> None:
    wanted = binomtest(flagged, judged).proportion_ci(method="exact")
    assert share_interval(flagged, judged) == pytest.approx((wanted.low, wanted.high))


def test_the_expected_share_includes_the_uncertainty_of_the_threshold() -> None:
    rng = np.random.default_rng(0)
    low, high = expected_interval(200, below=5, of=100)
    shares = []
    for _ in range(4000):
        threshold = np.sort(rng.random(100))[5]
        shares.append(binom.rvs(200, threshold, random_state=rng) / 200)
    inside = np.mean([(low <= share <= high) for share in shares])
    assert 0.94 < inside < 0.985
    certain = expected_interval(200, below=50_000, of=1_000_000)
    assert certain == pytest.approx(
        (binom.ppf(0.025, 200, 0.05) / 200, binom.ppf(0.975, 200, 0.05) / 200)
    )
    assert high > certain[1]
    assert high * 200 == betabinom.ppf(0.975, 200, 6, 95)


def test_the_test_of_classes_is_pearsons() -> None:
    rng = np.random.default_rng(1)
    counts, reference = np.array([30, 50, 20, 0]), np.array([60, 70, 80, 0])
    wanted = chi2_contingency(np.stack([counts, reference])[:, :3], correction=False)
    found = classes_test(counts, reference, permutations=99, rng=rng)
    assert (found.statistic, found.p) == pytest.approx((wanted.statistic, wanted.pvalue))
    # Small counts: random tables with the same margins.
    few = np.array([[7, 1], [2, 9]])
    drawn = classes_test(few[0], few[1], permutations=20_000, rng=rng)
    assert drawn.p == pytest.approx(fisher_exact(few).pvalue, rel=0.3)
    assert classes_test(np.array([3, 0]), np.array([9, 0]), permutations=9, rng=rng).p == 1.0


def test_the_test_of_features_keeps_its_level_and_sees_a_shift() -> None:
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(300):
        first, second = rng.normal(size=(15, 3)), rng.normal(size=(25, 3))
        p_values.append(features_test(first, second, permutations=99, rng=rng).p)
    for level in (0.05, 0.2, 0.5):
        hits = sum(p <= level for p in p_values)
        assert binom.ppf(0.0005, 300, level) <= hits <= binom.ppf(0.9995, 300, level)
    shifted = features_test(
        rng.normal(1, 1, (40, 3)), rng.normal(size=(40, 3)), permutations=499, rng=rng
    )
    assert shifted.p == 1 / 500
    # The same mean, but another spread: what means alone do not show.
    spread = features_test(
        rng.normal(0, 3, (60, 3)), rng.normal(size=(60, 3)), permutations=499, rng=rng
    )
    assert spread.p < 0.02
    equal = features_test(np.zeros((5, 2)), np.zeros((6, 2)), permutations=99, rng=rng)
    assert (equal.statistic, equal.p) == (0.0, 1.0)


def test_the_discrepancy_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 2)), rng.normal(1, 1, size=(9, 2))
    both = np.concatenate([x, y])
    squares = ((both[:, None] - both) ** 2).sum(axis=2)
    kernel = np.exp(-squares / (2 * np.median(squares[np.triu_indices(15, 1)])))
    wanted = kernel[:6, :6].mean() + kernel[6:, 6:].mean() - 2 * kernel[:6, 6:].mean()
    found = features_test(x, y, permutations=9, rng=rng)
    assert found.statistic == pytest.approx(np.sqrt(wanted))


def test_the_test_of_scores_is_that_of_smirnov() -> None:
    found = scores_test(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))
    assert (found.statistic, found.p) == (1.0, pytest.approx(0.1))  # 2 of C(6, 3) = 20 orders
