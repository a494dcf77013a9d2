"""Drift of groups against a reference: the right level, and the right group."""

import numpy as np
from scipy.stats import binom

from oodcli.reporting.statistics import holm, surplus_p
from oodcli.screening.conformal import PValueCounts
from oodcli.screening.drift import (
    FEATURES,
    GroupRows,
    Reference,
    compare,
    in_natural_order,
    sampled,
)
from oodcli.screening.thresholds import ThresholdRule

CLASSES = np.array(["a", "b", "c"])


def drawn(
    rng: np.random.Generator, n: int, *, share: float = 0.0, dim: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return scores, classes and features of images, a share of which are OOD."""
    other = rng.random(n) < share
    scores = rng.normal(size=n) - 2.5 * other
    classes = CLASSES[np.where(other, 2, rng.integers(0, 3, n))]
    features = rng.normal(size=(n, dim)) + other[:, None] if dim else None
    return scores, classes, features


def stream(
    rng: np.random.Generator, shares: list[float], *, n: int = 60, dim: int = 0
) -> tuple[list[GroupRows], Reference]:
    """Return groups with shares of OOD images, and a reference of 250 ID images."""
    scores, classes, features = drawn(rng, 250, dim=dim)
    threshold = ThresholdRule().on(np.sort(scores))
    reference = Reference("ID", scores, threshold.below, classes, features)
    groups = []
    for number, share in enumerate(shares):
        scores, classes, features = drawn(rng, n, share=share, dim=dim)
        ood = int((scores < threshold.value).sum())
        groups.append(GroupRows(f"day {number}", scores, ood, classes=classes, features=features))
    return groups, reference


def test_streams_of_id_images_are_seldom_reported() -> None:
    rng = np.random.default_rng(0)
    draws, level = 150, 0.2
    reported = sum(
        any(each.changed for each in compare(*stream(rng, [0.0] * 4, n=30), level=level))
        for _ in range(draws)
    )
    # Holm's correction is valid for dependent tests, and therefore not exact.
    assert 0.04 * draws < reported <= binom.ppf(0.999, draws, level)


def test_ood_images_that_creep_in_are_noticed() -> None:
    rng = np.random.default_rng(1)
    groups, reference = stream(rng, [0.0, 0.0, 0.02, 0.5, 0.9], dim=4)
    found = compare(groups, reference)
    assert [each.changed for each in found] == [False, False, False, True, True]
    last = found[-1]
    assert [test.name for test in last.tests] == ["share", "scores", "features", "classes"]
    assert all(test.p_adjusted < 0.05 for test in last.tests)
    assert last.share == groups[-1].ood / 60
    assert last.expected_high is not None
    assert last.share_low is not None
    assert last.share_low > last.expected_high
    tests = [test for each in found for test in each.tests]
    assert [test.p_adjusted for test in tests] == holm([test.p for test in tests])
    assert last.tests[0].p == surplus_p(groups[-1].ood, 60, below=reference.below, of=250)
    assert compare(groups, reference) == found  # seeded


def test_groups_without_images_are_not_tested() -> None:
    groups, reference = stream(np.random.default_rng(2), [0.0])
    empty = GroupRows("none", np.empty(0), 0, errors=3)
    (first, last) = compare([*groups, empty], reference)
    assert (last.images, last.errors, last.tests, last.share) == (0, 3, (), None)
    assert [test.name for test in first.tests] == ["share", "scores", "classes"]


def test_verdicts_of_a_false_discovery_rate_are_tested_by_simes() -> None:
    groups, reference = stream(np.random.default_rng(3), [0.0])
    p_values = np.linspace(0.004, 1, 60)
    group = GroupRows("day", groups[0].scores, 1, p_values=p_values)
    (found,) = compare([group], reference, with_expected=False)
    counts = PValueCounts()
    counts.add(p_values)
    assert found.tests[0].p == counts.simes
    assert found.expected_low is None


def test_groups_are_ordered_as_people_do() -> None:
    names = ["cam10", "cam9/2", "cam9", "2024-01-10", "2024-01-09", ".", "é"]
    assert in_natural_order(names) == [
        "2024-01-09", "2024-01-10", ".", "cam9", "cam9/2", "cam10", "é",
    ]  # fmt: skip


def test_features_of_large_groups_are_sampled() -> None:
    rows = np.arange(10, 10 * FEATURES, 2)
    found = sampled(rows, seed=1)
    assert len(np.unique(found)) == FEATURES
    assert set(found) < set(rows)
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(sampled(rows, seed=1), found)
    assert sampled(rows[:5], seed=1) is not None
    assert len(sampled(rows[:5], seed=1)) == 5
