"""Rows of a list or table of image files: their paths, labels and lines, in little memory.

A list of a million images is 15 bytes a row and the characters of its paths. A row that is wrong
is a row that cannot be read: it has its key, ``FILE.csv:LINE``, and a reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Numbers, Texts, chosen_texts
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.files import FileSource
from oodcli.data.decoding.remote import RemoteFiles
from oodcli.data.formats.labels import Labels, classes_of
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.images import Part
from oodcli.remote.addresses import is_address, without_credentials
from oodcli.remote.files import RemotePath
from oodcli.text import printable

_NO_LABEL = "-1"  # as OpenOOD's lists write it


@dataclass(frozen=True)
class ListedSource(FileSource):
    """Image files that a list or table names, decoded one at a time as they are read.

    Parameters
    ----------
    root
        Folder that relative paths start from.
    files
        Paths, in order.
    as_published
        As for `oodcli.data.decoding.files.decode`.
    table
        The list or table.
    lines
        Line of every image in it, from 1, ``(n,)``.
    bad
        Why a row has no image, by its number, where its line says so.
    """

    table: Path = Path()
    lines: NDArray[np.integer] = field(default_factory=lambda: np.empty(0, np.int64))
    bad: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        """Whether the files are all images of a folder: those of a list are not."""
        return False

    def key_of(self, row: int) -> str:
        """Return the list and the line of an image."""
        return f"{self.table}:{self.lines[row]}"

    def problem_of(self, row: int) -> str | None:
        """Return why a row has no image, where its line says so."""
        return self.bad.get(row)

    def take(self, rows: NDArray[np.int64], /) -> "ListedSource":
        """Return a source of chosen rows."""
        wanted = rows.tolist()
        bad = {at: self.bad[row] for at, row in enumerate(wanted) if row in self.bad}
        return replace(self, files=chosen_texts(self.files, rows), lines=self.lines[rows], bad=bad)

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.
        """
        for row in range(start, min(stop, len(self))):
            file = self.files[row]
            where = printable(f"{self.key_of(row)} ({file})" if file else self.key_of(row))
            if row in self.bad:
                yield UnreadableImageError(where, self.bad[row])
                continue
            try:
                image = self.decoded(file)
            except UnreadableImageError as error:
                yield UnreadableImageError(where, error.reason)
            else:
                yield image


@dataclass(frozen=True)
class Rows:
    """The rows of a list or table, or some of them.

    Parameters
    ----------
    table
        The list or table.
    root
        Folder that relative paths start from.
    files
        Path of every image; empty where there is none.
    lines
        Line of every row, from 1, ``(n,)``.
    codes
        Place of every label among ``names``, ``(n,)``; -1 for none.
    names
        Labels as they are written, each once.
    bad
        Why a row has no image, by its number.
    """

    table: Path
    root: Path
    files: Sequence[str]
    lines: NDArray[np.integer]
    codes: NDArray[np.integer]
    names: Sequence[str]
    bad: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        """Return chosen rows, ``(m,)``."""
        wanted = rows.tolist()
        return replace(
            self,
            files=chosen_texts(self.files, rows),
            lines=self.lines[rows],
            codes=self.codes[rows],
            bad={at: self.bad[row] for at, row in enumerate(wanted) if row in self.bad},
        )

    def source(
        self, *, as_published: bool, bad: Mapping[int, str] | None = None
    ) -> ListedSource | RemoteFiles:
        """Return the images, with more bad rows if there are any."""
        problems = {**(bad or {}), **self.bad}
        if isinstance(self.root, RemotePath) or any(map(is_address, self.files)):
            files = self.files if isinstance(self.files, Texts) else Texts.of(self.files)
            return RemoteFiles(self.root, files, as_published, self.table, self.lines, problems)
        return ListedSource(self.root, self.files, as_published, self.table, self.lines, problems)


class Builder:
    """Takes the rows of a table one by one.

    Parameters
    ----------
    table
        The list or table.
    root
        Folder that relative paths start from.
    """

    def __init__(self, table: Path, root: Path) -> None:
        self.table = table
        self.root = root
        self._files = bytearray()
        self._ends = Numbers()
        self._lines = Numbers()
        self._codes = Numbers()
        self._code: dict[str, int] = {}
        self._bad: dict[int, str] = {}

    def add(self, line: int, file: str, label: str | None = None, bad: str | None = None) -> None:
        """Take a row in; ``bad`` says why it has no image."""
        bad = bad or _problem(file)
        if bad is not None:
            self._bad[len(self._ends)] = bad
        # A path that cannot be opened would not be a path to the operating system either.
        possible = without_credentials(file).replace("\0", "\N{REPLACEMENT CHARACTER}")
        self._files += possible.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._files))
        self._lines.append(line)
        if label is None or label == _NO_LABEL:
            self._codes.append(-1)
        else:
            self._codes.append(self._code.setdefault(label, len(self._code)))

    def rows(self) -> Rows:
        """Return what was taken in.

        Raises
        ------
        InvalidInputError
            If there is nothing.
        """
        if not len(self._ends):
            raise InvalidInputError(f"{self.table} lists no images; write one path per line")
        files = Texts(np.frombuffer(self._files, dtype=np.uint8), self._ends.array())
        lines, codes = self._lines.array(), self._codes.array()
        names = tuple(self._code)
        return Rows(self.table, self.root, files, lines, codes, names, self._bad)


def _problem(file: str) -> str | None:
    if not file:
        return "the path is empty"
    if "\0" in file:
        return "the path holds a zero byte"
    if "\n" in file or "\r" in file:
        return "the path holds a line break: a quotation mark may not be closed"
    return None


def id_dataset(
    parts: Mapping[str, Rows],
    *,
    name: str,
    spec: str,
    location: Path,
    as_published: bool = False,
    from_zero: bool = False,
    is_whole: bool = False,
) -> Dataset:
    """Return a data set with classes from the rows of its parts.

    Parameters
    ----------
    parts
        The rows of every part.
    name
        How to call the data set.
    spec
        What opens it again.
    location
        Its path.
    as_published
        As for `oodcli.data.decoding.files.decode`.
    from_zero
        Whether labels are numbers from 0, as in OpenOOD's lists, where nothing else is possible.
    is_whole
        Whether there is one part only because nothing says which images are for training.

    Raises
    ------
    InvalidInputError
        If no row has a label.
    """
    if not any((rows.codes >= 0).any() for rows in parts.values()):
        rows = next(iter(parts.values()))
        first = next((file for file in rows.files if file), "the first line")
        raise InvalidInputError(
            f"{rows.table}: {printable(first)} has no label; write it after the path, in a column "
            "label, or name the column: --columns label=NAME"
        )
    classes = classes_of(
        {part: Labels(rows.codes.astype(np.int64), rows.names) for part, rows in parts.items()},
        name=name,
        where=str(next(iter(parts.values())).table),
        from_zero=from_zero,
    )
    chosen = {
        part: Part(parts[part].source(as_published=as_published, bad=classes.bad[part]), labels)
        for part, labels in classes.labels.items()
    }
    return Dataset(
        name, chosen, classes.names, str(location), spec, is_whole=is_whole, notes=classes.notes
    )


def ood_dataset(
    parts: Mapping[str, Rows], *, name: str, spec: str, location: Path, as_published: bool = False
) -> Dataset:
    """Return the OOD images of a list or table: the test part, else the val part, else what is."""
    part = next(each for each in ("test", "val", "train") if each in parts)
    source = parts[part].source(as_published=as_published)
    return Dataset(name, {"test": Part(source)}, (), str(location), spec)
