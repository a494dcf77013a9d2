"""Names and numbers of a million images in little memory: arrays instead of objects."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096


def narrow(values: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return whole numbers in the smallest signed type that holds them; the array, if it has it.

    Examples
    --------
    >>> narrow(np.array([0, -1, 300])).dtype, narrow(np.array([2**40])).dtype
    (dtype('int16'), dtype('int64'))
    """
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind, copy=False)
    return values.astype(np.int64, copy=False)


class Numbers:
    """Takes whole numbers in one by one, and holds them in few bytes.

    Examples
    --------
    >>> numbers = Numbers()
    >>> numbers.append(7)
    >>> numbers.append(-1)
    >>> numbers.array()
    array([ 7, -1], dtype=int8)
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.integer]] = []
        self._last = array("q")

    def __len__(self) -> int:
        return _BLOCK * len(self._blocks) + len(self._last)

    def append(self, number: int) -> None:
        """Take a number in."""
        self._last.append(number)
        if len(self._last) == _BLOCK:
            self._blocks.append(narrow(np.array(self._last)))
            self._last = array("q")

    def array(self) -> NDArray[np.integer]:
        """Return the numbers, ``(n,)``."""
        last = narrow(np.array(self._last, dtype=np.int64))
        joined: NDArray[np.integer] = np.concatenate([*self._blocks, last])
        return joined


class Texts(Sequence[str]):
    """Many short texts in one array of bytes, with 4 bytes for each beside its own.

    Parameters
    ----------
    content
        Bytes of all texts in UTF-8, ``(bytes,)``; bytes of file names that are not UTF-8 are held
        as they are.
    ends
        Where each ends, ``(n,)``; the next one begins there.

    Examples
    --------
    >>> texts = Texts.of(["a/b", "", "c"])
    >>> list(texts), texts[-1], list(texts.take(np.array([2, 0])))
    (['a/b', '', 'c'], 'c', ['c', 'a/b'])
    """

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.integer]) -> None:
        self.content = content
        small = len(content) < 2**32
        self.ends: NDArray[np.integer]
        self.ends = ends.astype(np.uint32 if small else np.int64, copy=False)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Pack texts, one at a time."""
        content, ends = bytearray(), Numbers()
        for text in texts:
            content += text.encode("utf-8", "surrogateescape")
            ends.append(len(content))
        return cls(np.frombuffer(content, np.uint8), ends.array())

    @classmethod
    def joined(cls, several: Sequence["Texts"]) -> "Texts":
        """Return the texts of several as one."""
        starts = np.cumsum([0, *(len(each.content) for each in several)], dtype=np.int64)
        ends: NDArray[np.integer] = np.empty(
            sum(map(len, several)), dtype=np.int64 if starts[-1] >= 2**32 else np.uint32
        )
        at = 0
        for each, start in zip(several, starts.tolist(), strict=False):
            ends[at : at + len(each)] = each.ends + np.int64(start)
            at += len(each)
        return cls(np.concatenate([each.content for each in several]), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same texts."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[str]:
        start, content = 0, self.content.data
        for at in range(0, len(self), _BLOCK):
            for end in self.ends[at : at + _BLOCK].tolist():
                yield bytes(content[start:end]).decode("utf-8", "surrogateescape")
                start = end

    @overload
    def __getitem__(self, at: int, /) -> str: ...
    @overload
    def __getitem__(self, at: slice, /) -> "Texts": ...
    def __getitem__(self, at: int | slice, /) -> "str | Texts":
        if isinstance(at, slice):
            first, last, step = at.indices(len(self))
            if step != 1 or last <= first:
                return self.take(np.arange(len(self), dtype=np.int64)[at])
            start = self._start(first)
            return Texts(
                self.content[start : int(self.ends[last - 1])],
                self.ends[first:last].astype(np.int64) - start,
            )
        row = range(len(self))[at]
        content = self.content[self._start(row) : int(self.ends[row])]
        return bytes(content).decode("utf-8", "surrogateescape")

    def _start(self, row: int) -> int:
        return int(self.ends[row - 1]) if row else 0

    def take(self, rows: NDArray[np.integer]) -> "Texts":
        """Return chosen texts, ``(m,)``."""
        content = self.content.data
        packed, chosen = bytearray(), np.empty(len(rows), dtype=np.int64)
        for at, row in enumerate(rows.tolist()):
            packed += content[self._start(row) : int(self.ends[row])]
            chosen[at] = len(packed)
        return Texts(np.frombuffer(packed, np.uint8), chosen)


def chosen_texts(texts: Sequence[str], rows: NDArray[np.integer]) -> Texts:
    """Return chosen texts, ``(m,)``, packed."""
    return (texts if isinstance(texts, Texts) else Texts.of(texts)).take(rows)
