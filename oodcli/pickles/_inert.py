"""A look at a pickle that another reader is about to read, of which nothing is made."""

import mmap
from typing import Any

from oodcli.pickles._machine import (
    MOST_DEPTH,
    MOST_GROWTH,
    MOST_SLACK,
    ExcessError,
    Inert,
    Machine,
    Name,
    Unpacking,
)


class _AnyName(dict[tuple[str, str], Name]):
    """Every name, as something that makes nothing."""

    def __contains__(self, _name: object) -> bool:
        return True

    def __missing__(self, name: tuple[str, str]) -> Name:
        return Name(_no_memory if name[1] == "bytearray" else Inert)


def _no_memory(*arguments: object) -> Inert:
    if arguments and isinstance(arguments[0], int):
        raise ExcessError(f"it asks for {arguments[0]:,} bytes")
    return Inert(*arguments)


class _InertMachine(Machine):
    """Runs a pickle that is meant for another reader, which makes objects of what it names."""

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


class _Weighing(Unpacking):
    """Finds out how many values there are in what another reader would make."""

    def _unpacked(self, value: Any, depth: int) -> tuple[Any, int]:  # noqa: ANN401 - the same
        if isinstance(value, Inert):
            parts = [*value.parts, *value.keys(), *value.values()]
            return None, 1 + sum(self.plain(part, depth)[1] for part in parts)
        if isinstance(value, (Name, bytearray)):
            return None, 1
        return super()._unpacked(value, depth)


def check_pickle(content: bytes | mmap.mmap, *, start: int = 0) -> tuple[Any, int]:
    """Run a pickle that another reader is about to read, and make nothing of it.

    Parameters
    ----------
    content
        Bytes with a pickle in them.
    start
        Where it begins.

    Returns
    -------
    value
        What was pickled, with inert dicts in the place of objects.
    end
        Where the pickle ends.

    Raises
    ------
    ExcessError
        If it would take time or memory out of proportion to its size: it asks for bytes by their
        number, contains itself, nests deeply, unpacks to many times its size, or has keys that take
        long to hash.
    Exception
        Whatever a damaged pickle makes the machine raise.
    """
    loaded, end = _InertMachine(content, _AnyName(), start=start).run()
    _Weighing(MOST_GROWTH * (end - start) + MOST_SLACK).plain(loaded, 2 * MOST_DEPTH)
    return loaded, end
