"""Reads weight files by their content, without running any code in them."""

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
from oodcli.sniffing import program_kind
from oodcli.text import printable

SAVE = "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
WRONG = "is not a checkpoint, or is incomplete"
AGAIN = "get it again"

# Files that hold a network with its forward pass, if only weights are expected.
_PROGRAMS = {
    "onnx": "an ONNX graph, which contains no state dict; import the graph without --arch: "
    "ood import {file} --data DATA; or " + SAVE,
    "torchscript": "TorchScript, a program with its weights; import it without --arch: "
    "ood import {file} --data DATA; or save the weights alone: "
    "torch.save(torch.jit.load('{file}').state_dict(), 'weights.pt')",
    "pt2": "an exported program; import it without --arch: ood import {file} --data DATA; or save "
    "the weights alone: torch.save(torch.export.load('{file}').state_dict, 'weights.pt')",
}

_START = 512
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
# Largest number of class and function names in a pickle; a pickled network has some dozens.
_MAX_NAMES = 1_000
# Classes of the standard library that only hold values; all others in a checkpoint count as code.
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
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # start of files of torch before 1.6

# Messages of torch's reader (2.3 and later) about a class or function in a pickle.
_CODE = re.compile(
    r"Unsupported (?:global: GLOBAL|class) (?P<name>\S+)|unsupported GLOBAL (?P<blocked>\S+)"
    r"|Trying to call reduce|Can only (?:create|build)|TorchScript archives"
    r"|Only persistent_load of storage"
)


class Inert:
    """A placeholder for an object in a checkpoint, whose class is not loaded.

    Parameters
    ----------
    arguments
        Arguments of the constructor.
    """

    name = ""
    """Module and name of the class."""

    state: object = None
    """Pickled state of the object, such as its attributes."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{printable(self.name)}>"


def read_content(path: Path) -> object:
    """Return the content of a weight file: dictionaries, lists, numbers, text and tensors.

    The format is determined by the first bytes, not by the suffix. Objects of other classes are
    returned as :class:`Inert`.

    Parameters
    ----------
    path
        A file written by any version of ``torch.save`` or by ``pickle.dump``, or safetensors.

    Raises
    ------
    InvalidInputError
        If the file does not exist, is damaged, has another format (which the message names), or
        contains functions of the standard library, which only code needs.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; give the checkpoint file in it")
    try:
        regular(path)
        with path.open("rb") as stream:
            start = stream.read(_START)
    except FileNotFoundError:
        raise InvalidInputError(f"there is no file {path}; give a checkpoint") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}; give a file") from None
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
    """Read a file of ``pickle.dump``, with tensors as arrays."""
    try:
        return load_pickle(path.read_bytes(), where=str(path), tensors=True)
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    except CorruptArtifactError as error:
        raise InvalidInputError(f"{error}, or {SAVE}") from None


def _is_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file is safetensors, by its header length and opening brace."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size


def _other_kind(path: Path, start: bytes) -> str | None:
    """Describe a file of another format that is often mistaken for a checkpoint; else None."""
    kinds = (
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and MATLAB write; " + SAVE),
        (
            b"version https://git-lfs",
            "a pointer of Git LFS instead of the file; get it: git lfs pull",
        ),
        (b"\x1f\x8b", "compressed by gzip; unpack it first: gunzip"),
        (b"BZh", "compressed by bzip2; unpack it first: bunzip2"),
        (b"\xfd7zXZ\x00", "compressed by xz; unpack it first: unxz"),
        (b"\x93NUMPY", "a NumPy array; " + SAVE),
    )
    for magic, kind in kinds:
        if start.startswith(magic):
            return kind
    program = program_kind(path)
    if program is not None:
        return _PROGRAMS[program].format(file=printable(path.name))
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, downloaded instead of the file; " + AGAIN
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and give the checkpoint in it"
    return _kind_of_archive(path) if start.startswith(_ZIP) else None


def _kind_of_archive(path: Path) -> str | None:
    """Describe a zip archive that ``torch.save`` did not write; None if it did."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # noqa: BLE001 - torch reports what is wrong with it
        return None

    def ends(*ends: str) -> bool:
        return any(name.endswith(ends) for name in names)

    kinds = {
        "": ends("data.pkl"),
        f"an archive of NumPy arrays; {SAVE}": ends(".npy"),
        f"a Keras model; {SAVE}": "model.weights.h5" in names,
        "an archive without a checkpoint of torch; unpack it and give the file in it": True,
    }
    return next(kind for kind, is_so in kinds.items() if is_so) or None


def _allow(name: str, known: dict[str, Any]) -> bool:
    """Register a class to be read as :class:`Inert`; False if it is code, or known already."""
    root = name.partition(".")[0]
    is_ours = root in ("__builtin__", "torch", "numpy") or root in sys.stdlib_module_names
    holds_values = name in _VALUES or name.startswith("torch.nn.modules.")
    if name in known or len(known) >= _MAX_NAMES or (is_ours and not holds_values):
        return False
    is_dict = name == "collections.defaultdict"
    known[name] = _plain if is_dict else type("Inert", (Inert,), {"name": name})
    return True


def _plain(*_factory: object) -> dict[Any, Any]:
    """Return an empty dict for a ``defaultdict``."""
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
                if found is None or not found["name"] or not _allow(_full(found["name"]), known):
                    raise
    except ExcessError as error:
        raise InvalidInputError(f"{path} is not read: {error}; {SAVE}") from None
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a seek beyond the end of the file
            raise InvalidInputError(_damaged(path, error)) from None
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    except (UnpicklingError, RuntimeError) as error:
        found = _CODE.search(str(error))
        if not found:
            raise InvalidInputError(_damaged(path, error)) from None
        name = found["name"] or found["blocked"]
        raise InvalidInputError(
            f"{path} contains code (pickled {name or 'objects'}), which is never run; {SAVE}"
        ) from None
    except Exception as error:  # noqa: BLE001 - other bytes can cause any exception in the reader
        raise InvalidInputError(_damaged(path, error)) from None


def _full(name: str) -> str:
    """Return a name with its module: torch's message omits ``builtins``."""
    return name if "." in name else f"builtins.{name}"


def _loaded(path: Path, known: dict[str, Any]) -> object:
    with warnings.catch_warnings():
        # For a plain pickle torch asks for a bug report; the error says enough.
        warnings.simplefilter("ignore")
        inert = ((kind, name) for name, kind in known.items())
        # A stream, because with a path torch would guess the format from the suffix.
        with path.open("rb") as stream, torch.serialization.safe_globals([*_numpy_data(), *inert]):
            return torch.load(stream, map_location="cpu", weights_only=True)


def _check_pickles(path: Path) -> None:
    """Refuse a file for which torch would need time or memory out of proportion to its size.

    Raises
    ------
    ExcessError
        If it is such a file.
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
    except Exception:  # noqa: BLE001, S110 - a malformed file can cause any exception
        pass  # torch reports any other fault.


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
    """Check a file of torch before 1.6: magic number, version, system, and the content."""
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        magic, place = check_pickle(content)
        if magic == torch.serialization.MAGIC_NUMBER:
            for _version_system_content in range(3):
                _, place = check_pickle(content, start=place)


def _numpy_data() -> list[Any]:
    """Return the functions that rebuild NumPy numbers and arrays, such as a stored accuracy."""
    builders: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    return [
        np.dtype,
        np.ndarray,
        *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
        *builders,
        # Their names in files of NumPy 1.
        *((builder, f"numpy.core.multiarray.{builder.__name__}") for builder in builders),
    ]


def _damaged(path: Path, error: Exception) -> str:
    first_line = str(error).partition("\n")[0]
    # The rest of torch's message recommends running the code in the file.
    reason = first_line.partition(". ")[0].removeprefix("Weights only load failed")
    detail = f" ({reason})" if " " in reason else ""  # a single word or number explains nothing
    return f"{path} {WRONG}{detail}; {AGAIN}"
