"""The summary of a screening: counts, rows for the table, and the alarm."""

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oodcli.errors import InvalidInputError
from oodcli.records import as_json
from oodcli.reporting.statistics import combined_p, surplus_p
from oodcli.screening.thresholds import Threshold
from oodcli.screening.verdict_file import Counts, Verdict
from oodcli.text import counted

PREDICT_SCHEMA = 1
# A table shows up to this many images; of more, those with the lowest scores and the first errors.
SHOWN = 40
_SHOWN_ERRORS = 10
# Probability of a false alarm if all images are ID.
ALARM_LEVEL = 0.001


def check_alarm_level(level: float) -> None:
    """Check a significance level.

    Raises
    ------
    InvalidInputError
        If it is not above 0 and below 1.
    """
    if not 0 < level < 1:
        raise InvalidInputError(f"--alarm-level must be above 0 and below 1, not {level:g}")


def surplus_of(counts: Counts, threshold: Threshold) -> float:
    """Return the probability of at least this many OOD verdicts if all images are ID.

    See :func:`oodcli.reporting.statistics.surplus_p`. With thresholds by class, the tests of the
    groups of classes, which have different ID images, are combined by
    :func:`oodcli.reporting.statistics.combined_p`.
    """
    if not threshold.by_class:
        return surplus_p(counts.ood, counts.judged, below=threshold.below, of=threshold.n)
    tests = []
    for group in threshold.by_class:
        judged = sum(counts.by_class[name] for name in group.classes)
        ood = sum(counts.ood_by_class[name] for name in group.classes)
        if judged:
            tests.append(surplus_p(ood, judged, below=group.below, of=group.n))
    return combined_p(tests)


@dataclass(frozen=True)
class PredictResult:
    """The summary of a screening.

    Parameters
    ----------
    detector
        Run, method, and the ID images behind the threshold.
    threshold
        The threshold.
    counts
        Number of images by verdict, including earlier calls with the same file.
    before
        The counts of verdicts that the file already contained.
    expected
        Share of ID images below the threshold.
    seconds
        Time from the first image to the last, in seconds; None for rows of files.
    rows
        All verdicts if they are few, else those with the lowest scores and the first errors.
    complete
        Whether ``rows`` contains all verdicts.
    alarm_level
        Significance level: the alarm is raised if ``p`` is below it.
    files
        Files whose rows are summarised; none for images that were judged now.
    simes
        With a false discovery rate, the p-value of the hypothesis that all images are ID.
    """

    detector: dict[str, Any]
    threshold: Threshold
    counts: Counts
    before: Counts
    expected: float
    seconds: float | None
    rows: tuple[Verdict, ...]
    complete: bool
    alarm_level: float = ALARM_LEVEL
    files: tuple[str, ...] = ()
    simes: float | None = None

    @property
    def tested(self) -> Counts:
        """Counts of this call; of the whole file if every image already had a row."""
        new = self.counts - self.before
        return new if new.total else self.before

    @property
    def p(self) -> float | None:
        """Probability of at least this many OOD verdicts if all tested images are ID.

        See :func:`surplus_of`; with a false discovery rate, the p-value of Simes. None if no image
        could be judged.
        """
        tested = self.tested
        if not tested.judged:
            return None
        return surplus_of(tested, self.threshold) if self.simes is None else self.simes

    @property
    def alarm(self) -> bool:
        """Whether the share of OOD verdicts is significantly above that of ID images."""
        p = self.p
        return p is not None and p < self.alarm_level

    @property
    def fault(self) -> str | None:
        """Why no image could be judged; None if at least one was."""
        if self.tested.judged or not self.tested.total:
            return None
        first = next((each for each in self.rows if each.error is not None), None)
        example = "" if first is None else f", such as {first.path}: {first.error}"
        return (
            f"none of {counted(self.tested.total, 'image')} could be judged, because none can be "
            f"read{example}; check that the files are complete"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--summary`` writes."""
        tested = self.tested
        return {
            "kind": "ood-screening",
            "schema": PREDICT_SCHEMA,
            **self.detector,
            "threshold": self.threshold.to_json(),
            "images": {**as_json(self.counts), "total": self.counts.total},
            "share": self.share,
            "expected": self.expected,
            "tested": {**as_json(tested), "total": tested.total},
            "p": self.p,
            "alarm": self.alarm,
            "alarm_level": self.alarm_level,
            "seconds": self.seconds,
        }

    @property
    def share(self) -> float | None:
        """Share of OOD verdicts among the images that could be read."""
        return self.counts.ood / self.counts.judged if self.counts.judged else None

    @property
    def share_stderr(self) -> float:
        """Standard error of ``share`` if all images are ID."""
        judged = max(self.counts.judged, 1)
        chance = self.expected * (1 - self.expected)
        return math.sqrt(chance / judged + chance / self.threshold.n)


def combined(results: Sequence[PredictResult]) -> PredictResult:
    """Return the summary of several parts of one screening, which ran at the same time.

    Parameters
    ----------
    results
        The summaries of the parts; detector and threshold are equal.
    """
    first = results[0]
    counts, before = Counts(), Counts()
    for each in results:
        counts, before = counts + each.counts, before + each.before
    rows = tuple(itertools.chain.from_iterable(each.rows for each in results))
    complete = all(each.complete for each in results) and len(rows) <= SHOWN
    if not complete:
        judged = [each for each in rows if each.verdict == "ood" and each.score is not None]
        lowest = sorted(judged, key=lambda each: each.score or 0.0)[:SHOWN]
        errors = [each for each in rows if each.error is not None][:_SHOWN_ERRORS]
        rows = (*lowest, *errors)
    seconds = [each.seconds for each in results if each.seconds is not None]
    return replace(
        first,
        counts=counts,
        before=before,
        seconds=max(seconds, default=None),
        rows=rows,
        complete=complete,
    )


class Findings:
    """Counts verdicts, and keeps those shown in the table."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._first: list[Verdict] = []
        self._errors: list[Verdict] = []
        # A heap of negated scores: the largest belongs to the least in-distribution image.
        self._lowest: list[tuple[float, int, Verdict]] = []
        self._order = itertools.count(0, -1)

    @property
    def complete(self) -> bool:
        """Whether all verdicts are kept."""
        return self.counts.total == len(self._first)

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Add verdicts."""
        for each in verdicts:
            self.counts.count(each.verdict, each.predicted)
            if len(self._first) < SHOWN:
                self._first.append(each)
            if each.error is not None and len(self._errors) < _SHOWN_ERRORS:
                self._errors.append(each)
            # A verdict is None until those of a false discovery rate are known.
            if each.verdict != "id" and each.score is not None:
                entry = (-each.score, next(self._order), each)
                if len(self._lowest) < SHOWN:
                    heapq.heappush(self._lowest, entry)
                elif entry > self._lowest[0]:
                    heapq.heapreplace(self._lowest, entry)

    def rows(self) -> tuple[Verdict, ...]:
        """Return the rows of the table."""
        if self.complete:
            return tuple(self._first)
        lowest = sorted(self._lowest, reverse=True)
        return (*(verdict for _, _, verdict in lowest), *self._errors)
