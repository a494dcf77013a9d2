"""Verdicts as lines of CSV or JSON, in a file that can be resumed after an interruption.

``FILE.ood.json``, next to ``FILE``, records the detector and threshold of its rows. A file is
resumed only if these are the same; the paths in its rows identify the finished images.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import expanded
from oodcli.progress import SILENT, Progress
from oodcli.store.store import Store, is_stream, open_stream, read_json, write_json
from oodcli.text import escaped, json_text, unescaped

RowFormat = Literal["csv", "jsonl"]
ROW_SCHEMA = 1
SYNC_S = 3.0

_CURE = "choose another file, or remove this one"
# Settings that do not affect rows: a detector that is fitted again has another time.
_IGNORED_SETTINGS = frozenset({"created"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one image.

    Parameters
    ----------
    path
        Path as given, or ``FILE.npz[ROW]``.
    predicted
        Name of the predicted class; None, like all fields except ``path`` and ``error``, if the
        image cannot be read, and without a classifier.
    probability
        Softmax probability of that class; None without one.
    score
        Score of the detector; larger = more in-distribution.
    threshold
        The minimum score of in-distribution images.
    percentile
        Share of the run's ID scores below it, in percent.
    verdict
        ``id`` or ``ood``.
    error
        Why the image cannot be read; None if it was judged.
    """

    path: str
    predicted: str | None = None
    probability: float | None = None
    score: float | None = None
    threshold: float | None = None
    percentile: float | None = None
    verdict: Literal["id", "ood"] | None = None
    error: str | None = None


# In the order of the fields; the predicted class has the name "class" in all outputs.
COLUMNS = tuple("class" if f.name == "predicted" else f.name for f in fields(Verdict))


def as_object(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as the JSON object of its line."""
    values = (getattr(verdict, field.name) for field in fields(Verdict))
    return {"schema": ROW_SCHEMA, **dict(zip(COLUMNS, values, strict=True))}


def as_lines(verdicts: Sequence[Verdict], kind: RowFormat) -> str:
    """Return verdicts as text, one line each.

    Notes
    -----
    In CSV, text is escaped by :func:`oodcli.text.escaped`, so that each row is one line and every
    path can be read back.
    """
    if kind == "jsonl":
        return "".join(json_text(as_object(each)) + "\n" for each in verdicts)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for each in verdicts:
        values = (getattr(each, field.name) for field in fields(Verdict))
        writer.writerow(
            escaped(value) if isinstance(value, str) else value
            for value in ("" if value is None else value for value in values)
        )
    return text.getvalue()


def header(kind: RowFormat) -> str:
    """Return the header line; empty for JSON lines."""
    return ",".join(COLUMNS) + "\n" if kind == "csv" else ""


@dataclass
class Counts:
    """Numbers of images by verdict.

    Parameters
    ----------
    id
        In-distribution images.
    ood
        Out-of-distribution images.
    errors
        Images that cannot be read.
    """

    id: int = 0
    ood: int = 0
    errors: int = 0

    @property
    def total(self) -> int:
        """All images."""
        return self.id + self.ood + self.errors

    @property
    def judged(self) -> int:
        """Images that could be read."""
        return self.id + self.ood

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.id + other.id, self.ood + other.ood, self.errors + other.errors)

    def count(self, verdict: str | None) -> None:
        """Count one image."""
        if verdict == "id":
            self.id += 1
        elif verdict == "ood":
            self.ood += 1
        else:
            self.errors += 1


class FinishedImages:
    """The images that already have a row, stored with 8 bytes each.

    Parameters
    ----------
    digests
        Digests of the paths in the rows, uint64 ``(n,)``.
    """

    def __init__(self, digests: NDArray[np.uint64]) -> None:
        self._digests, self._left = np.unique(digests, return_counts=True)

    def take(self, path: str) -> bool:
        """Return whether there is a row for an image; each row is used only once."""
        if not len(self._digests):
            return False
        digest = _digest(path)
        at = int(np.searchsorted(self._digests, digest))
        if at == len(self._digests) or self._digests[at] != digest or not self._left[at]:
            return False
        self._left[at] -= 1
        return True


def _digest(path: str) -> np.uint64:
    raw = path.encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.blake2b(raw, digest_size=8).digest(), np.uint64)[0]


@dataclass
class VerdictFile:
    """An open file of verdicts.

    Parameters
    ----------
    stream
        The file, positioned at its end.
    kind
        Format of its rows.
    done
        The images that already had a row.
    before
        The counts of these rows.
    """

    stream: IO[bytes]
    kind: RowFormat
    done: FinishedImages
    before: Counts
    _synced: float = 0.0

    def write(self, verdicts: Sequence[Verdict]) -> None:
        """Add rows; they are flushed to disk every few seconds."""
        self.stream.write(as_lines(verdicts, self.kind).encode())
        self.stream.flush()
        now = time.monotonic()
        if now - self._synced > SYNC_S:
            self._synced = now
            self.sync()

    def sync(self) -> None:
        """Flush written rows to disk."""
        # A pipe or a device does not support fsync.
        with contextlib.suppress(OSError):
            os.fsync(self.stream.fileno())


def settings_path(path: Path) -> Path:
    """Return the path of the settings of a file of verdicts."""
    return path.with_name(f"{path.name}.ood.json")


@contextlib.contextmanager
def verdict_file(
    path: Path,
    kind: RowFormat,
    settings: Mapping[str, Any],
    store: Store,
    *,
    progress: Progress = SILENT,
) -> Iterator[VerdictFile]:
    """Open a file for verdicts, new or to be resumed.

    Parameters
    ----------
    path
        The file.
    kind
        Format of its rows.
    settings
        Settings that affect the rows; rows with different settings are never mixed.
    store
        Store whose lock prevents two processes from writing the same file.
    progress
        Receives a note if another process is writing the file.

    Raises
    ------
    InvalidInputError
        If the file exists with other settings, or was not written by this function; or
        if it cannot be written.
    """
    target = expanded(path).resolve()
    try:
        with contextlib.ExitStack() as stack:
            if not is_stream(path):
                stack.enter_context(store.lock(f"verdicts {target}", progress=progress))
            yield stack.enter_context(_opened(path, target, kind, settings))
    except BrokenPipeError:
        raise  # the reader of the pipe has exited, which is not an error of the file
    except OSError as error:
        # A failed write has no filename; an error with another filename concerns another file.
        if error.filename is not None and Path(str(error.filename)).parent != target.parent:
            raise
        reason = (error.strerror or str(error)).lower()
        raise InvalidInputError(
            f"cannot write {path}: {reason}; correct this and run the same command to resume, or "
            "choose another file"
        ) from None


@contextlib.contextmanager
def _opened(
    path: Path, target: Path, kind: RowFormat, settings: Mapping[str, Any]
) -> Iterator[VerdictFile]:
    if is_stream(path):
        with open_stream(path) as stream:
            stream.write(header(kind).encode())
            yield VerdictFile(stream, kind, FinishedImages(np.empty(0, np.uint64)), Counts())
        return
    wanted = {"kind": "ood-verdicts", "schema": ROW_SCHEMA, "format": kind, **settings}
    exists = target.is_file() and target.stat().st_size > 0
    if exists:
        _check_settings(path, settings_path(target), wanted)
    else:
        write_json(settings_path(target), wanted, cure="choose another file")
    with target.open("r+b" if exists else "wb") as stream:
        if exists:
            done, before = _read(path, stream, kind)
        else:
            done, before = FinishedImages(np.empty(0, np.uint64)), Counts()
        if stream.tell() == 0:
            stream.write(header(kind).encode())
        file = VerdictFile(stream, kind, done, before)
        try:
            yield file
        finally:
            stream.flush()
            file.sync()


def _check_settings(path: Path, beside: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = read_json(beside)
    except (FileNotFoundError, CorruptArtifactError):
        raise InvalidInputError(
            f"{path} already exists, but {beside.name} with the settings of its rows is missing; "
            f"{_CURE}"
        ) from None
    # In the form in which JSON is read back: tuples become lists.
    asked = json.loads(json.dumps(wanted))
    other = [
        key
        for key in {**asked, **found}
        if key not in _IGNORED_SETTINGS and asked.get(key) != found.get(key)
    ]
    if other:
        key = other[0]
        raise InvalidInputError(
            f"{path} was written with another {key.replace('_', ' ')} "
            f"({_short(found.get(key))}, now {_short(asked.get(key))}); {_CURE}"
        )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _read(path: Path, stream: IO[bytes], kind: RowFormat) -> tuple[FinishedImages, Counts]:
    """Read the existing rows, and remove an incomplete last line."""
    counts = Counts()
    digests = bytearray()
    complete = 0
    for number, line in enumerate(stream):
        if not line.endswith(b"\n"):
            break
        complete += len(line)
        if kind == "csv" and number == 0:
            continue
        try:
            name, verdict = _row(line.decode(), kind)
        except Exception:  # noqa: BLE001 - a malformed line makes its readers raise anything
            raise InvalidInputError(
                f"line {number + 1} of {path} is not a row of verdicts; {_CURE}"
            ) from None
        counts.count(verdict)
        digests += _digest(name).tobytes()
    stream.seek(complete)
    stream.truncate()
    return FinishedImages(np.frombuffer(bytes(digests), np.uint64)), counts


def _row(line: str, kind: RowFormat) -> tuple[str, str | None]:
    if kind == "jsonl":
        content = json.loads(line)
        return str(content["path"]), content["verdict"]
    (values,) = csv.reader([line.rstrip("\n")], strict=True)
    if len(values) != len(COLUMNS):
        raise ValueError(line)
    row = dict(zip(COLUMNS, values, strict=True))
    if row["score"] and not math.isfinite(float(row["score"])):
        raise ValueError(line)
    return unescaped(row["path"]), row["verdict"] or None
