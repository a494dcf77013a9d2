"""Weights in and out of files, without running any code that a file may hold.

Checkpoints from elsewhere come in through :func:`read_state` and :func:`load_into`, which make a
network of them only where every tensor has its place. A run's own weights are safetensors.
"""

import contextlib
import errno
import mmap
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the name of an error; nothing is unpickled
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from oodcli.activations import Head
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.files import reading, regular
from oodcli.models.architecture import ArchitectureSpec
from oodcli.models.heads import scoring_head, unit_features
from oodcli.models.network import COUNTER, Network, network_of
from oodcli.models.registry import ARCHITECTURES, is_foreign, parse_architecture
from oodcli.pickles import ExcessError, check_pickle
from oodcli.store import replacing

_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".ckpt")
_SAFETENSORS = ".safetensors"
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_WRONG = "is not a checkpoint, or only a part of one"
# A state dict that refers to the same values again and again takes no more than this many times its
# file, and a nest in a nest no more than this many levels.
_MOST_GROWTH = 8
_MOST_SLACK_BYTES = 1 << 20
_MOST_NESTS = 8
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAVE = "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
MOST_CLASSES = 65_536
_NESTS = ("state_dict", "model_state_dict", "model")
_SHORTCUTS = ("shortcut", "downsample", "convShortcut")
_HEADS = ("fc", "linear", "classifier", "head")
_NUMBERED = re.compile(r"\.(norm|conv)\.([12])\.")
_SHOWN = 3
# What people call an accuracy beside the weights: best_prec1, acc, test_acc, best_top1, acc1, ….
_ACCURACY = re.compile(
    r"(?:(?:best|val|valid|validation|test|eval)[_-]?){0,2}"
    r"(?:acc|accuracy|prec|precision|top)[_-]?@?1?"
)
_HEAD = "head"
_AGAIN = "remove the run and make it again"

# What torch's reader says where a pickle names a class or function, in its versions since 2.3.
_CODE = re.compile(
    r"Unsupported (?:global: GLOBAL|class) (?P<name>\S+)|unsupported GLOBAL (?P<blocked>\S+)"
    r"|Trying to call reduce|Can only (?:create|build)|TorchScript archives"
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint, as :func:`read_checkpoint` does.

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
    """What a checkpoint file holds that is of use here.

    Parameters
    ----------
    state
        Tensors by name, without the ``module.`` that data-parallel training puts in front.
    accuracy
        The accuracy that stands beside the weights, from 0 to 1; None if none does.
    accuracy_name
        What it is called there, such as ``best_prec1``.
    """

    state: Mapping[str, Tensor]
    accuracy: float | None = None
    accuracy_name: str = ""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, its state dict plain or nested, with float16 widened to float32.

    Parameters
    ----------
    path
        A file that ``torch.save`` wrote (``.pt``, ``.pth``, ``.th``, ``.ckpt``), or
        ``.safetensors``.

    Raises
    ------
    InvalidInputError
        If the file is not there, is damaged, holds code, or holds no state dict.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; name the checkpoint file in it")
    try:
        regular(path)
    except FileNotFoundError:
        raise InvalidInputError(f"there is no file {path}; name a checkpoint") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}; name a file") from None
    suffix = path.suffix.lower()
    if suffix == _SAFETENSORS:
        content: object = _read_safetensors(path)
    elif suffix in _TORCH_SUFFIXES:
        content = _read_torch(path)
    else:
        known = ", ".join((*_TORCH_SUFFIXES, _SAFETENSORS))
        raise InvalidInputError(f"{path} is not called like a checkpoint; the name ends in {known}")
    return Checkpoint(_state_dict(path, content), *_stored_accuracy(content))


def _stored_accuracy(content: object) -> tuple[float | None, str]:
    """Return the accuracy beside a state dict from 0 to 1, and its name; of several the best."""
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
            except (ArithmeticError, ValueError, RuntimeError, NotImplementedError):
                continue  # a tensor without a value, or a number beyond all floats
            if 0 < number <= 100:
                # No classifier that is worth keeping has less than one percent.
                found.append((number if number <= 1 else number / 100, name))
    return max(found, default=(None, ""), key=lambda each: each[0] or 0)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with reading(path, wrong=_WRONG, cure="get it again", error=InvalidInputError):
        return safetensors.torch.load_file(path)


def _read_torch(path: Path) -> object:
    try:
        _check_pickles(path)
        with warnings.catch_warnings():
            # On a plain pickle torch asks for a bug report; the error below says what matters.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_numpy_data()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except ExcessError as error:
        raise InvalidInputError(f"{path} is not read: {error}; {_SAVE}") from None
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a seek to where the file no longer is
            raise InvalidInputError(_damaged(path, error)) from None
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    except (UnpicklingError, RuntimeError) as error:
        found = _CODE.search(str(error))
        if not found and not _is_plain_pickle(path):
            raise InvalidInputError(_damaged(path, error)) from None
        name = (found["name"] or found["blocked"]) if found else None
        raise InvalidInputError(
            f"{path} holds code (pickled {name or 'objects'}), which is never run; {_SAVE}"
        ) from None
    except Exception as error:  # noqa: BLE001 - bytes that are no checkpoint break the reader anyhow
        raise InvalidInputError(_damaged(path, error)) from None


def _check_pickles(path: Path) -> None:
    """Refuse a file that would take torch time or memory out of proportion to its size.

    Raises
    ------
    ExcessError
        If it would.
    OSError
        If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_ZIP))
        if start == _ZIP:
            _check_zip(path)
        elif start[:1] == _PICKLE:
            _check_old(path)
    except (ExcessError, OSError):
        raise
    except Exception:  # noqa: BLE001, S110 - a malformed file makes its readers raise anything
        pass  # What else is wrong with it, torch says in its own words.


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
        size = path.stat().st_size
        if unpacked > size:
            raise ExcessError(f"{size:,} bytes would unpack to {unpacked:,}")
        for name in archive.namelist():
            if name.endswith(".pkl"):
                check_pickle(archive.read(name))


def _check_old(path: Path) -> None:
    """Check a file as torch wrote before 1.6: magic number, version, system, and the content."""
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        magic, place = check_pickle(content)
        if magic == torch.serialization.MAGIC_NUMBER:
            for _version_system_content in range(3):
                _, place = check_pickle(content, start=place)


def _numpy_data() -> list[Any]:
    """Return what NumPy builds its numbers and arrays with; many checkpoints hold an accuracy."""
    builders: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    return [
        np.dtype,
        np.ndarray,
        *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
        *builders,
        # As they are called in files that NumPy 1 wrote.
        *((builder, f"numpy.core.multiarray.{builder.__name__}") for builder in builders),
    ]


def _is_plain_pickle(path: Path) -> bool:
    """Tell whether a file is a pickle that torch did not write: torch stays with protocol 2."""
    with path.open("rb") as stream:
        start = stream.read(2)
    return len(start) == 2 and start[0] == 0x80 and start[1] > 2


def _damaged(path: Path, error: Exception) -> str:
    first_line = str(error).partition("\n")[0]
    # The rest of torch's text recommends to run the code in the file.
    reason = first_line.partition(". ")[0].removeprefix("Weights only load failed")
    detail = f" ({reason})" if " " in reason else ""  # a lone word or number says nothing
    return f"{path} {_WRONG}{detail}; get it again"


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    for _ in range(_MOST_NESTS):
        nested = content if isinstance(content, Mapping) else {}
        inner = [nested[key] for key in _NESTS if isinstance(nested.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    else:
        raise InvalidInputError(f"{path} nests a state dict in a state dict without end; {_SAVE}")
    if not isinstance(content, Mapping) or not content:
        raise InvalidInputError(f"{path} holds no state dict; save one: model.state_dict()")
    room = _MOST_GROWTH * path.stat().st_size + _MOST_SLACK_BYTES
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InvalidInputError(
                f"{path} holds no state dict: {key!r} is no tensor but {type(value).__name__}; "
                "save one: model.state_dict()"
            )
        name = key.removeprefix("module.")
        if name in state:
            raise InvalidInputError(f"{path} holds {name} with and without 'module.'; keep one")
        _check_kind(path, name, value)
        room -= value.numel() * value.element_size()
        if room < 0:
            raise InvalidInputError(
                f"{path}: {name} {tuple(value.shape)} repeats values of the file, with which it "
                f"would take more than {_MOST_GROWTH} times its size; "
                "save contiguous tensors: tensor.contiguous()"
            )
        half = value.dtype in (torch.float16, torch.bfloat16)
        state[name] = value.detach().float() if half else value.detach()
    return state


def _check_kind(path: Path, name: str, value: Tensor) -> None:
    """Refuse tensors that are no plain arrays of numbers in memory."""
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


def load_into(spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> Network:
    """Make a network of an architecture and a state dict that fits it exactly.

    Parameters
    ----------
    spec
        The architecture.
    state
        Tensors by name. ``downsample`` stands for ``shortcut``, and ``linear``, ``classifier`` or
        ``head`` for the last layer, where nothing else can be meant. Counts of batches
        (``num_batches_tracked``) may be there or not. A ``tau`` of the last layer makes it one of
        unit features (T2FNorm).

    Returns
    -------
    Network
        With as many classes as the last layer has rows.

    Raises
    ------
    InvalidInputError
        If a tensor is missing, unexpected, of another shape, or not finite. The message names the
        architecture that would fit, if there is one.
    """
    fit = _fit(spec, state)
    if fit.misfit:
        raise InvalidInputError(
            f"the weights do not fit {spec}: {'; '.join(fit.misfit)}; {_cure(spec, state)}"
        )
    wanted = fit.shadow.state_dict()
    for name, tensor in fit.state.items():
        if not wanted[name].is_floating_point() and not tensor.is_floating_point():
            continue  # indices, such as those of relative positions
        if not tensor.is_floating_point():
            raise InvalidInputError(f"{name} is {tensor.dtype}; save the weights as float32")
        if not tensor.isfinite().all():
            raise InvalidInputError(
                f"{name} holds NaN or infinity; take a checkpoint from before training went wrong"
            )
    fit.shadow.load_state_dict(fit.state, strict=False)  # the counters may be missing
    return network_of(spec, fit.shadow)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A state dict in the names of an architecture, and what keeps it from fitting."""

    state: Mapping[str, Tensor]
    shadow: nn.Module
    misfit: tuple[str, ...]


def _fit(spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> _Fit:
    head = spec.architecture.head
    spare = spec.architecture.spare
    weights = {
        name: tensor
        for name, tensor in state.items()
        if not name.endswith(COUNTER) and not name.startswith(spare)
    }
    temperatures = tuple(f"{head}.{name}" for name in ("tau", "scoring_tau"))
    # As many classes as the last layer has rows; names are the same for any number.
    shadow = _shadow(spec, num_classes=_rows(weights, head))
    ours = _renamed(weights, {*_shapes(shadow), *temperatures}, head=head)
    if _rows(ours, head) != _rows(weights, head):
        shadow = _shadow(spec, num_classes=_rows(ours, head))
    if not spec.architecture.head_has_bias:
        ours.setdefault(f"{head}.bias", torch.zeros(_rows(ours, head)))
    if temperatures[0] in ours:
        unit_features(shadow, head)
        ours.setdefault(temperatures[1], ours[temperatures[0]])
    wanted = _shapes(shadow)
    wrong = [
        f"{name} is {tuple(tensor.shape)}, not {wanted[name]}"
        for name, tensor in ours.items()
        if name in wanted and tuple(tensor.shape) != wanted[name]
    ]
    found = {
        "missing": [name for name in wanted if name not in ours],
        "unexpected": [name for name in ours if name not in wanted],
        "wrong shape": wrong,
    }
    misfit = tuple(f"{what}: {_first(names)}" for what, names in found.items() if names)
    return _Fit(ours, shadow, misfit)


def _rows(state: Mapping[str, Tensor], head: str) -> int:
    """Return the rows of a last layer, or 1 where there is none."""
    last = state.get(f"{head}.weight")
    rows = max(len(last), 1) if last is not None and last.dim() == 2 else 1
    if rows > MOST_CLASSES:
        raise InvalidInputError(
            f"the last layer {head} has {rows:,} rows; a classifier may have {MOST_CLASSES:,} "
            "classes at most"
        )
    return rows


def _shadow(spec: ArchitectureSpec, *, num_classes: int) -> nn.Module:
    """Build a network to be filled, without drawing from torch's generator.

    On the meta device its values would cost nothing, but the first one there imports a compiler.
    """
    with torch.random.fork_rng(devices=[]):
        return spec.build(num_classes)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.endswith(COUNTER)
    }


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _renamed(
    state: Mapping[str, Tensor], wanted: Collection[str], *, head: str
) -> dict[str, Tensor]:
    """Translate the usual spellings, except where two tensors would get the same name."""
    names = {key: _our_name(key, wanted, head=head) for key in state}
    uses = Counter(names.values())
    return {name if uses[name] == 1 else key: state[key] for key, name in names.items()}


def _our_name(key: str, wanted: Collection[str], *, head: str) -> str:
    if key in wanted:
        return key
    *path, leaf = key.split(".")
    guesses = [f"{head}.{leaf}"] if ".".join(path) in _HEADS else []
    for ours in _SHORTCUTS:
        translated = [ours if part in _SHORTCUTS else part for part in path]
        guesses.append(".".join((*translated, leaf)))
    guesses.append(_NUMBERED.sub(r".\1\2.", key))  # as torchvision's DenseNets were written once
    return next((guess for guess in guesses if guess in wanted), key)


def _cure(spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> str:
    fitting = [str(other) for other in _candidates(spec, state) if not _fit(other, state).misfit]
    if not fitting:
        return "no known architecture fits them"
    return f"this looks like {' or '.join(fitting)}: name that architecture"


def _candidates(spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> Iterator[ArchitectureSpec]:
    """Yield every architecture with the parameters that show in the weights."""
    for architecture in ARCHITECTURES.values():
        params = {**(spec.params if architecture is spec.architecture else {})}
        params.update(architecture.visible(state))
        with contextlib.suppress(InvalidInputError):  # a parameter out of its range
            yield architecture.spec({name: str(value) for name, value in params.items()})


def save_weights(network: Network, path: Path) -> None:
    """Write the weights of a network in one step.

    Parameters
    ----------
    network
        The network.
    path
        A ``.safetensors`` file, replaced if it is there.
    """
    # Copies where two names share their memory, which the format does not allow.
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in network.module.state_dict().items():
        memory = tensor.untyped_storage().data_ptr()
        state[name] = tensor.contiguous() if memory not in seen else tensor.clone()
        seen.add(memory)
    content = safetensors.torch.save(state, metadata={_HEAD: network.head_path})
    with replacing(path) as stream:
        stream.write(content)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If the file is not what was written.
    """
    with _own_file(path):
        return safetensors.torch.load_file(path)


def load_run_network(
    path: Path,
    arch: str,
    num_classes: int,
    *,
    size: tuple[int, int] | None = None,
    blocks: Sequence[str] | None = None,
) -> Network:
    """Load the network of a run.

    Parameters
    ----------
    path
        Its weights.
    arch
        Its architecture.
    num_classes
        Its number of classes.
    size
        Height and width of its images, in pixels: a network from elsewhere is followed at that
        size, as it was when the run was made.
    blocks
        Names of its blocks in forward order, where the record has them.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If the file is not what was written, or does not belong to such a network, or other blocks
        are found in it than when the run was made.
    """
    side = size[0] if size is not None and size[0] == size[1] else None
    try:
        network = load_into(parse_architecture(arch, side=side), load_weights(path))
    except InvalidInputError as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}") from None
    if network.num_classes != num_classes:
        raise CorruptArtifactError(
            f"{path} has {network.num_classes} classes, and its run has {num_classes}; {_AGAIN}"
        )
    if blocks is not None and tuple(network.blocks) != tuple(blocks):
        raise CorruptArtifactError(
            f"{len(network.blocks)} blocks are found in {arch} now, from "
            f"{next(iter(network.blocks))} on, and its run has {len(blocks)}; {_AGAIN}"
        )
    return network


def load_head(path: Path, arch: str) -> Head:
    """Load only the last layer of a run's network, as images are scored by it.

    Parameters
    ----------
    path
        The weights of the run.
    arch
        Its architecture.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If the file is not what was written.
    """
    with _own_file(path), safe_open(path, framework="pt") as tensors:
        # A network from elsewhere would have to be built to find its last layer.
        written = (tensors.metadata() or {}).get(_HEAD) if is_foreign(arch) else None
        head = written or parse_architecture(arch).architecture.head
        name = f"{head}.scoring_tau"
        return scoring_head(
            tensors.get_tensor(f"{head}.weight"),
            tensors.get_tensor(f"{head}.bias"),
            scoring_tau=float(tensors.get_tensor(name)) if name in tensors.keys() else None,  # noqa: SIM118 - it is no mapping
        )


@contextlib.contextmanager
def _own_file(path: Path) -> Iterator[None]:
    try:
        with reading(path, wrong="is damaged", cure=_AGAIN, disk=True):
            yield
    except FileNotFoundError:
        raise MissingArtifactError(f"the weights {path} are gone; {_AGAIN}") from None
