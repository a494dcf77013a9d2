"""Prepared images that are gathered while something else decodes them, in any order."""

import contextlib
import math
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.scaling import Resizing
from oodcli.data.decoding.shards import Shards
from oodcli.errors import InvalidInputError
from oodcli.images import Part
from oodcli.progress import Progress
from oodcli.store.store import Store, scratch_file


class Gathering:
    """Collects the images of a part in a temporary file, and stores them when all are there.

    What is stored is what :func:`oodcli.data.decoding.prepare.prepare` would have stored; no image
    is decoded for it. The file has no name, so that nothing of it is left if the process is killed.

    Parameters
    ----------
    shards
        The shards to be stored.

    Raises
    ------
    InvalidInputError
        If the disk has too little space for the temporary file and the shards.
    """

    def __init__(self, shards: Shards) -> None:
        shards.check_space(len(shards.source), times=2)
        self._shards = shards
        self._bytes = 3 * math.prod(shards.resizing.size)
        self._here = np.zeros(len(shards.source), dtype=bool)
        self._open = contextlib.ExitStack()
        self._file = self._open.enter_context(
            scratch_file(shards.folder, size=len(shards.source) * self._bytes)
        )

    @classmethod
    def of(
        cls, part: Part, store: Store, *, name: str, resizing: Resizing, progress: Progress
    ) -> Self | None:
        """Begin to gather a part; None if it is stored, or the disk has too little space.

        Parameters
        ----------
        part
            The original images.
        store
            Where the prepared images will be stored.
        name
            How the images are called in messages.
        resizing
            Their size, and how they are resized to it.
        progress
            Gets a note if there is too little space.
        """
        shards = Shards(store, part.source, resizing, name, progress)
        if shards.manifest() is not None:
            return None
        try:
            return cls(shards)
        except InvalidInputError as error:
            progress.note(f"the images are not stored, and scoring decodes them again: {error}")
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def add(self, rows: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Add some images.

        Parameters
        ----------
        rows
            Their rows in the part, ``(m,)``.
        pixels
            uint8 ``(m, 3, h, w)`` at the size of the shards.

        Raises
        ------
        InvalidInputError
            If the disk is full.
        """
        for row, image in zip(rows.tolist(), pixels, strict=True):
            self._file.seek(row * self._bytes)
            self._file.write(np.ascontiguousarray(image).data)
        self._here[rows] = True

    def store(self) -> None:
        """Store the images, unless some have not arrived, or another process has stored them."""
        if not self._here.all():
            return
        shards = self._shards
        with shards.store.lock(shards.lock_name, progress=shards.progress):
            if shards.manifest() is None:
                shards.make(skip_unreadable=False, stored=True, made=self._images)

    def _images(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        self._file.seek(start * self._bytes)
        for _ in range(start, stop):
            content = self._file.read(self._bytes)
            shape = (3, *self._shards.resizing.size)
            yield np.frombuffer(content, np.uint8).reshape(shape).transpose(1, 2, 0)
