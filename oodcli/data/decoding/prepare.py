"""Decode and resize images once, and store the result.

::

    images/<key>/
      manifest.json   key in clear, digest of every shard, skipped images
      digests.bin     digest of every image that could be read, 8 bytes each
      00000.npy …     pixels of a shard, uint8 (n, 3, h, w)
      00000.json …    what the manifest will say of a shard; only until all are done

The key stands for the source and the size. A shard holds the images of ``SHARD_ROWS`` rows of the
source, except those that could not be read, so each can be decoded again separately.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import take
from oodcli.data.decoding.kept import KeptPixels
from oodcli.data.decoding.pixels import PixelFile
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.decoding.shards import Record, Shards, StoredPixels
from oodcli.errors import CorruptArtifactError, InvalidInputError, UnreadableImageError
from oodcli.images import ImageSet, ImageShard, Part
from oodcli.progress import SILENT, Progress
from oodcli.store.store import Store, read_json

MAX_PIXELS_BYTES = 8 * 1024**3


def are_stored(images: int, size: tuple[int, int], max_pixels_bytes: int | None = None) -> bool:
    """Return whether the pixels of so many prepared images are stored.

    Parameters
    ----------
    images
        Number of images.
    size
        Height and width in pixels.
    max_pixels_bytes
        As for `prepare`; ``MAX_PIXELS_BYTES`` if None.
    """
    most = MAX_PIXELS_BYTES if max_pixels_bytes is None else max_pixels_bytes
    return images * 3 * size[0] * size[1] <= most


def prepare(
    part: Part,
    store: Store,
    *,
    name: str,
    size: tuple[int, int] = (32, 32),
    resize: str = "exact",
    progress: Progress = SILENT,
    skip_unreadable: bool = False,
    max_pixels_bytes: int | None = None,
    decode: bool = True,
    seen: Callable[[ImageShard], None] | None = None,
    kept: KeptPixels | None = None,
) -> ImageSet:
    """Return the images of a part at one size; decode only those that are not yet stored.

    Parameters
    ----------
    part
        Images of any size.
    store
        Stores the pixels. An interrupted run resumes after the last finished shard.
    name
        How to call the images in messages and tables.
    size
        Height and width of the images that come out.
    resize
        ``exact``, which does not keep the aspect ratio; or ``shorter-crop``, which brings the
        shorter side to that of ``size`` and cuts out the centre; ``shorter-crop:256`` brings it to
        256 pixels first. A filter may follow, as in ``exact:bicubic``; else it is bilinear.
    progress
        Reports the images read, and shards that had to be read again.
    skip_unreadable
        Whether to skip images that cannot be read.
    max_pixels_bytes
        Above this size only digests are stored; ``MAX_PIXELS_BYTES`` if None.
    decode
        Whether to decode them if that was not done before. If not, shards stand for them whose
        digest is ``UNDECODED``, of all images, also of those that may turn out unreadable.
    seen
        Called with each decoded shard whose pixels are not stored, while they are in memory.
        Shards that were decoded before are not passed to it.
    kept
        Keeps pixels that are not stored for further passes; without it they are decoded whenever
        they are loaded.

    Returns
    -------
    images
        Their shards read the pixels when loaded, and check them; a damaged shard is decoded again.

    Raises
    ------
    UnreadableImageError
        If an image cannot be read and is not to be skipped.
    InvalidInputError
        If no image at all can be read, or there is no such way to resize.

    Notes
    -----
    Pillow's filters average when they shrink (no aliasing), but for ``nearest``. Images that have
    the size already stay as they are. ``shorter-crop`` gives the pixels of torchvision's ``Resize``
    and ``CenterCrop`` for images of Pillow, with each of these filters.
    """
    shards = Shards(store, part.source, Resizing(size, resize), name, progress, kept)
    manifest = shards.manifest()
    if manifest is None and not decode:
        return shards.undecoded(part)
    if manifest is None:
        with store.lock(shards.lock_name, progress=progress):
            # Another process may have made them while this one waited.
            manifest = shards.manifest() or shards.make(
                skip_unreadable=skip_unreadable,
                stored=are_stored(len(part), size, max_pixels_bytes),
                seen=seen,
            )
    skipped = [left_out for record in manifest.records for left_out in record.skipped]
    if skipped and not skip_unreadable:
        raise UnreadableImageError(skipped[0].where, skipped[0].reason)
    if len(skipped) == len(part):
        raise InvalidInputError(
            f"none of the {len(part)} images of {name} can be read; the first is "
            f"{skipped[0].where}: {skipped[0].reason}"
        )
    return shards.images(part, manifest)


def prepare_some(
    part: Part,
    rows: NDArray[np.int64],
    store: Store,
    *,
    name: str,
    size: tuple[int, int] = (32, 32),
    resize: str = "exact",
    progress: Progress = SILENT,
    skip_unreadable: bool = False,
    decode: bool = True,
    seen: Callable[[ImageShard], None] | None = None,
    kept: KeptPixels | None = None,
) -> ImageSet:
    """Return chosen images of a part at one size; the others are not decoded.

    Parameters
    ----------
    part
        Images of any size.
    rows
        Ascending row numbers of the part, ``(m,)``.
    store, name, size, resize, progress, skip_unreadable, decode, seen, kept
        As for `prepare`.

    Returns
    -------
    images
        With their row numbers in the part; if all of the part was prepared before, what is stored
        of its images serves these too.

    Raises
    ------
    OodError
        As `prepare`.
    """
    shards = Shards(store, part.source, Resizing(size, resize), name, progress, kept)
    manifest = shards.manifest()
    whole = None if manifest is None else shards.images(part, manifest)

    def chosen(images: ImageSet) -> ImageSet:
        return images.chosen_from(rows, whole)

    def seen_there(shard: ImageShard) -> None:
        assert seen is not None
        seen(*chosen(ImageSet(name, (shard,))).shards)

    return chosen(
        prepare(
            take(part, rows),
            store,
            name=name,
            size=size,
            resize=resize,
            progress=progress,
            skip_unreadable=skip_unreadable,
            decode=decode,
            seen=None if seen is None else seen_there,
            kept=kept,
        )
    )


def stored_pixels(
    part: Part, store: Store, *, name: str, resizing: Resizing, progress: Progress = SILENT
) -> StoredPixels | None:
    """Return the stored pixels of a part, to be read in any order; None if there are none.

    Parameters
    ----------
    part
        The original images.
    store, name, progress
        As for `prepare`.
    resizing
        The size of the prepared images, and how they were resized to it.
    """
    shards = Shards(store, part.source, resizing, name, progress)
    manifest = shards.manifest()
    return None if manifest is None else shards.pixels(manifest)


@dataclass(frozen=True, slots=True)
class StoredImages:
    """Decoded images in the store, and which of their files are damaged.

    Parameters
    ----------
    name
        How they were called when they were decoded.
    folder
        Where they lie.
    rows
        How many they are.
    files
        Files of pixels; none if only digests are stored.
    damaged
        Those files that are missing, or differ from their digest.
    """

    name: str
    folder: Path
    rows: int
    files: int
    damaged: tuple[Path, ...]


def check_stored(folder: Path) -> StoredImages | None:
    """Compare decoded images with the digests that were written with them.

    Parameters
    ----------
    folder
        A folder below ``images`` of the store.

    Returns
    -------
    images
        None if the images were not yet all decoded.

    Raises
    ------
    CorruptArtifactError
        If the manifest is damaged.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    content = read_json(path)
    try:
        records = [Record.of_json(entry) for entry in content["shards"]]
        name, rows, stored = str(content["name"]), int(content["rows"]), bool(content["stored"])
    except (KeyError, TypeError, ValueError):
        raise CorruptArtifactError(f"{path} is damaged; remove it") from None
    files = [folder / f"{at:05d}.npy" for at in range(len(records))] if stored else []
    damaged = tuple(
        file for file, record in zip(files, records, strict=False) if not _holds(file, record)
    )
    return StoredImages(name, folder, rows, len(files), damaged)


def _holds(file: Path, record: "Record") -> bool:
    try:
        with file.open("rb") as opened:
            return PixelFile.of(opened).digest == record.digest
    except (OSError, CorruptArtifactError):
        return False


def places_of(images: ImageSet, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of rows of a part among its prepared images.

    Parameters
    ----------
    images
        What `prepare` returned for the part.
    rows
        Ascending row numbers of the part, ``(m,)``.

    Returns
    -------
    places
        Ascending row numbers of ``images``; rows of skipped images are not among them.
    """
    present = np.concatenate([shard.indices for shard in images.shards])
    return np.flatnonzero(np.isin(present, rows)).astype(np.int64)
