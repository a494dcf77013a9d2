"""A check of a pickle before another library reads it; the check creates no objects."""

import mmap
from typing import Any

from oodcli.pickles._machine import (
    EXTRA_EXPANSION,
    MAX_DEPTH,
    MAX_EXPANSION,
    ExcessError,
    Inert,
    Machine,
    Name,
    Unpacking,
)


class _AnyName(dict[tuple[str, str], Name]):
    """Maps every name to a placeholder that creates no object."""

    def __contains__(self, _name: object) -> bool:
        return True

    def __missing__(self, name: tuple[str, str]) -> Name:
        return Name(_refuse_allocation if name[1] == "bytearray" else Inert)


def _refuse_allocation(*arguments: object) -> Inert:
    if arguments and isinstance(arguments[0], int):
        raise ExcessError(f"it requests {arguments[0]:,} bytes")
    return Inert(*arguments)


class _InertMachine(Machine):
    """Runs a pickle for another reader, with placeholders for the objects that it would create."""

    def build(self) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].parts.append(state)

    def storage(self) -> None:
        self.push(Inert(self.pop()))

    def make(self) -> None:
        self.call()

    def refuse(self, _what: str) -> None:
        self.push(Inert())


class _Counting(Unpacking):
    """Counts the values that another reader would create."""

    def _unpacked(self, value: Any, depth: int) -> tuple[Any, int]:  # noqa: ANN401 - the same
        if isinstance(value, Inert):
            parts = [*value.parts, *value.keys(), *value.values()]
            return None, 1 + sum(self.plain(part, depth)[1] for part in parts)
        if isinstance(value, (Name, bytearray)):
            return None, 1
        return super()._unpacked(value, depth)


def check_pickle(content: bytes | mmap.mmap, *, start: int = 0) -> tuple[Any, int]:
    """Check the cost of a pickle before another library reads it, without creating objects.

    Parameters
    ----------
    content
        Bytes that contain a pickle.
    start
        Offset of the pickle in bytes.

    Returns
    -------
    value
        The pickled value, with :class:`Inert` placeholders instead of objects.
    end
        Offset of the first byte after the pickle.

    Raises
    ------
    ExcessError
        If reading would need time or memory out of proportion to the size of the pickle: it
        requests memory by a number of bytes, contains itself, is nested deeply, expands to many
        times its size, or has keys that are slow to hash.
    Exception
        Any exception that a damaged pickle causes in the machine.
    """
    loaded, end = _InertMachine(content, _AnyName(), start=start).run()
    _Counting(MAX_EXPANSION * (end - start) + EXTRA_EXPANSION).plain(loaded, 2 * MAX_DEPTH)
    return loaded, end
