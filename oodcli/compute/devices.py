"""Devices and their capabilities, and the package versions that are recorded with results."""

import contextlib
import os
import platform
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from oodcli.errors import InvalidInputError
from oodcli.version import __version__


def find_device(name: str) -> torch.device:
    """Return the device called ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises
    ------
    InvalidInputError
        If the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (
        colon and not (kind == "cuda" and number.isascii() and number.isdigit())
    ):
        raise InvalidInputError(
            f"no device {name!r}; there are: auto, cpu, cuda, cuda:N for the N-th GPU, mps"
        )
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InvalidInputError(
                f"device {name} does not exist: torch {torch.__version__} finds no CUDA GPU; "
                "use --device cpu"
            )
        if colon and int(number) >= count:
            raise InvalidInputError(
                f"device {name} does not exist: this machine has cuda:0 to cuda:{count - 1}"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InvalidInputError(
            "device mps does not exist: this machine has no Apple GPU; use --device cpu"
        )
    return torch.device(name)


@contextlib.contextmanager
def explain_out_of_memory(device: torch.device, cure: str) -> Iterator[None]:
    """Turn an out-of-memory error of torch into one line that names the device and a remedy.

    Parameters
    ----------
    device
        The device that computes.
    cure
        The remedy, such as ``use --device cpu``.

    Raises
    ------
    InvalidInputError
        If the device runs out of memory in the body of the context.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise InvalidInputError(f"{device} has too little memory; {cure}") from None


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set the number of CPU threads of torch in the body of the context; 0 changes nothing."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions; true if torch does not report it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return known is None or bool(known())
    return True


def check_compiler(device: torch.device) -> None:
    """Check that ``torch.compile`` can be used on this machine.

    Raises
    ------
    InvalidInputError
        If the device is neither a CPU nor a CUDA GPU, or if the compiler or the Python headers
        are missing.
    """
    cure = "omit --compile"
    if device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"--compile is for CPUs and CUDA GPUs, not for {device}; {cure}")
    # torch makes the same choice; for a GPU it needs only a C compiler.
    usual = {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    name = os.environ.get("CXX") or usual
    if device.type == "cuda":
        name = os.environ.get("CC") or ("gcc" if shutil.which("gcc") else "clang")
    if shutil.which(name) is None:
        raise InvalidInputError(
            f"--compile needs a compiler, but {name} was not found; install one, or {cure}"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise InvalidInputError(
            f"--compile needs the Python headers, but {headers / 'Python.h'} does not exist; "
            f"install them (package python3-dev), or {cure}"
        )


def versions() -> dict[str, str]:
    """Return the versions of ood, Python, torch and NumPy."""
    return {
        "ood": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
