"""Image sets: uint8 images, channels first, in a fixed order of rows.

A *source* is the result of a reader: images of any size, decoded when read. An *image set* holds
the same images at the input size of a benchmark or network, divided into shards of ``SHARD_ROWS``
rows, each with a digest of its pixels. Results computed from a shard are stored under that digest,
so nothing is computed twice for equal images. Pixels are read in *chunks* of ``CHUNK_BYTES``, so
that the memory of a pass over images depends neither on their number nor on the size of a shard.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import UnreadableImageError

SHARD_ROWS = 1024
# Bytes of one chunk: 27 images of 224 x 224, or a shard of 32 x 32. A pass holds several chunks.
CHUNK_BYTES = 2**22


class ImageSource(Protocol):
    """Images in a fixed order, decoded only when read."""

    @property
    def fingerprint(self) -> str:
        """Cheap identity; it differs if the images may differ, see `oodcli.data.identity`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``, each ``(h, w, 3)``, or an error in its place."""


def image_name(source: ImageSource, row: int) -> str:
    """Return the name of an image: its file if it has one, else ``image N``, counted from 0.

    Parameters
    ----------
    source
        The images; a source whose images have names has a method ``name_of(row)``.
    row
        Row number of the image.
    """
    name_of = getattr(source, "name_of", None)
    return f"image {row}" if name_of is None else str(name_of(row))


def key_in(source: ImageSource, row: int, *, path: str) -> str:
    """Return what the row of an image is called in results: stable, and the same in each call.

    Parameters
    ----------
    source
        The images; one whose rows have keys of their own has a method ``key_of(row)``.
    row
        Which image.
    path
        What the source was opened from.
    """
    key_of = getattr(source, "key_of", None)
    return f"{path}[{row}]" if key_of is None else str(key_of(row))


@dataclass(frozen=True)
class Part:
    """One part (train, val or test) of a data set, before its images are decoded.

    Parameters
    ----------
    source
        The images.
    labels
        Class index of every image, ``(n,)``; None for images without classes.
    """

    source: ImageSource
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.source)


def digest_of(*arrays: NDArray[np.generic]) -> str:
    """Return a 32-digit hexadecimal digest of the shapes, types and bytes of arrays.

    Examples
    --------
    >>> pixels = np.zeros((1, 3, 2, 2), np.uint8)
    >>> digest_of(pixels) == digest_of(pixels.copy()), digest_of(pixels) == digest_of(pixels + 1)
    (True, False)
    """
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def image_digest(image: NDArray[np.uint8]) -> bytes:
    """Return 8 bytes that tell the pixels of one image from those of other images.

    Parameters
    ----------
    image
        Pixels ``(3, h, w)``, contiguous. The shape is not part of the digest.

    Notes
    -----
    Among a million different images the chance that any two have the same digest is 3e-8.
    """
    return hashlib.blake2b(image.data, digest_size=8).digest()


class Digest:
    """Incremental digest of an array given in chunks; equal to :func:`digest_of` of the array.

    Parameters
    ----------
    dtype, shape
        Data type and shape of the whole array.
    """

    def __init__(self, dtype: np.dtype[Any], shape: Sequence[int]) -> None:
        self._state = hashlib.blake2b(f"{dtype.str}{tuple(shape)}".encode(), digest_size=16)

    def update(self, chunk: NDArray[np.generic]) -> None:
        """Add the next rows to the digest."""
        self._state.update(np.ascontiguousarray(chunk).data)

    def hexdigest(self) -> str:
        """Return the digest as 32 hexadecimal digits."""
        return self._state.hexdigest()


def chunk_rows(height: int, width: int) -> int:
    """Return the number of images of a size that are read at a time, at least 1."""
    return max(1, CHUNK_BYTES // (3 * height * width))


@dataclass(frozen=True)
class ImageShard:
    """Up to ``SHARD_ROWS`` consecutive images.

    Parameters
    ----------
    indices
        Row number of every image in its data set, ``(n,)``; it determines the jigsaw permutation.
    chunks
        Function that returns the pixels in order, in chunks uint8 ``(m, 3, h, w)`` of any number
        of rows. All pixels have been checked before the last chunk is yielded.
    known_digest
        Digest of the pixels if it is already known; otherwise it is computed on first access.
    pieces
        The rows of other shards that these images consist of, in order; empty if not known.
    stored_digests
        Returns the digest of each image, ``(n,)``, or None; see :func:`image_digest`.
    """

    indices: NDArray[np.int64]
    chunks: Callable[[], Iterable[NDArray[np.uint8]]]
    known_digest: str | None = None
    pieces: "Sequence[Piece]" = ()
    stored_digests: Callable[[], NDArray[np.uint64] | None] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def load(self) -> NDArray[np.uint8]:
        """Return all pixels at once, uint8 ``(n, 3, h, w)``."""
        return _joined(self.chunks(), len(self))

    @cached_property
    def digest(self) -> str:
        """Digest of the pixels or, with ``pieces``, of the digests of their shards and the rows.

        Notes
        -----
        The digest of a selection of rows of known shards requires no reading or decoding.
        """
        if self.known_digest is not None:
            return self.known_digest
        if not self.pieces:
            return _digest_of_chunks(self.chunks(), len(self))
        state = hashlib.blake2b(digest_size=16)
        for piece in self.pieces:
            state.update(f"{piece.shard.digest}{digest_of(piece.rows)}".encode())
        return state.hexdigest()

    def image_digests(self) -> NDArray[np.uint64] | None:
        """Return the digest of each image, ``(n,)``; None if they are not stored."""
        if self.stored_digests is not None:
            return self.stored_digests()
        return _all_or_none(
            None if (known := piece.shard.image_digests()) is None else known[piece.rows]
            for piece in self.pieces
        )


@dataclass(frozen=True)
class Piece:
    """A selection of images of a shard.

    Parameters
    ----------
    shard
        The shard.
    rows
        Positions in the shard, ascending, ``(m,)``.
    """

    shard: ImageShard
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Images of one size in shards, with labels.

    Parameters
    ----------
    name
        Name of the set in messages and tables.
    shards
        The images, in order.
    labels
        Class index of every image, ``(n,)``; None for images without classes.
    skipped
        Unreadable files that were skipped on request.
    """

    name: str
    shards: Sequence[ImageShard]
    labels: NDArray[np.int64] | None = None
    skipped: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """Digest of all pixels in order."""
        return hashlib.blake2b(
            "".join(shard.digest for shard in self.shards).encode(), digest_size=16
        ).hexdigest()

    def image_digests(self) -> NDArray[np.uint64] | None:
        """Return the digest of each image, ``(n,)``; None if they are not stored."""
        return _all_or_none(shard.image_digests() for shard in self.shards)

    def pixels(self) -> NDArray[np.uint8]:
        """Return all images at once, ``(n, 3, h, w)``."""
        return _joined((each for shard in self.shards for each in shard.chunks()), len(self))

    def take(self, rows: NDArray[np.int64]) -> "ImageSet":
        """Return selected images as a new set with new shards.

        Parameters
        ----------
        rows
            Ascending row numbers, ``(m,)``.
        """
        starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        shards: list[ImageShard] = []
        for at in range(0, len(rows), SHARD_ROWS):
            chosen = rows[at : at + SHARD_ROWS]
            pieces = _pieces(
                (shard, chosen[(chosen >= start) & (chosen < start + len(shard))] - start)
                for shard, start in zip(self.shards, starts, strict=False)
            )
            indices = np.concatenate([piece.shard.indices[piece.rows] for piece in pieces])
            shards.append(ImageShard(indices, partial(_gathered, pieces), pieces=pieces))
        labels = None if self.labels is None else self.labels[rows]
        return ImageSet(self.name, tuple(shards), labels, self.skipped)

    def chosen_from(self, rows: NDArray[np.int64], whole: "ImageSet | None") -> "ImageSet":
        """Return the same images with their row numbers in the part that they were selected from.

        Parameters
        ----------
        rows
            Row number in the part of each selected row, ``(m,)``, ascending.
        whole
            All images of the part, if they are prepared: their stored activations are reused.
        """
        shards = []
        for shard in self.shards:
            indices = rows[shard.indices]
            pieces = _pieces(
                (other, np.flatnonzero(np.isin(other.indices, indices)))
                for other in (() if whole is None else whole.shards)
            )
            known = sum(len(piece.rows) for piece in pieces) == len(shard)
            shards.append(replace(shard, indices=indices, pieces=pieces if known else ()))
        return replace(self, shards=tuple(shards))


def _all_or_none(
    found: Iterable[NDArray[np.uint64] | None],
) -> NDArray[np.uint64] | None:
    """Return arrays as one; None if one of them is None, or there are none."""
    known: list[NDArray[np.uint64]] = []
    for each in found:
        if each is None:
            return None
        known.append(each)
    return np.concatenate(known) if known else None


def _pieces(found: Iterable[tuple[ImageShard, NDArray[np.int64]]]) -> tuple[Piece, ...]:
    """Return the pieces, without empty ones."""
    return tuple(Piece(shard, rows) for shard, rows in found if len(rows))


def _gathered(pieces: Sequence[Piece]) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of pieces; the last chunk of each after its whole shard was checked."""
    for piece in pieces:
        start, ready = 0, None
        for chunk in piece.shard.chunks():
            inside = (piece.rows >= start) & (piece.rows < start + len(chunk))
            if inside.any():
                if ready is not None:
                    yield ready
                ready = chunk[piece.rows[inside] - start]
            start += len(chunk)
        if ready is not None:
            yield ready


def _joined(chunks: Iterable[NDArray[np.uint8]], rows: int) -> NDArray[np.uint8]:
    """Concatenate chunks of ``rows`` rows in total, without holding any chunk in memory twice."""
    whole, filled = np.empty(0, np.uint8), 0
    for chunk in chunks:
        if not filled:
            whole = chunk if len(chunk) == rows else np.empty((rows, *chunk.shape[1:]), np.uint8)
        if whole is not chunk:
            whole[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    assert filled == rows
    return whole


def _digest_of_chunks(chunks: Iterable[NDArray[np.uint8]], rows: int) -> str:
    digest: Digest | None = None
    for chunk in chunks:
        if digest is None:
            digest = Digest(chunk.dtype, (rows, *chunk.shape[1:]))
        digest.update(chunk)
    assert digest is not None  # no shard is empty
    return digest.hexdigest()


def evenly_spaced(total: int, wanted: int) -> NDArray[np.int64]:
    """Return ``min(total, wanted)`` ascending row numbers spread evenly over ``total`` rows.

    Examples
    --------
    >>> evenly_spaced(10, 4).tolist()
    [0, 2, 5, 7]
    >>> evenly_spaced(3, 4).tolist()
    [0, 1, 2]
    """
    count = min(total, wanted)
    return (np.arange(count, dtype=np.int64) * total) // max(count, 1)


def subsample(images: ImageSet, count: int | None) -> ImageSet:
    """Return ``count`` evenly spaced images; all if ``count`` is None or not smaller."""
    if count is None or count >= len(images):
        return images
    return images.take(evenly_spaced(len(images), count))
