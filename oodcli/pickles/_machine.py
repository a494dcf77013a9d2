"""The stack machine that runs a pickle, and the records that replace the names in it."""

import codecs
import math
import mmap
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DEPTH = 50
"""Largest depth of nested values."""
MAX_EXPANSION = 16
"""Largest number of values and array bytes that a pickle may expand to, per byte of the pickle."""
EXTRA_EXPANSION = 1 << 20
"""Constant added to that limit, for small pickles."""

_ATOMS = (bytes, str, int, float, bool, type(None))
_DTYPE = re.compile(r"[biufcSU][1-9]\d{0,5}")
_LARGEST_KEY = 1 << 63


class ExcessError(ValueError):
    """Reading a pickle would need time or memory out of proportion to its size."""


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """A replacement for a function or class that a pickle refers to.

    Parameters
    ----------
    make
        Builds a record from the arguments of a call.
    code
        For the class of a storage, the code of its data type, such as ``<f4``.
    """

    make: Callable[..., Any]
    code: str = ""


class DtypeRecord:
    """A pickled NumPy data type."""

    __slots__ = ("code", "order")

    def __init__(self, code: str | bytes, *_ignored: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def set_state(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def dtype(self) -> np.dtype[Any]:
        if self.order not in ("<", ">", "|", "=") or not _DTYPE.fullmatch(self.code):
            raise ValueError(f"arrays of type {self.order}{self.code} are not supported")
        return np.dtype(self.order + self.code)


class ArrayRecord:
    """A pickled NumPy array."""

    __slots__ = ("state",)

    def __init__(self, *_ignored: object) -> None:
        self.state: tuple[Any, ...] = ()

    def set_state(self, state: tuple[Any, ...]) -> None:
        self.state = state

    @property
    def size(self) -> int:
        """Number of bytes that are copied."""
        return _length(self.state[4])

    def array(self) -> NDArray[Any]:
        _version, shape, dtype, is_fortran, content = self.state
        return _array(content, dtype.dtype(), shape, order="F" if is_fortran else "C")


@dataclass(frozen=True, eq=False, slots=True)
class BufferRecord:
    """A NumPy array as pickled by protocol 5."""

    content: bytes | bytearray
    kind: DtypeRecord
    shape: tuple[int, ...]
    order: str

    @property
    def size(self) -> int:
        """Number of bytes that are copied."""
        return _length(self.content)

    def array(self) -> NDArray[Any]:
        return _array(self.content, self.kind.dtype(), self.shape, order=self.order)


@dataclass(frozen=True, eq=False, slots=True)
class ScalarRecord:
    """A pickled NumPy number."""

    kind: DtypeRecord
    content: Any

    def number(self) -> Any:  # noqa: ANN401 - a Python number that depends on the data type
        return _array(self.content, self.kind.dtype(), (1,), order="C")[0].item()


@dataclass(frozen=True, eq=False, slots=True)
class EncodedRecord:
    """Bytes as pickled by Python 3 in protocols 0 to 2: text, and its encoding."""

    text: str
    encoding: str | bytes

    def content(self) -> bytes:
        if self.encoding not in ("latin1", b"latin1"):
            raise ValueError(f"text in encoding {self.encoding!r} is not supported")
        return self.text.encode("latin1")


@dataclass(frozen=True, eq=False)
class StorageRecord:
    """The pickled storage of a tensor: five pickles, then size and values.

    Parameters
    ----------
    written
        The bytes that ``torch.save`` wrote, as bytes or an :class:`EncodedRecord`.
    """

    written: Any

    @cached_property
    def values(self) -> NDArray[Any]:
        content = _bytes_of(self.written)
        place = 0
        for _magic_version_system in range(3):
            place = Machine(content, {}, start=place).run()[1]
        names = {("torch", name): Name(_refuse_call, code) for name, code in _STORAGES.items()}
        (dtype, size), place = Machine(content, names, start=place, takes_storages=True).run()
        place = Machine(content, {}, start=place).run()[1]
        written = int.from_bytes(content[place : place + 8], "little")
        if size < 0 or written != size:
            raise ValueError(f"a storage of {size} values states that it has {written}")
        place += 8
        return _array(content[place : place + size * dtype.itemsize], dtype, (size,), order="C")


@dataclass(frozen=True, eq=False, slots=True)
class TensorRecord:
    """A pickled tensor."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of bytes that are copied: at first the whole storage."""
        return _length(self.storage.written)

    def array(self) -> NDArray[Any]:
        count = math.prod(self.shape)
        rows = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        if count and list(self.strides) != rows:
            raise ValueError(f"a tensor {self.shape} is not contiguous")
        if min((*self.shape, self.offset), default=0) < 0:
            raise ValueError(f"a tensor {self.shape} has the offset {self.offset}")
        return self.storage.values[self.offset : self.offset + count].reshape(self.shape).copy()


def _length(content: Any) -> int:  # noqa: ANN401 - any content of a pickle
    return len(content.text if isinstance(content, EncodedRecord) else content)


def _bytes_of(content: Any) -> bytes | bytearray:  # noqa: ANN401 - any content of a pickle
    return content.content() if isinstance(content, EncodedRecord) else content


def _array(
    content: Any,  # noqa: ANN401 - any content of a pickle
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    *,
    order: str,
) -> NDArray[Any]:
    raw = _bytes_of(content)
    sizes = [int(size) for size in shape]
    if min(sizes, default=1) < 0 or len(raw) != math.prod(sizes) * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes do not match an array {tuple(sizes)} of {dtype}")
    flat = np.frombuffer(raw, dtype=dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C").copy()


def _empty_bytes() -> bytes:
    """Return empty bytes, which Python 3 pickles as a call of ``bytes`` in protocols 0 to 2."""
    return b""


def _tensor(
    storage: StorageRecord,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_ignored: object,
) -> TensorRecord:
    if not isinstance(storage, StorageRecord):
        raise TypeError(f"a tensor of a {type(storage).__name__} is not supported")
    sizes, steps = tuple(int(size) for size in shape), tuple(int(step) for step in strides)
    return TensorRecord(storage, int(offset), sizes, steps)


def _hooks(*_ignored: object) -> dict[Any, Any]:
    """Return the backward hooks of a tensor: none."""
    return {}


def _refuse_call(*_ignored: object) -> None:
    raise ValueError("it constructs a storage directly")


NAMES: Mapping[tuple[str, str], Name] = {
    ("__builtin__", "bytes"): Name(_empty_bytes),
    ("numpy", "ndarray"): Name(ArrayRecord),
    ("numpy", "dtype"): Name(DtypeRecord),
    ("_codecs", "encode"): Name(EncodedRecord),
    # NumPy 2 renamed its internal package; old files have the old names.
    **{
        (f"numpy.{core}.{module}", name): Name(record)
        for core in ("core", "_core")
        for module, name, record in (
            ("multiarray", "_reconstruct", ArrayRecord),
            ("multiarray", "scalar", ScalarRecord),
            ("numeric", "_frombuffer", BufferRecord),
        )
    },
}
_STORAGES = {
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
}
TENSOR_NAMES: Mapping[tuple[str, str], Name] = {
    **NAMES,
    ("torch._utils", "_rebuild_tensor_v2"): Name(_tensor),
    ("torch.storage", "_load_from_bytes"): Name(StorageRecord),
    ("collections", "OrderedDict"): Name(_hooks),
}


class Inert(dict[Any, Any]):
    """A placeholder for an object of another reader; it holds the arguments of that object."""

    __slots__ = ("parts",)
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *parts: object) -> None:
        super().__init__()
        self.parts = list(parts)


class _Mark:
    """Marks the start of a group of values on the stack."""


_MARK = _Mark()


class Machine:
    """Runs one pickle.

    Parameters
    ----------
    content
        Bytes that contain a pickle.
    names
        Replacement of every name that the pickle may use, by module and name.
    start
        Offset of the pickle in bytes.
    takes_storages
        Whether persistent ids denote storages of tensors.
    """

    def __init__(
        self,
        content: bytes | bytearray | mmap.mmap,
        names: Mapping[tuple[str, str], Name],
        *,
        start: int = 0,
        takes_storages: bool = False,
    ) -> None:
        self.content = content
        self.names = names
        self.at = start
        self.takes_storages = takes_storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        """Return the pickled value, and the offset of the first byte after the pickle."""
        while True:
            code = self.content[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack[-1], self.at
            _INSTRUCTIONS[code](self)

    def take(self, size: int) -> bytes | bytearray:
        start, self.at = self.at, self.at + size
        if size < 0 or self.at > len(self.content):
            raise ValueError(f"it is cut off within a value of {size:,} bytes")
        return self.content[start : self.at]

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> bytes | bytearray:
        end = self.content.find(b"\n", self.at)
        if end < 0:
            raise ValueError("it is cut off within a line")
        line = self.content[self.at : end]
        self.at = end + 1
        return line

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("it has no mark on the stack")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def pop(self) -> Any:  # noqa: ANN401 - any content of a pickle
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("it has a mark on the stack instead of a value")
        return value

    def top(self, kind: type) -> Any:  # noqa: ANN401 - a value of the kind
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise TypeError(f"it adds items to a {type(value).__name__} as to a {kind.__name__}")
        return value

    def skip(self, size: int) -> None:
        self.take(size)

    def push(self, value: Any) -> None:  # noqa: ANN401 - any content of a pickle
        self.stack.append(value)

    def put_int_line(self) -> None:
        line = bytes(self.line())
        known = {b"00": False, b"01": True}
        self.push(known[line] if line in known else int(line.removesuffix(b"L")))

    def put_float(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0])

    def put_text_line(self) -> None:
        self.push(self.line().decode("raw-unicode-escape"))

    def put_bytes_line(self) -> None:
        line = bytes(self.line()).strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("it has text without quotes")
        self.push(codecs.escape_decode(line[1:-1])[0])

    def put_text(self, width: int) -> None:
        self.push(self.take(self.number(width)).decode("utf-8", "surrogatepass"))

    def put_bytes(self, width: int) -> None:
        self.push(bytes(self.take(self.number(width))))

    def put_bytearray(self) -> None:
        self.push(bytearray(self.take(self.number(8))))

    def put_tuple(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(values)))

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def appends(self) -> None:
        values = self.since_mark()
        self.top(list).extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        _fill(self.top(dict), [key, value])

    def set_items(self) -> None:
        values = self.since_mark()
        _fill(self.top(dict), values)

    def put_dict(self) -> None:
        self.push(_fill({}, self.since_mark()))

    def memo_put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def memo_get(self, key: int) -> None:
        self.push(self.memo[key])

    def name(self, module: str, name: str) -> None:
        if (module, name) not in self.names:
            raise ValueError(f"it refers to {module}.{name}")
        self.push(self.names[module, name])

    def name_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(str(module), str(name))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError(f"it calls a {type(function).__name__}")
        self.push(function.make(*arguments))

    def build(self) -> None:
        state = self.pop()
        record = self.stack[-1]
        if isinstance(record, dict) and isinstance(state, dict):
            return  # attributes of an OrderedDict, such as the metadata of a state dict
        if not isinstance(record, (DtypeRecord, ArrayRecord)) or not isinstance(state, tuple):
            raise TypeError(f"it sets the state of a {type(record).__name__}")
        record.set_state(state)

    def storage(self) -> None:
        if not self.takes_storages:
            raise ValueError("it refers to external data by a persistent id")
        _kind, name, _key, _device, size, *_view = self.pop()
        if not isinstance(name, Name):
            raise TypeError("it contains a storage of unknown type")
        self.push((np.dtype(name.code), int(size)))

    def make(self) -> None:
        self.refuse("an object")

    def refuse(self, what: str) -> None:
        raise ValueError(f"it contains {what}")


def _fill(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Add alternating keys and values to a dict; keys that are slow to hash are refused.

    Raises
    ------
    ExcessError
        If a key is nested, or an integer of more than 64 bits.
    """
    for key, value in zip(values[::2], values[1::2], strict=True):
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, (*_ATOMS, EncodedRecord, Name, Inert)) for part in parts):
            raise ExcessError("it has a nested key")
        if isinstance(key, int) and abs(key) >= _LARGEST_KEY:
            raise ExcessError("it has an integer key of more than 64 bits")
        target[key] = value
    return target


_STOP = ord(".")
_INSTRUCTIONS: Mapping[int, Callable[[Machine], object]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": lambda m: m.skip(1),
        "\x95": lambda m: m.skip(8),
        "(": lambda m: m.push(_MARK),
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.since_mark(),
        "2": lambda m: m.push(m.stack[-1]),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(value=True),
        "\x89": lambda m: m.push(value=False),
        "I": lambda m: m.put_int_line(),
        "L": lambda m: m.put_int_line(),
        "J": lambda m: m.push(m.number(4, signed=True)),
        "K": lambda m: m.push(m.number(1)),
        "M": lambda m: m.push(m.number(2)),
        "\x8a": lambda m: m.push(m.number(m.number(1), signed=True)),
        "\x8b": lambda m: m.push(m.number(m.number(4), signed=True)),
        "F": lambda m: m.push(float(m.line())),
        "G": lambda m: m.put_float(),
        "S": lambda m: m.put_bytes_line(),
        "T": lambda m: m.put_bytes(4),
        "U": lambda m: m.put_bytes(1),
        "B": lambda m: m.put_bytes(4),
        "C": lambda m: m.put_bytes(1),
        "\x8e": lambda m: m.put_bytes(8),
        "\x96": lambda m: m.put_bytearray(),
        "V": lambda m: m.put_text_line(),
        "X": lambda m: m.put_text(4),
        "\x8c": lambda m: m.put_text(1),
        "\x8d": lambda m: m.put_text(8),
        "]": lambda m: m.push([]),
        "l": lambda m: m.push(m.since_mark()),
        "a": lambda m: m.append(),
        "e": lambda m: m.appends(),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.since_mark())),
        "\x85": lambda m: m.put_tuple(1),
        "\x86": lambda m: m.put_tuple(2),
        "\x87": lambda m: m.put_tuple(3),
        "}": lambda m: m.push({}),
        "d": lambda m: m.put_dict(),
        "s": lambda m: m.set_item(),
        "u": lambda m: m.set_items(),
        "g": lambda m: m.memo_get(int(m.line())),
        "h": lambda m: m.memo_get(m.number(1)),
        "j": lambda m: m.memo_get(m.number(4)),
        "p": lambda m: m.memo_put(int(m.line())),
        "q": lambda m: m.memo_put(m.number(1)),
        "r": lambda m: m.memo_put(m.number(4)),
        "\x94": lambda m: m.memo_put(len(m.memo)),
        "c": lambda m: m.name(m.line().decode(), m.line().decode()),
        "\x93": lambda m: m.name_on_stack(),
        "R": lambda m: m.call(),
        "b": lambda m: m.build(),
        "Q": lambda m: m.storage(),
        "\x8f": lambda m: m.refuse("a set"),
        "\x91": lambda m: m.refuse("a frozenset"),
        "\x81": lambda m: m.make(),
        "\x92": lambda m: m.refuse("an object"),
        "o": lambda m: m.refuse("an object"),
        "i": lambda m: m.name(m.line().decode(), m.line().decode()),
    }.items()
}


class Unpacking:
    """Replaces records by the values that they describe, at any depth.

    Parameters
    ----------
    limit
        Largest total number of values and array bytes. A value with two references counts twice,
        because a conversion of nested lists to an array copies it twice.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._copied = 0
        self._done: dict[int, tuple[Any, int] | None] = {}

    def plain(self, value: Any, depth: int) -> tuple[Any, int]:  # noqa: ANN401 - any content of a pickle
        """Return a value without records, and its number of values and array bytes.

        Parameters
        ----------
        value
            Any value from a pickle.
        depth
            Remaining levels of nesting.

        Raises
        ------
        ExcessError
            If the value contains itself, is nested too deeply, or exceeds the limit.
        ValueError, TypeError
            If it contains a record that is invalid or not supported.
        """
        if isinstance(value, _ATOMS):
            return value, 1
        known = self._done.get(id(value), ())
        if known is None:
            raise ExcessError("it contains itself")
        if known:
            return known
        if depth == 0:
            raise ExcessError("it is nested too deeply")
        self._done[id(value)] = None
        result, size = self._unpacked(value, depth - 1)
        self._check(size)
        self._done[id(value)] = result, size
        return result, size

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise ExcessError(f"it expands to more than {self._limit:,} values")

    def _count_copy(self, size: int) -> None:
        """Count bytes before they are copied."""
        self._copied += size
        self._check(self._copied)

    def _unpacked(self, value: Any, depth: int) -> tuple[Any, int]:  # noqa: ANN401 - the same
        if isinstance(value, (ArrayRecord, BufferRecord, TensorRecord)):
            self._count_copy(value.size)
            array = value.array()
            return array, 1 + array.nbytes
        if isinstance(value, ScalarRecord):
            return value.number(), 1
        if isinstance(value, EncodedRecord):
            self._count_copy(len(value.text))
            return value.content(), 1
        if isinstance(value, dict):
            pairs = [
                (self.plain(key, depth)[0], self.plain(item, depth)) for key, item in value.items()
            ]
            return {key: item for key, (item, _) in pairs}, 1 + sum(n for _, (_, n) in pairs)
        if isinstance(value, (list, tuple)):
            items = [self.plain(item, depth) for item in value]
            return type(value)(item for item, _ in items), 1 + sum(n for _, n in items)
        if isinstance(value, StorageRecord):
            raise TypeError(f"it contains a storage of {value.values.dtype} without a tensor")
        raise TypeError(f"it contains a {type(value).__name__}")
