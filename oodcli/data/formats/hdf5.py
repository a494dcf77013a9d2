"""Arrays of images in HDF5 files, read block by block.

Only plain data sets of the file itself are read: no links to other files, no external or virtual
storage, and no filters but those that come with HDF5.
"""

import contextlib
import errno
import importlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.formats.arrays import as_rgb, check_images, open_container
from oodcli.data.identity import identity_of
from oodcli.data.reader import Columns, Role
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.files import reading, regular
from oodcli.images import ImageSource, digest_of
from oodcli.remote.files import RemotePath
from oodcli.store.store import digest_of_json
from oodcli.text import printable

SUFFIXES = (".h5", ".hdf5", ".hdf")

_BLOCK_BYTES = 1 << 22
# A block of HDF5 is unpacked as a whole, even for one image of it.
_MAX_CHUNK_BYTES = 1 << 28
_MAX_SMALL_BYTES = 1 << 28
# Deflate, shuffle, Fletcher32, szip, n-bit and scale-offset of HDF5, and LZF of h5py.
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
_MAX_ARRAYS = 10_000
_DEEPEST = 8
# Of encoded images.
_ROWS_AT_A_TIME = 16
_CURE = "write the file again"
_AS_IT_IS = "to read it as it is: HDF5_USE_FILE_LOCKING=FALSE ood …"
_LOCKED = f"is open for writing in another program; close it there, or, {_AS_IT_IS}"
# What HDF5 says if another program has a file open, or did not close it.
_WRITTEN = {
    f"unable to lock file, errno = {errno.EAGAIN},": _LOCKED,
    "unable to lock file": f"cannot be locked, which its file system may not support; {_AS_IT_IS}",
    "already open for": "is open for writing in another program, or was not closed by one; close "
    "it there, or, if none has it open, write it again or clear its mark: h5clear -s {file}",
    "truncated file": "is cut short; if another program is still writing it, close it there, else "
    "write the file again",
}


def hdf5_package() -> Any:  # noqa: ANN401 - a package that need not be there
    """Import h5py.

    Raises
    ------
    InvalidInputError
        If it is not installed.
    """
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise InvalidInputError(
            'HDF5 files need the package h5py; install it: pip install "oodcli[hdf5]"'
        ) from None


def open_hdf5(
    path: Path,
    *,
    name: str,
    spec: str,
    role: Role,
    columns: Columns | None = None,
) -> Dataset:
    """Open an HDF5 file as :func:`oodcli.data.formats.arrays.open_container` opens arrays.

    Parameters
    ----------
    path
        The file; its images are uint8 arrays, or encoded image files as bytes of any length.
    name, spec, role, columns
        As for that function.

    Raises
    ------
    InvalidInputError
        If it is no HDF5 file, or an array in it is missing, damaged or unfit.
    """
    hdf5_package()
    return open_container(Hdf5File(path), name=name, spec=spec, role=role, columns=columns)


@contextlib.contextmanager
def _opened(path: Path, name: str = "") -> Iterator[Any]:
    """Open an HDF5 file, or a plain data set of it."""
    where = f"{path}: array {name!r}" if name else path
    wrong = "cannot be read" if name else "is not an HDF5 file"
    with (
        reading(where, wrong=wrong, cure=_CURE, error=InvalidInputError),
        _source_of(path) as source,
        _unless_written(path),
        hdf5_package().File(source, "r", locking="best-effort") as file,
    ):
        yield _plain(file, name) if name else file


@contextlib.contextmanager
def _unless_written(path: Path) -> Iterator[None]:
    """Convert errors of HDF5 about another program that has the file open.

    HDF5 gives no codes, but its messages have been the same since 1.10.
    """
    try:
        yield
    except OSError as error:
        for message, reason in _WRITTEN.items():
            if message in str(error):
                raise InvalidInputError(f"{path} {reason.format(file=path)}") from None
        raise


def _source_of(path: Path) -> contextlib.AbstractContextManager[Any]:
    """Return what h5py opens: a path, or a remote file as a stream."""
    regular(path)
    return path.open("rb") if isinstance(path, RemotePath) else contextlib.nullcontext(path)


def _plain(file: Any, name: str) -> Any:  # noqa: ANN401 - h5py has no types
    """Return a data set, reached by hard links alone, whose values lie in the file itself."""
    h5py, found = hdf5_package(), file
    for step in name.split("/"):
        if not isinstance(found.get(step, getlink=True), h5py.HardLink):
            raise ValueError("it is a link, which is not followed")  # noqa: TRY004 - of the file
        found = found[step]
    if not isinstance(found, h5py.Dataset):
        raise ValueError("it is a group, not an array")  # noqa: TRY004 - of the file
    if found.is_virtual or found.external:
        raise ValueError("its values lie in another file, which is not read")
    plist = found.id.get_create_plist()
    for at in range(plist.get_nfilters()):
        if plist.get_filter(at)[0] not in _FILTERS:
            raise ValueError("it is compressed by a plug-in; write it with gzip, or plainly")
    return found


def _is_vlen(dtype: np.dtype[Any]) -> bool:
    """Return whether values are bytes of any length: encoded image files."""
    return hdf5_package().check_vlen_dtype(dtype) == np.uint8


def _is_text(dtype: np.dtype[Any]) -> bool:
    return hdf5_package().check_string_dtype(dtype) is not None


@dataclass(frozen=True)
class Hdf5File:
    """An HDF5 file, as a :class:`oodcli.data.formats.arrays.Container`.

    Parameters
    ----------
    path
        The file.
    """

    path: Path

    def names(self) -> Collection[str]:
        """Return what lies in the file itself; of groups, with their path, what they hold."""
        with _opened(self.path) as file:
            return list(_names(file, "", depth=0))

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and type of a data set; texts of any length are ``S1``."""
        with _opened(self.path, name) as found:
            return tuple(found.shape), np.dtype("S1") if _is_text(found.dtype) else found.dtype

    def whole(self, name: str) -> NDArray[Any]:
        """Read a data set at once."""
        with _opened(self.path, name) as found:
            if math.prod(found.shape) * found.dtype.itemsize > _MAX_SMALL_BYTES:
                raise ValueError(f"it has shape {found.shape}, which is too large")
            if _is_text(found.dtype):
                return np.array(found.asstr("utf-8", "replace")[()], dtype=np.str_)
            return np.asarray(found[()])

    def images(self, name: str) -> ImageSource:
        """Return the images of a data set: pixels, or bytes of any length."""
        with _opened(self.path, name) as found:
            together = found.chunks[0] if found.chunks else 1
            if found.shape and len(found.shape) == 1 and found.shape[0] and _is_vlen(found.dtype):
                rows = np.arange(found.shape[0], dtype=np.int64)
                return EncodedHdf5(self.path, name, rows, min(together, _ROWS_AT_A_TIME))
        return Hdf5Source(self.path, name)


def _names(group: Any, prefix: str, *, depth: int) -> Iterator[str]:  # noqa: ANN401
    h5py = hdf5_package()
    for name in islice(group, _MAX_ARRAYS):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield prefix + name  # named, and refused when it is read
        elif group.get(name, getclass=True) is h5py.Group:
            if depth < _DEEPEST:
                yield from _names(group[name], f"{prefix}{name}/", depth=depth + 1)
        else:
            yield prefix + name


@dataclass(frozen=True)
class Hdf5Source:
    """Images in a data set of an HDF5 file, read in bounded memory.

    Parameters
    ----------
    path
        The file.
    array
        Path of the data set in it: uint8 of a shape that
        :func:`oodcli.data.formats.arrays.check_images` takes.

    Raises
    ------
    InvalidInputError
        If the data set is missing or damaged, or not such images.
    """

    path: Path
    array: str

    def __post_init__(self) -> None:
        where = f"{self.path}: array {self.array!r}"
        shape, dtype, rows = self._header
        check_images(shape, dtype, where)
        if rows * math.prod(shape[1:]) > _MAX_CHUNK_BYTES:
            raise InvalidInputError(
                f"{where} is stored in blocks of {rows:,} images, more than "
                f"{_MAX_CHUNK_BYTES >> 20} MiB, each of which is unpacked as a whole; write it "
                f"with chunks=(1, {', '.join(map(str, shape[1:]))})"
            )

    @cached_property
    def _header(self) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Shape and type, and how many images are unpacked together."""
        with _opened(self.path, self.array) as found:
            return tuple(found.shape), found.dtype, found.chunks[0] if found.chunks else 1

    def __len__(self) -> int:
        return self._header[0][0]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the file, see :mod:`oodcli.data.identity`, and of the name of the array."""
        return digest_of_json([identity_of(self.path), self.array])

    def name_of(self, row: int) -> str:
        """Return ``FILE.h5[ROW]``."""
        return f"{self.path.name}[{row}]"

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Raises
        ------
        InvalidInputError
            If the array is damaged.
        """
        shape, _, together = self._header
        rows = max(1, _BLOCK_BYTES // math.prod(shape[1:]))
        for block in _blocks(
            self.path, self.array, start, min(stop, shape[0]), rows=rows, together=together
        ):
            yield from map(as_rgb, block)


def _blocks(
    path: Path, array: str, start: int, stop: int, *, rows: int, together: int
) -> Iterator[NDArray[Any]]:
    """Yield rows ``start`` to ``stop - 1`` of a data set, about so many at a time.

    Parameters
    ----------
    path, array
        The data set.
    start, stop
        First row, and the row after the last.
    rows
        About how many at a time.
    together
        How many are unpacked together, so that none is unpacked twice.
    """
    rows = max(1, rows // together) * together
    with _opened(path, array) as found:
        while start < stop:
            end = min(stop, (start // rows + 1) * rows)
            yield found[start:end]
            start = end


@dataclass(frozen=True)
class EncodedHdf5(EncodedSource):
    """Encoded image files in a data set of an HDF5 file: bytes of any length, ``(n,)``.

    Parameters
    ----------
    path
        The file.
    array
        Path of the data set in it.
    rows
        Rows that are meant, ``(n,)``.
    together
        How many rows are read together.
    """

    path: Path
    array: str
    rows: NDArray[np.int64]
    together: int = 1

    in_order = True

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the file, see :mod:`oodcli.data.identity`, the array, and the rows."""
        return digest_of_json([identity_of(self.path), self.array, digest_of(self.rows)])

    def key_of(self, row: int) -> str:
        """Return ``FILE.h5[ROW]``, with the path of the file."""
        return f"{self.path}[{self.rows[row]}]"

    def name_of(self, row: int) -> str:
        """Return the key without the folder."""
        return f"{self.path.name}[{self.rows[row]}]"

    def take(self, rows: NDArray[np.int64], /) -> "EncodedHdf5":
        """Return a source of chosen images."""
        return replace(self, rows=self.rows[rows])

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``, or why there are none."""
        if (np.diff(self.rows[start:stop]) == 1).all():
            first, end = int(self.rows[start]), int(self.rows[min(stop, len(self)) - 1]) + 1
            some = _blocks(
                self.path, self.array, first, end, rows=_ROWS_AT_A_TIME, together=self.together
            )
            each: Iterator[Any] = (image for block in some for image in block)
        else:
            each = self._one_by_one(start, stop)
        for row, image in enumerate(each, start):
            content = np.asarray(image, dtype=np.uint8).tobytes()
            if content:
                yield content
            else:
                yield UnreadableImageError(printable(self.key_of(row)), "the row has no image")

    def _one_by_one(self, start: int, stop: int) -> Iterator[Any]:
        with _opened(self.path, self.array) as found:
            for row in self.rows[start:stop]:
                yield found[int(row)]
