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

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import take
from oodcli.data.decoding.pixels import PixelFile, PixelWriter
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.decoding.workers import resized
from oodcli.errors import CorruptArtifactError, InvalidInputError, UnreadableImageError
from oodcli.images import (
    SHARD_ROWS,
    Digest,
    ImageSet,
    ImageShard,
    ImageSource,
    Part,
    chunk_rows,
)
from oodcli.pools import command_pools, open_pools
from oodcli.progress import SILENT, Progress, Task
from oodcli.store.store import (
    Store,
    atomic_write,
    check_free_space,
    digest_of_bytes,
    digest_of_json,
    read_json,
    remove_leftovers,
    scratch_file,
    write_json,
)
from oodcli.text import counted

# Raised whenever the same files give other pixels: 2 since images are shown upright, over white; 3
# since profiles of CMYK count.
SCHEMA = 3
MAX_PIXELS_BYTES = 8 * 1024**3
# In place of the digest of images that were not to be decoded.
UNDECODED = "undecoded"

_ROWS_PER_ADVANCE = 32


def prepare(
    part: Part,
    store: Store,
    *,
    name: str,
    size: tuple[int, int] = (32, 32),
    resize: str = "exact",
    progress: Progress = SILENT,
    skip_unreadable: bool = False,
    max_pixels_bytes: int = MAX_PIXELS_BYTES,
    decode: bool = True,
    seen: Callable[[ImageShard], None] | None = None,
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
        Above this size only digests are stored, and images are decoded whenever they are loaded.
    decode
        Whether to decode them if that was not done before. If not, shards stand for them whose
        digest is ``UNDECODED``, of all images, also of those that may turn out unreadable.
    seen
        Called with each decoded shard whose pixels are not stored, while they are in memory.
        Shards that were decoded before are not passed to it.

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
    shards = _Shards(store, part.source, Resizing(size, resize), name, progress)
    manifest = shards.manifest()
    if manifest is None and not decode:
        return shards.undecoded(part)
    if manifest is None:
        with store.lock(shards.lock_name, progress=progress):
            # Another process may have made them while this one waited.
            manifest = shards.manifest() or shards.make(
                skip_unreadable=skip_unreadable,
                stored=len(part) * 3 * size[0] * size[1] <= max_pixels_bytes,
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
) -> ImageSet:
    """Return chosen images of a part at one size; the others are not decoded.

    Parameters
    ----------
    part
        Images of any size.
    rows
        Ascending row numbers of the part, ``(m,)``.
    store, name, size, resize, progress, skip_unreadable, decode, seen
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
    shards = _Shards(store, part.source, Resizing(size, resize), name, progress)
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
        )
    )


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
        records = [_Record.of_json(entry) for entry in content["shards"]]
        name, rows, stored = str(content["name"]), int(content["rows"]), bool(content["stored"])
    except (KeyError, TypeError, ValueError):
        raise CorruptArtifactError(f"{path} is damaged; remove it") from None
    files = [folder / f"{at:05d}.npy" for at in range(len(records))] if stored else []
    damaged = tuple(
        file for file, record in zip(files, records, strict=False) if not _holds(file, record)
    )
    return StoredImages(name, folder, rows, len(files), damaged)


def _holds(file: Path, record: "_Record") -> bool:
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


@dataclass(frozen=True, slots=True)
class _Skipped:
    """An image that was skipped."""

    row: int
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Record:
    """What is known of a finished shard."""

    digest: str
    skipped: tuple[_Skipped, ...]

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> "_Record":
        return cls(str(content["digest"]), tuple(_Skipped(**entry) for entry in content["skipped"]))


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What is known of all shards, whether their pixels are stored, and the file of digests."""

    records: tuple[_Record, ...]
    stored: bool
    image_digests: str = ""


@dataclass(frozen=True)
class _Shards:
    """The shards of one source at one size."""

    store: Store
    source: ImageSource
    resizing: Resizing
    name: str
    progress: Progress

    @cached_property
    def key(self) -> dict[str, Any]:
        return {
            "source": self.source.fingerprint,
            "size": list(self.resizing.size),
            "resize": self.resizing.key,
            "schema": SCHEMA,
        }

    @cached_property
    def folder(self) -> Path:
        return self.store.images / digest_of_json(self.key)

    @property
    def lock_name(self) -> str:
        return f"images/{self.folder.name}"

    @property
    def count(self) -> int:
        return -(-len(self.source) // SHARD_ROWS)

    def rows(self, at: int) -> range:
        """Return the rows of the source that belong to a shard."""
        return range(at * SHARD_ROWS, min((at + 1) * SHARD_ROWS, len(self.source)))

    def kept_rows(self, at: int, record: _Record) -> NDArray[np.int64]:
        """Return the rows of a shard that could be read."""
        left_out = [skipped.row for skipped in record.skipped]
        return np.setdiff1d(np.array(self.rows(at), dtype=np.int64), left_out)

    def manifest(self) -> _Manifest | None:
        """Return what was written when all shards were done; None if it cannot be relied on."""
        try:
            content = read_json(self.folder / "manifest.json")
            records = tuple(_Record.of_json(entry) for entry in content["shards"])
            if content["key"] == self.key and len(records) == self.count:
                stored, digests = bool(content["stored"]), str(content.get("image_digests", ""))
                return _Manifest(records, stored=stored, image_digests=digests)
        except (FileNotFoundError, CorruptArtifactError, KeyError, TypeError):
            pass
        return None

    def images(self, part: Part, manifest: _Manifest) -> ImageSet:
        """Return the images of a part that could be read."""
        kept = [self.kept_rows(at, record) for at, record in enumerate(manifest.records)]
        starts = np.cumsum([0, *(len(rows) for rows in kept)])
        digests = cache(partial(self._image_digests, manifest))
        return ImageSet(
            self.name,
            tuple(
                ImageShard(
                    rows,
                    partial(self.chunks, at, manifest),
                    manifest.records[at].digest,
                    stored_digests=partial(_rows_of, digests, starts[at], starts[at + 1]),
                )
                for at, rows in enumerate(kept)
                if len(rows)
            ),
            None if part.labels is None else part.labels[np.concatenate(kept)],
            tuple(one.where for record in manifest.records for one in record.skipped),
        )

    def undecoded(self, part: Part) -> ImageSet:
        """Return what stands for images that are not decoded."""
        rows = [np.array(self.rows(at), dtype=np.int64) for at in range(self.count)]
        shards = (ImageShard(each, partial(self._first, each), UNDECODED) for each in rows)
        return ImageSet(self.name, tuple(shards), part.labels)

    def _first(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        raise ValueError(f"images {rows[0]} to {rows[-1]} of {self.name} were not to be decoded")

    def make(
        self,
        *,
        skip_unreadable: bool,
        stored: bool,
        seen: Callable[[ImageShard], None] | None = None,
    ) -> _Manifest:
        """Decode all images that are not yet decoded."""
        if (self.folder / "manifest.json").exists():
            self.progress.note(f"the stored images of {self.name} are damaged; reading them again")
        remove_leftovers(self.folder, older_than_s=0)
        records, digests = self._finished()
        done = min(len(records) * SHARD_ROWS, len(self.source))
        if stored:
            needed = (len(self.source) - done) * 3 * math.prod(self.resizing.size)
            check_free_space(
                self.store.root, needed, f"the {len(self.source):,} images of {self.name}"
            )
        with (
            open_pools() as pools,
            self.progress.task(
                f"reading {self.name}", total=len(self.source), unit="images"
            ) as task,
        ):
            task.advance(done)
            frames: list[int] = []
            images = resized(
                pools,
                self.source,
                done,
                len(self.source),
                self.resizing.apply,
                several=frames.append,
            )
            for at in range(len(records), self.count):
                with self._opened(at, stored=stored) as file:
                    pixels, skipped, each = self._gather(
                        file, images, at, skip_unreadable=skip_unreadable, task=task
                    )
                    record = _Record(pixels.digest, skipped)
                    rows = self.kept_rows(at, record)
                    if seen is not None and not stored and len(rows):
                        seen(ImageShard(rows, pixels.chunks, record.digest))
                write_json(self._record_path(at), {**asdict(record), "images": each.hex()})
                records.append(record)
                digests += each
        if any(frames):
            self.progress.note(
                f"{counted(sum(frames), 'file')} of {self.name} with several frames or pages: the "
                "first of each is used"
            )
        found = self._finish(records, digests, stored=stored)
        for at in range(self.count):
            self._record_path(at).unlink(missing_ok=True)
        return found

    def _finish(
        self, records: Sequence[_Record], digests: bytes | bytearray, *, stored: bool
    ) -> _Manifest:
        """Write the digests of all images and the manifest, when every shard is done."""
        with atomic_write(self._digests_path) as out:
            out.write(digests)
        found = _Manifest(
            tuple(records), stored=stored, image_digests=digest_of_bytes(bytes(digests))
        )
        write_json(
            self.folder / "manifest.json",
            {
                "schema": SCHEMA,
                "key": self.key,
                "name": self.name,
                "rows": len(self.source) - sum(len(record.skipped) for record in records),
                "stored": stored,
                "image_digests": found.image_digests,
                "shards": [asdict(record) for record in records],
            },
        )
        return found

    def _finished(self) -> tuple[list[_Record], bytearray]:
        """Return the records of the first shards, up to the first that is missing.

        With them the digests of their images.
        """
        records: list[_Record] = []
        digests = bytearray()
        for at in range(self.count):
            try:
                content = read_json(self._record_path(at))
                record, each = _Record.of_json(content), bytes.fromhex(content["images"])
            except (FileNotFoundError, CorruptArtifactError, KeyError, TypeError, ValueError):
                break
            records.append(record)
            digests += each
        return records, digests

    def _image_digests(self, manifest: _Manifest) -> NDArray[np.uint64] | None:
        """Return the digest of every image that could be read; None if they are not stored."""
        try:
            content = self._digests_path.read_bytes()
        except OSError:
            return None
        if digest_of_bytes(content) != manifest.image_digests:
            return None
        return np.frombuffer(content, np.uint64)

    @property
    def _digests_path(self) -> Path:
        return self.folder / "digests.bin"

    def _opened(self, at: int, *, stored: bool) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open the file of a shard to write it, or one that is gone afterwards."""
        size = len(self.rows(at)) * 3 * math.prod(self.resizing.size)
        return (
            atomic_write(self._path(at), size=size)
            if stored
            else scratch_file(self.folder, size=size)
        )

    def _gather(
        self,
        file: IO[bytes],
        images: Iterator[NDArray[np.uint8] | UnreadableImageError],
        at: int,
        *,
        skip_unreadable: bool,
        task: Task | None = None,
    ) -> tuple[PixelFile, tuple[_Skipped, ...], bytes]:
        """Take the images of a shard from an iterator into a file; with digests of the images."""
        rows = self.rows(at)
        writer = PixelWriter(file, self.resizing.size)
        skipped: list[_Skipped] = []
        for nth, row in enumerate(rows, start=1):
            image = next(images)
            if not isinstance(image, UnreadableImageError):
                writer.add(image)
            elif skip_unreadable:
                skipped.append(_Skipped(row, image.where, image.reason))
            else:
                raise image
            if task is not None and (nth % _ROWS_PER_ADVANCE == 0 or nth == len(rows)):
                task.advance((nth - 1) % _ROWS_PER_ADVANCE + 1)
        return writer.finished(), tuple(skipped), bytes(writer.image_digests)

    def chunks(self, at: int, manifest: _Manifest) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of a shard in order, uint8 ``(m, 3, h, w)``, checked."""
        if not manifest.stored:
            yield from self._again(at, manifest)
            return
        with self._whole(at, manifest) as pixels:
            yield from pixels.chunks()

    @contextlib.contextmanager
    def _whole(self, at: int, manifest: _Manifest) -> Iterator[PixelFile]:
        """Open the pixels of a shard as they were written, which are made again if need be."""
        with contextlib.ExitStack() as opened:
            pixels = self._read(at, manifest, opened)
            if pixels is None:
                with self.store.lock(self.lock_name, progress=self.progress):
                    # Another process may have made it again while this one waited.
                    pixels = self._read(at, manifest, opened) or self._repaired(
                        at, manifest, opened
                    )
            yield pixels

    def _repaired(self, at: int, manifest: _Manifest, opened: contextlib.ExitStack) -> PixelFile:
        """Decode a shard whose stored pixels are not what was written, and store them."""
        self.progress.note(
            f"stored images of {self.name} are missing or damaged ({self._path(at)}); "
            "reading them again"
        )
        known, rows = manifest.records[at], self.rows(at)
        with open_pools() as pools, self._opened(at, stored=True) as file:
            images = resized(pools, self.source, rows.start, rows.stop, self.resizing.apply)
            made, skipped, _ = self._gather(file, images, at, skip_unreadable=bool(known.skipped))
            if _Record(made.digest, skipped) != known:
                raise self._changed(at)
        pixels = self._read(at, manifest, opened)
        assert pixels is not None  # it has just been written
        return pixels

    def _again(self, at: int, manifest: _Manifest) -> Iterator[NDArray[np.uint8]]:
        """Decode a shard that was decoded before; the last chunk when all are found unchanged.

        The pools are those of the command, for whoever stops early must not have to end any.
        """
        known, rows = manifest.records[at], self.rows(at)
        images = resized(command_pools(), self.source, rows.start, rows.stop, self.resizing.apply)
        size = self.resizing.size
        count = len(rows) - len(known.skipped)
        digest = Digest(np.dtype(np.uint8), (count, 3, *size))
        skipped: list[_Skipped] = []
        chunk: list[NDArray[np.uint8]] = []
        for row, image in zip(rows, images, strict=True):
            if isinstance(image, UnreadableImageError):
                if not known.skipped:
                    raise image
                skipped.append(_Skipped(row, image.where, image.reason))
                continue
            if len(chunk) == chunk_rows(*size):
                yield np.stack(chunk)
                chunk = []
            chunk.append(np.ascontiguousarray(image.transpose(2, 0, 1)))
            digest.update(chunk[-1])
        if _Record(digest.hexdigest(), tuple(skipped)) != known:
            raise self._changed(at)
        if chunk:
            yield np.stack(chunk)

    def _changed(self, at: int) -> CorruptArtifactError:
        """Let no pixels pass for those that results are stored of, and say so."""
        (self.folder / "manifest.json").unlink(missing_ok=True)
        rows = self.rows(at)
        return CorruptArtifactError(
            f"images {rows.start} to {rows.stop - 1} of {self.name} have changed since they were "
            "read; run the same command again"
        )

    def _read(self, at: int, manifest: _Manifest, opened: contextlib.ExitStack) -> PixelFile | None:
        """Open the pixels of a shard; None if they are not there as written."""
        try:
            pixels = PixelFile.of(opened.enter_context(self._path(at).open("rb")))
            return pixels if pixels.digest == manifest.records[at].digest else None
        except (OSError, CorruptArtifactError):
            return None

    def _path(self, at: int) -> Path:
        return self.folder / f"{at:05d}.npy"

    def _record_path(self, at: int) -> Path:
        return self.folder / f"{at:05d}.json"


def _rows_of(
    read: Callable[[], NDArray[np.uint64] | None], start: int, stop: int
) -> NDArray[np.uint64] | None:
    digests = read()
    return None if digests is None else digests[start:stop]
