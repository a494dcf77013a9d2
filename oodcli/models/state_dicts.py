"""Finds the state dict in the content of a weight file, at any depth."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.errors import InvalidInputError
from oodcli.models.weight_files import SAVE, Inert, read_content
from oodcli.store.runs import STATE
from oodcli.text import printable

# Limits for a state dict that repeats references to the same values: its size relative to the file,
# a constant for small files, and the depth of nested containers.
_MAX_GROWTH = 8
_MAX_SLACK_BYTES = 1 << 20
_MAX_NESTS = 8
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 4
# Common keys of the weights, in order of preference; moving averages come after all others.
_NESTS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module",
    "weights", "params", "student", "encoder", "backbone",
)  # fmt: skip
_AVERAGES = re.compile(r"(^|_)(ema|averaged?|avg|swa|teacher|shadow)(_|$)")
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|(^|_)amp(_|$)|criterion|buffer_history")
_WRAPPERS = ("module", "_orig_mod", "_forward_module")
# Common keys of an accuracy beside the weights: best_prec1, acc, test_acc, best_top1, acc1, ….
_ACCURACY = re.compile(
    r"(?:(?:best|val|valid|validation|test|eval)[_-]?){0,2}"
    r"(?:acc|accuracy|prec|precision|top)[_-]?@?1?"
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read only the state dict of a checkpoint; see :func:`read_checkpoint`.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InvalidInputError
        As :func:`read_checkpoint` does.
    """
    return dict(read_checkpoint(path).state)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state dict and the accuracy in a checkpoint file.

    Parameters
    ----------
    state
        Tensors by name, without the prefixes ``module.`` and ``_orig_mod.`` of data-parallel
        training and compilation.
    accuracy
        Accuracy stored beside the weights, from 0 to 1; None if there is none.
    accuracy_name
        Its key in the file, such as ``best_prec1``.
    remarks
        Lines for the user: what was read from the file, and what was ignored.
    """

    state: Mapping[str, Tensor]
    accuracy: float | None = None
    accuracy_name: str = ""
    remarks: tuple[str, ...] = ()


def read_checkpoint(path: Path, *, key: str | None = None) -> Checkpoint:
    """Read a checkpoint with a plain or nested state dict; float16 is converted to float32.

    Parameters
    ----------
    path
        A file written by ``torch.save`` or ``pickle.dump``, or safetensors; the suffix is ignored.
    key
        Key of the state dict in the file, such as ``state_dict_ema`` or ``models.net``; None: the
        most likely one.

    Raises
    ------
    InvalidInputError
        If the file does not exist, is damaged, contains code, or has no state dict, or none under
        the key.
    """
    content = read_content(path)
    _check_finished(path, content)
    found = _large({name: value for name, value in _nested(path, content) if _is_state(value)})
    if not found:
        raise InvalidInputError(
            f"{path} contains no state dict{_held(content)}; save one: model.state_dict()"
        )
    name = _named(path, found, key) if key is not None else min(found, key=_rank)
    state, passed = _tensors(path, found[name])
    others = [other for other in found if other != name]
    remarks = [*_place(name, others, chosen=key is not None), *passed]
    return Checkpoint(state, *_stored_accuracy(content), tuple(remarks))


def _check_finished(path: Path, content: object) -> None:
    """Refuse the state of a run of this package in training, which has more than weights.

    Raises
    ------
    InvalidInputError
        If it is one.
    """
    names = _mapping(content) or {}
    if {"module", "momentum"} <= {str(name).partition(".")[0] for name in names}:
        run = path.resolve().parent
        name = shlex.quote(run.name) if (run / STATE).is_file() else "RUN"
        raise InvalidInputError(
            f"{path} is the state of a run in training, not a network; resume the run instead: "
            f"ood train --resume --run {name}"
        )


def _nested(path: Path, content: object) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield every mapping with the path of its keys, joined by dots; outer mappings first.

    Raises
    ------
    InvalidInputError
        If mappings are nested too deeply.
    """
    level: list[tuple[str, object]] = [("", content)]
    for _ in range(_MAX_NESTS):
        deeper: list[tuple[str, object]] = []
        for name, value in level:
            mapping = _mapping(value)
            if mapping is None:
                continue
            yield name, mapping
            deeper += [
                (f"{name}.{key}" if name else key, inner)
                for key, inner in mapping.items()
                if isinstance(key, str) and not _NOT_WEIGHTS.search(key.lower())
            ]
        level = [(name, value) for name, value in deeper if _mapping(value) is not None]
        if not level:
            return
    raise InvalidInputError(f"the state dicts in {path} are nested too deeply; {SAVE}")


def _mapping(value: object) -> Mapping[object, object] | None:
    """Return a dict, or the state dict of a pickled network; None for any other value."""
    if isinstance(value, Inert):
        state = value.state
        if isinstance(state, Mapping) and "_modules" in state:
            return dict(_of_module(state))
        return state if isinstance(state, Mapping) else None
    return value if isinstance(value, Mapping) else None


def _of_module(state: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the tensors of a pickled ``torch.nn.Module`` by their names in ``state_dict()``."""
    passing = state.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        held = state.get(kind)
        for name, value in held.items() if isinstance(held, Mapping) else ():
            if value is not None and not (isinstance(passing, set) and name in passing):
                yield f"{prefix}{name}", value
    modules = state.get("_modules")
    for name, module in modules.items() if isinstance(modules, Mapping) else ():
        inner = module.state if isinstance(module, Inert) else None
        if isinstance(inner, Mapping):
            yield from _of_module(inner, f"{prefix}{name}.")


def _is_state(mapping: Mapping[object, object]) -> bool:
    """Return whether a mapping has a named tensor with at least one dimension."""
    return any(
        isinstance(key, str) and _is_tensor(value) and value.ndim > 0
        for key, value in mapping.items()
    )


def _is_tensor(value: object) -> TypeGuard["Tensor | NDArray[Any]"]:
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    return is_array or isinstance(value, Tensor)


def _large(
    found: Mapping[str, Mapping[object, object]],
) -> dict[str, Mapping[object, object]]:
    """Drop small mappings, such as curves and counters stored beside weights."""
    counts = {name: sum(map(_is_tensor, state.values())) for name, state in found.items()}
    most = max(counts.values(), default=0)
    return {name: state for name, state in found.items() if 4 * counts[name] >= most}


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _rank(name: str) -> tuple[bool, int, int]:
    """Return a sort key of state dicts: averages last, common keys first, then by depth."""
    parts = name.split(".") if name else []
    usual = [_NESTS.index(part) if part in _NESTS else len(_NESTS) for part in parts]
    averaged = any(_AVERAGES.search(part.lower()) for part in parts)
    return averaged, max(usual, default=len(_NESTS)), len(parts)


def _named(path: Path, found: Mapping[str, object], key: str) -> str:
    """Return the path of a key of the user, which may be the whole path or its last part."""
    fitting = [name for name in found if name == key] or [n for n in found if _leaf(n) == key]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(printable(name) or "the whole file" for name in list(found)[:8])
    many = "more than one state dict" if fitting else "no state dict"
    raise InvalidInputError(f"{path} contains {many} under {key!r}; possible --key: {shown}")


def _place(name: str, others: list[str], *, chosen: bool) -> Iterator[str]:
    """Describe which of several state dicts is used, and how to choose another."""
    if name and not others:
        yield f"weights: {printable(name)} of the file"
    elif others:
        shown = ", ".join(printable(other) or "(whole file)" for other in others[:_SHOWN])
        more = "" if chosen else f"; to use another: --key {printable(others[0])}"
        taken = printable(name) or "the tensors of the file itself"
        yield f"weights: {taken}; also present: {shown}{more}"


def _held(content: object) -> str:
    """Describe the content of a file without weights."""
    if isinstance(content, Inert):
        return f": it is a pickled {printable(content.name)}, which is never run"
    if isinstance(content, Mapping):
        names = [f"{printable(str(key))} ({_kind(value)})" for key, value in content.items()]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f": it contains {', '.join(names[:_SHOWN])}{more}" if names else ": it is empty"
    return f": it is a {type(content).__name__}"


def _kind(value: object) -> str:
    return (
        f"a pickled {printable(value.name)}" if isinstance(value, Inert) else type(value).__name__
    )


def _tensors(path: Path, found: Mapping[object, object]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a state dict without wrapper prefixes, and lines about other entries.

    Raises
    ------
    InvalidInputError
        If a tensor is not a dense array of real numbers, or repeated values would expand to many
        times the size of the file.
    """
    room = _MAX_GROWTH * path.stat().st_size + _MAX_SLACK_BYTES
    state: dict[str, Tensor] = {}
    passed: list[str] = []
    prefix = _wrapper({str(key) for key, value in found.items() if _is_tensor(value)})
    for key, value in found.items():
        if not isinstance(key, str) or not _is_tensor(value):
            passed.append(str(key))
            continue
        if key == "n_averaged":
            passed.append(key)
            continue
        name = key.removeprefix(prefix)
        tensor = value if isinstance(value, Tensor) else _of_array(path, name, value)
        _check_kind(path, name, tensor)
        room -= tensor.numel() * tensor.element_size()
        if room < 0:
            raise InvalidInputError(
                f"{path}: {name} {tuple(tensor.shape)} repeats values of the file, which would "
                f"expand to more than {_MAX_GROWTH} times its size; "
                "save contiguous tensors: tensor.contiguous()"
            )
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        state[name] = tensor.detach().float() if half else tensor.detach()
    lines = [f"names: {prefix!r} removed from {len(state):,} tensors"] if prefix else []
    if passed:
        shown = ", ".join(printable(name) for name in passed[:_SHOWN])
        more = f" and {len(passed) - _SHOWN} more" if len(passed) > _SHOWN else ""
        lines.append(f"ignored besides the weights: {shown}{more}")
    return state, lines


def _wrapper(names: set[str]) -> str:
    """Return what data-parallel training and compilation put before every name."""
    names = names - {"n_averaged"}
    prefix = ""
    while True:
        firsts = {name[len(prefix) :].partition(".")[0] for name in names}
        if len(firsts) != 1 or not firsts <= set(_WRAPPERS):
            return prefix
        prefix += f"{firsts.pop()}."


def _of_array(path: Path, name: str, array: NDArray[Any]) -> Tensor:
    """Convert a NumPy array to a tensor.

    Raises
    ------
    InvalidInputError
        If its data type has no counterpart in torch.
    """
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise InvalidInputError(
            f"{path}: {name} is an array of {array.dtype}; save the weights as float32"
        ) from None


def _check_kind(path: Path, name: str, value: Tensor) -> None:
    """Refuse tensors that are not dense arrays of real numbers in memory."""
    kinds = {
        f"sparse ({value.layout})": value.layout is not torch.strided,
        "without values, on the device meta": value.is_meta,
        "quantized": value.is_quantized,
        f"of complex numbers ({value.dtype})": value.is_complex(),
        f"of {value.dtype}": value.is_floating_point() and value.dtype not in _FLOATS,
    }
    found = next((kind for kind, is_so in kinds.items() if is_so), None)
    if found is not None:
        raise InvalidInputError(
            f"{path}: {name} is {found}; save the weights as dense float32: "
            "{k: v.float() for k, v in model.state_dict().items()}"
        )


def _stored_accuracy(content: object) -> tuple[float | None, str]:
    """Return the accuracy beside a state dict, from 0 to 1, and its key; of several the highest."""
    if not isinstance(content, Mapping):
        return None, ""
    found: list[tuple[float, str]] = []
    for name, value in content.items():
        if not isinstance(name, str) or not _ACCURACY.fullmatch(name.lower()):
            continue
        is_one = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if is_one or (isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()):
            try:
                number = float(value)
            except (ArithmeticError, ValueError, RuntimeError):
                continue  # a tensor without a value, or a number too large for a float
            if 0 < number <= 100:
                # Values up to 1 are fractions, larger ones percent: accuracies below 1 % are rare.
                found.append((number if number <= 1 else number / 100, name))
    return max(found, default=(None, ""), key=lambda each: each[0] or 0)
