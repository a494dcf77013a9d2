"""Storage of fitted methods: a JSON object for their structure, safetensors for their arrays.

A fitted method is a tree of dataclasses. Reading it executes no code given by the file: only
classes of this package are allowed, and they are created from their fields.

A class that stores other data than its fields has two functions: ``to_stored()`` returns the values
to store, by name, and the static ``from_stored(fields, device)`` creates the instance from them.
"""

import importlib
import json
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from oodcli.errors import CorruptArtifactError

Json = Any  # what json reads and writes; every use below looks at its type

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# Alignment of arrays in the file; results with memory-mapped arrays then equal those in memory.
_ALIGNMENT = 64
_BLOCK_BYTES = 2**26
# Modules without fitted methods of this package, or that need another package.
_EXCLUDED_MODULES = frozenset({"contract", "pytorch_ood", "third_party"})


class UnstorableError(Exception):
    """A fitted method contains an object that cannot be stored."""


@dataclass(frozen=True)
class Rows:
    """A matrix that is written block by block, as it may be larger than memory.

    Parameters
    ----------
    shape
        Rows and columns.
    blocks
        Yields its rows in order, float32 ``(m, columns)``.
    """

    shape: tuple[int, int]
    blocks: Callable[[], Iterator[Tensor]]


Stored = Tensor | Rows


def pack(value: object) -> tuple[Json, dict[str, Stored]]:
    """Convert a fitted method to a JSON structure and arrays.

    Parameters
    ----------
    value
        A tree of this package's dataclasses, sequences, mappings, numbers, texts and arrays.

    Returns
    -------
    structure
        JSON object.
    arrays
        The arrays referenced by the structure, by name.

    Raises
    ------
    UnstorableError
        If it contains anything else, such as an object of another package.
    """
    packer = _Packer({}, {})
    return packer.packed(value), packer.arrays


@dataclass(frozen=True)
class _Packer:
    arrays: dict[str, Stored]
    seen: dict[int, tuple[str, object]]  # by id, so that shared objects are stored once

    def packed(self, value: object) -> Json:  # noqa: PLR0911 - one for each kind
        """Return the structure of a value."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, (Tensor, Rows, np.ndarray)):
            return self._array(value)
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.packed(each) for each in value]}
        if isinstance(value, Mapping):
            return {"dict": [[self.packed(k), self.packed(v)] for k, v in value.items()]}
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        if name not in known_classes() or isinstance(value, type):
            raise UnstorableError(f"it contains a {name}")
        return {
            "class": name,
            "fields": {k: self.packed(v) for k, v in _stored_fields(value).items()},
        }

    def _array(self, value: Tensor | Rows | np.ndarray) -> Json:
        if isinstance(value, np.ndarray):
            try:
                return {"array": self._named(value, torch.from_numpy(value.copy()))}
            except TypeError:
                raise UnstorableError(f"it contains an array of {value.dtype}") from None
        if isinstance(value, Rows):
            return {"tensor": self._named(value, value)}
        if value.dtype not in _DTYPES or value.layout != torch.strided:
            raise UnstorableError(f"it contains a tensor of {value.dtype}")
        # The memory layout is preserved, since the rounding of products depends on it.
        strides = value.stride()
        axes = sorted(range(value.dim()), key=lambda axis: -strides[axis])
        flat = value.detach().permute(axes).contiguous()
        return {"tensor": self._named(value, flat), "axes": axes}

    def _named(self, value: object, array: Stored) -> str:
        if id(value) not in self.seen:
            name = f"{len(self.arrays):03d}"
            self.arrays[name] = array
            self.seen[id(value)] = name, value  # a reference, so that the id is not reused
        return self.seen[id(value)][0]


def _stored_fields(value: object) -> Mapping[str, object]:
    own = getattr(value, "to_stored", None)
    if own is not None:
        return own()
    assert is_dataclass(value)  # true for all known classes
    return {field.name: getattr(value, field.name) for field in fields(value) if field.init}


@cache
def known_classes() -> Mapping[str, type]:
    """Return the dataclasses that a stored method may consist of, by module and name."""
    package = importlib.import_module("oodcli.methods")
    modules = [
        importlib.import_module(f"oodcli.methods.{each.name}")
        for each in pkgutil.iter_modules(package.__path__)
        if each.name not in _EXCLUDED_MODULES
    ]
    modules.append(importlib.import_module("oodcli.activations"))
    return {
        f"{module.__name__}:{name}": found
        for module in modules
        for name, found in vars(module).items()
        if isinstance(found, type) and is_dataclass(found) and found.__module__ == module.__name__
    }


def unpack(
    structure: Json, arrays: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> object:
    """Rebuild a fitted method; the inverse of :func:`pack`.

    Parameters
    ----------
    structure, arrays
        The stored result of :func:`pack`.
    device
        Device of the arrays.

    Raises
    ------
    CorruptArtifactError
        If the structure is damaged, or contains unknown classes.
    """
    try:
        return _unpacked(structure, arrays, torch.device(device))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise CorruptArtifactError(f"a stored method is damaged: {error!r}; remove it") from None


def _unpacked(  # noqa: PLR0911 - one for each kind
    node: Json, arrays: Mapping[str, Tensor], device: torch.device | None
) -> object:
    """Return the value of a node; without a device, arrays are not moved."""
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if not isinstance(node, dict):
        raise TypeError(type(node).__name__)
    if "class" in node:
        kind: Any = known_classes()[node["class"]]
        own = getattr(kind, "from_stored", None)
        inner = device if own is None else None
        values = {str(k): _unpacked(v, arrays, inner) for k, v in node["fields"].items()}
        return kind(**values) if own is None else own(values, device)
    if "tensor" in node:
        values_ = arrays[node["tensor"]]
        axes = node.get("axes", list(range(values_.dim())))
        return (values_ if device is None else values_.to(device)).permute(_inverse(axes))
    if "array" in node:
        return arrays[node["array"]].numpy().copy()
    if "float" in node:
        return float(node["float"])
    if "dtype" in node:
        return {str(kind): kind for kind in _DTYPES}[f"torch.{node['dtype']}"]
    if "list" in node:
        return [_unpacked(each, arrays, device) for each in node["list"]]
    if "tuple" in node:
        return tuple(_unpacked(each, arrays, device) for each in node["tuple"])
    return {_unpacked(k, arrays, device): _unpacked(v, arrays, device) for k, v in node["dict"]}


def _inverse(axes: list[int]) -> list[int]:
    return sorted(range(len(axes)), key=lambda axis: axes[axis])


def write_arrays(
    stream: IO[bytes], arrays: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as safetensors, one block after another.

    Parameters
    ----------
    stream
        Binary stream to write to.
    arrays
        The arrays, by name.
    metadata
        Texts for the header, by name.
    """
    entries: dict[str, Json] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for index, (name, array) in enumerate(arrays.items()):
        dtype = torch.float32 if isinstance(array, Rows) else array.dtype
        size = math.prod(array.shape) * dtype.itemsize
        entries[name] = {
            "dtype": _DTYPES[dtype], "shape": list(array.shape), "data_offsets": [at, at + size],
        }  # fmt: skip
        at += size
        # The format does not allow gaps, so padding is stored as an array, too.
        if (gap := -at % _ALIGNMENT) and index + 1 < len(arrays):
            entries[f"gap-{name}"] = {
                "dtype": "U8", "shape": [gap], "data_offsets": [at, at + gap],
            }  # fmt: skip
            at += gap
    header = json.dumps(entries).encode()
    header += b" " * (-(len(header) + 8) % _ALIGNMENT)
    stream.write(len(header).to_bytes(8, "little") + header)
    for name, array in arrays.items():
        for block in _bytes_of(array):
            stream.write(block)
        if f"gap-{name}" in entries:
            stream.write(bytes(entries[f"gap-{name}"]["shape"][0]))


def digest_of_array(array: Stored) -> str:
    """Return the digest of the bytes that :func:`write_arrays` writes of an array."""
    digest = blake2b(digest_size=16)
    for block in _bytes_of(array):
        digest.update(block)
    return digest.hexdigest()


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise an error if arrays of this type cannot be written.

    Raises
    ------
    UnstorableError
        If so.
    """
    if tensor.dtype not in _DTYPES:
        raise UnstorableError(f"{name} is a tensor of {tensor.dtype}")


def _bytes_of(array: Stored) -> Iterator[memoryview]:
    for block in array.blocks() if isinstance(array, Rows) else _in_blocks(array):
        yield block.cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _in_blocks(array: Tensor) -> Iterator[Tensor]:
    if array.numel():
        yield from array.flatten().split(_BLOCK_BYTES // array.itemsize)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return memory-mapped arrays of a file.

    Parameters
    ----------
    path
        A file written by :func:`write_arrays`.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    CorruptArtifactError
        If the file is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}; remove it") from None
