"""Images in NumPy arrays: in memory, in a .npy file, or in an .npz file read in order."""

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.data.formats.labels import check_labels, checked_labels
from oodcli.data.identity import identity_of
from oodcli.data.reader import Columns
from oodcli.errors import CorruptArtifactError, InvalidInputError, UnreadableImageError
from oodcli.files import reading, regular
from oodcli.images import ImageSource, Part, digest_of
from oodcli.npz import (
    Header,
    array_names,
    exactly,
    open_member,
    read_header,
    read_member,
    read_values,
)
from oodcli.remote.files import RemoteFile, RemotePath
from oodcli.store.store import digest_of_json
from oodcli.text import counted

MAX_PIXELS = 2**28

PARTS = ("train", "val", "test")
_CHANNELS = (1, 3)
_BLOCK_BYTES = 1 << 22
_NPZ_CURE = "write it with numpy.savez"
_WANTED = (
    "expected are images and labels, or train_images, train_labels, test_images and test_labels"
)


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image as ``(h, w, 3)``.

    Parameters
    ----------
    image
        Pixels, ``(h, w)``, ``(h, w, 1)`` or ``(h, w, 3)``; else ``(1, h, w)`` or ``(3, h, w)``.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    elif image.shape[2] not in _CHANNELS:
        image = image.transpose(1, 2, 0)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image  # (h, w, 3)


@dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    Parameters
    ----------
    images
        Pixels, ``(n, h, w)`` or ``(n, h, w, 3)``.
    """

    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the pixels."""
        return digest_of(self.images)

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.
        """
        for image in self.images[start:stop]:
            yield as_rgb(image)


@dataclass(frozen=True)
class WholeFileSource:
    """Images of one file that is read as a whole when they are needed.

    Parameters
    ----------
    path
        The file.
    count
        Number of images, as its labels say.
    load
        Returns all images of the file, ``(n, h, w)`` or ``(n, h, w, 3)``.
    """

    path: Path
    count: int
    load: Callable[[Path], NDArray[np.uint8]]

    def __len__(self) -> int:
        return self.count

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the file, see :mod:`oodcli.data.identity`."""
        return identity_of(self.path)

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Raises
        ------
        CorruptArtifactError
            If the file is damaged.
        """
        images = self.load(self.path)
        if len(images) != self.count:
            raise CorruptArtifactError(
                f"{self.path} has {counted(len(images), 'image')} for "
                f"{counted(self.count, 'label')}; get both files again"
            )
        yield from map(as_rgb, images[start:stop])


@contextlib.contextmanager
def _open_array(path: Path, name: str) -> Iterator[tuple[Header, IO[bytes]]]:
    """Open one array of an .npz file at its first value."""
    with (
        _damage_is_told(path, repr(name)),
        _opened(path) as archive,
        open_member(archive, name) as opened,
    ):
        yield opened


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with regular(path).open("rb") as stream, zipfile.ZipFile(stream) as archive:
        yield archive


def _damage_is_told(path: Path, array: str) -> AbstractContextManager[None]:
    where = f"{path}: array {array}"
    return reading(where, cure="write the file again", error=InvalidInputError)


def check_images(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Refuse an array that does not hold images.

    Parameters
    ----------
    shape, dtype
        Of the array.
    where
        How to call it in an error.

    Raises
    ------
    InvalidInputError
        If it does not.
    """
    if dtype != np.uint8:
        raise InvalidInputError(
            f"{where} is {dtype}, not uint8; store pixel values from 0 to 255 as uint8"
        )
    channels_last = len(shape) == 3 or (len(shape) == 4 and shape[3] in _CHANNELS)
    if not channels_last and not (len(shape) == 4 and shape[1] in _CHANNELS):
        raise InvalidInputError(
            f"{where} has shape {shape}; images are (n, h, w), (n, h, w, 1), (n, h, w, 3), "
            "(n, 1, h, w) or (n, 3, h, w)"
        )
    if min(shape) < 1:
        raise InvalidInputError(f"{where} has shape {shape}: there is no image in it")
    channels = 1 if len(shape) == 3 else shape[3] if channels_last else shape[1]
    if math.prod(shape[1:]) // channels > MAX_PIXELS:
        raise InvalidInputError(
            f"{where} has shape {shape}; an image may have {MAX_PIXELS} pixels at most"
        )


def _header(path: Path, name: str) -> Header:
    with _open_array(path, name) as (header, _):
        return header


def _whole(path: Path, name: str) -> NDArray[Any]:
    """Read one array at once."""
    with _damage_is_told(path, repr(name)), _opened(path) as archive:
        return read_member(archive, name)


@dataclass(frozen=True)
class NpzSource:
    """Images in one array of an .npz file, read in order in bounded memory.

    Parameters
    ----------
    path
        The file.
    array
        Name of the array, uint8, of a shape that :func:`check_images` takes.

    Raises
    ------
    InvalidInputError
        If the array is missing or damaged, or not such images.

    Notes
    -----
    An array in Fortran order has its images interleaved and is read at once.
    """

    path: Path
    array: str

    def __post_init__(self) -> None:
        check_images(self._header.shape, self._header.dtype, f"{self.path}: array {self.array!r}")

    @cached_property
    def _header(self) -> Header:
        return _header(self.path, self.array)

    def __len__(self) -> int:
        return self._header.shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the file, see :mod:`oodcli.data.identity`, and of the name of the array."""
        return digest_of_json([identity_of(self.path), self.array])

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
        if self._header.is_fortran:
            yield from map(as_rgb, _whole(self.path, self.array)[start:stop])
            return
        row_shape = self._header.shape[1:]
        row_bytes = math.prod(row_shape)
        with _open_array(self.path, self.array) as (_, stream):
            # Rows before the first are read too, not sought past: only then is their checksum seen.
            for rows in _blocks(start, row_bytes):
                exactly(stream, rows * row_bytes)
            for rows in _blocks(stop - start, row_bytes):
                block = np.frombuffer(exactly(stream, rows * row_bytes), dtype=np.uint8)
                yield from map(as_rgb, block.reshape(rows, *row_shape))


@dataclass(frozen=True)
class NpySource:
    """Images in a .npy file, or in a .npy file inside an archive that is not compressed.

    Parameters
    ----------
    path
        The file.
    offset
        Where in the file the array begins.
    size
        Number of bytes of the array with its header; to the end of the file if None.

    Raises
    ------
    InvalidInputError
        If the array is damaged, or not uint8, of a shape that :func:`check_images` takes.
    """

    path: Path
    offset: int = 0
    size: int | None = None

    def __post_init__(self) -> None:
        check_images(self._header.shape, self._header.dtype, str(self.path))

    @cached_property
    def _begin(self) -> tuple[Header, int]:
        """Header of the array, and where its first value is."""
        with _damage_is_told(self.path, "of images"), regular(self.path).open("rb") as stream:
            size = self.path.stat().st_size - self.offset if self.size is None else self.size
            stream.seek(self.offset)
            header = read_header(stream, size=size)
            return header, stream.tell()

    @property
    def _header(self) -> Header:
        return self._begin[0]

    def __len__(self) -> int:
        return self._header.shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the file, see :mod:`oodcli.data.identity`, and of the place in it."""
        return digest_of_json([identity_of(self.path), self.offset])

    def array(self) -> "NDArray[np.uint8] | _RemoteArray":
        """Return all images; only those that are accessed are read."""
        header, start = self._begin
        if isinstance(self.path, RemotePath):
            if header.is_fortran:
                return read_npy(self.path, offset=self.offset, size=self.size)
            return _RemoteArray(self.path.ranges(), start, header.shape)
        return np.memmap(
            self.path,
            dtype=np.uint8,
            mode="r",
            offset=start,
            shape=header.shape,
            order="F" if header.is_fortran else "C",
        )

    def take(self, rows: NDArray[np.int64], /) -> "PickedSource":
        """Return a source of chosen images.

        Parameters
        ----------
        rows
            Row numbers, ``(m,)``.
        """
        return PickedSource((self,), np.zeros(len(rows), dtype=np.int64), rows)

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.
        """
        yield from map(as_rgb, self.array()[start:stop])


@dataclass(frozen=True)
class _RemoteArray:
    """Images in a remote .npy file, read as they are accessed.

    Parameters
    ----------
    file
        The file.
    start
        Where its first value is.
    shape
        Of the array.
    """

    file: RemoteFile
    start: int
    shape: tuple[int, ...]

    def __getitem__(self, rows: int | slice) -> Any:  # noqa: ANN401 - an image, or many
        size = math.prod(self.shape[1:])
        if isinstance(rows, slice):
            chosen = range(self.shape[0])[rows]
            ahead = self.file.ahead((self.start + row * size, size) for row in chosen)
            return (self[row] for row, _ in zip(chosen, ahead, strict=True))
        content = self.file.read_at(self.start + int(rows) * size, size)
        return np.frombuffer(content, dtype=np.uint8).reshape(self.shape[1:])


@dataclass(frozen=True)
class PickedSource:
    """Chosen images of several arrays, in any order.

    Parameters
    ----------
    sources
        The arrays.
    which
        Array of every image, ``(n,)``.
    rows
        Its row in that array, ``(n,)``.
    """

    sources: tuple[NpySource, ...]
    which: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the arrays' fingerprints and of the choice."""
        names = "".join(source.fingerprint for source in self.sources)
        return hashlib.blake2b(
            f"{names}{digest_of(self.which, self.rows)}".encode(), digest_size=16
        ).hexdigest()

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.
        """
        arrays = [source.array() for source in self.sources]
        for array, row in zip(self.which[start:stop], self.rows[start:stop], strict=True):
            yield as_rgb(arrays[array][row])


def _blocks(rows: int, row_bytes: int) -> Iterator[int]:
    """Divide rows into blocks of bounded size; yield the number of rows in each."""
    largest = max(1, _BLOCK_BYTES // row_bytes)
    while rows > 0:
        yield min(rows, largest)
        rows -= largest


class Container(Protocol):
    """A file that holds arrays by name."""

    @property
    def path(self) -> Path:
        """The file."""

    def names(self) -> Collection[str]:
        """Return the names of its arrays."""

    def header(self, name: str, /) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and type of an array, before it is read."""

    def whole(self, name: str, /) -> NDArray[Any]:
        """Return an array that is small."""

    def images(self, name: str, /) -> ImageSource:
        """Return the images of an array, checked by :func:`check_images` or the like."""


@dataclass(frozen=True)
class NpzFile:
    """An .npz file, as a :class:`Container`.

    Parameters
    ----------
    path
        The file.
    """

    path: Path

    def names(self) -> Collection[str]:
        """Return the names of its arrays."""
        with (
            reading(
                self.path, wrong="is not an .npz file", cure=_NPZ_CURE, error=InvalidInputError
            ),
            _opened(self.path) as archive,
        ):
            return set(array_names(archive))

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and type of an array."""
        header = _header(self.path, name)
        return header.shape, header.dtype

    def whole(self, name: str) -> NDArray[Any]:
        """Read an array at once."""
        return _whole(self.path, name)

    def images(self, name: str) -> ImageSource:
        """Return the images of an array."""
        return NpzSource(self.path, name)


def open_npz(
    path: Path,
    *,
    name: str,
    spec: str,
    role: Literal["id", "ood"],
    columns: Columns | None = None,
) -> Dataset:
    """Open an .npz file as :func:`open_container` opens arrays; no pixel is read yet.

    Parameters
    ----------
    path
        The file.
    name, spec, role, columns
        As for that function.

    Raises
    ------
    InvalidInputError
        If the file is not an .npz file, or an array in it is missing, damaged or unfit.
    """
    return open_container(NpzFile(path), name=name, spec=spec, role=role, columns=columns)


def open_container(
    container: Container,
    *,
    name: str,
    spec: str,
    role: Literal["id", "ood"],
    columns: Columns | None = None,
) -> Dataset:
    """Open a file of arrays as a data set; no pixel is read yet.

    Parameters
    ----------
    container
        A file with ``images`` and, if there are classes, ``labels``; or with ``train_images``,
        ``train_labels``, ``test_images`` and ``test_labels``, and the same for ``val``; and
        with ``class_names`` if the classes have any. Other arrays do not matter.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``ood`` takes the test images alone, without labels.
    columns
        Arrays that the user chose as images (``path``) and labels.

    Raises
    ------
    InvalidInputError
        If an array in it is missing, damaged or unfit.
    """
    path, arrays = container.path, container.names()
    chosen = columns or Columns()
    _check_chosen(chosen, arrays, path)
    images = chosen.path or "images"
    found = [part for part in PARTS if f"{part}_images" in arrays and chosen.path is None]
    if not found and images not in arrays:
        raise InvalidInputError(
            f"{path} has no array 'images'; it has {_listed(arrays)}; {_WANTED}"
        )
    if role == "ood":
        array = f"{_preferred(found)}_images" if found else images
        return Dataset(name, {"test": Part(container.images(array))}, (), str(path), spec)
    if found == ["val"]:
        raise InvalidInputError(f"{path} has val_images but neither train nor test; {_WANTED}")
    labels = chosen.label or "labels"
    if found:
        for part in found:
            if f"{part}_labels" not in arrays:
                raise InvalidInputError(
                    f"{path} has {part}_images but no array '{part}_labels'; {_WANTED}"
                )
        each = {part: (f"{part}_images", f"{part}_labels") for part in found}
        parts = {part: _labelled(container, *names) for part, names in each.items()}
    elif labels in arrays:
        parts = {"test": _labelled(container, images, labels)}
    else:
        parts = {"test": Part(container.images(images))}
    names = _class_names(container) if "class_names" in arrays else _numbered(parts)
    for part, content in parts.items():
        if content.labels is not None and content.labels.max() >= len(names):
            raise InvalidInputError(
                f"{path}: array '{part + '_labels' if found else labels}' has label "
                f"{content.labels.max()}, but there are {len(names)} classes, counted from 0"
            )
    return Dataset(name, parts, names, str(path), spec, is_whole=not found)


def _check_chosen(columns: Columns, arrays: Collection[str], path: Path) -> None:
    """Refuse arrays that the user chose and that there are not."""
    if columns.split is not None:
        raise InvalidInputError(
            f"{path} has no column of parts, but arrays; name its images and labels: "
            "--columns path=ARRAY,label=ARRAY"
        )
    for array in (columns.path, columns.label):
        if array is not None and array not in arrays:
            raise InvalidInputError(f"{path} has no array {array!r}; it has {_listed(arrays)}")


def open_npy(
    path: Path, *, name: str, spec: str, role: Literal["id", "ood"], labels: Path | None = None
) -> Dataset:
    """Open a .npy file of images as one set; no pixel is read yet.

    Parameters
    ----------
    path
        An array of images.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``ood`` ignores labels.
    labels
        A .npy file with the class of every image.

    Raises
    ------
    InvalidInputError
        If an array is damaged or unfit.
    """
    source = NpySource(path)
    if role == "ood" or labels is None:
        return Dataset(name, {"test": Part(source)}, (), str(path), spec)
    part = Part(source, checked_labels(read_npy(labels), str(labels), count=len(source)))
    names = _numbered({"test": part})
    return Dataset(name, {"test": part}, names, str(path), spec, is_whole=True)


def read_npy(path: Path, *, offset: int = 0, size: int | None = None) -> NDArray[Any]:
    """Read an array from a .npy file, or from one inside an archive that is not compressed.

    Parameters
    ----------
    path
        The file.
    offset
        Where in the file the array begins.
    size
        Number of bytes of the array with its header; to the end of the file if None.

    Raises
    ------
    InvalidInputError
        If it is damaged.
    """
    with _damage_is_told(path, "of labels"), regular(path).open("rb") as stream:
        stream.seek(offset)
        size = path.stat().st_size - offset if size is None else size
        return read_values(stream, read_header(stream, size=size))


def _preferred(found: list[str]) -> str:
    return next(part for part in ("test", "val", "train") if part in found)


def _listed(arrays: Collection[str]) -> str:
    return ", ".join(sorted(arrays)) or "no array at all"


def _labelled(container: Container, images: str, labels: str) -> Part:
    source = container.images(images)
    where = f"{container.path}: array {labels!r}"
    shape, dtype = container.header(labels)
    check_labels(dtype, shape, where, count=len(source))  # before they are read
    return Part(source, checked_labels(container.whole(labels), where, count=len(source)))


def _class_names(container: Container) -> tuple[str, ...]:
    shape, dtype = container.header("class_names")
    if dtype.kind not in "US" or len(shape) != 1 or shape[0] < 1:
        raise InvalidInputError(
            f"{container.path}: array 'class_names' is {dtype} of shape {shape}; it must hold "
            "one text per class"
        )
    values = container.whole("class_names")
    if values.dtype.kind == "S":
        return tuple(value.decode("utf-8", "replace") for value in values.tolist())
    return tuple(values.tolist())


def _numbered(parts: dict[str, Part]) -> tuple[str, ...]:
    """Name the classes by number, as many as the train part has, else the part there is."""
    labels = (parts["train"] if "train" in parts else next(iter(parts.values()))).labels
    return () if labels is None else tuple(str(k) for k in range(int(labels.max()) + 1))
