"""A reader of foreign pickles that runs no code.

A pickle names functions to call. This reader answers only the few names of which NumPy arrays are
made, and answers them with records of its own, so that a crafted pickle reaches neither another
function nor the inside of NumPy. Arrays are then built from the records' bytes. Where a file may
hold tensors of PyTorch, they become arrays in the same way, without PyTorch.
"""

import io
import math
import pickle  # noqa: TID251 - this is the one restricted reader
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError

_PLAIN_TYPES = (bytes, str, int, float, complex, bool, type(None))
_DTYPE = re.compile(r"[biufcSU]\d+")


class _DtypeRecord:
    """What a pickle says of a NumPy data type."""

    def __init__(self, code: str | bytes, *_ignored: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def dtype(self) -> np.dtype[Any]:
        if self.order not in ("<", ">", "|", "=") or not _DTYPE.fullmatch(self.code):
            raise ValueError(f"arrays of type {self.order}{self.code} are not read")
        return np.dtype(self.order + self.code)


class _ArrayRecord:
    """What a pickle says of a NumPy array."""

    def __init__(self, *_ignored: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        _version, shape, dtype, is_fortran, content = self.state
        return _array(content, dtype.dtype(), shape, order="F" if is_fortran else "C")


@dataclass(frozen=True)
class _BufferRecord:
    """What a pickle of protocol 5 says of a NumPy array."""

    content: bytes | bytearray
    kind: _DtypeRecord
    shape: tuple[int, ...]
    order: str

    def array(self) -> NDArray[Any]:
        return _array(self.content, self.kind.dtype(), self.shape, order=self.order)


@dataclass(frozen=True)
class _ScalarRecord:
    """What a pickle says of a NumPy number."""

    kind: _DtypeRecord
    content: bytes

    def number(self) -> Any:  # noqa: ANN401 - whatever Python number the data type stands for
        return _array(self.content, self.kind.dtype(), (1,), order="C")[0].item()


@dataclass(frozen=True)
class _StorageRecord:
    """What a pickle says of the memory behind a tensor."""

    values: NDArray[Any]


@dataclass(frozen=True)
class _TensorRecord:
    """What a pickle says of a tensor."""

    storage: _StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> NDArray[Any]:
        count = math.prod(self.shape)
        rows = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        if count and list(self.strides) != rows:
            raise ValueError(f"a tensor {self.shape} is not in row order")
        if min((*self.shape, self.offset), default=0) < 0:
            raise ValueError(f"a tensor {self.shape} begins at {self.offset}")
        return self.storage.values[self.offset : self.offset + count].reshape(self.shape).copy()


def _array(
    content: bytes | bytearray, dtype: np.dtype[Any], shape: tuple[int, ...], *, order: str
) -> NDArray[Any]:
    sizes = [int(size) for size in shape]
    if min(sizes, default=1) < 0 or len(content) != math.prod(sizes) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes do not fill an array {tuple(sizes)} of {dtype}")
    flat = np.frombuffer(content, dtype=dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C").copy()


def _encode(text: str, encoding: str | bytes) -> bytes:
    """Undo how Python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"text in encoding {encoding!r} is not read")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Undo how Python 3 writes empty bytes in old protocols."""
    return b""


_NAMES = {
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _ArrayRecord,
    ("numpy", "dtype"): _DtypeRecord,
    ("_codecs", "encode"): _encode,
    # NumPy moved its inside in version 2; old files have the old names.
    **{
        (f"numpy.{core}.{module}", name): record
        for core in ("core", "_core")
        for module, name, record in (
            ("multiarray", "_reconstruct", _ArrayRecord),
            ("multiarray", "scalar", _ScalarRecord),
            ("numeric", "_frombuffer", _BufferRecord),
        )
    },
}


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(stream, encoding="bytes")
        self._names = names

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as in the base class
        try:
            return self._names[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


class _StorageUnpickler(_RestrictedUnpickler):
    def persistent_load(self, pid: Any) -> Any:  # noqa: ANN401 - as in the base class
        _kind, code, _key, _device, size, *_view = pid
        if code not in _STORAGES.values():
            raise ValueError("it holds a storage of unknown type")
        return np.dtype(code), int(size)


def _storage(content: bytes) -> _StorageRecord:
    """Read the memory of a tensor: four pickles, their keys, then size and values."""
    stream = io.BytesIO(content)
    for _magic_version_system in range(3):
        _RestrictedUnpickler(stream, {}).load()
    loaded = _StorageUnpickler(stream, {("torch", n): code for n, code in _STORAGES.items()}).load()
    dtype, size = loaded
    _RestrictedUnpickler(stream, {}).load()
    written = int.from_bytes(stream.read(8), "little")
    if size < 0 or written != size:
        raise ValueError(f"a storage of {size} values says it has {written}")
    return _StorageRecord(_array(stream.read(size * dtype.itemsize), dtype, (size,), order="C"))


def _tensor(
    storage: _StorageRecord,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_ignored: object,
) -> _TensorRecord:
    if not isinstance(storage, _StorageRecord):
        raise TypeError(f"a tensor of a {type(storage).__name__} is not read")
    sizes, steps = tuple(int(size) for size in shape), tuple(int(step) for step in strides)
    return _TensorRecord(storage, int(offset), sizes, steps)


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
_TENSOR_NAMES = {
    **_NAMES,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): dict,  # the hooks of a tensor, of which it has none
}


def load_pickle(content: bytes, *, where: str, tensors: bool = False) -> Any:  # noqa: ANN401 - it depends on the file
    """Read a pickle of arrays, bytes, text, numbers, lists, tuples and dicts.

    Parameters
    ----------
    content
        The pickle, of Python 2 or 3; text of Python 2 is returned as bytes.
    where
        How to call the file in an error.
    tensors
        Whether it may hold tensors of PyTorch on the CPU, in row order.

    Returns
    -------
    value
        What was pickled. NumPy numbers become Python numbers, tensors become arrays.

    Raises
    ------
    CorruptArtifactError
        If the file is damaged, or asks for anything else.
    """
    try:
        names = _TENSOR_NAMES if tensors else _NAMES
        loaded = _RestrictedUnpickler(io.BytesIO(content), names).load()
        return _plain(loaded, {})
    except Exception as error:  # noqa: BLE001 - a malformed pickle makes the reader raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptArtifactError(
            f"{where} is not a pickle of arrays and plain values: {reason}; get the file again"
        ) from None


def _plain(value: Any, done: dict[int, Any]) -> Any:  # noqa: ANN401 - any content of a pickle
    """Replace records by what they stand for, at any depth.

    ``done`` keeps what was replaced by identity: shared values stay shared, and a pickle that nests
    the same list many times costs no more than one list.
    """
    if isinstance(value, _PLAIN_TYPES):
        return value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, (_ArrayRecord, _BufferRecord, _TensorRecord)):
        result: Any = value.array()
    elif isinstance(value, _ScalarRecord):
        result = value.number()
    elif isinstance(value, list):
        done[id(value)] = result = []
        result.extend(_plain(item, done) for item in value)
    elif isinstance(value, tuple):
        result = tuple(_plain(item, done) for item in value)
    elif isinstance(value, dict):
        done[id(value)] = result = {}
        for key, item in value.items():
            result[_plain(key, done)] = _plain(item, done)
    else:
        raise TypeError(f"it holds a {type(value).__name__}")
    done[id(value)] = result
    return result
