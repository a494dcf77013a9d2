"""The list of files at the end of a zip file, read entry by entry in bounded memory.

Python's ``zipfile`` holds some 600 bytes for each file, several times what is needed to read one.

References
----------
PKWARE. ".ZIP File Format Specification", version 6.3.10, sections 4.3.12 to 4.3.16 and 4.5.3.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_MAX_COMMENT = 1 << 16
_BLOCK = 1 << 16
_IN_UTF_8 = 0x800
_ELSEWHERE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A file or folder in a zip file.

    Parameters
    ----------
    name
        Its path; that of a folder ends with a slash.
    flags, method
        General flags, and how it is compressed, as the format numbers them.
    crc
        Checksum.
    packed, size
        Number of bytes in the archive, and of the file.
    offset
        Where its own header begins in the zip file.
    """

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def entries_of_zip(file: IO[bytes]) -> Iterator[ZipEntry]:
    """Yield what a zip file lists, in its order.

    Parameters
    ----------
    file
        The zip file; other bytes may precede it.

    Raises
    ------
    ValueError
        If the list is damaged.
    """
    end, size, offset = _end_of(file)
    before = end - size - offset  # bytes ahead of the archive, which places in it do not count
    if before < 0 or size < 0:
        raise ValueError("its list of files does not fit into it")
    content, left = _Blocks(file, end - size, end), size
    while left > 0:
        head = content.read(_ENTRY.size)
        if len(head) != _ENTRY.size or head[:4] != b"PK\x01\x02":
            raise ValueError("its list of files is damaged")
        _, _, _, flags, method, _, _, crc, packed, whole, *rest = _ENTRY.unpack(head)
        lengths, start = rest[:3], rest[-1]
        body = content.read(sum(lengths))
        left -= len(head) + sum(lengths)
        if len(body) != sum(lengths) or left < 0:
            raise ValueError("its list of files is cut short")
        name = body[: lengths[0]].decode("utf-8" if flags & _IN_UTF_8 else "cp437")
        extra = body[lengths[0] : lengths[0] + lengths[1]]
        whole, packed, start = _wide([whole, packed, start], extra)
        yield ZipEntry(name.partition("\0")[0], flags, method, crc, packed, whole, start + before)


class _Blocks:
    """Reads a part of a file in blocks, for a file elsewhere may be read in ranges."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        file.seek(start)
        self._file = file
        self._left = end - start
        self._block = b""
        self._at = 0

    def read(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        if self._at + count > len(self._block):
            rest = self._block[self._at :]
            more = self._file.read(min(self._left, max(_BLOCK, count)))
            self._left -= len(more)
            self._block, self._at = rest + more, 0
        found = self._block[self._at : self._at + count]
        self._at += count
        return found


def _end_of(file: IO[bytes]) -> tuple[int, int, int]:
    """Return where the list ends, its size, and where the archive says that it begins."""
    length = file.seek(0, os.SEEK_END)
    first = max(0, length - _END.size - _MAX_COMMENT)
    file.seek(first)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise ValueError("it has no list of files")
    *_, size, offset, _ = _END.unpack_from(tail, at)
    end = first + at
    if end >= _LOCATOR_64.size + _END_64.size:
        file.seek(end - _LOCATOR_64.size - _END_64.size)
        record = _END_64.unpack(file.read(_END_64.size))
        locator = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        if locator[0] == b"PK\x06\x07" and record[0] == b"PK\x06\x06":
            return end - _LOCATOR_64.size - _END_64.size, record[-2], record[-1]
    return end, size, offset


def _wide(values: list[int], extra: bytes) -> list[int]:
    """Return sizes and place, those that need more than 32 bits out of the extra fields."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind != 1:
            continue
        at = 0
        for which, value in enumerate(values):
            if value == _ELSEWHERE:
                (values[which],) = struct.unpack_from("<Q", content, at)
                at += 8
    return values
