"""``ood predict``: judge incoming images one by one, and write their verdicts as they come."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from oodcli.compute.compute import Compute
from oodcli.data.incoming import STDIN, Item, items
from oodcli.errors import InvalidInputError
from oodcli.files import expanded
from oodcli.methods import parse_method
from oodcli.methods.ensemble import AUTO
from oodcli.progress import SILENT, Progress
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.copies import Copies, check_copies
from oodcli.screening.detector import BY_DEFAULT, Detector
from oodcli.screening.findings import ALARM_LEVEL, Findings, PredictResult
from oodcli.screening.judging import Judged, judge
from oodcli.screening.thresholds import ThresholdRule
from oodcli.screening.verdict_file import (
    Counts,
    Lines,
    Verdict,
    VerdictFile,
    as_lines,
    header,
    verdict_file,
)
from oodcli.store.store import Store, check_output_file
from oodcli.text import counted, printable
from oodcli.workflows.recommend import detector_meant

_ENDINGS: dict[str, Lines] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True)
class VerdictOutputs:
    """Where verdicts go.

    Parameters
    ----------
    format
        ``csv`` or ``jsonl`` for rows, ``table`` for a table at the end; by the ending of ``file``
        if None, else a table.
    file
        File that gets the rows.
    copy_ood
        Folder that gets copies of the OOD images.
    summary
        File that gets what was found, all in all, as JSON.
    """

    format: Literal["table", "csv", "jsonl"] | None = None
    file: Path | None = None
    copy_ood: Path | None = None
    summary: Path | None = None

    def kind(self) -> Literal["table"] | Lines:
        """Return how results are written.

        Raises
        ------
        InvalidInputError
            If that is not told, or is not for a file.
        """
        if self.file is None:
            return self.format or "table"
        if self.format == "table":
            raise InvalidInputError(
                f"a table can only be shown on the screen, not written to {self.file}; use "
                "--format csv or jsonl"
            )
        if self.format is not None:
            return self.format
        ending = self.file.suffix.lower()
        if ending not in _ENDINGS:
            raise InvalidInputError(
                f"the ending of {self.file} is neither .csv nor .jsonl; choose the format: "
                "--format csv or --format jsonl"
            )
        return _ENDINGS[ending]


@dataclass(frozen=True)
class PredictRequest:
    """What to judge, and how.

    Parameters
    ----------
    paths
        Files, folders, ``.npz`` files, and ``-`` for the paths in ``listed``.
    listed
        Paths that come as a stream.
    run
        Name of the run; the one created last if None.
    method
        The method as written on the command line, or ``auto``; the recommended one if None and it
        was chosen, else ``msp``.
    rule
        How the threshold is set.
    outputs
        Where verdicts go.
    compute
        Where and how to compute.
    skip_unreadable
        Whether images of the run's own data that cannot be decoded are left out in fitting.
    alarm_level
        How unlikely the share of OOD images must be among ID images alone for an alarm.
    """

    paths: Sequence[str]
    listed: Iterable[str] = ()
    run: str | None = None
    method: str | None = None
    rule: ThresholdRule = BY_DEFAULT
    outputs: VerdictOutputs = field(default_factory=VerdictOutputs)
    compute: Compute = field(default_factory=Compute.of)
    skip_unreadable: bool = False
    alarm_level: float = ALARM_LEVEL


def predict(
    store: Store,
    request: PredictRequest,
    *,
    rows_to: Callable[[str], object] | None = None,
    progress: Progress = SILENT,
) -> PredictResult:
    """Judge images, and write their rows as they come.

    Parameters
    ----------
    store
        Where the run is.
    request
        What to judge, and how.
    rows_to
        Takes rows, as text, that no file was named for.
    progress
        Receives the progress of long work.

    Raises
    ------
    OodError
        If the run, the method, the device or a path cannot be used, or there is no image. One that
        cannot be read is a row with the reason.
    """
    _check(request)
    wanted = items(request.paths, request.listed, store=store)
    with OpenRun.open(
        store,
        request.run,
        request.compute,
        skip_unreadable=request.skip_unreadable,
        progress=progress,
    ) as run:
        if STDIN not in request.paths:  # what comes there may be waited for while one is fitted
            wanted = _at_least_one(wanted, request.paths)
        detector = detector_meant(run, request.method, request.rule)
        wanted = _at_least_one(wanted, request.paths)
        with _sink(store, detector, request.outputs, rows_to, progress) as sink:
            return _screened(detector, wanted, sink, request, progress)


def _screened(
    detector: Detector,
    wanted: Iterator[Item],
    sink: "_Sink",
    request: PredictRequest,
    progress: Progress,
) -> PredictResult:
    """Judge images, and hand their verdicts on."""
    found = Findings()
    started = time.perf_counter()
    with (
        progress.task("judging", total=None, unit="images") as task,
        judge(
            detector, sink.lacking(wanted), soon=True, keep_pixels=sink.copies is not None
        ) as blocks,
    ):
        for judged in blocks:
            verdicts = _verdicts(detector, judged)
            sink.take(judged.items, verdicts)
            found.add(verdicts)
            task.advance(len(judged))
    seconds = time.perf_counter() - started
    return PredictResult(
        detector=detector.origin(),
        threshold=detector.threshold,
        counts=sink.before + found.counts,
        before=sink.before,
        expected=float(detector.percentile([detector.threshold.value])[0]) / 100,
        seconds=seconds,
        rows=found.rows(),
        complete=found.complete,
        alarm_level=request.alarm_level,
    )


def _verdicts(detector: Detector, judged: Judged) -> list[Verdict]:
    """Return what is written of images that were judged."""
    columns = zip(
        judged.items,
        judged.errors,
        judged.classes.tolist(),
        judged.probability.tolist(),
        judged.score.tolist(),
        judged.percentile.tolist(),
        judged.ood.tolist(),
        strict=True,
    )
    return [
        Verdict(item.name, error=error)
        if error is not None
        else Verdict(
            item.name,
            detector.classes[label],
            round(chance, 6),
            score,
            detector.threshold.value,
            round(percentile, 4),
            "ood" if ood else "id",
        )
        for item, error, label, chance, score, percentile, ood in columns
    ]


@dataclass(frozen=True)
class _Sink:
    """Where verdicts go as they come: a file or a stream of lines, and copies of OOD images."""

    kind: Literal["table"] | Lines
    file: VerdictFile | None
    rows_to: Callable[[str], object] | None
    copies: Copies | None

    @property
    def before(self) -> Counts:
        """The verdicts that the file had already."""
        return Counts() if self.file is None else self.file.before

    def lacking(self, wanted: Iterator[Item]) -> Iterator[Item]:
        """Yield the images that have no row yet, and are no copies."""
        for item in wanted:
            if self.file is not None and self.file.done.take(item.name):
                continue
            if self.copies is None or not self.copies.holds(item):
                yield item

    def take(self, images: Sequence[Item], verdicts: Sequence[Verdict]) -> None:
        """Write verdicts of images.

        They are copied before they are written, so that every row of an image comes with its copy.
        """
        if self.copies is not None:
            for item, verdict in zip(images, verdicts, strict=True):
                if verdict.verdict == "ood":
                    self.copies.add(item)
        if self.file is not None:
            self.file.write(verdicts)
        elif self.kind != "table" and self.rows_to is not None:
            self.rows_to(as_lines(verdicts, self.kind))


@contextlib.contextmanager
def _sink(
    store: Store,
    detector: Detector,
    outputs: VerdictOutputs,
    rows_to: Callable[[str], object] | None,
    progress: Progress,
) -> Iterator[_Sink]:
    """Open what gets the verdicts."""
    kind = outputs.kind()
    copies = None if outputs.copy_ood is None else Copies(outputs.copy_ood)
    if outputs.file is None:
        if kind != "table" and rows_to is not None:
            rows_to(header(kind))
        yield _Sink(kind, None, rows_to, copies)
        return
    assert kind != "table"  # outputs.kind has seen to it
    settings = _settings(detector, outputs)
    with verdict_file(outputs.file, kind, settings, store, progress=progress) as file:
        if file.before.total:
            progress.note(
                f"{outputs.file} has {counted(file.before.total, 'row')}: resuming after them"
            )
        yield _Sink(kind, file, rows_to, copies)


def _settings(detector: Detector, outputs: VerdictOutputs) -> dict[str, Any]:
    """Return what rows depend on, and what cannot be done later for rows that are there."""
    copies, threshold = outputs.copy_ood, detector.threshold
    return {
        **detector.origin(),
        "threshold": threshold.value,
        "tpr": None if threshold.given else threshold.tpr,
        "threshold_stderr": threshold.stderr,
        "copy_ood": None if copies is None else str(expanded(copies).resolve()),
    }


def _at_least_one(wanted: Iterator[Item], paths: Sequence[str]) -> Iterator[Item]:
    """Return the same images, the first of which has been seen.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    first = next(wanted, None)
    if first is None:
        named = ["stdin" if path == STDIN else printable(path) for path in paths]
        raise InvalidInputError(
            f"there is no image in {', '.join(named)}; give other paths: in folders, only files "
            "with an image extension are read, and hidden files are skipped"
        )
    return itertools.chain([first], wanted)


def _check(request: PredictRequest) -> None:
    """Refuse what cannot be done before anything is opened."""
    outputs = request.outputs
    outputs.kind()
    if not request.paths:
        raise InvalidInputError("no images are given; name files or folders, or - for stdin")
    if not 0 < request.alarm_level < 1:
        raise InvalidInputError(
            f"--alarm-level must be above 0 and below 1, not {request.alarm_level:g}"
        )
    if request.paths.count(STDIN) > 1:
        raise InvalidInputError("- stands for stdin, which can be read once; name it once")
    if request.method not in (None, AUTO):
        parse_method(request.method)
    for file in (outputs.file, outputs.summary):
        if file is not None:
            check_output_file(file)
    if outputs.copy_ood is not None:
        check_copies(outputs.copy_ood, request.paths)
