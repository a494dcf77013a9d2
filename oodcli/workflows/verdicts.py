"""``ood verdicts``: merge the files of several shards, and summarise files of verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oodcli.errors import InvalidInputError
from oodcli.files import expanded
from oodcli.progress import SILENT, Progress
from oodcli.screening.discoveries import Discoveries, result_of_discoveries
from oodcli.screening.feature_file import feature_path, join_features
from oodcli.screening.findings import ALARM_LEVEL, Findings, PredictResult, check_alarm_level
from oodcli.screening.merging import (
    MergedFormat,
    Revision,
    VerdictPart,
    check_rows,
    find_parts,
    in_order,
    merged_file,
    pass_on,
)
from oodcli.screening.thresholds import Threshold, ThresholdRule
from oodcli.screening.verdict_file import ROW_SCHEMA, Verdict, check_csv_safe
from oodcli.screening.verdict_parquet import check_parquet
from oodcli.store.store import check_output_file
from oodcli.text import counted

_ENDINGS: dict[str, MergedFormat] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"
}  # fmt: skip
# Settings of a file that say nothing about the detector.
_OF_FILE = frozenset(
    {
        "kind", "schema", "format", "threshold", "tpr", "threshold_stderr", "id_below", "copy_ood",
        "features", "group_by", "false_alarms", "fdr", "p_cutoff", "by_class", "shard", "shards",
        "command", "csv_safe", "finished", "merged",
    }
)  # fmt: skip


@dataclass(frozen=True)
class MergeRequest:
    """What to merge.

    Parameters
    ----------
    paths
        Files of verdicts, folders of them, and patterns.
    output
        File for the merged rows: ``.csv``, ``.jsonl`` or ``.parquet``; None for the summary alone.
    alarm_level
        As for :class:`oodcli.workflows.predict.PredictRequest`.
    fdr
        False discovery rate over all rows; if None, that of the files, if they have one.
    csv_safe
        As for :class:`oodcli.workflows.predict.VerdictOutputs`.
    """

    paths: Sequence[Path]
    output: Path | None = None
    alarm_level: float = ALARM_LEVEL
    fdr: float | None = None
    csv_safe: bool = False

    def kind(self) -> MergedFormat | None:
        """Return the format of the merged rows.

        Raises
        ------
        InvalidInputError
            If it does not follow from the extension of ``output``.
        """
        if self.output is None:
            check_csv_safe(None, asked=self.csv_safe)
            return None
        ending = self.output.suffix.lower()
        if ending not in _ENDINGS:
            raise InvalidInputError(
                f"the extension of {self.output} must be .csv, .jsonl or .parquet; choose one"
            )
        check_csv_safe(_ENDINGS[ending], asked=self.csv_safe)
        return _ENDINGS[ending]


def merge(
    request: MergeRequest, *, revision: Revision | None = None, progress: Progress = SILENT
) -> PredictResult:
    """Check the files of one screening, write their rows into one file, and summarise them.

    Parameters
    ----------
    request
        What to merge.
    revision
        Gives rows new values that depend on all rows.
    progress
        Receives the progress.

    Raises
    ------
    InvalidInputError
        If settings differ, a shard is missing or given twice, a file is not finished or damaged, an
        image has rows in two files, or the output cannot be written. Nothing is written then.

    Notes
    -----
    Rows are in the order of the shards, whatever the order of ``request.paths``, and within a shard
    in that of its file; files without shards are in the order in which they are given.
    """
    kind = request.kind()
    if request.output is not None:
        check_output_file(request.output)
    if kind == "parquet":
        check_parquet()
    check_alarm_level(request.alarm_level)
    rule = ThresholdRule(fdr=request.fdr)
    parts = in_order(find_parts(request.paths, output=request.output))
    if revision is None:
        revision = _discoveries(parts[0], rule)
    rows = check_rows(parts, revision=revision, progress=progress)
    if not rows:
        raise InvalidInputError("the files have no rows; check what was screened")
    findings = Findings()
    if request.output is not None:
        if parts[0].settings.get("features") == "stored":
            join_features([part.path for part in parts], request.output, rows=rows)
        else:  # no features of other rows are left beside the merged file
            feature_path(expanded(request.output).resolve()).unlink(missing_ok=True)
    if request.output is None or kind is None:
        pass_on(parts, findings.add, revision=revision)
    else:
        settings = (
            _merged_settings(parts, kind)
            | {"csv_safe": request.csv_safe}
            | dict(revision.settings() if revision else {})
        )
        with (
            merged_file(request.output, kind, settings) as file,
            progress.task("merging", total=None, unit="rows") as task,
        ):

            def count(verdicts: Sequence[Verdict]) -> None:
                task.advance(len(verdicts))

            pass_on(parts, file.write, findings.add, count, revision=revision)
    return _result(parts, findings, request.alarm_level, revision)


def _discoveries(part: VerdictPart, rule: ThresholdRule) -> Discoveries | None:
    """Return a decision at the false discovery rate of a rule, else of a file; None without one.

    Raises
    ------
    InvalidInputError
        If the rows have no p-values, or there are too few ID images for the rate.
    """
    fdr = part.settings.get("fdr") if rule.fdr is None else rule.fdr
    if fdr is None:
        return None
    if part.settings.get("schema", 1) < ROW_SCHEMA:
        raise InvalidInputError(
            f"{part.path} was written by an earlier version, without p-values for --fdr; run its "
            "command of ood predict again with another file"
        )
    threshold = _threshold(part)
    groups = tuple(replace(each, value=None) for each in threshold.by_class)
    ThresholdRule(fdr=fdr).on(np.zeros(min([each.n for each in groups], default=threshold.n)))
    return Discoveries(
        replace(
            threshold,
            value=math.nan,
            given=False,
            stderr=None,
            share_stderr=None,
            false_alarms=None,
            fdr=fdr,
            by_class=groups,
        )
    )


def summarise(
    path: Path, *, alarm_level: float = ALARM_LEVEL, progress: Progress = SILENT
) -> PredictResult:
    """Summarise one file of verdicts.

    Parameters
    ----------
    path
        The file; it may be a shard, and unfinished, which is reported.
    alarm_level
        As for :class:`oodcli.workflows.predict.PredictRequest`.
    progress
        Receives progress and notes.

    Raises
    ------
    InvalidInputError
        If the file or its settings are missing or damaged.
    """
    check_alarm_level(alarm_level)
    parts = find_parts([path])
    if len(parts) > 1:
        raise InvalidInputError(
            f"{path} stands for {counted(len(parts), 'file')}; give one, or use ood verdicts merge"
        )
    (part,) = parts
    if not part.finished:
        progress.note(f"{part.path} is not finished; {part.cure}")
    findings = Findings()
    revision = _discoveries(part, ThresholdRule())
    if revision is not None:
        check_rows(parts, revision=revision)
    pass_on(parts, findings.add, revision=revision)
    return _result(parts, findings, alarm_level, revision)


def _merged_settings(parts: Sequence[VerdictPart], kind: MergedFormat) -> dict[str, Any]:
    return {
        **parts[0].settings,
        "format": kind,
        "shard": None,
        "shards": None,
        "copy_ood": None,
        "command": None,
        "finished": True,
        "merged": len(parts),
    }


def detector_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file of verdicts that describe its detector."""
    return {key: value for key, value in settings.items() if key not in _OF_FILE}


def _result(
    parts: Sequence[VerdictPart],
    findings: Findings,
    alarm_level: float,
    revision: Revision | None,
) -> PredictResult:
    settings = parts[0].settings
    detector = detector_settings(settings)
    files = tuple(str(part.path) for part in parts)
    if isinstance(revision, Discoveries):
        found = result_of_discoveries(revision, findings, detector)
        return replace(found, alarm_level=alarm_level, files=files)
    threshold = _threshold(parts[0])
    return PredictResult(
        detector=detector,
        threshold=threshold,
        counts=findings.counts,
        before=findings.counts,
        expected=threshold.below / threshold.n,
        seconds=None,
        rows=findings.rows(),
        complete=findings.complete,
        alarm_level=alarm_level,
        files=files,
    )


def _threshold(part: VerdictPart) -> Threshold:
    """Return the threshold that the settings of a file describe."""
    settings: Mapping[str, Any] = part.settings
    try:
        value, tpr, n = settings["threshold"], settings["tpr"], settings["id_images"]
        below = settings["id_below"]
    except KeyError:
        raise InvalidInputError(
            f"the settings of {part.path} were written by an earlier version; complete them by "
            "running its command of ood predict again"
        ) from None
    return Threshold.from_json(
        {
            "value": value,
            "tpr": 1 - below / n if tpr is None else tpr,
            "n": n,
            "below": below,
            "given": tpr is None and settings.get("false_alarms") is None,
            "stderr": settings["threshold_stderr"],
            "share_stderr": None if tpr is None else math.sqrt(tpr * (1 - tpr) / n),
            "false_alarms": settings.get("false_alarms"),
            "fdr": settings.get("fdr"),
            "by_class": settings.get("by_class") or (),
        }
    )
