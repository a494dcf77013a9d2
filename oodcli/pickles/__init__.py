"""A reader of third-party pickles that runs no code.

A pickle is a program for a small machine that puts values onto a stack, and names functions to
call. This is such a machine, of which every instruction makes plain values only. It answers the few
names of which NumPy arrays are made with records of its own, so that a crafted pickle reaches no
function, no class and not the inside of NumPy. Arrays are then built from the records' bytes. Where
a file may hold tensors of PyTorch, they become arrays in the same way, without PyTorch.

Time and memory are in proportion to the file: nothing is allocated for what a pickle only claims,
and values that contain themselves, nest deeply, or are so often repeated by reference that they
would unpack to many times the file are refused.

References
----------
Instructions and their arguments: ``pickletools`` of the Python standard library.
"""

from typing import Any

from oodcli.errors import CorruptArtifactError
from oodcli.pickles._inert import check_pickle
from oodcli.pickles._machine import (
    MOST_DEPTH,
    MOST_GROWTH,
    MOST_SLACK,
    NAMES,
    TENSOR_NAMES,
    ExcessError,
    Machine,
    Unpacking,
)

__all__ = ["MOST_DEPTH", "MOST_GROWTH", "MOST_SLACK", "ExcessError", "check_pickle", "load_pickle"]


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
        If the file is damaged, asks for anything else, contains itself, nests deeper than
        ``MOST_DEPTH``, or would unpack to more than ``MOST_GROWTH`` times its size.
    """
    try:
        loaded, _ = Machine(content, TENSOR_NAMES if tensors else NAMES).run()
        return Unpacking(MOST_GROWTH * len(content) + MOST_SLACK).plain(loaded, MOST_DEPTH)[0]
    except Exception as error:  # noqa: BLE001 - a malformed pickle makes the reader raise anything
        raise CorruptArtifactError(
            f"{where} is not a pickle of arrays and plain values: {_reason(error)}; "
            "get the file again"
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, (IndexError, KeyError)):
        return "it is damaged"
    return " ".join(str(error).split()) or type(error).__name__
