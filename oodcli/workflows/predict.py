"""``ood predict``: judge incoming images and write a verdict for each as soon as it is known."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from oodcli.data.incoming import STDIN, Item, at_least_one, distinct, items, named_columns
from oodcli.data.sharding import Shard
from oodcli.errors import InvalidInputError
from oodcli.files import expanded
from oodcli.progress import SILENT, Progress
from oodcli.screening.base import BaseDetector
from oodcli.screening.copies import Copies, check_copies
from oodcli.screening.discoveries import Discoveries, decide_file, result_of_discoveries
from oodcli.screening.findings import (
    ALARM_LEVEL,
    Findings,
    PredictResult,
    check_alarm_level,
    combined,
)
from oodcli.screening.grouping import WAYS, Grouping, grouping
from oodcli.screening.judging import Judged, judge
from oodcli.screening.thresholds import joined_classes
from oodcli.screening.verdict_file import (
    Counts,
    RowFormat,
    Verdict,
    VerdictFile,
    as_lines,
    check_csv_safe,
    header,
    verdict_file,
)
from oodcli.store.store import Store, check_output_file, is_stream
from oodcli.text import counted
from oodcli.workflows.engines import DetectorRequest, opened_detector

if TYPE_CHECKING:
    from oodcli.compute.processes import Processes

_ENDINGS: dict[str, RowFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# A command line of many files is too long to be run again from a message.
_LONGEST_COMMAND = 4096


@dataclass(frozen=True)
class VerdictOutputs:
    """Outputs of ``ood predict``.

    Parameters
    ----------
    format
        ``csv`` or ``jsonl`` for rows, ``table`` for a table at the end; if None, by the extension
        of ``file``, or a table without a file.
    file
        File for the rows.
    copy_ood
        Folder for copies of the OOD images.
    summary
        File for the summary as JSON.
    features
        Whether the features of the images are stored beside ``file``.
    group_by
        What gives the group of an image, as for :func:`oodcli.screening.grouping.grouping`.
    csv_safe
        Whether text in CSV is written so that no spreadsheet takes it for a formula.
    """

    format: Literal["table", "csv", "jsonl"] | None = None
    file: Path | None = None
    copy_ood: Path | None = None
    summary: Path | None = None
    features: bool = False
    group_by: str | None = None
    csv_safe: bool = False

    def of_shard(self, shard: Shard | None) -> "VerdictOutputs":
        """Return the outputs of one shard: ``NAME-00007-of-00100.csv`` for ``NAME.csv``."""
        if shard is None:
            return self
        return replace(
            self,
            file=None if self.file is None else shard_path(self.file, shard),
            copy_ood=None if self.copy_ood is None else shard.path(self.copy_ood),
            summary=None if self.summary is None else shard_path(self.summary, shard),
        )

    def kind(self) -> Literal["table"] | RowFormat:
        """Return the format of the results.

        Raises
        ------
        InvalidInputError
            If the format is not given and does not follow from the extension, or is not possible
            for a file.
        """
        if self.file is None:
            return self.format or "table"
        if self.format == "table":
            raise InvalidInputError(
                f"a table can only be printed to the terminal, not written to {self.file}; use "
                "--format csv or jsonl"
            )
        if self.format is not None:
            return self.format
        ending = self.file.suffix.lower()
        if ending not in _ENDINGS:
            raise InvalidInputError(
                f"the extension of {self.file} is neither .csv nor .jsonl; choose the format: "
                "--format csv or --format jsonl"
            )
        return _ENDINGS[ending]


def shard_path(path: Path, shard: Shard | None) -> Path:
    """Return the name of an output file of a shard; that of a pipe or a device is unchanged."""
    return path if shard is None or is_stream(path) else shard.path(path)


@dataclass(frozen=True)
class PredictRequest:
    """What to judge, and how.

    Parameters
    ----------
    paths
        Files, folders, ``.npz`` files, and ``-`` for the paths in ``listed``.
    listed
        Stream of paths.
    detector
        Which detector judges, and how it computes.
    outputs
        Outputs of the verdicts.
    window
        Which values of medical images are black and white, where the run does not say so.
    jpeg_draft
        Whether it is expected that JPEG files are decoded at a reduced size; refused if the run
        does not say so.
    alarm_level
        Significance level of the alarm: the alarm is raised if the probability of the observed
        share of OOD images among ID images is below it.
    command
        The command line that resumes it, without its shard, to be written beside the rows; None if
        there is none.
    shard
        The part of the images to judge; all if None. Outputs get the number of the shard in their
        names.
    """

    paths: Sequence[str]
    listed: Iterable[str] = ()
    detector: DetectorRequest = field(default_factory=DetectorRequest)
    outputs: VerdictOutputs = field(default_factory=VerdictOutputs)
    window: str | None = None
    jpeg_draft: bool = False
    alarm_level: float = ALARM_LEVEL
    command: str | None = None
    shard: Shard | None = None


def predict(
    store: Store,
    request: PredictRequest,
    *,
    rows_to: Callable[[str], object] | None = None,
    progress: Progress = SILENT,
    processes: "Processes | None" = None,
) -> PredictResult:
    """Judge images, and write each row as soon as it is known.

    Parameters
    ----------
    store
        The store that contains the run.
    request
        What to judge, and how.
    rows_to
        Function that receives the rows as text if there is no output file.
    progress
        Receives the progress of long work.
    processes
        The processes of the job, each with a part of the shard; the result is that of all of them.

    Raises
    ------
    OodError
        If the run, the method, the device or a path cannot be used, or there is no image; a shard
        may have none. An image that cannot be read is a row with the reason.
    """
    _check(request)
    _check_rate(request.detector.rule.fdr, request, processes)
    shard = request.shard
    if processes is not None:
        _check_together(request)
        shard = (shard or Shard(1, 1)).within(processes.rank, processes.size)
    paths = distinct(request.paths, progress)
    outputs = request.outputs.of_shard(shard)
    request = replace(request, paths=paths, shard=shard, outputs=outputs)
    with opened_detector(store, request.detector, progress=progress) as opened:
        preprocess = opened.preprocess.through(
            request.window, jpeg_draft=request.jpeg_draft, where=opened.name
        )
        wanted = items(
            request.paths, request.listed, store=store, shard=shard, window=preprocess.medical
        )
        # Stdin may deliver its first path after the fitting.
        if shard is None and STDIN not in request.paths:
            wanted = at_least_one(wanted, request.paths)
        resolve = opened.detector
        detector = resolve() if processes is None else processes.in_turn(resolve)
        # A file may have been packed with a false discovery rate, or thresholds by class.
        _check_rate(detector.threshold.fdr, request, processes)
        joined = joined_classes(detector.threshold, request.detector.rule)
        if joined is not None:
            progress.note(joined)
        if request.outputs.features and detector.engine != "torch":
            raise InvalidInputError(
                "--engine onnx returns no features; omit --features, or use --engine torch"
            )
        # What is fitted does not depend on a window that the run has not.
        detector = replace(detector, about=replace(detector.about, preprocess=preprocess))
        if shard is None:
            wanted = at_least_one(wanted, request.paths)
        with _sink(detector, request, rows_to, progress) as sink:
            result = _screen(detector, wanted, sink, request, progress)
    return result if processes is None else combined(processes.gather(result))


def _screen(
    detector: BaseDetector,
    wanted: Iterator[Item],
    sink: "_Sink",
    request: PredictRequest,
    progress: Progress,
) -> PredictResult:
    """Judge images, write their verdicts and return the summary."""
    findings, frames = Findings(), list[int]()
    discoveries = None if detector.threshold.fdr is None else Discoveries(detector.threshold)
    near = 0
    started = time.perf_counter()
    with (
        progress.task("judging", total=None, unit="images") as task,
        judge(
            detector,
            sink.pending(wanted),
            soon=True,
            keep_pixels=sink.copies is not None,
            keep_features=request.outputs.features,
            several=frames.append,
        ) as blocks,
    ):
        for judged in blocks:
            verdicts = _verdicts(detector, judged)
            sink.write(judged, verdicts)
            findings.add(verdicts)
            if discoveries is not None and sink.file is None:
                discoveries.see(verdicts)
            near += detector.near(judged.score, judged.classes)
            task.advance(len(judged))
    seconds = time.perf_counter() - started
    if any(frames):
        progress.note(
            f"{counted(sum(frames), 'file')} with several frames or pages: the first of each is "
            "used"
        )
    if near:
        progress.note(
            f"{counted(near, 'score')} within {detector.margin:.2g} of the threshold, the accepted "
            "difference between ONNX Runtime and torch, where verdicts can differ"
        )
    origin = {**detector.origin(), "engine": detector.engine}
    if discoveries is not None:
        if sink.file is not None:
            discoveries, findings = _decide(sink, request, detector)
        found = result_of_discoveries(discoveries, findings, origin)
        return replace(found, seconds=seconds, alarm_level=request.alarm_level)
    return PredictResult(
        detector=origin,
        threshold=detector.threshold,
        counts=sink.before + findings.counts,
        before=sink.before,
        expected=detector.threshold.below / detector.threshold.n
        if detector.threshold.by_class
        else float(detector.percentile([detector.threshold.value])[0]) / 100,
        seconds=seconds,
        rows=findings.rows(),
        complete=findings.complete,
        alarm_level=request.alarm_level,
    )


def _decide(
    sink: "_Sink", request: PredictRequest, detector: BaseDetector
) -> tuple[Discoveries, Findings]:
    """Decide over all rows of the output file, those of earlier calls included."""
    assert sink.file is not None
    assert sink.kind != "table"
    sink.file.sync()
    outputs = request.outputs
    assert outputs.file is not None
    return decide_file(outputs.file, sink.kind, detector.threshold, csv_safe=outputs.csv_safe)


def _verdicts(detector: BaseDetector, judged: Judged) -> list[Verdict]:
    """Return the verdicts of judged images; None as long as a false discovery rate is open."""
    undecided = detector.threshold.fdr is not None
    columns = zip(
        judged.items,
        judged.errors,
        judged.classes.tolist(),
        judged.probability.tolist(),
        judged.score.tolist(),
        detector.thresholds(judged.classes).tolist(),
        judged.percentile.tolist(),
        judged.p_value.tolist(),
        judged.ood.tolist(),
        strict=True,
    )
    return [
        Verdict(item.name, group=item.group, error=error)
        if error is not None
        else Verdict(
            item.name,
            detector.classes[label] if label >= 0 else None,
            round(chance, 6) if label >= 0 else None,
            score,
            None if undecided else threshold,
            round(percentile, 4),
            p_value,
            None if undecided else "ood" if ood else "id",
            item.group,
        )
        for item, error, label, chance, score, threshold, percentile, p_value, ood in columns
    ]


@dataclass(frozen=True)
class _Sink:
    """The open outputs of verdicts: a file or a stream of lines, and copies of OOD images."""

    kind: Literal["table"] | RowFormat
    file: VerdictFile | None
    rows_to: Callable[[str], object] | None
    copies: Copies | None
    group: Grouping | None = None
    csv_safe: bool = False

    @property
    def before(self) -> Counts:
        """The counts of verdicts that the file already contained."""
        return Counts() if self.file is None else self.file.before

    def pending(self, wanted: Iterator[Item]) -> Iterator[Item]:
        """Yield the images without a row, except copies of OOD images."""
        for item in wanted:
            if self.file is not None and self.file.done.take(item.name):
                continue
            if self.copies is None or not self.copies.holds(item):
                yield item if self.group is None else replace(item, group=self.group(item))

    def write(self, judged: Judged, verdicts: Sequence[Verdict]) -> None:
        """Write verdicts of judged images.

        OOD images are copied before their rows are written, so that every row has its copy.
        """
        if self.copies is not None:
            for item, verdict in zip(judged.items, verdicts, strict=True):
                if verdict.verdict == "ood":
                    self.copies.add(item)
        if self.file is not None:
            self.file.write(verdicts, judged.features)
        elif self.kind != "table" and self.rows_to is not None:
            self.rows_to(as_lines(verdicts, self.kind, csv_safe=self.csv_safe))


@contextlib.contextmanager
def _sink(
    detector: BaseDetector,
    request: PredictRequest,
    rows_to: Callable[[str], object] | None,
    progress: Progress,
) -> Iterator[_Sink]:
    """Open the outputs of verdicts."""
    outputs = request.outputs
    kind = outputs.kind()
    window = detector.about.preprocess.medical
    copies = None if outputs.copy_ood is None else Copies(outputs.copy_ood, window)
    by = outputs.group_by
    group = None if by is None else grouping(by, request.paths)
    if outputs.file is None:
        if kind != "table" and rows_to is not None:
            rows_to(header(kind))
        yield _Sink(kind, None, rows_to, copies, group, outputs.csv_safe)
        return
    assert kind != "table"  # outputs.kind() refuses it for a file
    settings = _settings(detector, request)
    with verdict_file(
        outputs.file, kind, settings, with_features=outputs.features, progress=progress
    ) as file:
        if file.before.total:
            progress.note(
                f"{outputs.file} has {counted(file.before.total, 'row')}: resuming after them"
            )
        yield _Sink(kind, file, rows_to, copies, group)


def _settings(detector: BaseDetector, request: PredictRequest) -> dict[str, Any]:
    """Return the settings of a file of verdicts."""
    copies, threshold = request.outputs.copy_ood, detector.threshold
    preprocess = detector.about.preprocess
    record = threshold.to_json()
    columns = named_columns(request.paths)
    chosen = threshold.false_alarms is None and threshold.fdr is None and not threshold.given
    return {
        **detector.origin(),
        **({"window": preprocess.window} if preprocess.window else {}),
        **({"columns": columns} if columns else {}),
        **({"jpeg_draft": True} if preprocess.draft else {}),
        **(request.shard.settings() if request.shard else {}),
        "engine": detector.engine,
        "threshold": record["value"],
        "tpr": threshold.tpr if chosen else None,
        "false_alarms": threshold.false_alarms,
        "fdr": threshold.fdr,
        "by_class": record["by_class"] or None,
        "threshold_stderr": threshold.stderr,
        "id_below": threshold.below,
        "features": "stored" if request.outputs.features else "not stored",
        "group_by": request.outputs.group_by,
        "csv_safe": request.outputs.csv_safe,
        "copy_ood": None if copies is None else str(expanded(copies).resolve()),
        "command": _command(request),
    }


def _command(request: PredictRequest) -> str | None:
    """Return the command that resumes the file, if it is short enough."""
    if request.command is None:
        return None
    shard = "" if request.shard is None else f" --shard {request.shard}"
    command = f"{request.command}{shard}"
    return command if len(command) < _LONGEST_COMMAND else None


def _check_together(request: PredictRequest) -> None:
    """Check what several processes cannot do together."""
    if STDIN in request.paths:
        raise InvalidInputError(
            "processes of torchrun cannot share stdin; write the paths to a file, and give it"
        )
    if request.outputs.file is None and request.outputs.kind() != "table":
        raise InvalidInputError(
            "processes of torchrun cannot write rows to one stdout; name a file: --output FILE"
        )


def _check_rate(fdr: float | None, request: PredictRequest, processes: "Processes | None") -> None:
    """Check that processes and outputs can wait for verdicts that are known only at the end."""
    if fdr is None:
        return
    if processes is not None:
        raise InvalidInputError(
            "--fdr decides over all images, and each process of torchrun judges a part of them; "
            "leave it out, and decide afterwards: ood verdicts merge … --fdr RATE"
        )
    outputs = request.outputs
    streamed = outputs.file is not None and is_stream(outputs.file)
    if streamed or (outputs.file is None and outputs.kind() != "table"):
        raise InvalidInputError(
            "--fdr decides when all images are known, so rows cannot be written as a stream; name "
            "a file: --output FILE.csv"
        )
    if outputs.copy_ood is not None:
        raise InvalidInputError(
            "--fdr decides when all images are known, so --copy-ood cannot copy on the way; leave "
            "one of them out, or use --false-alarms"
        )


def _check(request: PredictRequest) -> None:
    """Check the request before anything is opened."""
    outputs = request.outputs
    check_csv_safe(outputs.kind(), asked=outputs.csv_safe)
    if not request.paths:
        raise InvalidInputError("no images are given; give files or folders, or - for stdin")
    check_alarm_level(request.alarm_level)
    if request.paths.count(STDIN) > 1:
        raise InvalidInputError("- stands for stdin and may be given only once")
    request.detector.check()
    for file in (outputs.file, outputs.summary):
        if file is not None:
            check_output_file(file)
    if outputs.group_by is not None and outputs.group_by not in WAYS:
        grouping(outputs.group_by, request.paths)
    if outputs.features and (outputs.file is None or is_stream(outputs.file)):
        raise InvalidInputError(
            "--features stores features beside a file of verdicts; name it: --output FILE.csv"
        )
    if outputs.copy_ood is not None:
        check_copies(outputs.copy_ood, request.paths)
