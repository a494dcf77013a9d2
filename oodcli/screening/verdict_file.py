"""Verdicts as lines of CSV or JSON, in a file that can be resumed after an interruption.

``FILE.ood.json``, next to ``FILE``, records the detector and threshold of its rows, and whether the
file is finished. A file is resumed only if the settings are the same; the paths in its rows
identify the finished images. Features of the images, if stored, lie in
:mod:`oodcli.screening.feature_file`.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import expanded
from oodcli.progress import SILENT, Progress
from oodcli.screening.feature_file import FeatureFile, feature_path
from oodcli.store.store import file_lock, is_stream, open_stream, read_json, write_json
from oodcli.text import as_cell, escaped, json_text, of_cell, unescaped

RowFormat = Literal["csv", "jsonl"]
ROW_SCHEMA = 2
SYNC_S = 3.0
_MAX_FIELD = 2**30

_CURE = "choose another file, or remove this one"
# Settings that do not affect rows: a detector that is fitted again has another time.
IGNORED_SETTINGS = frozenset({"created", "id_below", "command", "finished", "p_cutoff"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one image.

    Parameters
    ----------
    path
        Path as given, or ``FILE.npz[ROW]``.
    predicted
        Name of the predicted class; None, like all fields except ``path``, ``group`` and
        ``error``, if the image cannot be read, and without a classifier.
    probability
        Softmax probability of that class; None without one.
    score
        Score of the detector; larger = more in-distribution.
    threshold
        The minimum score of in-distribution images; None with ``--fdr``, whose verdicts compare
        p-values.
    percentile
        Share of the run's ID scores below it, in percent.
    p_value
        Conformal p-value: probability that an ID image has a score this small or smaller; with
        ``--per-class``, an ID image of the same predicted class.
    verdict
        ``id`` or ``ood``; with ``--fdr``, None until all images of the file have their rows.
    group
        Group of the image by ``--group-by``, such as its day; None without one.
    error
        Why the image cannot be read; None if it was judged.
    """

    path: str
    predicted: str | None = None
    probability: float | None = None
    score: float | None = None
    threshold: float | None = None
    percentile: float | None = None
    p_value: float | None = None
    verdict: Literal["id", "ood"] | None = None
    group: str | None = None
    error: str | None = None


# In the order of the fields; the predicted class has the name "class" in all outputs.
COLUMNS = tuple("class" if f.name == "predicted" else f.name for f in fields(Verdict))


def as_object(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as the JSON object of its line."""
    values = (getattr(verdict, field.name) for field in fields(Verdict))
    return {"schema": ROW_SCHEMA, **dict(zip(COLUMNS, values, strict=True))}


def check_csv_safe(kind: str | None, *, asked: bool) -> None:
    """Check that rows for spreadsheets are asked for in CSV only.

    Raises
    ------
    InvalidInputError
        If the format is another one.
    """
    if asked and kind != "csv":
        raise InvalidInputError(
            "--csv-safe changes rows in CSV only; write them: --output FILE.csv, or remove it"
        )


def as_lines(verdicts: Sequence[Verdict], kind: RowFormat, *, csv_safe: bool = False) -> str:
    """Return verdicts as text, one line each.

    Parameters
    ----------
    verdicts
        The verdicts.
    kind
        Format of the rows.
    csv_safe
        Whether spreadsheets take no text of a CSV row for a formula: each text is quoted, and has
        an apostrophe where :func:`oodcli.text.as_cell` puts one. It has no effect on JSON lines.

    Notes
    -----
    In CSV, text is escaped by :func:`oodcli.text.escaped`, so that each row is one line and every
    path can be read back.
    """
    if kind == "jsonl":
        return "".join(json_text(as_object(each)) + "\n" for each in verdicts)
    text = io.StringIO()
    writer = csv.writer(
        text,
        lineterminator="\n",
        quoting=csv.QUOTE_NONNUMERIC if csv_safe else csv.QUOTE_MINIMAL,
    )
    written = as_safe_text if csv_safe else escaped
    for each in verdicts:
        values = (getattr(each, field.name) for field in fields(Verdict))
        writer.writerow(
            written(value) if isinstance(value, str) else value
            for value in ("" if value is None else value for value in values)
        )
    return text.getvalue()


def as_safe_text(text: str) -> str:
    """Return text of CSV that no spreadsheet takes for a formula, and that can be read back."""
    return as_cell(escaped(text))


def _of_safe_text(text: str) -> str:
    return unescaped(of_cell(text))


def header(kind: RowFormat) -> str:
    """Return the header line; empty for JSON lines."""
    return ",".join(COLUMNS) + "\n" if kind == "csv" else ""


_HINTS = get_type_hints(Verdict)
NUMBERS = frozenset(
    column
    for column, field in zip(COLUMNS, fields(Verdict), strict=True)
    if float in get_args(_HINTS[field.name])
)
_FIELDS = dict(zip(COLUMNS, (field.name for field in fields(Verdict)), strict=True))


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """Return the verdict of a row; the inverse of :func:`as_object`.

    Parameters
    ----------
    row
        Values by the name of their column; a missing column is None.

    Raises
    ------
    ValueError
        If there is no path, or a value has the wrong type or is not finite.
    """
    values: dict[str, Any] = {name: row.get(column) for column, name in _FIELDS.items()}
    for column, name in _FIELDS.items():
        value = values[name]
        if value is None:
            continue
        if column not in NUMBERS:
            if not isinstance(value, str):
                raise ValueError(column)
        elif isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(column)
    if values["path"] is None or values["verdict"] not in ("id", "ood", None):
        raise ValueError(row)
    return Verdict(**values)


class RowParser:
    """Reads rows that :func:`as_lines` wrote.

    Parameters
    ----------
    kind
        Format of the rows.
    columns
        The columns of CSV, in order.
    csv_safe
        As for :func:`as_lines`.
    """

    def __init__(
        self, kind: RowFormat, columns: Sequence[str] = COLUMNS, *, csv_safe: bool = False
    ) -> None:
        self._kind = kind
        self._columns = tuple(columns)
        self._text = _of_safe_text if csv_safe else unescaped
        # Lines on stdin are no longer than this, but may be longer than any path.
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))

    def verdicts(self, lines: Sequence[str]) -> list[Verdict]:
        """Return the verdicts of complete lines, one of each.

        Raises
        ------
        ValueError
            If a line is no row; other exceptions of :mod:`csv` and :mod:`json` pass unchanged.
        """
        if self._kind == "jsonl":
            return [verdict_of(json.loads(line)) for line in lines]
        found = list(csv.reader((line.rstrip("\n") for line in lines), strict=True))
        if len(found) != len(lines):
            raise ValueError(lines)
        return [verdict_of(self._read(values)) for values in found]

    def _read(self, values: Sequence[str]) -> dict[str, str | float | None]:
        return {
            column: None
            if value == ""
            else float(value)
            if column in NUMBERS
            else self._text(value)
            for column, value in zip(self._columns, values, strict=True)
        }


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

    def __post_init__(self) -> None:
        # Numbers of OOD and of judged images by the name of their predicted class.
        self.by_class: Counter[str] = Counter()
        self.ood_by_class: Counter[str] = Counter()

    def __add__(self, other: "Counts") -> "Counts":
        found = Counts(self.id + other.id, self.ood + other.ood, self.errors + other.errors)
        found.by_class = self.by_class + other.by_class
        found.ood_by_class = self.ood_by_class + other.ood_by_class
        return found

    def __sub__(self, other: "Counts") -> "Counts":
        found = Counts(self.id - other.id, self.ood - other.ood, self.errors - other.errors)
        found.by_class = self.by_class - other.by_class
        found.ood_by_class = self.ood_by_class - other.ood_by_class
        return found

    def count(self, verdict: str | None, predicted: str | None = None) -> None:
        """Count one image."""
        if predicted is not None and verdict is not None:
            self.by_class[predicted] += 1
            self.ood_by_class[predicted] += verdict == "ood"
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
        digest = path_digest(path)
        at = int(np.searchsorted(self._digests, digest))
        if at == len(self._digests) or self._digests[at] != digest or not self._left[at]:
            return False
        self._left[at] -= 1
        return True


def path_digest(path: str) -> np.uint64:
    """Return 8 bytes that tell a path from other paths."""
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
    features
        The file of the features of the images; None if they are not stored.
    csv_safe
        As for :func:`as_lines`.
    """

    stream: IO[bytes]
    kind: RowFormat
    done: FinishedImages
    before: Counts
    features: FeatureFile | None = None
    csv_safe: bool = False
    _synced: float = 0.0

    def write(
        self, verdicts: Sequence[Verdict], features: NDArray[np.float32] | None = None
    ) -> None:
        """Add rows; they are flushed to disk every few seconds.

        Parameters
        ----------
        verdicts
            The rows, ``n``.
        features
            Features of the images, ``(n, d)``; needed if features are stored.
        """
        if self.features is not None:
            if features is None:
                raise ValueError("the features of these rows are missing")
            self.features.write(features)
        self.stream.write(as_lines(verdicts, self.kind, csv_safe=self.csv_safe).encode())
        self.stream.flush()
        now = time.monotonic()
        if now - self._synced > SYNC_S:
            self._synced = now
            self.sync()

    def sync(self) -> None:
        """Flush written rows to disk, features first."""
        if self.features is not None:
            self.features.sync()
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
    *,
    with_features: bool = False,
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
    with_features
        Whether the features of the images are stored beside the file.
    progress
        Receives a note if another process is writing the file.

    Raises
    ------
    InvalidInputError
        If the file exists with other settings, or was not written by this function; or
        if it cannot be written, or has no place for features beside it.
    CorruptArtifactError
        If the features of existing rows are missing or damaged.
    """
    target = expanded(path).resolve()
    try:
        with contextlib.ExitStack() as stack:
            if not is_stream(path):
                stack.enter_context(file_lock(target, progress=progress))
                stack.push(partial(_remove_if_nothing, target))
            yield stack.enter_context(
                _opened(path, target, kind, settings, with_features=with_features)
            )
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


def _remove_if_nothing(target: Path, error: type[BaseException] | None, *_: object) -> None:
    """After an error, remove a file that was created without a row or settings."""
    if error is not None and not settings_path(target).exists() and not target.stat().st_size:
        target.unlink()


@contextlib.contextmanager
def _opened(
    path: Path, target: Path, kind: RowFormat, settings: Mapping[str, Any], *, with_features: bool
) -> Iterator[VerdictFile]:
    csv_safe = settings.get("csv_safe") is True
    if is_stream(path):
        with open_stream(path) as stream:
            stream.write(header(kind).encode())
            done = FinishedImages(np.empty(0, np.uint64))
            yield VerdictFile(stream, kind, done, Counts(), csv_safe=csv_safe)
        return
    wanted = {"kind": "ood-verdicts", "schema": ROW_SCHEMA, "format": kind, **settings}
    exists = target.is_file() and target.stat().st_size > 0
    if exists:
        _check_settings(path, settings_path(target), wanted)
    write_json(settings_path(target), {**wanted, "finished": False}, cure="choose another file")
    finished = {**wanted, "finished": True}
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(target.open("r+b" if exists else "wb"))
        features = None
        if with_features:
            features = FeatureFile(feature_path(target), new=not exists)
            stack.callback(features.close)
        if exists:
            parser = RowParser(kind, csv_safe=csv_safe)
            done, before = _read(path, stream, kind, parser, features)
        else:
            done, before = FinishedImages(np.empty(0, np.uint64)), Counts()
        if stream.tell() == 0:
            stream.write(header(kind).encode())
        file = VerdictFile(stream, kind, done, before, features, csv_safe)
        try:
            yield file
        finally:
            stream.flush()
            file.sync()
    write_json(settings_path(target), finished, cure="choose another file")


def _check_settings(path: Path, beside: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = read_json(beside)
    except (FileNotFoundError, CorruptArtifactError):
        raise InvalidInputError(
            f"{path} already exists, but {beside.name} with the settings of its rows is missing; "
            f"{_CURE}"
        ) from None
    if "merged" in found:
        raise InvalidInputError(f"{path} was written by ood verdicts merge; {_CURE}")
    if found.get("kind") == wanted["kind"] and found.get("schema") != wanted["schema"]:
        raise InvalidInputError(
            f"{path} has the columns of another version of ood (schema {found.get('schema')}, now "
            f"{wanted['schema']}), so it cannot be resumed; {_CURE}"
        )
    # In the form in which JSON is read back: tuples become lists.
    asked = json.loads(json.dumps(wanted))
    if "engine" in asked:
        found = {"engine": "torch", **found}  # files of earlier versions do not have it
    key = different_setting(asked, found)
    if key is not None:
        raise InvalidInputError(
            f"{path} was written with another {key.replace('_', ' ')} "
            f"({short(found.get(key))}, now {short(asked.get(key))}); {_CURE}"
        )


def different_setting(
    one: Mapping[str, Any], other: Mapping[str, Any], *, ignored: Collection[str] = ()
) -> str | None:
    """Return the first setting with different values; None if all are equal.

    Parameters
    ----------
    one, other
        Settings, as JSON.
    ignored
        Settings that may differ, besides those that do not affect rows. One that is missing, as in
        a file of an earlier version, is equal to None and to False.
    """
    for key in {**one, **other}:
        if key in IGNORED_SETTINGS or key in ignored:
            continue
        values = (None if found is False else found for found in (one.get(key), other.get(key)))
        if next(values) != next(values):
            return key
    return None


def short(value: object) -> str:
    """Return a setting as text for a message."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _read(
    path: Path,
    stream: IO[bytes],
    kind: RowFormat,
    parser: RowParser,
    features: FeatureFile | None,
) -> tuple[FinishedImages, Counts]:
    """Read the existing rows, and remove an incomplete last line.

    Rows and features are cut to the same number: after a power failure the features of the last
    rows may be lost, and these images are judged again.
    """
    counts = Counts()
    digests = bytearray()
    complete = 0
    for number, line in enumerate(stream):
        if not line.endswith(b"\n"):
            break
        if kind == "csv" and number == 0:
            if line.decode("utf-8", "replace") != header(kind):
                raise InvalidInputError(
                    f"{path} has other columns than this version writes ({','.join(COLUMNS)}); "
                    f"{_CURE}"
                )
            complete += len(line)
            continue
        if features is not None and counts.total == features.rows:
            break
        complete += len(line)
        try:
            (row,) = parser.verdicts([line.decode()])
        except Exception:  # noqa: BLE001 - a malformed line makes its readers raise anything
            raise not_a_row(path, number + 1) from None
        counts.count(row.verdict, row.predicted)
        digests += path_digest(row.path).tobytes()
    if features is not None:
        features.truncate(counts.total)
    stream.seek(complete)
    stream.truncate()
    return FinishedImages(np.frombuffer(bytes(digests), np.uint64)), counts


def not_a_row(path: Path, line: int) -> InvalidInputError:
    """Return the error of a line that is no row of verdicts."""
    return InvalidInputError(f"line {line} of {path} is not a row of verdicts; {_CURE}")
