"""Judging incoming images one by one: whether they are of a kind that the classifier knows.

Images are listed, decoded and resized ahead of the network, in threads; what is held at a time is
bounded, however many images there are.
"""

import contextlib
import heapq
import itertools
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from oodcli.activations import Activations
from oodcli.data.incoming import STDIN, Item, decoded, is_array, items, open_array
from oodcli.data.prepare import Resizing
from oodcli.data.readers import decode
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.files import expanded
from oodcli.methods import parse_method
from oodcli.methods.ensemble import AUTO
from oodcli.models.extraction import extract, read_ahead
from oodcli.pools import decoding
from oodcli.progress import Progress, Silent
from oodcli.runs import RunFolder, using_run
from oodcli.statistics import surplus_p
from oodcli.store import Store, check_file_of_user, check_folder_of_user, replacing
from oodcli.text import printable
from oodcli.workflows.detectors import Detector, Threshold, check_threshold, detector_for
from oodcli.workflows.devices import enough_memory, find_device
from oodcli.workflows.verdict_file import (
    Counts,
    Lines,
    Verdict,
    as_lines,
    header,
    verdict_file,
)

PREDICT_SCHEMA = 1
# Of so few images a table shows all, of more the least in-distribution ones and the first errors.
SHOWN = 40
_SHOWN_ERRORS = 10
# Pixels of images that are on their way together, and of the first ones, whose verdict comes soon.
_PIXELS = 2**20
_FIRST_PIXELS = 2**16
_MOST_ROWS = 1024
_COPIES = 1000
# Of 1,000 nights with ID images alone, one ends with an alarm.
ALARM_LEVEL = 0.001


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
    tpr
        Share of ID images to accept; 0.95 if None.
    threshold
        The threshold itself.
    format
        ``csv`` or ``jsonl`` for rows, ``table`` for a table at the end; by the ending of ``output``
        if None, else a table.
    output
        File that gets the rows.
    copy_ood
        Folder that gets copies of the OOD images.
    summary
        File that gets what was found, all in all, as JSON.
    device, amp, batch_size
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
    tpr: float | None = None
    threshold: float | None = None
    format: Literal["table", "csv", "jsonl"] | None = None
    output: Path | None = None
    copy_ood: Path | None = None
    summary: Path | None = None
    device: str = "auto"
    amp: bool = False
    batch_size: int | None = None
    skip_unreadable: bool = False
    alarm_level: float = ALARM_LEVEL


@dataclass(frozen=True)
class PredictResult:
    """What was found, all in all.

    Parameters
    ----------
    detector
        Run, method, and the ID images behind the threshold.
    threshold
        The threshold.
    counts
        The verdicts, those of earlier runs into the same file included.
    before
        The verdicts that the file had already.
    expected
        Share of ID images below the threshold.
    seconds
        Time from the first image to the last.
    rows
        All verdicts if they are few, else those of the lowest OOD scores and the first errors.
    complete
        Whether ``rows`` are all.
    alarm_level
        As it was asked for.
    """

    detector: dict[str, Any]
    threshold: Threshold
    counts: Counts
    before: Counts
    expected: float
    seconds: float
    rows: tuple[Verdict, ...]
    complete: bool
    alarm_level: float = ALARM_LEVEL

    @property
    def tested(self) -> Counts:
        """The verdicts of this call; of all rows of the file where every image had its row."""
        new = Counts(
            self.counts.id - self.before.id,
            self.counts.ood - self.before.ood,
            self.counts.errors - self.before.errors,
        )
        return new if new.total else self.before

    @property
    def p(self) -> float | None:
        """How likely so many OOD verdicts are, or more, if all tested images are ID.

        See :func:`oodcli.statistics.surplus_p`; None where none could be judged.
        """
        tested = self.tested
        if not tested.judged:
            return None
        threshold = self.threshold
        return surplus_p(tested.ood, tested.judged, below=threshold.below, of=threshold.n)

    @property
    def alarm(self) -> bool:
        """Whether the share of OOD verdicts is far above what ID images give."""
        p = self.p
        return p is not None and p < self.alarm_level

    @property
    def fault(self) -> str | None:
        """Why nothing could be judged; None where something was."""
        if self.tested.judged:
            return None
        first = next((each for each in self.rows if each.error is not None), None)
        example = "" if first is None else f", such as {first.path}: {first.error}"
        return (
            f"none of {self.tested.total:,} images could be judged, for none can be read{example}; "
            "see that the files are whole"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--summary`` writes."""
        tested = self.tested
        return {
            "kind": "ood-screening",
            "schema": PREDICT_SCHEMA,
            **self.detector,
            "threshold": asdict(self.threshold),
            "images": {**asdict(self.counts), "total": self.counts.total},
            "share": self.share,
            "expected": self.expected,
            "tested": {**asdict(tested), "total": tested.total},
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
        """Standard error of ``expected`` as the share of so many ID images, were they all ID."""
        judged = max(self.counts.judged, 1)
        chance = self.expected * (1 - self.expected)
        return math.sqrt(chance / judged + chance / self.threshold.n)


def predict(
    store: Store,
    request: PredictRequest,
    *,
    rows_to: Callable[[str], object] | None = None,
    progress: Progress | None = None,
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
        Told of long work.

    Raises
    ------
    OodError
        If the run, the method, the device or a path cannot be used, or there is no image. One that
        cannot be read is a row with the reason.
    """
    watch = progress or Silent()
    kind = _kind(request)
    _check(request)
    device = find_device(request.device)
    with using_run(store, request.run, progress=watch) as folder:
        return _screened(
            store, folder, request, kind=kind, device=device, rows_to=rows_to, watch=watch
        )


def _screened(
    store: Store,
    folder: RunFolder,
    request: PredictRequest,
    *,
    kind: Literal["table"] | Lines,
    device: torch.device,
    rows_to: Callable[[str], object] | None,
    watch: Progress,
) -> PredictResult:
    """Judge the images of a request whose run is open."""
    wanted = items(request.paths, request.listed)
    if STDIN not in request.paths:  # what comes there may be waited for while a method is fitted
        wanted = _at_least_one(wanted, request.paths)
    detector = detector_for(
        store,
        folder,
        request.method,
        device=device,
        amp=request.amp,
        batch_size=request.batch_size,
        skip_unreadable=request.skip_unreadable,
        progress=watch,
    )
    threshold = detector.chosen(request.tpr, request.threshold)
    wanted = _at_least_one(wanted, request.paths)
    found = _Findings()
    with contextlib.ExitStack() as stack:
        file = None
        if request.output is not None:
            assert kind != "table"  # _kind has seen to it
            file = stack.enter_context(
                verdict_file(
                    request.output,
                    kind,
                    _settings(detector, threshold, request),
                    store,
                    progress=watch,
                )
            )
            done = file.done
            wanted = (item for item in wanted if not done.take(item.name))
            if file.before.total:
                watch.note(f"{request.output} has {file.before.total:,} rows: going on after them")
        elif kind != "table" and rows_to is not None:
            rows_to(header(kind))
        copies = None if request.copy_ood is None else _Copies(request.copy_ood)
        if copies is not None:
            wanted = (item for item in wanted if not copies.holds(item))
        started = time.perf_counter()
        task = stack.enter_context(watch.task("judging", total=None, unit="images"))
        blocks = stack.enter_context(
            _judging(detector, folder, threshold, wanted, request=request, device=device)
        )
        for block in blocks:
            verdicts = [verdict for _, verdict in block]
            # Copied before they are written, so that every row of an image comes with its copy.
            if copies is not None:
                for item, verdict in block:
                    if verdict.verdict == "ood":
                        copies.add(item)
            if file is not None:
                file.write(verdicts)
            elif kind != "table" and rows_to is not None:
                rows_to(as_lines(verdicts, kind))
            found.add(verdicts)
            task.advance(len(block))
        seconds = time.perf_counter() - started
    before = Counts() if file is None else file.before
    counts = found.counts
    return PredictResult(
        detector=detector.origin(),
        threshold=threshold,
        counts=Counts(
            before.id + counts.id, before.ood + counts.ood, before.errors + counts.errors
        ),
        before=before,
        expected=float(detector.percentile([threshold.value])[0]) / 100,
        seconds=seconds,
        rows=found.rows(),
        complete=found.complete,
        alarm_level=request.alarm_level,
    )


def _at_least_one(wanted: Iterator[Item], paths: Sequence[str]) -> Iterator[Item]:
    """Return the same images, the first of which has been seen.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    first = next(wanted, None)
    if first is None:
        raise InvalidInputError(
            f"there is no image in {', '.join(map(_named, paths))}, so that nothing can be judged; "
            "name others: in folders, files with the ending of an image are looked at, and hidden "
            "ones are not"
        )
    return itertools.chain([first], wanted)


def _kind(request: PredictRequest) -> Literal["table"] | Lines:
    """Return how results are written."""
    if request.output is None:
        return request.format or "table"
    endings: dict[str, Lines] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    ending = request.output.suffix.lower()
    if request.format == "table":
        raise InvalidInputError(
            f"a table is for the screen, not for {request.output}; take --format csv or jsonl"
        )
    if request.format is not None:
        return request.format
    if ending not in endings:
        raise InvalidInputError(
            f"the ending of {request.output} is neither .csv nor .jsonl; "
            "say what to write: --format csv or --format jsonl"
        )
    return endings[ending]


def _check(request: PredictRequest) -> None:
    """Refuse what cannot be done before anything is opened."""
    if not request.paths:
        raise InvalidInputError("there is nothing to judge; name files or folders, or - for stdin")
    check_threshold(request.tpr, request.threshold)
    if not 0 < request.alarm_level < 1:
        raise InvalidInputError(
            f"--alarm-level must be above 0 and below 1, not {request.alarm_level:g}"
        )
    if request.paths.count(STDIN) > 1:
        raise InvalidInputError("- stands for stdin, which can be read once; name it once")
    if request.method not in (None, AUTO):
        parse_method(request.method)
    for path in request.paths:
        if path != STDIN and not Path(path).exists():
            raise InvalidInputError(f"there is no file or folder {path}; check its name")
        if is_array(path) and not Path(path).is_dir():
            open_array(Path(path))
    for file in (request.output, request.summary):
        if file is not None:
            check_file_of_user(file)
    if request.copy_ood is not None:
        _check_copies(request.copy_ood, request.paths)


def _named(path: str) -> str:
    return "stdin" if path == STDIN else printable(path)


def _check_copies(into: Path, paths: Sequence[str]) -> None:
    target = expanded(into).resolve()
    check_folder_of_user(into, option="--copy-ood")
    for path in paths:
        if path != STDIN and Path(path).is_dir() and target.is_relative_to(Path(path).resolve()):
            raise InvalidInputError(
                f"{into} lies in {path}, which is read; name a folder elsewhere for the copies"
            )


def _settings(detector: Detector, threshold: Threshold, request: PredictRequest) -> dict[str, Any]:
    """Return what rows depend on, and what cannot be done later for rows that are there."""
    copies = request.copy_ood
    return {
        **detector.origin(),
        "threshold": threshold.value,
        "tpr": None if threshold.given else threshold.tpr,
        "threshold_stderr": threshold.stderr,
        "copy_ood": None if copies is None else str(expanded(copies).resolve()),
    }


@dataclass
class _Group:
    """Images that go through the network together, between those that cannot be read."""

    rows: list[tuple[Item, str | None]] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, item: Item, image: NDArray[np.uint8] | str) -> None:
        """Add an image, or the reason why there is none."""
        if isinstance(image, str):
            self.rows.append((item, image))
        else:
            self.rows.append((item, None))
            self.images.append(image)

    def seen(self, *, keep_pixels: bool) -> "_Group":
        """Return the rows without the pixels that nobody will ask for again."""
        light = (
            (item if keep_pixels and why is None else replace(item, pixels=None), why)
            for item, why in self.rows
        )
        return _Group(list(light))

    def pixels(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the pixels, ``(n, 3, h, w)``; a black image if there are none."""
        if not self.images:
            # Something has to go through the network for the rows to come out in order.
            return np.zeros((1, 3, *size), dtype=np.uint8)
        return np.ascontiguousarray(np.stack(self.images).transpose(0, 3, 1, 2))


@contextlib.contextmanager
def _judging(
    detector: Detector,
    folder: RunFolder,
    threshold: Threshold,
    wanted: Iterator[Item],
    *,
    request: PredictRequest,
    device: torch.device,
) -> Iterator[Iterator[list[tuple[Item, Verdict]]]]:
    """Give blocks of images in order with their verdicts, read ahead as long as the context."""
    pre = detector.record.preprocess
    under_way: deque[_Group] = deque()

    def shards(pool: Executor) -> Iterator[NDArray[np.uint8]]:
        images = decoded(wanted, Resizing(pre.size, pre.resize).apply, pool)
        for group in _grouped(images, pre.size):
            pixels = group.pixels(pre.size)
            under_way.append(group.seen(keep_pixels=request.copy_ood is not None))
            yield pixels

    with (
        decoding() as pools,
        read_ahead(shards(pools.threads())) as ready,
        enough_memory(device, "take fewer images at a time: --score-batch-size N"),
    ):
        passes = extract(
            detector.network(folder),
            ready,
            mean=pre.mean,
            std=pre.std,
            device=device,
            precision=detector.precision,
            batch_size=request.batch_size,
            probes=detector.fitted.probes,
        )
        yield (
            _verdicts(detector, threshold, under_way.popleft(), activations, device)
            for activations in passes
        )


def _verdicts(
    detector: Detector,
    threshold: Threshold,
    group: _Group,
    activations: Activations,
    device: torch.device,
) -> list[tuple[Item, Verdict]]:
    """Return the verdicts of images that went through the network together."""
    classes = detector.record.class_names
    scores = detector.score(activations.map(lambda values: values.to(device)))
    _check_finite(detector.method, scores)
    probabilities = activations.logits.double().softmax(dim=1)
    predicted = activations.predictions
    chances = probabilities.gather(1, predicted[:, None])[:, 0].tolist()
    # Of a group without images there is one more, which no row takes.
    columns = zip(
        predicted.tolist(),
        chances,
        scores.tolist(),
        detector.percentile(scores).tolist(),
        detector.verdicts(scores, threshold).tolist(),
        strict=True,
    )
    block = []
    for item, why in group.rows:
        if why is not None:
            block.append((item, Verdict(item.name, error=why)))
            continue
        label, chance, score, percentile, known = next(columns)
        verdict = Verdict(
            item.name,
            classes[label],
            round(chance, 6),
            score,
            threshold.value,
            round(percentile, 4),
            "id" if known else "ood",
        )
        block.append((item, verdict))
    return block


def _grouped(
    images: Iterable[tuple[Item, NDArray[np.uint8] | str]], size: tuple[int, int]
) -> Iterator[_Group]:
    """Gather images into groups of bounded size, the first of which is small."""
    each = size[0] * size[1]
    largest = max(1, min(_MOST_ROWS, _PIXELS // each))
    rows = max(1, min(_MOST_ROWS, _FIRST_PIXELS // each))
    group = _Group()
    for item, image in images:
        group.add(item, image)
        if len(group.rows) >= rows:
            yield group
            group, rows = _Group(), min(2 * rows, largest)
    if group.rows:
        yield group


def _check_finite(method: str, scores: NDArray[np.float64]) -> None:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise InvalidInputError(
            f"{method} gives {bad} scores that are not finite; "
            "check its parameters and the weights of the run"
        )


class _Findings:
    """Counts verdicts, and remembers those that a table shows."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._first: list[Verdict] = []
        self._errors: list[Verdict] = []
        # The largest negated score is that of the least in-distribution image.
        self._lowest: list[tuple[float, int, Verdict]] = []
        self._order = itertools.count(0, -1)

    @property
    def complete(self) -> bool:
        """Whether all are remembered."""
        return self.counts.total == len(self._first)

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Add some."""
        for each in verdicts:
            self.counts.count(each.verdict)
            if len(self._first) < SHOWN:
                self._first.append(each)
            if each.error is not None and len(self._errors) < _SHOWN_ERRORS:
                self._errors.append(each)
            if each.verdict == "ood" and each.score is not None:
                entry = (-each.score, next(self._order), each)
                if len(self._lowest) < SHOWN:
                    heapq.heappush(self._lowest, entry)
                elif entry > self._lowest[0]:
                    heapq.heapreplace(self._lowest, entry)

    def rows(self) -> tuple[Verdict, ...]:
        """Return what a table shows."""
        if self.complete:
            return tuple(self._first)
        lowest = sorted(self._lowest, reverse=True)
        return (*(verdict for _, _, verdict in lowest), *self._errors)


@lru_cache(maxsize=1024)
def _resolved(folder: str) -> Path:
    return Path(folder).resolve()


@dataclass(frozen=True)
class _Copies:
    """A folder that gets copies of images; a file that is there is never changed.

    Parameters
    ----------
    folder
        The folder.
    """

    folder: Path

    def holds(self, item: Item) -> bool:
        """Tell whether an image is such a copy, which must not be copied again and again."""
        parent = _resolved(os.path.dirname(item.path))  # noqa: PTH120 - a million items
        return parent.is_relative_to(_resolved(str(expanded(self.folder))))

    def add(self, item: Item) -> None:
        """Copy an image to its relative path, or beside another image that is there."""
        wanted = expanded(self.folder) / item.relative
        try:
            for number in range(1, _COPIES):
                target = wanted if number == 1 else wanted.with_stem(f"{wanted.stem}-{number}")
                if not os.path.lexists(target):
                    with replacing(target, cure="name a folder elsewhere") as stream:
                        self._write(item, stream)
                    return
                if self._is_copy(item, target):
                    return
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InvalidInputError(
                f"cannot copy {printable(item.name)} into {self.folder}: {reason}; make that "
                "possible, or name another folder: --copy-ood DIR"
            ) from None
        raise InvalidInputError(
            f"there are {_COPIES} other images called {wanted}; name another folder: --copy-ood DIR"
        )

    def _write(self, item: Item, stream: IO[bytes]) -> None:
        if item.pixels is None:
            with Path(item.path).open("rb") as source:
                shutil.copyfileobj(source, stream)
        else:
            Image.fromarray(item.pixels).save(stream, format="PNG")

    def _is_copy(self, item: Item, target: Path) -> bool:
        """Tell whether a file holds the image already."""
        if not target.is_file():
            return False
        if item.pixels is not None:
            with contextlib.suppress(UnreadableImageError):
                return np.array_equal(decode(target), item.pixels)
            return False
        source = Path(item.path)
        if source.stat().st_size != target.stat().st_size:
            return False
        with source.open("rb") as one, target.open("rb") as other:
            while block := one.read(2**20):
                if block != other.read(2**20):
                    return False
        return True
