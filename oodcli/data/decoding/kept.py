"""Pixels of sets that are too large for the store, on disk for as long as a command needs them.

The store has no pixels of such a set afterwards, but a command may read them several times: for the
forward pass of a method that observes the network, or for corrupted copies of the same images. They
are decoded once, and further passes read them from a temporary file.
"""

import math
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError
from oodcli.images import chunk_rows
from oodcli.progress import Progress
from oodcli.store.store import free_bytes

# Share of the free disk space that the pixels of one set may take.
SHARE_OF_FREE = 0.5


class KeptPixels:
    """Kept pixels of several image sets, by the folder of each in the store.

    The files have no names: they end with the process, however it ends, or with the last reference
    to this object and to images that are read from it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sets: dict[Path, KeptSet | None] = {}

    def of(
        self, folder: Path, name: str, count: int, size: tuple[int, int], progress: Progress
    ) -> "KeptSet | None":
        """Return the kept pixels of a set, none at first; None if the disk has too little space.

        Parameters
        ----------
        folder
            The folder of the set in the store.
        name
            Name of the set, for the note.
        count
            Number of images.
        size
            Height and width in pixels.
        progress
            Receives a note if there is too little space.
        """
        with self._lock:
            if folder not in self._sets:
                needed, free = count * 3 * math.prod(size), free_bytes(folder)
                fits = needed <= SHARE_OF_FREE * free
                if not fits:
                    progress.note(
                        f"the pixels of {name} need {needed / 1e9:,.3g} GB, more than half of the "
                        f"{free / 1e9:,.3g} GB that are free on the disk of the store: they are "
                        "decoded again for each further pass"
                    )
                self._sets[folder] = KeptSet(folder, size) if fits else None
            return self._sets[folder]


@dataclass(eq=False)
class KeptSet:
    """Kept pixels of one set in a file without a name.

    Parameters
    ----------
    folder
        A folder on the disk that holds the file; created with the first pixels.
    size
        Height and width in pixels.
    """

    folder: Path
    size: tuple[int, int]

    def __post_init__(self) -> None:
        self._file: int | None = None
        self._full = False
        self._whole: set[int] = set()

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def __contains__(self, row: int) -> bool:
        """Whether the images of the shard from a row on are kept."""
        return row in self._whole

    def add(self, row: int, chunks: Iterable[NDArray[np.uint8]]) -> None:
        """Keep the images of a shard.

        Parameters
        ----------
        row
            The first row of the shard.
        chunks
            Its images in order, uint8 ``(m, 3, h, w)``.
        """
        for _ in self.adding(row, chunks):
            pass

    def adding(self, row: int, chunks: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the images of a shard, which are kept if all are taken; see :meth:`add`."""
        at = row
        for chunk in chunks:
            self._write(at, chunk)
            at += len(chunk)
            yield chunk
        if not self._full:
            self._whole.add(row)

    def _write(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Write images from a row on, ``(m, 3, h, w)``; nothing if the disk is full."""
        if self._full:
            return
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder) as file:
                    self._file = os.dup(file.fileno())
            content = np.ascontiguousarray(pixels).data.cast("B")
            at = self._place(row)
            while content:
                done = os.pwrite(self._file, content, at)
                content, at = content[done:], at + done
        except OSError:  # the images can be decoded again
            self._full = True

    def chunks(self, row: int, count: int) -> Iterator[NDArray[np.uint8]]:
        """Yield kept images in order, uint8 ``(m, 3, h, w)``.

        Parameters
        ----------
        row
            The first row of the shard.
        count
            Number of images that were added from there on.

        Raises
        ------
        CorruptArtifactError
            If the file is too short.
        """
        assert self._file is not None
        rows = chunk_rows(*self.size)
        for start in range(row, row + count, rows):
            pixels = np.empty((min(rows, row + count - start), 3, *self.size), np.uint8)
            if os.preadv(self._file, [pixels.data.cast("B")], self._place(start)) != pixels.nbytes:
                raise CorruptArtifactError(
                    f"a temporary file in {self.folder} is damaged; run the same command again"
                )
            yield pixels

    def _place(self, row: int) -> int:
        return row * 3 * math.prod(self.size)
