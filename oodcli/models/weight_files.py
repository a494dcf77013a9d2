"""Files of weights, read by what is in them and without running any code that they may hold."""

import errno
import mmap
import re
import sys
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the name of an error; nothing is unpickled
from typing import Any

import numpy as np
import safetensors.torch
import torch

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import reading, regular
from oodcli.pickles import ExcessError, check_pickle, load_pickle
from oodcli.text import printable

SAVE = "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
WRONG = "is not a checkpoint, or only a part of one"
AGAIN = "get it again"

_START = 512
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
# Names of classes and functions that one pickle may hold; a pickled network has some dozens.
_MOST_NAMES = 1_000
# Of the standard library, what only holds values; all else of it in a checkpoint is code.
_VALUES = frozenset({
    "argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal",
    "fractions.Fraction", "copyreg._reconstructor", "copy_reg._reconstructor",
    *(f"collections.{name}" for name in ("defaultdict", "deque", "UserDict")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath",
                     "WindowsPath")
    ),
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("object", "slice", "range", "frozenset", "complex", "set", "list", "dict")
    ),
})  # fmt: skip
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin

# What torch's reader says where a pickle names a class or function, in its versions since 2.3.
_CODE = re.compile(
    r"Unsupported (?:global: GLOBAL|class) (?P<name>\S+)|unsupported GLOBAL (?P<blocked>\S+)"
    r"|Trying to call reduce|Can only (?:create|build)|TorchScript archives"
    r"|Only persistent_load of storage"
)


class Inert:
    """What stands for an object of a class that a checkpoint names; the class is not loaded.

    Parameters
    ----------
    arguments
        What it would have been made of.
    """

    name = ""
    """Module and name of the class."""

    state: object = None
    """What its attributes would be."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{printable(self.name)}>"


def read_content(path: Path) -> object:
    """Return what a file of weights holds: dictionaries, lists, numbers, text and tensors.

    The file is what its first bytes say, not what its name ends in. Objects of classes that are not
    plain values come as :class:`Inert`.

    Parameters
    ----------
    path
        A file that ``torch.save`` wrote in any version, or safetensors.

    Raises
    ------
    InvalidInputError
        If the file is not there, is damaged, is of another kind (the message says which), or holds
        functions of the standard library, which only code would want.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; name the checkpoint file in it")
    try:
        regular(path)
        with path.open("rb") as stream:
            start = stream.read(_START)
    except FileNotFoundError:
        raise InvalidInputError(f"there is no file {path}; name a checkpoint") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}; name a file") from None
    if _is_safetensors(start, path.stat().st_size):
        with reading(path, wrong=WRONG, cure=AGAIN, error=InvalidInputError):
            return safetensors.torch.load_file(path)
    other = _other_kind(path, start)
    if other is not None:
        raise InvalidInputError(f"{path} is {other}")
    if start.startswith(_PICKLE) and not start.startswith(_MAGIC[: len(start)]):
        return _read_pickle(path)
    return _read_torch(path)


def _read_pickle(path: Path) -> object:
    """Read what Python's own ``pickle.dump`` wrote, tensors as arrays."""
    try:
        return load_pickle(path.read_bytes(), where=str(path), tensors=True)
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    except CorruptArtifactError as error:
        raise InvalidInputError(f"{error}, or {SAVE}") from None


def _is_safetensors(start: bytes, size: int) -> bool:
    """Tell by the length of the header and the bracket that opens it."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size


def _other_kind(path: Path, start: bytes) -> str | None:
    """Name a kind of file that is often taken for a checkpoint, and the cure."""
    kinds = (
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and MATLAB write; " + SAVE),
        (b"version https://git-lfs", "a pointer of Git LFS and not the file; get it: git lfs pull"),
        (b"\x1f\x8b", "compressed by gzip; unpack it first: gunzip"),
        (b"BZh", "compressed by bzip2; unpack it first: bunzip2"),
        (b"\xfd7zXZ\x00", "compressed by xz; unpack it first: unxz"),
        (b"\x93NUMPY", "a NumPy array; " + SAVE),
    )
    for magic, kind in kinds:
        if start.startswith(magic):
            return kind
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, downloaded instead of the file; " + AGAIN
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and name the checkpoint in it"
    # ONNX: the version of its form, then who wrote it.
    if start[:1] == b"\x08" and start[1:2] < b"\x40" and start[2:3] in (b"\x12", b"\x3a"):
        return "an ONNX graph, which holds no state dict; " + SAVE
    return _kind_of_archive(path) if start.startswith(_ZIP) else None


def _kind_of_archive(path: Path) -> str | None:
    """Name a zip archive that torch.save did not write; None for one that it wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # noqa: BLE001 - torch says what is wrong with it
        return None
    file = printable(path.name)

    def ends(*ends: str) -> bool:
        return any(name.endswith(ends) for name in names)

    kinds = {
        "TorchScript, a program beside its weights; save the weights alone: "
        f"torch.save(torch.jit.load('{file}').state_dict(), 'weights.pt')": ends("/constants.pkl"),
        "an exported program; save the weights alone: "
        f"torch.save(torch.export.load('{file}').state_dict, 'weights.pt')": ends(
            "/model.json", "/archive_format", "serialized_exported_program.json"
        ),
        "": ends("data.pkl"),
        f"an archive of NumPy arrays; {SAVE}": ends(".npy"),
        f"a Keras model; {SAVE}": "model.weights.h5" in names,
        "an archive without a checkpoint of torch; unpack it and name the file in it": True,
    }
    return next(kind for kind, is_so in kinds.items() if is_so) or None


def _admit(name: str, known: dict[str, Any]) -> bool:
    """Have a class read as :class:`Inert` from now on; False if it is code, or was so before."""
    root = name.partition(".")[0]
    is_ours = root in ("__builtin__", "torch", "numpy") or root in sys.stdlib_module_names
    holds_values = name in _VALUES or name.startswith("torch.nn.modules.")
    if name in known or len(known) >= _MOST_NAMES or (is_ours and not holds_values):
        return False
    is_dict = name == "collections.defaultdict"
    known[name] = _plain if is_dict else type("Inert", (Inert,), {"name": name})
    return True


def _plain(*_factory: object) -> dict[Any, Any]:
    """Return what a ``defaultdict`` is filled into."""
    return {}


def _read_torch(path: Path) -> object:
    known: dict[str, Any] = {}
    try:
        _check_pickles(path)
        while True:
            try:
                return _loaded(path, known)
            except UnpicklingError as error:
                found = _CODE.search(str(error))
                if found is None or not found["name"] or not _admit(_full(found["name"]), known):
                    raise
    except ExcessError as error:
        raise InvalidInputError(f"{path} is not read: {error}; {SAVE}") from None
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a seek to where the file no longer is
            raise InvalidInputError(_damaged(path, error)) from None
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    except (UnpicklingError, RuntimeError) as error:
        found = _CODE.search(str(error))
        if not found:
            raise InvalidInputError(_damaged(path, error)) from None
        name = found["name"] or found["blocked"]
        raise InvalidInputError(
            f"{path} holds code (pickled {name or 'objects'}), which is never run; {SAVE}"
        ) from None
    except Exception as error:  # noqa: BLE001 - bytes that are no checkpoint break the reader anyhow
        raise InvalidInputError(_damaged(path, error)) from None


def _full(name: str) -> str:
    """Return a name with its module: torch's message leaves ``builtins`` away."""
    return name if "." in name else f"builtins.{name}"


def _loaded(path: Path, known: dict[str, Any]) -> object:
    with warnings.catch_warnings():
        # On a plain pickle torch asks for a bug report; the error says what matters.
        warnings.simplefilter("ignore")
        inert = ((kind, name) for name, kind in known.items())
        # A stream: from a path torch would guess by the name.
        with path.open("rb") as stream, torch.serialization.safe_globals([*_numpy_data(), *inert]):
            return torch.load(stream, map_location="cpu", weights_only=True)


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


def _damaged(path: Path, error: Exception) -> str:
    first_line = str(error).partition("\n")[0]
    # The rest of torch's text recommends to run the code in the file.
    reason = first_line.partition(". ")[0].removeprefix("Weights only load failed")
    detail = f" ({reason})" if " " in reason else ""  # a lone word or number says nothing
    return f"{path} {WRONG}{detail}; {AGAIN}"
