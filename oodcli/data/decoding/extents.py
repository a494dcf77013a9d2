"""Image files that lie at known places in larger files, such as shards of a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Texts, narrow
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


class Numbers(Sequence[str]):
    """What images are called by their number: ``[NUMBER]``.

    Parameters
    ----------
    values
        The numbers, ``(n,)``.
    """

    def __init__(self, values: NDArray[np.integer]) -> None:
        self.values = narrow(values)

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
        ``(n,)`` of any type of whole numbers; a negative size is that of an image without bytes.
    names
        How each image is called, behind the path of its file.

    Notes
    -----
    Only the bytes of the images that are asked for are read, so that any of them are read as fast
    as the first ones, by any number of processes.
    """

    folder: Path
    files: Sequence[str]
    which: NDArray[np.integer]
    offsets: NDArray[np.integer]
    sizes: NDArray[np.integer]
    names: Texts | Numbers

    def __post_init__(self) -> None:
        for field in ("which", "offsets", "sizes"):
            object.__setattr__(self, field, narrow(getattr(self, field)))

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
        places = digest_of(
            *(each.astype(np.int64) for each in (self.which, self.offsets, self.sizes))
        )
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
            which=which,
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
