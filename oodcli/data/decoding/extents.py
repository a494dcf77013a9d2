"""Image files that lie at known places in larger files, such as shards of a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.identity import identity_of
from oodcli.errors import CorruptArtifactError, UnreadableImageError
from oodcli.files import Ranges, open_ranges
from oodcli.images import digest_of
from oodcli.remote.errors import RemoteError
from oodcli.remote.files import RemotePath, row_problem
from oodcli.store.store import digest_of_json
from oodcli.text import printable

MAX_IMAGE_BYTES = 1 << 28
"""Most bytes of one image file; a larger one is an error like any other unreadable image."""


class Texts(Sequence[str]):
    """Many short texts in one array of bytes, at 8 bytes each beside their own.

    Parameters
    ----------
    content
        Bytes of all texts in UTF-8, ``(bytes,)``.
    ends
        Where each ends, ``(n,)``; the next one begins there.

    Examples
    --------
    >>> texts = Texts.of(["a/b", "", "c"])
    >>> list(texts), texts[-1], list(texts.take(np.array([2, 0])))
    (['a/b', '', 'c'], 'c', ['c', 'a/b'])
    """

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.content = content
        self.ends = ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Pack texts; bytes of file names that are no UTF-8 are held as they are."""
        each = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = np.cumsum([len(one) for one in each], dtype=np.int64)
        return cls(np.frombuffer(b"".join(each), np.uint8), ends)

    @classmethod
    def joined(cls, several: Sequence["Texts"]) -> "Texts":
        """Return the texts of several as one."""
        starts = np.cumsum([0, *(len(each.content) for each in several)], dtype=np.int64)
        ends = [each.ends + start for each, start in zip(several, starts, strict=False)]
        return cls(np.concatenate([each.content for each in several]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int, /) -> str: ...
    @overload
    def __getitem__(self, at: slice, /) -> "Texts": ...
    def __getitem__(self, at: int | slice, /) -> "str | Texts":
        if isinstance(at, slice):
            return self.take(np.arange(len(self), dtype=np.int64)[at])
        row = range(len(self))[at]
        start = int(self.ends[row - 1]) if row else 0
        return bytes(self.content[start : int(self.ends[row])]).decode("utf-8", "surrogateescape")

    def take(self, rows: NDArray[np.int64]) -> "Texts":
        """Return chosen texts."""
        content, ends = self.content.data, self.ends
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        packed, chosen = bytearray(), np.empty(len(rows), dtype=np.int64)
        for at, (start, end) in enumerate(zip(starts[rows], ends[rows], strict=True)):
            packed += content[start:end]
            chosen[at] = len(packed)
        return Texts(np.frombuffer(packed, np.uint8), chosen)


class Numbers(Sequence[str]):
    """What images are called by their number: ``[NUMBER]``.

    Parameters
    ----------
    values
        The numbers, ``(n,)``.
    """

    def __init__(self, values: NDArray[np.int64]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, at: int, /) -> str: ...
    @overload
    def __getitem__(self, at: slice, /) -> "Numbers": ...
    def __getitem__(self, at: int | slice, /) -> "str | Numbers":
        return Numbers(self.values[at]) if isinstance(at, slice) else f"[{self.values[at]}]"

    def take(self, rows: NDArray[np.int64]) -> "Numbers":
        """Return chosen names."""
        return Numbers(self.values[rows])


@dataclass(frozen=True)
class Extents(EncodedSource):
    """Image files that lie one by one at known places in a few larger files.

    Parameters
    ----------
    folder
        Folder of the larger files.
    files
        Their paths, relative to it.
    which, offsets, sizes
        The larger file of every image, the place where it begins there, and its number of bytes,
        ``(n,)``; a negative size is that of an image without bytes.
    names
        How each image is called, behind the path of its file.

    Notes
    -----
    Only the bytes of the images that are asked for are read, so that any of them are read as fast
    as the first ones, by any number of processes.
    """

    folder: Path
    files: Sequence[str]
    which: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: Texts | Numbers

    def __len__(self) -> int:
        return len(self.which)

    @property
    def in_order(self) -> bool:  # type: ignore[override]
        """Whether one reader is faster: of remote files, for it has ranges sent ahead."""
        return isinstance(self.folder, RemotePath)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the files, see :mod:`oodcli.data.identity`, and of the places in them."""
        files = [self.files[at] for at in np.unique(self.which)]
        places = digest_of(self.which, self.offsets, self.sizes)
        return digest_of_json([identity_of(self.folder, files), files, places])

    def key_of(self, row: int) -> str:
        """Return the path of an image's file, and what the image is called in it."""
        return f"{self.folder / self.files[self.which[row]]}{self.names[row]}"

    def name_of(self, row: int) -> str:
        """Return the key without the folder."""
        return f"{self.files[self.which[row]]}{self.names[row]}"

    def take(self, rows: NDArray[np.int64], /) -> "Extents":
        """Return a source of chosen images.

        Parameters
        ----------
        rows
            Row numbers, ``(m,)``.
        """
        used, which = np.unique(self.which[rows], return_inverse=True)
        return replace(
            self,
            files=[self.files[at] for at in used],
            which=which.astype(np.int64),
            offsets=self.offsets[rows],
            sizes=self.sizes[rows],
            names=self.names.take(rows),
        )

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``, or why there are none.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Raises
        ------
        CorruptArtifactError
            If a file no longer exists.
        """
        row, stop = start, min(stop, len(self))
        while row < stop:
            which = self.which[row]
            path = self.folder / self.files[which]
            try:
                file = open_ranges(path)
            except OSError as error:
                raise CorruptArtifactError(f"{path} cannot be read: {error.strerror}") from None
            end = next((at for at in range(row, stop) if self.which[at] != which), stop)
            with file:
                places = ((int(self.offsets[at]), self._wanted(at)) for at in range(row, end))
                for _ in file.ahead(places):
                    content = self._read(row, file)
                    if isinstance(content, str):
                        yield UnreadableImageError(printable(self.key_of(row)), content)
                    else:
                        yield content
                    row += 1

    def _wanted(self, row: int) -> int:
        size = int(self.sizes[row])
        return size if 0 <= size <= MAX_IMAGE_BYTES else 0

    def _read(self, row: int, file: Ranges) -> bytes | str:
        """Return the bytes of an image, or why there are none."""
        size, offset = int(self.sizes[row]), int(self.offsets[row])
        if size < 0:
            return "the row has no image"
        if size > MAX_IMAGE_BYTES:
            return f"it claims to have {size:,} bytes"
        try:
            content = file.read_at(offset, size)
        except RemoteError as error:
            return row_problem(error, within=True)
        return content if len(content) == size else "the file ends within it"
