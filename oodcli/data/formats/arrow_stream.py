"""Record batches of an Arrow stream that lies on a server, without the bytes of their images.

References
----------
"Arrow Columnar Format", section "Encapsulated message format", with ``Message.fbs``; FlatBuffers,
"Internals" (tables, vtables, vectors).

Notes
-----
A stream has no table of contents: its messages are walked through. Of each only the metadata and
the buffers of labels, parts and places of images are requested; the others stay holes of zeros,
which no one reads.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from oodcli.data.formats.arrow_tables import Picked, arrow_package

_DICTIONARY, _BATCH = 2, 3
_MAX_METADATA = 1 << 26


@dataclass(frozen=True)
class Whole:
    """Where the first byte of a file would be in memory.

    Parameters
    ----------
    address
        Its address.
    size
        Number of bytes of the file.
    """

    address: int
    size: int


def schema_and_batches(
    stream: IO[bytes], size: int, columns: Picked | None
) -> tuple[Any, Iterator[tuple[Any, Whole]]]:
    """Return the schema of a stream, and its record batches with the place of the file.

    Parameters
    ----------
    stream
        The file, which is read in ranges.
    size
        Number of its bytes.
    columns
        The columns that are wanted; the bytes of images are not requested. None if no batch is.

    Raises
    ------
    ValueError
        If it is not such a stream.
    """
    at, prefix, metadata = _message(stream, 0, size)
    schema = arrow_package("pyarrow.ipc").read_schema(arrow_package().py_buffer(prefix + metadata))
    return schema, _batches(stream, size, at, schema, columns)


def _message(stream: IO[bytes], at: int, size: int) -> tuple[int, bytes, bytes]:
    """Return where the body of a message begins, its prefix and metadata; empty at the end."""
    prefix = _read(stream, at, min(8, size - at))
    if prefix[:4] != b"\xff\xff\xff\xff":  # of Arrow before 0.15
        prefix = prefix[:4]
    length = int.from_bytes(prefix[-4:], "little")
    if at >= size or not length:
        return size, b"", b""
    if length > min(_MAX_METADATA, size - at):
        raise ValueError("a message is longer than the file")
    return at + len(prefix) + length, prefix, _read(stream, at + len(prefix), length)


def _batches(
    stream: IO[bytes],
    size: int,
    at: int,
    schema: Any,  # noqa: ANN401 - pyarrow has no types
    columns: Picked | None,
) -> Iterator[tuple[Any, Whole]]:
    arrow, ipc = arrow_package(), arrow_package("pyarrow.ipc")
    wanted = _wanted(schema, columns)
    while True:
        body, prefix, metadata = _message(stream, at, size)
        if not metadata:
            return
        table = _Table.root(metadata)
        kind, length = table.number(1, "<B"), table.number(3, "<q")
        if kind == _DICTIONARY:
            raise ValueError("it has columns with dictionaries; copy the folder to a disk")
        if not 0 <= length <= size - body:
            raise ValueError("a message is longer than the file")
        if kind == _BATCH:
            head = len(prefix) + len(metadata)
            mapped = mmap.mmap(-1, head + max(length, 1))
            mapped[:head] = prefix + metadata
            for start, count in table.inner(2).pairs(2, wanted):
                if not 0 <= start <= start + count <= length:
                    raise ValueError("a buffer leads out of its message")
                mapped[head + start : head + start + count] = _read(stream, body + start, count)
            whole = arrow.py_buffer(mapped)
            batch = ipc.read_record_batch(ipc.read_message(whole), schema)
            yield batch, Whole(whole.address - (body - head), size)
        at = body + length


def _read(stream: IO[bytes], at: int, count: int) -> bytes:
    stream.seek(at)
    content = stream.read(count)
    if len(content) != count:
        raise ValueError("the file is cut short")
    return content


def _wanted(schema: Any, columns: Picked | None) -> list[bool]:  # noqa: ANN401
    """Return for every buffer of a batch whether it is requested."""
    names = () if columns is None else (columns.image, *columns.beside_images)
    found: list[bool] = []
    for column in schema:
        own = _buffers(column.type, skip=columns is not None and column.name == columns.image)
        found += [each and column.name in names for each in own]
    return found


def _buffers(type_: Any, *, skip: bool) -> list[bool]:  # noqa: ANN401
    """Return for the buffers of a type whether they are requested: not those of images."""
    types = arrow_package("pyarrow.types")
    if isinstance(type_, arrow_package().BaseExtensionType):
        return _buffers(type_.storage_type, skip=skip)
    children = [type_.field(at) for at in range(type_.num_fields)]
    inner = [_buffers(each.type, skip=skip and each.name == "bytes") for each in children]
    below = [each for child in inner for each in child]
    binary = (types.is_binary, types.is_large_binary, types.is_string, types.is_large_string)
    if types.is_null(type_):
        own: list[bool] = []
    elif types.is_struct(type_) or types.is_fixed_size_list(type_):
        own = [True]
    elif any(check(type_) for check in binary):
        own = [True, True, not skip]
    elif types.is_union(type_) or "view" in str(type_) or types.is_run_end_encoded(type_):
        raise ValueError(f"columns of type {type_} are not read on servers; copy it to a disk")
    else:  # numbers; lists with offsets
        own = [True, True]
    return own + below


@dataclass(frozen=True)
class _Table:
    """A table of FlatBuffers.

    Parameters
    ----------
    content
        The bytes that it lies in.
    at
        Where.
    """

    content: bytes
    at: int

    @classmethod
    def root(cls, content: bytes) -> "_Table":
        return cls(content, _unpacked("<I", content, 0))

    def _place(self, field: int) -> int | None:
        """Return where the value of a field lies; None if it has the default."""
        entries = self.at - _unpacked("<i", self.content, self.at)
        if 4 + 2 * field >= _unpacked("<H", self.content, entries):
            return None
        offset = _unpacked("<H", self.content, entries + 4 + 2 * field)
        return self.at + offset if offset else None

    def number(self, field: int, form: str) -> int:
        """Return a number; 0 if it is not written."""
        place = self._place(field)
        return 0 if place is None else _unpacked(form, self.content, place)

    def inner(self, field: int) -> "_Table":
        """Return a table in this one."""
        place = self._place(field)
        if place is None:
            raise ValueError("a message has no content")
        return _Table(self.content, place + _unpacked("<I", self.content, place))

    def pairs(self, field: int, wanted: list[bool]) -> Iterator[tuple[int, int]]:
        """Yield those pairs of numbers in a vector that are wanted."""
        place = self._place(field)
        start = 0 if place is None else place + _unpacked("<I", self.content, place)
        count = 0 if place is None else _unpacked("<I", self.content, start)
        if count != len(wanted):
            raise ValueError(f"a batch has {count} buffers, not {len(wanted)}")
        for at, each in enumerate(wanted):
            if each:
                yield (
                    _unpacked("<q", self.content, start + 4 + 16 * at),
                    _unpacked("<q", self.content, start + 12 + 16 * at),
                )


def _unpacked(form: str, content: bytes, at: int) -> int:
    if not 0 <= at <= len(content) - struct.calcsize(form):
        raise ValueError("its metadata are damaged")
    value: int = struct.unpack_from(form, content, at)[0]
    return value
