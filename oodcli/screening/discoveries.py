"""Verdicts under a false discovery rate, which are known only when all images are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from oodcli.screening.conformal import PValueCounts
from oodcli.screening.findings import Findings, PredictResult
from oodcli.screening.merging import VerdictPart, check_rows, pass_on
from oodcli.screening.thresholds import Threshold, decided
from oodcli.screening.verdict_file import Counts, RowFormat, Verdict, as_lines, header
from oodcli.store.store import open_output_file


class Discoveries:
    """Decides over rows with p-values; a :class:`oodcli.screening.merging.Revision`.

    Parameters
    ----------
    threshold
        The threshold with its false discovery rate; its verdicts are not known yet.
    """

    def __init__(self, threshold: Threshold) -> None:
        self.p_values = PValueCounts()
        self._undecided = threshold
        self._decided: Threshold | None = None

    @property
    def threshold(self) -> Threshold:
        """The threshold with the largest p-value of an OOD image among all rows seen."""
        if self._decided is None:
            self._decided = decided(self._undecided, self.p_values)
        return self._decided

    def see(self, verdicts: Sequence[Verdict]) -> None:
        """Count the p-values of some rows."""
        self._decided = None
        self.p_values.add([math.nan if each.p_value is None else each.p_value for each in verdicts])

    def revise(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Return the same rows with their verdicts."""
        cutoff = self.threshold.p_cutoff
        return [
            each
            if each.p_value is None
            else replace(
                each,
                threshold=None,
                verdict="ood" if cutoff is not None and each.p_value <= cutoff else "id",
            )
            for each in verdicts
        ]

    def settings(self) -> Mapping[str, Any]:
        """Return the settings that are written beside a merged file."""
        return {
            "fdr": self.threshold.fdr,
            "p_cutoff": self.threshold.p_cutoff,
            "threshold": None,
            "tpr": None,
            "threshold_stderr": None,
            "false_alarms": None,
            "id_below": self.threshold.below,
        }


def decide_file(
    path: Path, kind: RowFormat, threshold: Threshold, *, csv_safe: bool = False
) -> tuple[Discoveries, Findings]:
    """Decide over all rows of a file, and replace it by one with verdicts, atomically.

    Parameters
    ----------
    path
        The file, complete but for its verdicts; also of an earlier decision over fewer rows.
    kind
        Format of its rows.
    threshold
        The threshold with its false discovery rate.
    csv_safe
        As for :func:`oodcli.screening.verdict_file.as_lines`.

    Returns
    -------
    discoveries
        The decision.
    findings
        Counts and rows to be shown, of the whole file.
    """
    part = VerdictPart(path, {"format": kind, "finished": True, "csv_safe": csv_safe})
    discoveries, findings = Discoveries(threshold), Findings()
    check_rows([part], revision=discoveries)
    with open_output_file(path) as stream:
        stream.write(header(kind).encode())
        pass_on(
            [part],
            lambda verdicts: stream.write(as_lines(verdicts, kind, csv_safe=csv_safe).encode()),
            findings.add,
            revision=discoveries,
        )
    return discoveries, findings


def result_of_discoveries(
    discoveries: Discoveries, findings: Findings, detector: dict[str, Any]
) -> PredictResult:
    """Return the summary of a decision over rows.

    Parameters
    ----------
    discoveries
        The decision, with all p-values.
    findings
        Counts and rows to be shown; their verdicts may still be None.
    detector
        Run, method, and the ID images behind the p-values.
    """
    threshold, p_values = discoveries.threshold, discoveries.p_values
    ood = p_values.at_most(threshold.p_cutoff)
    counts = Counts(p_values.total - ood, ood, findings.counts.total - p_values.total)
    complete = findings.complete
    rows = discoveries.revise(findings.rows())
    return PredictResult(
        detector=detector,
        threshold=threshold,
        counts=counts,
        before=counts,
        expected=threshold.p_cutoff or 0.0,
        seconds=None,
        rows=tuple(each for each in rows if complete or each.verdict != "id"),
        complete=complete,
        simes=p_values.simes,
    )
