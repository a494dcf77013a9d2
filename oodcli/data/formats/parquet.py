"""Tables in Parquet files with an encoded image in every row, as Hugging Face has them.

The image is a struct ``{bytes, path}`` or a column of bytes; names of classes stand in the schema.
Of a file only the row groups that are asked for are read, page by page, in bounded memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.decoding.extents import MAX_IMAGE_BYTES
from oodcli.data.formats.arrow_tables import (
    Features,
    Picked,
    TableContent,
    arrow_package,
    check_same,
    kinds_of,
    pick_columns,
)
from oodcli.data.formats.labels import assembled
from oodcli.data.formats.shards import find_shards, holds_shards
from oodcli.data.identity import identity_of
from oodcli.data.reader import Columns, Place, Role
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.files import reading, reason_of, regular
from oodcli.images import digest_of
from oodcli.remote.files import RemotePath
from oodcli.store.store import digest_of_json
from oodcli.text import printable

SUFFIXES = (".parquet",)

# So much is taken from a row group at a time, as far as the mean size of its images tells.
_BATCH_BYTES = 2**22
_MAX_BATCH_ROWS = 256
_READ_BYTES = 2**20
_ROWS_AT_A_TIME = 16
_LABEL_ROWS = 65_536
_CURE = "get the file again"


@dataclass(frozen=True)
class Groups:
    """The row groups of several files, in order.

    Parameters
    ----------
    folder
        Folder of the files.
    files
        Their paths, relative to it.
    file
        File of every group, ``(g,)``.
    group
        Its number in the file, ``(g,)``.
    first
        Row in the file that it begins with, ``(g,)``.
    sizes
        Number of its rows, ``(g,)``.
    """

    folder: Path
    files: tuple[str, ...]
    file: NDArray[np.int64]
    group: NDArray[np.int64]
    first: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Row of the data set behind the last one of every group, ``(g,)``."""
        return np.cumsum(self.sizes)

    def place(self, row: int) -> tuple[int, int]:
        """Return the group of a row, and where in it the row stands."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - int(self.ends[group] - self.sizes[group])

    def name_of(self, row: int) -> str:
        """Return ``FILE.parquet[ROW]`` for a row."""
        group, at = self.place(row)
        return f"{self.files[self.file[group]]}[{self.first[group] + at}]"

    def only(self, rows: NDArray[np.int64]) -> tuple["Groups", NDArray[np.int64]]:
        """Return the groups that have some rows, and the numbers that these rows have there."""
        of_row = np.searchsorted(self.ends, rows, side="right")
        used, which = np.unique(of_row, return_inverse=True)
        files, file = np.unique(self.file[used], return_inverse=True)
        fewer = Groups(
            self.folder,
            tuple(self.files[at] for at in files),
            file.astype(np.int64),
            self.group[used],
            self.first[used],
            self.sizes[used],
        )
        starts = (fewer.ends - fewer.sizes)[which]
        return fewer, starts + rows - (self.ends - self.sizes)[of_row]


class _Reader:
    """Reads images from front to back, and begins a row group again to go back.

    Parameters
    ----------
    groups
        All groups.
    column
        The column of images.
    """

    def __init__(self, groups: Groups, column: Picked) -> None:
        self._groups = groups
        self._column = column
        self._path = Path()
        self._file: Any = None
        self._group = -1
        self._damaged = ""
        self._batches: Iterator[Any] = iter(())
        # The batch that is read, and its first row in the group.
        self._images: Any = ()
        self._paths: Any = None
        self._start = 0

    def read(self, which: int, at: int) -> bytes | str:
        """Return the image of a row of a group, or why there is none."""
        if which != self._group or at < self._start:
            self._begin(which)
        while not self._damaged and at - self._start >= len(self._images):
            self._advance()
        # What is damaged in the middle cannot be read from there on.
        return self._damaged or self._encoded(at)

    def _begin(self, which: int) -> None:
        self._group, self._damaged, self._start, self._images = which, "", 0, ()
        groups, name = self._groups, self._column.image
        path = groups.folder / groups.files[groups.file[which]]
        wanted = [f"{name}.bytes", f"{name}.path"] if self._column.kind == "struct" else [name]
        group = int(groups.group[which])
        try:
            if path != self._path:
                self._path, self._file = path, None  # the one before is closed
                self._file = open_file(path)
            of = self._file.metadata.row_group(group)
            fits = _BATCH_BYTES * of.num_rows // max(1, of.total_byte_size)
            rows = max(1, min(_MAX_BATCH_ROWS, fits))
            self._batches = self._file.iter_batches(
                rows, row_groups=[group], columns=wanted, use_threads=False
            )
        except Exception as error:  # noqa: BLE001 - malformed files make readers raise anything
            self._lose(error)

    def _advance(self) -> None:
        """Take the next batch."""
        self._start += len(self._images)
        self._images = ()
        try:
            batch = next(self._batches, None)
            if batch is None:
                self._damaged = "the file ends before it"
            else:
                self._images, self._paths = _bytes_and_paths(batch.column(0))
        except Exception as error:  # noqa: BLE001 - malformed files make readers raise anything
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._damaged = f"its row group cannot be read: {reason_of(error)}"
        self._path, self._file, self._batches = Path(), None, iter(())

    def _encoded(self, at: int) -> bytes | str:
        image = self._images[at - self._start]
        if image.is_valid:
            content = image.as_buffer()
            if content.size > MAX_IMAGE_BYTES:
                return f"it has {content.size:,} bytes"
            return content.to_pybytes()
        named = None if self._paths is None else self._paths[at - self._start].as_py()
        return _of_path(self._path.parent, named) if named else "the row has no image"


def _of_path(folder: Path, named: str) -> bytes | str:
    """Return the bytes of an image that a table names by its path, or why there are none.

    Parameters
    ----------
    folder
        Folder of the table, which the path starts from, and must not lead out of.
    named
        The path.
    """
    shown = printable(named[:80])
    if "\0" in named or Path(named).is_absolute() or ".." in Path(named).parts:
        return f"the row has no bytes, and its path {shown} leads out of the folder of the table"
    try:
        with regular(folder / named).open("rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        return f"the row has no bytes, and its file {shown} cannot be read: {error.strerror}"
    return content if len(content) <= MAX_IMAGE_BYTES else f"its file {shown} is too large"


def _bytes_and_paths(column: Any) -> tuple[Any, Any]:  # noqa: ANN401 - pyarrow has no types
    """Return the arrays of bytes and of paths, if any, of a batch of images."""
    arrow, compute = arrow_package(), arrow_package("pyarrow.compute")
    if not arrow.types.is_struct(column.type):
        return column, None
    names = [column.type.field(at).name for at in range(column.type.num_fields)]
    content, paths = (
        compute.struct_field(column, name) if name in names else None for name in ("bytes", "path")
    )
    return content, paths


@dataclass(frozen=True)
class ParquetSource(EncodedSource):
    """Images in Parquet files, read row group by row group.

    Parameters
    ----------
    groups
        The row groups.
    column
        The column of images.
    rows
        Rows of the files that are meant, ``(n,)``; None for all.

    Notes
    -----
    A row group has no index of its rows: to read one, those before it in the group are passed.
    """

    groups: Groups
    column: Picked
    rows: NDArray[np.int64] | None = None
    # A reader that another call left behind, and that goes on where it stands.
    _idle: list[_Reader] = field(default_factory=list, init=False, repr=False, compare=False)

    in_order = True

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetSource, (self.groups, self.column, self.rows)

    def __len__(self) -> int:
        return int(self.groups.sizes.sum()) if self.rows is None else len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the files, see :mod:`oodcli.data.identity`, the column, and the rows."""
        files = identity_of(self.groups.folder, self.groups.files)
        rows = None if self.rows is None else digest_of(self.rows)
        return digest_of_json([files, list(self.groups.files), self.column.image, rows])

    def key_of(self, row: int) -> str:
        """Return ``FILE.parquet[ROW]``, with the path of the file."""
        return str(self.groups.folder / self.name_of(row))

    def name_of(self, row: int) -> str:
        """Return the key without the folder."""
        return self.groups.name_of(row if self.rows is None else int(self.rows[row]))

    def file_names(self) -> list[str] | None:
        """Return the path of every image, which stands beside its bytes; None if one has none.

        Raises
        ------
        InvalidInputError
            If a file cannot be read.
        """
        if self.column.kind != "struct":
            return None
        groups, paths = self.groups, []
        for file, group in zip(groups.file.tolist(), groups.group.tolist(), strict=True):
            path = groups.folder / groups.files[file]
            with reading(path, cure=_CURE, error=InvalidInputError), open_file(path) as opened:
                wanted = [f"{self.column.image}.path"]
                table = opened.read_row_group(group, columns=wanted, use_threads=False)
                if not table.num_columns:
                    return None
                for chunk in table.column(0).chunks:
                    paths += _bytes_and_paths(chunk)[1].to_pylist()
        names = paths if self.rows is None else [paths[row] for row in self.rows.tolist()]
        return names if all(names) else None

    def take(self, rows: NDArray[np.int64], /) -> "ParquetSource":
        """Return a source of chosen images.

        Parameters
        ----------
        rows
            Row numbers, ``(m,)``.
        """
        groups, rows = self.groups.only(rows if self.rows is None else self.rows[rows])
        return ParquetSource(groups, self.column, rows)

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``, or why there are none.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Notes
        -----
        Of rows that do not ascend, sixteen at a time are read in ascending order.
        """
        reader = self._idle.pop() if self._idle else _Reader(self.groups, self.column)
        for first in range(start, min(stop, len(self)), _ROWS_AT_A_TIME):
            wanted = np.arange(first, min(first + _ROWS_AT_A_TIME, stop, len(self)))
            places = wanted if self.rows is None else self.rows[wanted]
            found: list[bytes | str] = [""] * len(wanted)
            for row in np.argsort(places, kind="stable"):
                found[row] = reader.read(*self.groups.place(int(places[row])))
            for row, each in zip(wanted, found, strict=True):
                if isinstance(each, str):
                    yield UnreadableImageError(printable(self.key_of(int(row))), each)
                else:
                    yield each
        if not self._idle:
            self._idle.append(reader)


def open_file(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Open a Parquet file, to be read in bounded memory.

    Raises
    ------
    InvalidInputError
        If pyarrow is not installed.
    Exception
        Whatever pyarrow raises on malformed files.
    """
    parquet = arrow_package("pyarrow.parquet")
    source = path.open("rb") if isinstance(regular(path), RemotePath) else path
    return parquet.ParquetFile(source, buffer_size=_READ_BYTES, pre_buffer=False)


def opens(place: Place) -> bool:
    """Return whether a place is such a file, or a folder of them."""
    if place.is_file:
        return place.ends_with(*SUFFIXES)
    return holds_shards(place, SUFFIXES) is not None


def files_of(path: Path, columns: Columns | None) -> tuple[Path, Sequence[str]]:
    """Return the files whose images are scored as OOD images, as a folder and paths below it.

    A single one stands for files whose rows a column divides into parts.
    """
    shards = find_shards(path, SUFFIXES)
    first = shards.paths()[0]
    with reading(first, cure=_CURE, error=InvalidInputError), open_file(first) as file:
        kinds = kinds_of(file.schema_arrow)
        features = Features.in_schema(file.schema_arrow.metadata)
    picked = pick_columns(kinds, features, columns or Columns(), str(first), labelled=False)
    return (path, [""]) if picked.split is not None else shards.of_ood_part()


def open_parquet(
    path: Path,
    *,
    name: str,
    spec: str,
    role: Role,
    columns: Columns | None = None,
) -> Dataset:
    """Open Parquet files as a data set; no image is read yet.

    Parameters
    ----------
    path
        A file; a folder, of which all such files below count; or a pattern. Files named after parts
        (``train-00000-of-00002.parquet``, ``validation/0.parquet``) are these parts.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` wants labels; ``ood`` takes the test images alone, without labels.
    columns
        Columns that the user chose.

    Raises
    ------
    InvalidInputError
        If a file cannot be read, differs from the others in its columns, or does not fit.
    """
    arrow_package()
    shards = find_shards(path, SUFFIXES)
    location = str(shards.location)
    first = shards.paths()[0]
    with reading(first, cure=_CURE, error=InvalidInputError), open_file(first) as file:
        kinds = kinds_of(file.schema_arrow)
        features = Features.in_schema(file.schema_arrow.metadata)
    picked = pick_columns(kinds, features, columns or Columns(), str(first), labelled=role == "id")
    content = TableContent(shards, picked)
    table: list[tuple[int, int, int, int]] = []
    wanted = list(picked.beside_images)
    for at, each in enumerate(shards.paths()):
        with reading(each, cure=_CURE, error=InvalidInputError), open_file(each) as file:
            check_same(kinds_of(file.schema_arrow), kinds, picked, each, first)
            table += _groups(at, each, file.metadata)
            batches = file.iter_batches(_LABEL_ROWS, columns=wanted, use_threads=False)
            for batch in batches if wanted else ():
                content.add(each, batch)
            content.ends(file.metadata.num_rows)
    groups = Groups(shards.folder, shards.files, *np.array(table, np.int64).reshape(-1, 4).T.copy())
    return assembled(
        ParquetSource(groups, picked),
        content.labels,
        content.parts(),
        name=name,
        location=location,
        spec=spec,
        role=role,
        no_labels=f"{location} has no column of labels; name it: --columns label=COLUMN",
    )


def _groups(at: int, path: Path, metadata: Any) -> list[tuple[int, int, int, int]]:  # noqa: ANN401
    """Return file, number, first row and size of the row groups of a file."""
    table, first, most = [], 0, path.stat().st_size
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if not 0 <= rows <= most:
            raise ValueError(f"it claims to have {rows:,} rows in {most:,} bytes")
        table.append((at, group, first, rows))
        first += rows
    if first != metadata.num_rows:
        raise ValueError(f"its row groups have {first:,} rows, not {metadata.num_rows:,}")
    return table
