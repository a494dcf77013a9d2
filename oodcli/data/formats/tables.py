"""Tables of image files: CSV, TSV and JSON Lines, and folders with a ``metadata`` table.

References
----------
RFC 4180, "Common Format and MIME Type for Comma-Separated Values (CSV) Files".
Hugging Face. "Create an image dataset", section "ImageFolder", for ``metadata.csv`` and
``metadata.jsonl``.
"""

import codecs
import contextlib
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.files import is_image_name
from oodcli.data.formats.folders import open_folder
from oodcli.data.formats.rows import Builder, Rows, id_dataset, ood_dataset
from oodcli.data.reader import Columns, Place, Role
from oodcli.errors import InvalidInputError
from oodcli.files import reason_of, regular
from oodcli.text import counted, printable

JSON_SUFFIXES = (".jsonl", ".ndjson")
SUFFIXES = (".csv", ".tsv", *JSON_SUFFIXES)
METADATA = ("metadata.csv", "metadata.jsonl")

# How columns are called where nobody says; the first that there is.
NAMES: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file", "file_name", "filename", "filepath", "file_path", "image",
             "image_path"),
    "label": ("label", "class", "target", "label_name", "class_name"),
    "split": ("split",),
}  # fmt: skip
PARTS: Mapping[str, str] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip

_MAX_BYTES = 1 << 32
_LINE = 1 << 20
_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class _Layout:
    """Which columns of a table have what: their places, from 0; None for none.

    Parameters
    ----------
    path, label, split
        The columns.
    width
        How many columns there are; 0 if that is not known.
    """

    path: int
    label: int | None
    split: int | None
    width: int = 0


@dataclass(frozen=True)
class _Record:
    """A row as it is written: its line, the texts in it, or why there are none."""

    line: int
    path: str = ""
    label: str | None = None
    split: str | None = None
    bad: str | None = None


def open_table(
    path: Path,
    *,
    name: str,
    spec: str,
    role: Role,
    columns: Columns | None = None,
    root: Path | None = None,
) -> Dataset:
    """Open a table of images; no image is read yet.

    Parameters
    ----------
    path
        A file with a header and delimiters (comma, semicolon, tab, ``|``), or of a JSON object per
        line. UTF-8, or UTF-16 with its mark.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` wants a label for every image; ``ood`` ignores labels.
    columns
        Which columns have what, by name or by number from 1.
    root
        Folder that relative paths start from; that of the table if None.

    Raises
    ------
    InvalidInputError
        If it cannot be read, has no column of paths, or a part is none of train, val and test.
    """
    parts = parts_of(path, path.parent if root is None else root, columns)
    return dataset_of(parts, name=name, spec=spec, role=role, location=path)


def dataset_of(
    parts: Mapping[str, Rows],
    *,
    name: str,
    spec: str,
    role: Role,
    location: Path,
    as_published: bool = False,
    from_zero: bool = False,
) -> Dataset:
    """Return the data set of rows that :func:`parts_of` divided.

    Parameters
    ----------
    parts
        The rows.
    name, spec, role
        As for :func:`open_table`.
    location
        Its path.
    as_published
        As for `oodcli.data.decoding.files.decode`.
    from_zero
        Whether labels are numbers from 0.

    Raises
    ------
    InvalidInputError
        If classes are wanted, and no row has a label, or there are only val images.
    """
    whole = "" in parts
    divided = {key or "test": rows for key, rows in parts.items()}
    if role == "ood":
        return ood_dataset(
            divided, name=name, spec=spec, location=location, as_published=as_published
        )
    if divided.keys() == {"val"}:
        raise InvalidInputError(f"{location} has neither train nor test images; add some")
    return id_dataset(
        divided, name=name, spec=spec, location=location, as_published=as_published,
        from_zero=from_zero, is_whole=whole,
    )  # fmt: skip


def parts_of(
    path: Path, root: Path, columns: Columns | None = None, *, delimiter: str | None = None
) -> dict[str, Rows]:
    """Read a table, and divide it by its column of parts.

    Parameters
    ----------
    path
        The table.
    root
        Folder that relative paths start from.
    columns
        Which columns have what.
    delimiter
        What divides path, label and part in a list without a header.

    Returns
    -------
    dict
        The rows of ``train``, ``val`` and ``test``, as far as there are any; or all under an empty
        name where no column says what is for what.

    Raises
    ------
    InvalidInputError
        As :func:`open_table`.
    """
    builder = Builder(path, root)
    parts = bytearray()
    order = ("train", "val", "test")
    any_split = False
    with text_of(path) as stream:
        lines = Lines(stream, path)
        for record in _records(lines, path, columns or Columns(), delimiter):
            builder.add(record.line, record.path, record.label, record.bad)
            any_split = any_split or record.split is not None
            # A line that cannot be read at all is a row of what is tested, where it is reported.
            parts.append(2 if record.split is None else order.index(_part(record, path)))
    rows = builder.rows()
    if not any_split:
        return {"": rows}
    which = np.frombuffer(bytes(parts), dtype=np.uint8)
    return {
        name: rows.take(np.flatnonzero(which == at))
        for at, name in enumerate(order)
        if (which == at).any()
    }


def column_of(path: Path, name: str) -> dict[int, str]:
    """Return the values of a column of a table, by the line of their row, from 1.

    Parameters
    ----------
    path
        The table, as for :func:`open_table`.
    name
        Name of the column. Empty cells are left out.

    Raises
    ------
    InvalidInputError
        If the table cannot be read, or has no such column.
    """
    found: dict[int, str] = {}
    with text_of(path) as stream:
        lines = Lines(stream, path)
        if path.name.lower().endswith(JSON_SUFFIXES):
            names: list[str] = []
            for line in lines:
                with contextlib.suppress(ValueError, RecursionError):
                    content = json.loads(line)
                    if isinstance(content, dict):
                        names = names or list(content)
                        if content.get(name) is not None:
                            found[lines.number] = str(content[name])
            if not found and name not in names:
                raise _no_column(path, name, names)
            return found
        # The same reading as for the images, with the column in place of the label.
        for record in _delimited_records(lines, path, Columns(label=name)):
            if record.label is not None:
                found[record.line] = record.label
    return found


def _no_column(path: Path, name: str, names: Sequence[str]) -> InvalidInputError:
    listed = ", ".join(printable(each.strip()[:40]) for each in names)
    return InvalidInputError(f"{path} has no column {name!r}; it has {listed}")


def _part(record: _Record, path: Path) -> str:
    part = PARTS.get((record.split or "").strip().lower())
    if part is None:
        raise InvalidInputError(
            f"{path}:{record.line}: {record.split!r} is no part of a data set; write train, val or "
            "test"
        )
    return part


@contextlib.contextmanager
def text_of(path: Path) -> Iterator[IO[str]]:
    """Open a table as text."""
    try:
        if regular(path).stat().st_size > _MAX_BYTES:
            raise InvalidInputError(f"{path} is too large for a table of images; divide it")
        with path.open("rb") as head:
            start = head.read(4)
        utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        with path.open(encoding="utf-16" if utf16 else "utf-8-sig", newline="") as stream:
            yield stream
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {reason_of(error)}") from None
    except UnicodeError:
        raise InvalidInputError(f"{path} is not a text file in UTF-8; save it as UTF-8") from None


class Lines:
    """Lines of bounded length, and the number of the last one."""

    def __init__(self, stream: IO[str], path: Path) -> None:
        self._stream = stream
        self._path = path
        self.number = 0

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == _LINE:
            raise InvalidInputError(
                f"{self._path}:{self.number} has more than {_LINE - 1:,} characters; name a table "
                "with a row per line"
            )
        return line


def _records(
    lines: Lines, path: Path, columns: Columns, delimiter: str | None
) -> Iterator[_Record]:
    """Yield the rows of a table."""
    if delimiter is not None:
        return _plain_records(lines, delimiter)
    if path.name.lower().endswith(JSON_SUFFIXES):
        return _json_records(lines, path, columns)
    return _delimited_records(lines, path, columns)


def delimiter_of(path: Path) -> str | None:
    """Return what divides the fields of a list without header: a tab, a comma, or None for blanks.

    Parameters
    ----------
    path
        The list. Its first line that is no comment decides.

    Raises
    ------
    InvalidInputError
        If it cannot be read.
    """
    with text_of(path) as stream:
        for line in Lines(stream, path):
            if not line.strip() or line.startswith("#"):
                continue
            if "\t" in line.strip():
                return "\t"
            return "," if is_image_name(line.partition(",")[0].strip()) and "," in line else None
    return None


def _plain_records(lines: Lines, delimiter: str) -> Iterator[_Record]:
    """Yield the rows of a list without a header: path, label and part."""
    for line in lines:
        if line.strip() and not line.startswith("#"):
            fields = [each.strip() for each in line.split(delimiter)]
            label = fields[1] or None if len(fields) > 1 else None
            split = fields[2] if len(fields) > 2 else None
            too_many = None if len(fields) < 4 else f"the line has {len(fields)} fields of 3"
            yield _Record(lines.number, fields[0], label, split, too_many)


def _delimited_records(lines: Lines, path: Path, columns: Columns) -> Iterator[_Record]:
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InvalidInputError(f"{path} is empty; write a header and a row per image")
    delimiter, layout, has_header = _layout_of(first, path, columns)
    again = () if has_header else (first,)
    rows = csv.reader(chain(again, lines), delimiter=delimiter, strict=True)
    start = lines.number - len(again)
    try:
        for fields in rows:
            line, start = start + 1, lines.number
            if any(fields):
                yield _record(fields, line, layout)
    except csv.Error as error:
        raise InvalidInputError(
            f"{path}:{lines.number} is not a row of a table: {error}; close its quotation marks"
        ) from None


def _record(fields: Sequence[str], line: int, layout: _Layout) -> _Record:
    """Return a row by its fields."""
    if layout.width and len(fields) != layout.width and any(fields[layout.width :]):
        bad = f"the line has {len(fields)} fields, and the header {layout.width}"
        return _Record(line, bad=bad)
    if len(fields) <= max(layout.path, layout.label or 0, layout.split or 0):
        wanted = max(layout.path, layout.label or 0, layout.split or 0) + 1
        return _Record(line, bad=f"the line has {counted(len(fields), 'field')} of {wanted}")
    label = None if layout.label is None else fields[layout.label].strip() or None
    split = None if layout.split is None else fields[layout.split]
    return _Record(line, fields[layout.path].strip(), label, split)


def _layout_of(first: str, path: Path, columns: Columns) -> tuple[str, _Layout, bool]:
    """Return the delimiter, the columns, and whether the first line is a header."""
    order: tuple[str, ...] = _DELIMITERS
    if path.name.lower().endswith(".tsv"):
        order = ("\t", *(each for each in _DELIMITERS if each != "\t"))
    fields_by: dict[str, list[str]] = {}
    for delimiter in order:
        with contextlib.suppress(csv.Error, StopIteration):
            fields_by[delimiter] = next(csv.reader([first], delimiter=delimiter, strict=True))
    if not fields_by:
        raise InvalidInputError(f"{path}:1 is not a row of a table; close its quotation marks")
    # Of those that find a column of paths, the one that divides the line most.
    ranked = sorted(fields_by.items(), key=lambda each: -len(each[1]))
    for delimiter, fields in ranked:
        place = _place("path", columns.path, fields)
        if place is not None:
            # By number, the first line may be a row like the others.
            has_header = not is_image_name(fields[place].strip())
            return delimiter, _layout(path, fields, columns), has_header
    _, fields = ranked[0]
    if any(is_image_name(each.strip()) for each in fields):
        raise InvalidInputError(
            f"{path} has no header; write one, such as path,label, or number the columns: "
            "--columns path=1,label=2"
        )
    names = ", ".join(printable(each.strip()[:40]) for each in fields)
    raise InvalidInputError(
        f"{path} has no column of paths; it has {names}; name the column: --columns "
        "path=NAME,label=NAME"
    )


def _layout(path: Path, fields: Sequence[str], columns: Columns) -> _Layout:
    """Return the places of the columns in a header."""
    found = {key: _place(key, getattr(columns, key), fields) for key in NAMES}
    for key, place in found.items():
        wanted = getattr(columns, key)
        if wanted is not None and place is None:
            raise _no_column(path, wanted, fields)
    assert found["path"] is not None  # the delimiter was chosen so
    return _Layout(found["path"], found["label"], found["split"], len(fields))


def _place(key: str, wanted: str | None, fields: Sequence[str]) -> int | None:
    """Return the place of a column: of the name that is wanted, else of a usual one."""
    names = [each.strip() for each in fields]
    if wanted is not None:
        if wanted in names:
            return names.index(wanted)
        number = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 5 else 0
        return number - 1 if 1 <= number <= len(names) else None
    lower = [each.lower() for each in names]
    return next((lower.index(each) for each in NAMES[key] if each in lower), None)


def _json_records(lines: Lines, path: Path, columns: Columns) -> Iterator[_Record]:
    keys: dict[str, str | None] | None = None
    for line in lines:
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _Record(lines.number, bad=f"the line is no JSON: {reason_of(error)}")
            continue
        if not isinstance(content, dict):
            yield _Record(lines.number, bad="the line is no JSON object")
            continue
        if keys is None:
            keys = _keys(path, list(content), columns)
        yield _json_record(content, lines.number, keys)


def _keys(path: Path, names: list[str], columns: Columns) -> dict[str, str | None]:
    """Return under which keys the first object has what."""
    lower = {name.lower(): name for name in names}
    found = {
        key: getattr(columns, key) or next((lower[each] for each in usual if each in lower), None)
        for key, usual in NAMES.items()
    }
    if found["path"] is None:
        shown = ", ".join(printable(name[:40]) for name in names) or "nothing"
        raise InvalidInputError(
            f"{path} has no key of paths; it has {shown}; name the key: --columns "
            "path=NAME,label=NAME"
        )
    for key, name in found.items():
        if getattr(columns, key) is not None and name not in names:
            shown = ", ".join(printable(each[:40]) for each in names)
            raise InvalidInputError(f"{path} has no key {name!r}; it has {shown}")
    return found


def _json_record(content: Mapping[str, Any], line: int, keys: Mapping[str, str | None]) -> _Record:
    """Return a row by its object."""
    file = content.get(keys["path"] or "")
    if isinstance(file, dict):  # as Hugging Face writes an image
        file = file.get("path")
    if not isinstance(file, str):
        return _Record(line, bad=f"{keys['path']} is no path")
    file = _utf8(file).strip()
    label = None if keys["label"] is None else content.get(keys["label"])
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if label is not None and not isinstance(label, (str, int)):
        return _Record(line, file, bad=f"{keys['label']} is neither a text nor a whole number")
    split = None if keys["split"] is None else str(content.get(keys["split"]))
    text = None if label is None else str(label).strip()
    return _Record(line, file, _utf8(text) if text else None, split)


def _utf8(text: str) -> str:
    """Return a text without halves of surrogate pairs, which JSON can spell."""
    return text.encode("utf-8", "replace").decode("utf-8")


def holds_metadata(place: Place) -> bool:
    """Return whether a folder, or its folder of training or test images, has a metadata table."""
    return place.is_folder and bool(_metadata(place.path) or _divided(place.path))


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _divided(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folder and the table of every part, as far as there are any."""
    found: dict[str, tuple[Path, Path]] = {}
    for name, part in PARTS.items():
        table = _metadata(folder / name)
        if table is not None:
            found.setdefault(part, (folder / name, table))
    return found


def open_metadata_folder(
    path: Path, *, name: str, spec: str, role: Role, columns: Columns | None = None
) -> Dataset:
    """Open a folder whose images have their labels in ``metadata.csv`` or ``metadata.jsonl``.

    Parameters
    ----------
    path
        The folder, with one table for all images, or one in each of ``train``, ``val`` and
        ``test`` (or ``validation``, …).
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``ood`` takes the images as :func:`oodcli.data.formats.folders.open_folder` does.
    columns
        Which columns have what.

    Raises
    ------
    InvalidInputError
        As :func:`open_table`.
    """
    if role == "ood":
        return open_folder(path, name=name, spec=spec, role=role)
    table = _metadata(path)
    if table is not None:
        parts = _by_folder(parts_of(table, path, columns))
    else:
        parts = {}
        for part, (folder, own) in _divided(path).items():
            (parts[part],) = parts_of(own, folder, columns).values()
    return dataset_of(parts, name=name, spec=spec, role=role, location=path)


def _by_folder(parts: dict[str, Rows]) -> dict[str, Rows]:
    """Divide rows by the first folder of their paths, if each is called as a part is."""
    if "" not in parts:
        return parts
    rows = parts[""]
    firsts = [PARTS.get(file.partition("/")[0].lower()) for file in rows.files]
    if None in firsts:
        return parts
    return {
        part: rows.take(np.flatnonzero([each == part for each in firsts]))
        for part in ("train", "val", "test")
        if part in firsts
    }
