"""Drift: whether groups of images, such as days, differ from ID images or from other verdicts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.records import as_json
from oodcli.reporting.statistics import holm, surplus_p
from oodcli.reporting.two_samples import (
    TestResult,
    classes_test,
    expected_interval,
    features_test,
    scores_test,
    share_interval,
)
from oodcli.screening.conformal import PValueCounts

DRIFT_SCHEMA = 1
# Significance level for all tests of all groups together.
LEVEL = 0.05
TESTS = ("share", "scores", "features", "classes")
# Images of a group, and of the reference, whose features are compared.
FEATURES = 500
_LEAST_PERMUTATIONS = 999


@dataclass(frozen=True)
class DriftTest:
    """A test of a group against the reference.

    Parameters
    ----------
    name
        ``share`` (OOD images), ``scores``, ``features`` or ``classes``.
    statistic
        Share of OOD images, Kolmogorov-Smirnov distance, maximum mean discrepancy, or chi-square.
    p
        The p-value.
    p_adjusted
        The p-value with Holm's correction for all tests of all groups.
    """

    name: str
    statistic: float
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class GroupDrift:
    """A group of images against the reference.

    Parameters
    ----------
    group
        Its name.
    images
        Number of images that could be read.
    errors
        Number of images that could not.
    ood
        Number of OOD images.
    share
        Share of OOD images; None without images, like all further values.
    share_low, share_high
        95 % interval of the share (Clopper-Pearson).
    expected_low, expected_high
        Interval that the share of as many images like the reference lies in with 95 %, including
        the uncertainty of the threshold; None for verdicts of a false discovery rate or by class.
    changed
        Whether a test is significant.
    tests
        The tests.
    """

    group: str
    images: int
    errors: int
    ood: int
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None
    expected_low: float | None = None
    expected_high: float | None = None
    changed: bool = False
    tests: tuple[DriftTest, ...] = ()


@dataclass(frozen=True)
class DriftResult:
    """All groups of files of verdicts against a reference.

    Parameters
    ----------
    detector
        Run, method, and the ID images behind the threshold.
    reference
        What the groups are compared with: ID images of a run, or a file of verdicts.
    reference_images
        Number of images of the reference.
    expected
        Share of its images that are OOD.
    group_by
        What gives the group of an image; None if all images are one group.
    level
        Significance level for all tests together.
    groups
        The groups, by name.
    first
        The first group that changed; None if none did.
    ungrouped
        Number of images without a group, which are left out.
    files
        The files of verdicts.
    """

    detector: dict[str, Any]
    reference: str
    reference_images: int
    expected: float
    group_by: str | None
    level: float
    groups: tuple[GroupDrift, ...]
    first: str | None
    ungrouped: int
    files: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether a group changed."""
        return self.first is not None

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON object."""
        content = as_json(self)
        detector = content.pop("detector")
        return {
            "kind": "ood-drift",
            "schema": DRIFT_SCHEMA,
            **detector,
            **content,
            "changed": self.changed,
        }


@dataclass(frozen=True, eq=False)
class Reference:
    """What groups are compared with.

    Parameters
    ----------
    name
        How it is called.
    scores
        Scores of its images, ``(n,)``.
    below
        Number of them that are OOD.
    classes
        Names of their predicted classes, ``(n,)``; None where there are none.
    features
        Features of some of them, ``(k, d)``; None if they are not stored.
    """

    name: str
    scores: NDArray[np.float64]
    below: int
    classes: NDArray[np.str_] | None = None
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class GroupRows:
    """The images of a group.

    Parameters
    ----------
    name
        Name of the group.
    scores
        Scores of the images that could be read, ``(m,)``.
    ood
        Number of OOD images among them.
    errors
        Number of images that could not be read.
    classes
        Names of the predicted classes, ``(m,)``; None where there are none.
    p_values
        p-values, ``(m,)``, if these decide verdicts over all images; else None.
    features
        Features of some of the images, ``(k, d)``; None if they are not stored.
    """

    name: str
    scores: NDArray[np.float64]
    ood: int
    errors: int = 0
    classes: NDArray[np.str_] | None = None
    p_values: NDArray[np.float64] | None = None
    features: NDArray[np.float32] | None = None


def in_natural_order(names: Sequence[str]) -> list[str]:
    """Return names in order, with numbers in them by their value.

    Examples
    --------
    >>> in_natural_order(["day10", "day9", "2024-01-02"])
    ['2024-01-02', 'day9', 'day10']
    """

    def key(name: str) -> list[tuple[int, int, str]]:
        return [
            (0, int(part), part) if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", name)
            if part
        ]

    return sorted(names, key=key)


def compare(
    groups: Sequence[GroupRows],
    reference: Reference,
    *,
    level: float = LEVEL,
    with_expected: bool = True,
    seed: int = 0,
) -> tuple[GroupDrift, ...]:
    """Test all groups against the reference.

    Parameters
    ----------
    groups
        The groups, in order.
    reference
        What they are compared with.
    level
        Significance level for all tests of all groups together.
    with_expected
        Whether the share of OOD images has an interval that is expected.
    seed
        Seed of permutations.

    References
    ----------
    Holm, 1979, as in :func:`oodcli.reporting.statistics.holm`: the probability that any group is
    reported although none changed is at most ``level``, whatever the dependence of the tests, which
    share their reference. Tests: see :mod:`oodcli.reporting.two_samples`, and
    :func:`oodcli.reporting.statistics.surplus_p` for the share, one-sided, or Simes' for verdicts
    of a false discovery rate.
    """
    some = [each for each in groups if len(each.scores)]
    planned = sum(_planned(each, reference) for each in some)
    # Holm's correction needs p-values below level / planned.
    permutations = max(_LEAST_PERMUTATIONS, int(2 * planned / level))
    found: list[list[tuple[str, TestResult]]] = []
    for number, each in enumerate(some):
        rng = np.random.default_rng([seed, number])
        found.append(_tests(each, reference, permutations, rng))
    adjusted = iter(holm([result.p for tests in found for _, result in tests]))
    tested = {
        each.name: tuple(
            DriftTest(name, result.statistic, result.p, next(adjusted)) for name, result in tests
        )
        for each, tests in zip(some, found, strict=True)
    }
    return tuple(
        _group(each, reference, tested.get(each.name, ()), level, with_expected=with_expected)
        for each in groups
    )


def _planned(group: GroupRows, reference: Reference) -> int:
    features = group.features is not None and reference.features is not None
    classes = group.classes is not None and reference.classes is not None
    return 2 + features + classes


def _tests(
    group: GroupRows, reference: Reference, permutations: int, rng: np.random.Generator
) -> list[tuple[str, TestResult]]:
    judged = len(group.scores)
    if group.p_values is None:
        p = surplus_p(group.ood, judged, below=reference.below, of=len(reference.scores))
    else:
        counts = PValueCounts()
        counts.add(group.p_values)
        p = counts.simes
    found = [
        ("share", TestResult(group.ood / judged, p)),
        ("scores", scores_test(group.scores, reference.scores)),
    ]
    if group.features is not None and reference.features is not None:
        result = features_test(
            group.features, reference.features, permutations=permutations, rng=rng
        )
        found.append(("features", result))
    if group.classes is not None and reference.classes is not None:
        names = np.unique(np.concatenate([group.classes, reference.classes]))
        counted = [
            np.bincount(np.searchsorted(names, each), minlength=len(names))
            for each in (group.classes, reference.classes)
        ]
        result = classes_test(counted[0], counted[1], permutations=permutations, rng=rng)
        found.append(("classes", result))
    return found


def _group(
    group: GroupRows,
    reference: Reference,
    tests: tuple[DriftTest, ...],
    level: float,
    *,
    with_expected: bool,
) -> GroupDrift:
    judged = len(group.scores)
    if not judged:
        return GroupDrift(group.name, 0, group.errors, 0)
    low, high = share_interval(group.ood, judged)
    expected: tuple[float | None, float | None] = (None, None)
    if with_expected:
        expected = expected_interval(judged, below=reference.below, of=len(reference.scores))
    return GroupDrift(
        group.name,
        judged,
        group.errors,
        group.ood,
        group.ood / judged,
        low,
        high,
        *expected,
        changed=any(test.p_adjusted <= level for test in tests),
        tests=tests,
    )


def sampled(rows: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Return up to ``FEATURES`` of some rows, drawn at random, in order."""
    if len(rows) <= FEATURES:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, FEATURES, replace=False))
