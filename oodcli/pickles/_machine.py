"""The machine that a pickle is a program for, and the plain values that it answers names with."""

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

MOST_DEPTH = 50
"""How deep values may nest."""
MOST_GROWTH = 16
"""How many values and bytes of arrays a pickle may unpack to, in bytes of the pickle."""
MOST_SLACK = 1 << 20
"""The same beside that, for small pickles."""

_ATOMS = (bytes, str, int, float, bool, type(None))
_DTYPE = re.compile(r"[biufcSU][1-9]\d{0,5}")
_LARGEST_KEY = 1 << 63


class ExcessError(ValueError):
    """A pickle asks for time or memory out of proportion to its size."""


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """What stands for a function or class that a pickle names.

    Parameters
    ----------
    make
        Makes a record of the arguments of a call.
    code
        Of the class of a storage, the data type.
    """

    make: Callable[..., Any]
    code: str = ""


class DtypeRecord:
    """What a pickle says of a NumPy data type."""

    __slots__ = ("code", "order")

    def __init__(self, code: str | bytes, *_ignored: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def set_state(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def dtype(self) -> np.dtype[Any]:
        if self.order not in ("<", ">", "|", "=") or not _DTYPE.fullmatch(self.code):
            raise ValueError(f"arrays of type {self.order}{self.code} are not read")
        return np.dtype(self.order + self.code)


class ArrayRecord:
    """What a pickle says of a NumPy array."""

    __slots__ = ("state",)

    def __init__(self, *_ignored: object) -> None:
        self.state: tuple[Any, ...] = ()

    def set_state(self, state: tuple[Any, ...]) -> None:
        self.state = state

    @property
    def size(self) -> int:
        """Bytes that are copied."""
        return _length(self.state[4])

    def array(self) -> NDArray[Any]:
        _version, shape, dtype, is_fortran, content = self.state
        return _array(content, dtype.dtype(), shape, order="F" if is_fortran else "C")


@dataclass(frozen=True, eq=False, slots=True)
class BufferRecord:
    """What a pickle of protocol 5 says of a NumPy array."""

    content: bytes | bytearray
    kind: DtypeRecord
    shape: tuple[int, ...]
    order: str

    @property
    def size(self) -> int:
        """Bytes that are copied."""
        return _length(self.content)

    def array(self) -> NDArray[Any]:
        return _array(self.content, self.kind.dtype(), self.shape, order=self.order)


@dataclass(frozen=True, eq=False, slots=True)
class ScalarRecord:
    """What a pickle says of a NumPy number."""

    kind: DtypeRecord
    content: Any

    def number(self) -> Any:  # noqa: ANN401 - whatever Python number the data type stands for
        return _array(self.content, self.kind.dtype(), (1,), order="C")[0].item()


@dataclass(frozen=True, eq=False, slots=True)
class EncodedRecord:
    """Bytes, as Python 3 writes them in old protocols: text, and its encoding."""

    text: str
    encoding: str | bytes

    def content(self) -> bytes:
        if self.encoding not in ("latin1", b"latin1"):
            raise ValueError(f"text in encoding {self.encoding!r} is not read")
        return self.text.encode("latin1")


@dataclass(frozen=True, eq=False)
class StorageRecord:
    """What a pickle says of the memory behind a tensor: four pickles, then size and values."""

    written: Any

    @cached_property
    def values(self) -> NDArray[Any]:
        content = _bytes_of(self.written)
        place = 0
        for _magic_version_system in range(3):
            place = Machine(content, {}, start=place).run()[1]
        names = {("torch", name): Name(_no_call, code) for name, code in _STORAGES.items()}
        (dtype, size), place = Machine(content, names, start=place, takes_storages=True).run()
        place = Machine(content, {}, start=place).run()[1]
        written = int.from_bytes(content[place : place + 8], "little")
        if size < 0 or written != size:
            raise ValueError(f"a storage of {size} values says it has {written}")
        place += 8
        return _array(content[place : place + size * dtype.itemsize], dtype, (size,), order="C")


@dataclass(frozen=True, eq=False, slots=True)
class TensorRecord:
    """What a pickle says of a tensor."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes that are copied, which is the whole storage at first."""
        return _length(self.storage.written)

    def array(self) -> NDArray[Any]:
        count = math.prod(self.shape)
        rows = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        if count and list(self.strides) != rows:
            raise ValueError(f"a tensor {self.shape} is not in row order")
        if min((*self.shape, self.offset), default=0) < 0:
            raise ValueError(f"a tensor {self.shape} begins at {self.offset}")
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
        raise ValueError(f"{len(raw)} bytes do not fill an array {tuple(sizes)} of {dtype}")
    flat = np.frombuffer(raw, dtype=dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C").copy()


def _no_bytes() -> bytes:
    """Undo how Python 3 writes empty bytes in old protocols."""
    return b""


def _tensor(
    storage: StorageRecord,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_ignored: object,
) -> TensorRecord:
    if not isinstance(storage, StorageRecord):
        raise TypeError(f"a tensor of a {type(storage).__name__} is not read")
    sizes, steps = tuple(int(size) for size in shape), tuple(int(step) for step in strides)
    return TensorRecord(storage, int(offset), sizes, steps)


def _hooks(*_ignored: object) -> dict[Any, Any]:
    """Return the hooks of a tensor, of which it has none."""
    return {}


def _no_call(*_ignored: object) -> None:
    raise ValueError("it makes a storage by hand")


NAMES: Mapping[tuple[str, str], Name] = {
    ("__builtin__", "bytes"): Name(_no_bytes),
    ("numpy", "ndarray"): Name(ArrayRecord),
    ("numpy", "dtype"): Name(DtypeRecord),
    ("_codecs", "encode"): Name(EncodedRecord),
    # NumPy moved its inside in version 2; old files have the old names.
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
    """What another reader would make an object of; here it keeps what it would be made of."""

    __slots__ = ("parts",)
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *parts: object) -> None:
        super().__init__()
        self.parts = list(parts)


class _Mark:
    """Where a run of values on the stack begins."""


_MARK = _Mark()


class Machine:
    """Runs one pickle.

    Parameters
    ----------
    content
        Bytes with a pickle in them.
    names
        What the names that it may use stand for.
    start
        Where it begins.
    takes_storages
        Whether persistent ids stand for storages of tensors.
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
        """Return what was pickled, and where the pickle ends."""
        while True:
            code = self.content[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack[-1], self.at
            _INSTRUCTIONS[code](self)

    def take(self, size: int) -> bytes | bytearray:
        start, self.at = self.at, self.at + size
        if size < 0 or self.at > len(self.content):
            raise ValueError(f"it ends within a value of {size:,} bytes")
        return self.content[start : self.at]

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> bytes | bytearray:
        end = self.content.find(b"\n", self.at)
        if end < 0:
            raise ValueError("it ends within a line")
        line = self.content[self.at : end]
        self.at = end + 1
        return line

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("it has no mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def pop(self) -> Any:  # noqa: ANN401 - any content of a pickle
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("it has a mark where a value belongs")
        return value

    def top(self, kind: type) -> Any:  # noqa: ANN401 - a value of the kind
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise TypeError(f"it fills a {type(value).__name__} as a {kind.__name__}")
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

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def recall(self, key: int) -> None:
        self.push(self.memo[key])

    def name(self, module: str, name: str) -> None:
        if (module, name) not in self.names:
            raise ValueError(f"it asks for {module}.{name}")
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
            return  # attributes of an OrderedDict, such as the versions that torch notes on one
        if not isinstance(record, (DtypeRecord, ArrayRecord)) or not isinstance(state, tuple):
            raise TypeError(f"it alters a {type(record).__name__}")
        record.set_state(state)

    def storage(self) -> None:
        if not self.takes_storages:
            raise ValueError("it refers to something outside of it")
        _kind, name, _key, _device, size, *_view = self.pop()
        if not isinstance(name, Name):
            raise TypeError("it holds a storage of unknown type")
        self.push((np.dtype(name.code), int(size)))

    def make(self) -> None:
        self.refuse("an object")

    def refuse(self, what: str) -> None:
        raise ValueError(f"it holds {what}")


def _fill(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Put keys and values into a dict; keys are such that hashing them takes no time."""
    for key, value in zip(values[::2], values[1::2], strict=True):
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, (*_ATOMS, EncodedRecord, Name, Inert)) for part in parts):
            raise ExcessError("it has a key of several levels")
        if isinstance(key, int) and abs(key) >= _LARGEST_KEY:
            raise ExcessError("it has a number of more than 64 bits for a key")
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
        "g": lambda m: m.recall(int(m.line())),
        "h": lambda m: m.recall(m.number(1)),
        "j": lambda m: m.recall(m.number(4)),
        "p": lambda m: m.remember(int(m.line())),
        "q": lambda m: m.remember(m.number(1)),
        "r": lambda m: m.remember(m.number(4)),
        "\x94": lambda m: m.remember(len(m.memo)),
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
    """Replaces records by what they stand for, at any depth.

    Parameters
    ----------
    most
        How many values and bytes of arrays there may be, where one that is referred to twice counts
        twice: whoever makes an array of nested lists would write it out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._copied = 0
        self._done: dict[int, tuple[Any, int] | None] = {}

    def plain(self, value: Any, depth: int) -> tuple[Any, int]:  # noqa: ANN401 - any content of a pickle
        """Return a value without records, and how many values and bytes it is."""
        if isinstance(value, _ATOMS):
            return value, 1
        known = self._done.get(id(value), ())
        if known is None:
            raise ExcessError("it contains itself")
        if known:
            return known
        if depth == 0:
            raise ExcessError("it nests too deep")
        self._done[id(value)] = None
        result, size = self._unpacked(value, depth - 1)
        self._check(size)
        self._done[id(value)] = result, size
        return result, size

    def _check(self, size: int) -> None:
        if size > self._most:
            raise ExcessError(f"it unpacks to more than {self._most:,} values")

    def _copies(self, size: int) -> None:
        """Count bytes before they are copied."""
        self._copied += size
        self._check(self._copied)

    def _unpacked(self, value: Any, depth: int) -> tuple[Any, int]:  # noqa: ANN401 - the same
        if isinstance(value, (ArrayRecord, BufferRecord, TensorRecord)):
            self._copies(value.size)
            array = value.array()
            return array, 1 + array.nbytes
        if isinstance(value, ScalarRecord):
            return value.number(), 1
        if isinstance(value, EncodedRecord):
            self._copies(len(value.text))
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
            raise TypeError(f"it holds a storage of {value.values.dtype} without a tensor")
        raise TypeError(f"it holds a {type(value).__name__}")
