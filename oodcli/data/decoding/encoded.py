"""Rows of encoded images: a key and the bytes of an image file each, whatever they lie in."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.files import decode_stream, size_in_header
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import UnreadableImageError
from oodcli.images import digest_of
from oodcli.store.store import digest_of_json
from oodcli.text import printable
from oodcli.windows import Window


class EncodedSource(ABC):
    """A source of images that lie as image files in something larger, such as an archive.

    A subclass says where the bytes of a row are. It is immutable and can be pickled: worker
    processes get chosen rows of it, which they read and decode themselves.
    """

    as_published: bool = False
    """As for :func:`oodcli.data.decoding.files.decode`."""

    window: Window | None = None
    """As for :func:`oodcli.data.decoding.files.decode`."""

    to: Resizing | None = None
    """As for :func:`oodcli.data.decoding.files.decode`."""

    in_order: bool = False
    """Whether rows that ascend are read faster by one reader than by several of a few rows each."""

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

    def file_names(self) -> Sequence[str] | None:
        """Return the name of each image's file, as benchmark lists have it; None if unknown."""
        return None

    def frame_at(self, _row: int) -> int | None:
        """Return which frame of the file of a row is its image; None for the first or only one."""
        return None

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
                    window=self.window,
                    frame=self.frame_at(row),
                    to=self.to,
                )
            except UnreadableImageError as error:
                yield error
            else:
                yield image

    def size_of(self, row: int) -> tuple[int, int]:
        """Return the height and width of an image, by its header.

        Raises
        ------
        UnreadableImageError
            If it cannot be read.
        """
        content = next(iter(self.contents(row, row + 1)))
        if isinstance(content, UnreadableImageError):
            raise content
        where = printable(self.key_of(row))
        return size_in_header(
            io.BytesIO(content),
            where=where,
            as_published=self.as_published,
            window=self.window,
            frame=self.frame_at(row),
        )


@dataclass(frozen=True)
class Held(EncodedSource):
    """Some image files whose bytes are in memory.

    Parameters
    ----------
    keys
        What they are called.
    files
        Their bytes, or the reason why there are none.
    frames
        Which frame of its file each image is, as :meth:`EncodedSource.frame_at` has it.
    as_published, window, to
        As for :func:`oodcli.data.decoding.files.decode`.
    """

    keys: Sequence[str]
    files: Sequence[bytes | str]
    frames: Sequence[int | None]
    as_published: bool = False
    window: Window | None = None
    to: Resizing | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def fingerprint(self) -> str:
        """Digest of the bytes, and of the frames that are chosen."""
        each = [file.encode() if isinstance(file, str) else file for file in self.files]
        chosen = np.array([-1 if frame is None else frame for frame in self.frames], np.int64)
        return digest_of(*(np.frombuffer(file, np.uint8) for file in each), chosen)

    def key_of(self, row: int) -> str:
        """Return what an image is called."""
        return self.keys[row]

    def frame_at(self, row: int) -> int | None:
        """Return which frame of its file an image is."""
        return self.frames[row]

    def take(self, rows: NDArray[np.int64], /) -> "Held":
        """Return chosen images."""
        chosen = [int(row) for row in rows]
        keys, files = [self.keys[at] for at in chosen], [self.files[at] for at in chosen]
        frames = [self.frames[at] for at in chosen]
        return Held(keys, files, frames, self.as_published, self.window, self.to)

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``, or why there are none."""
        for key, file in zip(self.keys[start:stop], self.files[start:stop], strict=True):
            yield UnreadableImageError(printable(key), file) if isinstance(file, str) else file


def pieces(source: EncodedSource, start: int, stop: int, rows: int) -> Iterator[Held]:
    """Yield images ``start`` to ``stop - 1`` in pieces of ``rows``, their bytes in memory.

    Parameters
    ----------
    source
        The images.
    start, stop
        First row, and the row after the last.
    rows
        Images of a piece; fewer in the last one.
    """
    contents = source.contents(start, stop)
    for first in range(start, stop, rows):
        some = list(islice(contents, rows))
        files = [each.reason if isinstance(each, UnreadableImageError) else each for each in some]
        numbers = range(first, first + len(some))
        keys, frames = map(source.key_of, numbers), map(source.frame_at, numbers)
        yield Held(list(keys), files, list(frames), source.as_published, source.window, source.to)


@dataclass(frozen=True)
class _Changed(EncodedSource):
    """Image files of another source that are not all read as it reads them.

    Parameters
    ----------
    source
        The images.
    """

    source: EncodedSource

    @property
    def as_published(self) -> bool:  # type: ignore[override]
        """As for :func:`oodcli.data.decoding.files.decode`."""
        return self.source.as_published

    @property
    def in_order(self) -> bool:  # type: ignore[override]
        """Whether one reader is faster, as of the source."""
        return self.source.in_order

    def __len__(self) -> int:
        return len(self.source)

    def key_of(self, row: int) -> str:
        """Return what a row is called in the source."""
        return self.source.key_of(row)

    def name_of(self, row: int) -> str:
        """Return what a row is called for short in the source."""
        return self.source.name_of(row)

    def frame_at(self, row: int) -> int | None:
        """Return which frame of its file a row is in the source."""
        return self.source.frame_at(row)

    def file_names(self) -> Sequence[str] | None:
        """Return what the files of the source are called."""
        return self.source.file_names()


@dataclass(frozen=True)
class Windowed(_Changed):
    """Image files of another source, where those of medical images are read through a window.

    Parameters
    ----------
    window
        Which values of medical images are black and white.
    """

    window: Window

    @property
    def fingerprint(self) -> str:
        """Digest of the fingerprint of the source and of the window."""
        return digest_of_json([self.source.fingerprint, str(self.window)])

    def take(self, rows: NDArray[np.int64], /) -> "Windowed":
        """Return a source of chosen images."""
        return Windowed(self.source.take(rows), self.window)

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``, or why there are none."""
        return self.source.contents(start, stop)


@dataclass(frozen=True)
class Drafted(_Changed):
    """Image files of another source, where JPEG files may be decoded at a reduced size.

    Parameters
    ----------
    resizing
        How the images will be resized.
    """

    resizing: Resizing

    @property
    def window(self) -> Window | None:  # type: ignore[override]
        """As of the source."""
        return self.source.window

    @property
    def to(self) -> Resizing:  # type: ignore[override]
        """How the images will be resized."""
        return self.resizing

    @property
    def fingerprint(self) -> str:
        """That of the source; who keeps pixels names the resizing beside it."""
        return self.source.fingerprint

    def take(self, rows: NDArray[np.int64], /) -> "Drafted":
        """Return a source of chosen images."""
        return Drafted(self.source.take(rows), self.resizing)

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``, or why there are none."""
        return self.source.contents(start, stop)


@dataclass(frozen=True)
class Marked(_Changed):
    """Image files some of which cannot be used, although their bytes can be read.

    Parameters
    ----------
    bad
        Why an image cannot be used, by its row.
    """

    bad: Mapping[int, str]

    @property
    def fingerprint(self) -> str:
        """Digest of the fingerprint of the source and of what cannot be used."""
        return digest_of_json([self.source.fingerprint, sorted(self.bad.items())])

    def take(self, rows: NDArray[np.int64], /) -> EncodedSource:  # type: ignore[override]
        """Return a source of chosen images."""
        bad = {at: self.bad[row] for at, row in enumerate(rows.tolist()) if row in self.bad}
        return marked(self.source.take(rows), bad)

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``, or why there are none."""
        for row, content in enumerate(self.source.contents(start, stop), start):
            reason = self.bad.get(row)
            if reason is None:
                yield content
            else:
                yield UnreadableImageError(printable(self.key_of(row)), reason)


def marked(source: EncodedSource, bad: Mapping[int, str]) -> EncodedSource:
    """Return a source some of whose images cannot be used, see :class:`Marked`."""
    return Marked(source, bad) if bad else source
