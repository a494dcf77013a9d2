"""Reading of external .npz and .npy files, without trusting their headers."""

import contextlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import reading, regular

# Scores and labels hardly compress; an array that claims to be far larger than its file is refused.
MAX_EXPANSION = 200
EXPANSION_SLACK_BYTES = 1 << 26

_SUFFIX = ".npy"


@dataclass(frozen=True)
class Header:
    """The header of an .npy array.

    Parameters
    ----------
    shape
        Shape of the array.
    is_fortran
        Whether the values are stored in Fortran order (first axis varies fastest).
    dtype
        Data type of the array.
    length
        Number of bytes of the header, before the first value.
    """

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    length: int

    @property
    def size_bytes(self) -> int:
        """Number of bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the arrays in an .npz file, in the order of the file."""
    names = (name for name in archive.namelist() if name.endswith(_SUFFIX))
    return [name.removesuffix(_SUFFIX) for name in names]


def read_header(stream: IO[bytes], *, size: int) -> Header:
    """Read the header of an .npy array, up to the first value.

    Parameters
    ----------
    stream
        Stream positioned at the first byte of the array.
    size
        Number of bytes of header and values together.

    Raises
    ------
    ValueError
        If there is no valid header, the dtype is of Python objects, or the shape does not match
        ``size``.
    Exception
        Any exception of NumPy on malformed headers.
    """
    start = stream.tell()
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"its format version is {version[0]}.{version[1]}")
    header = Header(shape, is_fortran, dtype, stream.tell() - start)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    values = size - header.length
    if values != header.size_bytes or not dtype.itemsize:
        raise ValueError(f"shape {shape} of {dtype} does not fit {values} bytes")
    return header


def read_values(stream: IO[bytes], header: Header) -> NDArray[Any]:
    """Read all values of an array whose header has been read.

    Raises
    ------
    ValueError
        If the stream ends too early.
    """
    flat = np.frombuffer(exactly(stream, header.size_bytes), dtype=header.dtype)
    return flat.reshape(header.shape, order="F" if header.is_fortran else "C")


def exactly(stream: IO[bytes], size: int) -> bytes:
    """Read exactly ``size`` bytes.

    Raises
    ------
    ValueError
        If the stream ends earlier.
    """
    content = stream.read(size)
    if len(content) != size:
        raise ValueError(f"it ends {size - len(content)} bytes early")
    return content


@contextlib.contextmanager
def open_member(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Header, IO[bytes]]]:
    """Open one array of an .npz file; yield its header and a stream at its first value."""
    info = archive.getinfo(f"{name}{_SUFFIX}")
    with archive.open(info) as stream:
        yield read_header(stream, size=info.file_size), stream


def read_member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read one array of an .npz file.

    Raises
    ------
    ValueError
        If the array would need far more memory than its compressed size.
    Exception
        Any exception of zipfile, its decompressors and NumPy on a damaged file.
    """
    packed = archive.getinfo(f"{name}{_SUFFIX}").compress_size
    with open_member(archive, name) as (header, stream):
        if header.size_bytes > MAX_EXPANSION * packed + EXPANSION_SLACK_BYTES:
            raise ValueError(f"{packed:,} bytes would unpack to {header.size_bytes:,}")
        return read_values(stream, header)


def read_npz(
    path: Path, *, cure: str, error: type[CorruptArtifactError | InvalidInputError]
) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz file.

    Parameters
    ----------
    path
        The file.
    cure
        What the user can do if the file is damaged.
    error
        Class of the error that is raised then.

    Raises
    ------
    OodError
        An ``error``, if the file is not an .npz file or is damaged; the message names the array.
    OSError
        If the file does not exist or is not a regular file.
    """
    with regular(path).open("rb") as stream:
        with reading(path, wrong="is not an .npz file", cure=cure, error=error):
            archive = zipfile.ZipFile(stream)
            names = array_names(archive)
        arrays = {}
        for name in names:
            with reading(f"{path}: array {name!r}", cure=cure, error=error):
                arrays[name] = read_member(archive, name)
    return arrays
