"""Which device to compute on, and which packages made a result."""

import contextlib
import platform
from collections.abc import Iterator

import numpy as np
import torch

from oodcli import __version__
from oodcli.errors import InvalidInputError


def find_device(name: str) -> torch.device:
    """Return the device called ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises
    ------
    InvalidInputError
        If there is no such device, or it is not on this machine.
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
                f"device {name} is not there: torch {torch.__version__} finds no CUDA GPU; "
                "use --device cpu"
            )
        if colon and int(number) >= count:
            raise InvalidInputError(
                f"device {name} is not there: this machine has cuda:0 to cuda:{count - 1}"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InvalidInputError("device mps is not there: this is no Apple GPU; use --device cpu")
    return torch.device(name)


@contextlib.contextmanager
def enough_memory(device: torch.device, cure: str) -> Iterator[None]:
    """Say in one line that a device has too little memory, and what helps.

    Raises
    ------
    InvalidInputError
        If the device runs out of memory while the context lasts.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise InvalidInputError(f"{device} has too little memory; {cure}") from None


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {
        "ood": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
