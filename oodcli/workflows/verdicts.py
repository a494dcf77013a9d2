"""``ood verdicts``: merge the files of several shards, and summarise files of verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodcli.errors import InvalidInputError
from oodcli.progress import SILENT, Progress
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
from oodcli.screening.thresholds import Threshold
from oodcli.screening.verdict_file import Verdict
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
        "features", "shard", "shards", "command", "finished", "merged",
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
    """

    paths: Sequence[Path]
    output: Path | None = None
    alarm_level: float = ALARM_LEVEL

    def kind(self) -> MergedFormat | None:
        """Return the format of the merged rows.

        Raises
        ------
        InvalidInputError
            If it does not follow from the extension of ``output``.
        """
        if self.output is None:
            return None
        ending = self.output.suffix.lower()
        if ending not in _ENDINGS:
            raise InvalidInputError(
                f"the extension of {self.output} must be .csv, .jsonl or .parquet; choose one"
            )
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
    parts = in_order(find_parts(request.paths, output=request.output))
    if not check_rows(parts, revision=revision, progress=progress):
        raise InvalidInputError("the files have no rows; check what was screened")
    findings = Findings()
    if request.output is None or kind is None:
        pass_on(parts, findings.add, revision=revision)
    else:
        settings = _merged_settings(parts, kind) | dict(revision.settings() if revision else {})
        with (
            merged_file(request.output, kind, settings) as file,
            progress.task("merging", total=None, unit="rows") as task,
        ):

            def count(verdicts: Sequence[Verdict]) -> None:
                task.advance(len(verdicts))

            pass_on(parts, file.write, findings.add, count, revision=revision)
    return _result(parts, findings, request.alarm_level)


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
    pass_on(parts, findings.add)
    return _result(parts, findings, alarm_level)


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


def _result(parts: Sequence[VerdictPart], findings: Findings, alarm_level: float) -> PredictResult:
    settings = parts[0].settings
    threshold = _threshold(parts[0])
    return PredictResult(
        detector={key: value for key, value in settings.items() if key not in _OF_FILE},
        threshold=threshold,
        counts=findings.counts,
        before=findings.counts,
        expected=threshold.below / threshold.n,
        seconds=None,
        rows=findings.rows(),
        complete=findings.complete,
        alarm_level=alarm_level,
        files=tuple(str(part.path) for part in parts),
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
    return Threshold(
        value,
        1 - below / n if tpr is None else tpr,
        n,
        below,
        given=tpr is None,
        stderr=settings["threshold_stderr"],
        share_stderr=None if tpr is None else math.sqrt(tpr * (1 - tpr) / n),
    )
