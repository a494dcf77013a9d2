"""A reader of third-party pickles that runs no code.

A pickle is a program for a stack machine: its instructions push values and call functions that it
refers to by name. The reader is such a machine, but its instructions create plain values only. The
few names that pickled NumPy arrays need are replaced by records of this package, so that a crafted
pickle can reach no function, no class and no internals of NumPy. Arrays are then built from the
bytes in the records. If a file may hold tensors of PyTorch, they become arrays in the same way,
without PyTorch.

Time and memory are proportional to the size of the file: a size that a pickle merely states
allocates nothing, and values that contain themselves, are nested too deeply, or would expand by
repeated references to many times the size of the file are refused.

References
----------
Instructions and their arguments: ``pickletools`` of the Python standard library.
"""

from typing import Any

from oodcli.errors import CorruptArtifactError
from oodcli.pickles._inert import check_pickle
from oodcli.pickles._machine import (
    EXTRA_EXPANSION,
    MAX_DEPTH,
    MAX_EXPANSION,
    NAMES,
    TENSOR_NAMES,
    ExcessError,
    Machine,
    Unpacking,
)

__all__ = [
    "EXTRA_EXPANSION",
    "MAX_DEPTH",
    "MAX_EXPANSION",
    "ExcessError",
    "check_pickle",
    "load_pickle",
]


def load_pickle(content: bytes, *, where: str, tensors: bool = False) -> Any:  # noqa: ANN401 - it depends on the file
    """Read a pickle of arrays, bytes, text, numbers, lists, tuples and dicts.

    Parameters
    ----------
    content
        The pickle, of Python 2 or 3; strings of Python 2 are returned as bytes.
    where
        Name of the file in error messages.
    tensors
        Whether the pickle may contain contiguous CPU tensors of PyTorch.

    Returns
    -------
    value
        The pickled value. NumPy numbers become Python numbers, tensors become arrays.

    Raises
    ------
    CorruptArtifactError
        If the pickle is damaged, contains any other object, contains itself, is nested deeper than
        ``MAX_DEPTH``, or would expand to more than ``MAX_EXPANSION`` times its size.
    """
    try:
        loaded, _ = Machine(content, TENSOR_NAMES if tensors else NAMES).run()
        return Unpacking(MAX_EXPANSION * len(content) + EXTRA_EXPANSION).plain(loaded, MAX_DEPTH)[0]
    except Exception as error:  # noqa: BLE001 - a malformed pickle can cause any exception
        raise CorruptArtifactError(
            f"{where} is not a pickle of arrays and plain values: {_reason(error)}; "
            "get the file again"
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, (IndexError, KeyError)):
        return "it is damaged"
    return " ".join(str(error).split()) or type(error).__name__
