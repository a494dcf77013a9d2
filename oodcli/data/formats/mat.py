"""Arrays of numbers in MATLAB files of version 5, as published data sets come in.

SciPy reads more of them, and on a damaged file its reader can end the process.

References
----------
MathWorks. "MAT-File Format", chapter "MAT-File Level 5 File Format".
"""

import math
import mmap
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.files import regular

MAX_EXPANSION = 200
EXPANSION_SLACK_BYTES = 1 << 26

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
# What values are written as, and what they are values of: integers are written as narrow as can be.
_WRITTEN = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"
}  # fmt: skip
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"
}  # fmt: skip
_COMPLEX = 0x800
# Flags, dimensions and name of an array come first, and are short.
_HEAD_BYTES = 512


def read_mat(path: Path, name: str) -> NDArray[Any] | None:
    """Read an array of real numbers.

    Parameters
    ----------
    path
        The file.
    name
        Name of the array.

    Returns
    -------
    array
        The array, or None if there is none of that name.

    Raises
    ------
    OSError
        If it is not a regular file or cannot be read.
    ValueError
        If the file is damaged or of another version, or the array holds anything but numbers.
    Exception
        Whatever zlib and struct raise on damage.
    """
    with (
        regular(path).open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        content = mapped[:_HEADER_BYTES]
        order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
        if order is None or struct.unpack(f"{order}H", content[124:126])[0] >> 8 != 1:
            raise ValueError("it does not start like a MATLAB file of version 5")
        for kind, data in _elements(mapped, order, start=_HEADER_BYTES):
            matrix = _unpacked(data, name, order) if kind == _COMPRESSED else data
            if matrix is not None and _name(matrix, order) == name:
                return _array(matrix, order)
    return None


def _elements(
    content: bytes | mmap.mmap, order: str, *, start: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Yield type and bytes of each element."""
    at = start
    while at < len(content):
        kind, size = struct.unpack(f"{order}2I", content[at : at + 8])
        if kind >> 16:  # up to four bytes, beside their number
            kind, size, begin, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            begin = at + 8
            end = begin + size + (0 if kind == _COMPRESSED else -size % 8)
        if begin + size > min(end, len(content)):
            raise ValueError(f"it ends within an element of {size:,} bytes")
        yield kind, content[begin : begin + size]
        at = end


def _unpacked(data: bytes, name: str, order: str) -> bytes | None:
    """Decompress an array of a name; None if it has another."""
    head = zlib.decompressobj().decompress(data, _HEAD_BYTES)
    if _name(head[8:], order) != name:
        return None
    most = MAX_EXPANSION * len(data) + EXPANSION_SLACK_BYTES
    stream = zlib.decompressobj()
    content = stream.decompress(data, most)
    if not stream.eof:
        raise ValueError("it is cut short, or unpacks to far more than its size")
    ((_kind, matrix),) = _elements(content, order)
    return matrix


def _name(matrix: bytes, order: str) -> str:
    _flags, _shape, (_kind, name) = islice(_elements(matrix, order), 3)
    return name.decode("latin1")


def _array(matrix: bytes, order: str) -> NDArray[Any]:
    (_, flags), (_, sizes), _called, (kind, values) = islice(_elements(matrix, order), 4)
    flag = struct.unpack(f"{order}I", flags[:4])[0]
    if flag & 0xFF not in _CLASSES or flag & _COMPLEX or kind not in _WRITTEN:
        raise ValueError("it holds values other than real numbers")
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    flat = np.frombuffer(values, f"{order}{_WRITTEN[kind]}")
    if min(shape, default=0) < 0 or math.prod(shape) != len(flat):
        raise ValueError(f"{len(flat):,} values do not fill an array {shape}")
    return flat.astype(_CLASSES[flag & 0xFF]).reshape(shape, order="F")
