"""Rows of encoded images: a key and the bytes of an image file each, whatever they lie in."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.files import decode_stream
from oodcli.errors import UnreadableImageError
from oodcli.text import printable


class EncodedSource(ABC):
    """A source of images that lie as image files in something larger, such as an archive.

    A subclass says where the bytes of a row are. It is immutable and can be pickled: worker
    processes get chosen rows of it, which they read and decode themselves.
    """

    as_published: bool = False
    """As for :func:`oodcli.data.decoding.files.decode`."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Cheap identity, other whenever the images may be, see `oodcli.data.identity`."""

    @abstractmethod
    def key_of(self, row: int) -> str:
        """Return what a row is called in results: stable, such as ``FILE.parquet[ROW]``."""

    def name_of(self, row: int) -> str:
        """Return what an image is called for short; its key if nothing better is known."""
        return self.key_of(row)

    @abstractmethod
    def take(self, rows: NDArray[np.int64], /) -> Self:
        """Return a source of chosen rows, ``(m,)``."""

    @abstractmethod
    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of rows ``start`` to ``stop - 1``, or why there are none.

        Raises
        ------
        CorruptArtifactError
            If what they lie in no longer exists.
        """

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``, each ``(h, w, 3)``, or the error of a bad one.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Raises
        ------
        CorruptArtifactError
            If what they lie in no longer exists.
        """
        for row, content in enumerate(self.contents(start, stop), start):
            if isinstance(content, UnreadableImageError):
                yield content
                continue
            try:
                image = decode_stream(
                    io.BytesIO(content),
                    where=printable(self.key_of(row)),
                    as_published=self.as_published,
                )
            except UnreadableImageError as error:
                yield error
            else:
                yield image
