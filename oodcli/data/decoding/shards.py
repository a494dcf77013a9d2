"""The shards of prepared images: decoded, stored, checked, and decoded again where need be."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.kept import KeptPixels, KeptSet
from oodcli.data.decoding.pixels import PixelFile, PixelWriter
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.decoding.workers import Image, resized
from oodcli.errors import CorruptArtifactError, UnreadableImageError
from oodcli.images import (
    SHARD_ROWS,
    Digest,
    ImageSet,
    ImageShard,
    ImageSource,
    Part,
    chunk_rows,
    digest_of,
)
from oodcli.pools import command_pools, open_pools
from oodcli.progress import Progress, Task
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
# In place of the digest of images that were not to be decoded.
UNDECODED = "undecoded"

_ROWS_PER_ADVANCE = 32


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was skipped."""

    row: int
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a finished shard."""

    digest: str
    skipped: tuple[Skipped, ...]

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> "Record":
        """Return the record that a manifest, or the file of a shard, holds."""
        return cls(str(content["digest"]), tuple(Skipped(**entry) for entry in content["skipped"]))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of all shards, whether their pixels are stored, and the file of digests."""

    records: tuple[Record, ...]
    stored: bool
    image_digests: str = ""


@dataclass(frozen=True)
class Shards:
    """The shards of one source at one size.

    Parameters
    ----------
    store, name, progress
        As for :func:`oodcli.data.decoding.prepare.prepare`.
    source
        The original images.
    resizing
        The size of the prepared images, and how they are resized to it.
    kept
        Keeps pixels that are not stored for further passes; None to decode for each pass.
    """

    store: Store
    source: ImageSource
    resizing: Resizing
    name: str
    progress: Progress
    kept: KeptPixels | None = None

    @cached_property
    def key(self) -> dict[str, Any]:
        """What the stored images depend on."""
        return {
            "source": self.source.fingerprint,
            "size": list(self.resizing.size),
            "resize": self.resizing.key,
            "schema": SCHEMA,
        }

    @cached_property
    def folder(self) -> Path:
        """Where they are stored."""
        return self.store.images / digest_of_json(self.key)

    @property
    def lock_name(self) -> str:
        """Name of the lock that whoever writes them holds."""
        return f"images/{self.folder.name}"

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.source) // SHARD_ROWS)

    def rows(self, at: int) -> range:
        """Return the rows of the source that belong to a shard."""
        return range(at * SHARD_ROWS, min((at + 1) * SHARD_ROWS, len(self.source)))

    def kept_rows(self, at: int, record: Record) -> NDArray[np.int64]:
        """Return the rows of a shard that could be read."""
        left_out = [skipped.row for skipped in record.skipped]
        return np.setdiff1d(np.array(self.rows(at), dtype=np.int64), left_out)

    def manifest(self) -> Manifest | None:
        """Return what was written when all shards were done; None if it cannot be relied on."""
        try:
            content = read_json(self.folder / "manifest.json")
            records = tuple(Record.of_json(entry) for entry in content["shards"])
            if content["key"] == self.key and len(records) == self.count:
                stored, digests = bool(content["stored"]), str(content.get("image_digests", ""))
                return Manifest(records, stored=stored, image_digests=digests)
        except (FileNotFoundError, CorruptArtifactError, KeyError, TypeError):
            pass
        return None

    def images(self, part: Part, manifest: Manifest) -> ImageSet:
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

    def pixels(self, manifest: Manifest) -> "StoredPixels | None":
        """Return the stored pixels in any order, checked and repaired; None if none are stored."""
        if not manifest.stored:
            return None
        kept = [self.kept_rows(at, record) for at, record in enumerate(manifest.records)]
        starts = []
        for at, rows in enumerate(kept):
            if len(rows):
                with self._whole(at, manifest) as whole:
                    starts.append(whole.start)
            else:
                starts.append(0)
        places = np.full(len(self.source), -1, dtype=np.int64)
        for rows in kept:
            places[rows] = np.arange(len(rows))
        return StoredPixels(
            self.folder,
            self.resizing.size,
            np.array(starts, dtype=np.int64),
            np.arange(len(self.source), dtype=np.int64) // SHARD_ROWS,
            places,
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
        made: Callable[[int, int], Iterator[NDArray[np.uint8]]] | None = None,
    ) -> Manifest:
        """Decode all images that are not yet decoded.

        Parameters
        ----------
        skip_unreadable
            Whether to skip images that cannot be read.
        stored
            Whether pixels are stored.
        seen
            As for :func:`oodcli.data.decoding.prepare.prepare`.
        made
            Returns images from a row on to another at their size, ``(h, w, 3)`` each, where they
            are decoded already; None decodes them.
        """
        if (self.folder / "manifest.json").exists():
            self.progress.note(f"the stored images of {self.name} are damaged; reading them again")
        remove_leftovers(self.folder, older_than_s=0)
        records, digests = self._finished()
        done = min(len(records) * SHARD_ROWS, len(self.source))
        if stored:
            self.check_space(len(self.source) - done)
        with (
            self._decoding(done) if made is None else _as_they_are(made(done, len(self.source)))
        ) as (images, task):
            for at in range(len(records), self.count):
                with self._opened(at, stored=stored) as file:
                    pixels, skipped, each = self._gather(
                        file, images, at, skip_unreadable=skip_unreadable, task=task
                    )
                    record = Record(pixels.digest, skipped)
                    rows = self.kept_rows(at, record)
                    if seen is not None and not stored and len(rows):
                        seen(ImageShard(rows, pixels.chunks, record.digest))
                    elif not stored and (kept := self._kept_set()) is not None:
                        kept.add(self.rows(at).start, pixels.chunks())
                write_json(self._record_path(at), {**asdict(record), "images": each.hex()})
                records.append(record)
                digests += each
        found = self._finish(records, digests, stored=stored)
        for at in range(self.count):
            self._record_path(at).unlink(missing_ok=True)
        return found

    def check_space(self, images: int, *, times: int = 1) -> None:
        """Check that the disk has space for the pixels of images.

        Parameters
        ----------
        images
            Number of images.
        times
            How often they will be on the disk at the same time.

        Raises
        ------
        InvalidInputError
            If it has not.
        """
        needed = times * images * 3 * math.prod(self.resizing.size)
        check_free_space(self.store.root, needed, f"the {len(self.source):,} images of {self.name}")

    @contextlib.contextmanager
    def _decoding(self, start: int) -> Iterator[tuple[Iterator[Image], Task]]:
        """Yield the decoded images from a row on, and the task whose progress is shown."""
        frames: list[int] = []
        label, total = f"reading {self.name}", len(self.source)
        with open_pools() as pools, self.progress.task(label, total=total, unit="images") as task:
            task.advance(start)
            yield (
                resized(pools, self.source, start, total, self.resizing, several=frames.append),
                task,
            )
        if any(frames):
            self.progress.note(
                f"{counted(sum(frames), 'file')} of {self.name} with several frames or pages: the "
                "first of each is used"
            )

    def _finish(
        self, records: Sequence[Record], digests: bytes | bytearray, *, stored: bool
    ) -> Manifest:
        """Write the digests of all images and the manifest, when every shard is done."""
        with atomic_write(self._digests_path) as out:
            out.write(digests)
        found = Manifest(
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

    def _finished(self) -> tuple[list[Record], bytearray]:
        """Return the records of the first shards, up to the first that is missing.

        With them the digests of their images.
        """
        records: list[Record] = []
        digests = bytearray()
        for at in range(self.count):
            try:
                content = read_json(self._record_path(at))
                record, each = Record.of_json(content), bytes.fromhex(content["images"])
            except (FileNotFoundError, CorruptArtifactError, KeyError, TypeError, ValueError):
                break
            records.append(record)
            digests += each
        return records, digests

    def _image_digests(self, manifest: Manifest) -> NDArray[np.uint64] | None:
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
        images: Iterator[Image],
        at: int,
        *,
        skip_unreadable: bool,
        task: Task | None = None,
    ) -> tuple[PixelFile, tuple[Skipped, ...], bytes]:
        """Take the images of a shard from an iterator into a file; with digests of the images."""
        rows = self.rows(at)
        writer = PixelWriter(file, self.resizing.size)
        skipped: list[Skipped] = []
        for nth, row in enumerate(rows, start=1):
            image = next(images)
            if not isinstance(image, UnreadableImageError):
                writer.add(image)
            elif skip_unreadable:
                skipped.append(Skipped(row, image.where, image.reason))
            else:
                raise image
            if task is not None and (nth % _ROWS_PER_ADVANCE == 0 or nth == len(rows)):
                task.advance((nth - 1) % _ROWS_PER_ADVANCE + 1)
        return writer.finished(), tuple(skipped), bytes(writer.image_digests)

    def chunks(self, at: int, manifest: Manifest) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of a shard in order, uint8 ``(m, 3, h, w)``, checked."""
        if not manifest.stored:
            yield from self._again(at, manifest)
            return
        with self._whole(at, manifest) as pixels:
            yield from pixels.chunks()

    @contextlib.contextmanager
    def _whole(self, at: int, manifest: Manifest) -> Iterator[PixelFile]:
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

    def _repaired(self, at: int, manifest: Manifest, opened: contextlib.ExitStack) -> PixelFile:
        """Decode a shard whose stored pixels are not what was written, and store them."""
        self.progress.note(
            f"stored images of {self.name} are missing or damaged ({self._path(at)}); "
            "reading them again"
        )
        known, rows = manifest.records[at], self.rows(at)
        with open_pools() as pools, self._opened(at, stored=True) as file:
            images = resized(pools, self.source, rows.start, rows.stop, self.resizing)
            made, skipped, _ = self._gather(file, images, at, skip_unreadable=bool(known.skipped))
            if Record(made.digest, skipped) != known:
                raise self._changed(at)
        pixels = self._read(at, manifest, opened)
        assert pixels is not None  # it has just been written
        return pixels

    def _again(self, at: int, manifest: Manifest) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of a shard that are not stored: those that are kept, or decoded again.

        The last chunk comes when all are found unchanged.
        """
        known, start = manifest.records[at], self.rows(at).start
        count = len(self.rows(at)) - len(known.skipped)
        kept = self._kept_set()
        if kept is not None and start in kept:
            yield from self._unchanged(at, known, kept.chunks(start, count))
            return
        chunks = self._decoded_again(at, known)
        if kept is not None:
            chunks = kept.adding(start, chunks)
        yield from self._unchanged(at, known, chunks)

    def _unchanged(
        self, at: int, known: Record, chunks: Iterator[NDArray[np.uint8]]
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of a shard; the last chunk when all have the digest of the shard."""
        count = len(self.rows(at)) - len(known.skipped)
        digest = Digest(np.dtype(np.uint8), (count, 3, *self.resizing.size))
        last = None
        for chunk in chunks:
            if last is not None:
                yield last
            digest.update(chunk)
            last = chunk
        if digest.hexdigest() != known.digest:
            raise self._changed(at)
        if last is not None:
            yield last

    def _decoded_again(self, at: int, known: Record) -> Iterator[NDArray[np.uint8]]:
        """Decode a shard that was decoded before, in chunks.

        The pools are those of the command, for whoever stops early must not have to end any.
        """
        rows, size = self.rows(at), self.resizing.size
        images = resized(command_pools(), self.source, rows.start, rows.stop, self.resizing)
        chunk: list[NDArray[np.uint8]] = []
        skipped: list[Skipped] = []
        for row, image in zip(rows, images, strict=True):
            if not isinstance(image, UnreadableImageError):
                chunk.append(np.ascontiguousarray(image.transpose(2, 0, 1)))
            elif known.skipped:
                skipped.append(Skipped(row, image.where, image.reason))
            else:
                raise image
            if len(chunk) == chunk_rows(*size):
                yield np.stack(chunk)
                chunk = []
        if tuple(skipped) != known.skipped:
            raise self._changed(at)
        if chunk:
            yield np.stack(chunk)

    def _kept_set(self) -> KeptSet | None:
        """Return the pixels of this set that are kept for further passes, if any can be."""
        if self.kept is None:
            return None
        return self.kept.of(
            self.folder, self.name, len(self.source), self.resizing.size, self.progress
        )

    def _changed(self, at: int) -> CorruptArtifactError:
        """Let no pixels pass for those that results are stored of, and say so."""
        (self.folder / "manifest.json").unlink(missing_ok=True)
        rows = self.rows(at)
        return CorruptArtifactError(
            f"images {rows.start} to {rows.stop - 1} of {self.name} have changed since they were "
            "read; run the same command again"
        )

    def _read(self, at: int, manifest: Manifest, opened: contextlib.ExitStack) -> PixelFile | None:
        """Open the pixels of a shard; None if they are not there as written."""
        try:
            pixels = PixelFile.of(opened.enter_context(self._path(at).open("rb")))
            return pixels if pixels.digest == manifest.records[at].digest else None
        except (OSError, CorruptArtifactError):
            return None

    def _path(self, at: int) -> Path:
        return self.folder / shard_name(at)

    def _record_path(self, at: int) -> Path:
        return self.folder / f"{at:05d}.json"


@dataclass(frozen=True)
class StoredPixels:
    """Prepared images whose pixels are stored, in any order and without decoding.

    Parameters
    ----------
    folder
        Where the shards are.
    size
        Height and width of the images.
    starts
        Where the first pixel of each shard is in its file, ``(k,)``.
    shards, places
        The shard of every image and its position there, ``(n,)``; position -1 is that of an image
        that was skipped.

    Notes
    -----
    The shards were compared with their digests when this was made. It can be pickled, and worker
    processes read what they need themselves.
    """

    folder: Path
    size: tuple[int, int]
    starts: NDArray[np.int64]
    shards: NDArray[np.int64]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the folder's name, which stands for the images, and of the rows."""
        return digest_of_json([self.folder.name, digest_of(self.shards, self.places)])

    def take(self, rows: NDArray[np.int64], /) -> "StoredPixels":
        """Return chosen images.

        Parameters
        ----------
        rows
            Row numbers, ``(m,)``.
        """
        return replace(self, shards=self.shards[rows], places=self.places[rows])

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``, each ``(h, w, 3)``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Raises
        ------
        CorruptArtifactError
            If a shard no longer exists.
        """
        image, last, file = 3 * math.prod(self.size), -1, None
        with contextlib.ExitStack() as opened:
            for shard, place in zip(
                self.shards[start:stop].tolist(), self.places[start:stop].tolist(), strict=True
            ):
                if file is None or shard != last:
                    opened.close()
                    path, last = self.folder / shard_name(shard), shard
                    try:
                        file = opened.enter_context(path.open("rb", buffering=0))
                    except OSError as error:
                        raise CorruptArtifactError(
                            f"{path} cannot be read: {error.strerror}"
                        ) from None
                content = os.pread(file.fileno(), image, int(self.starts[shard]) + place * image)
                if len(content) != image:
                    raise CorruptArtifactError(f"{self.folder / shard_name(shard)} is cut short")
                yield np.frombuffer(content, np.uint8).reshape(3, *self.size).transpose(1, 2, 0)


def shard_name(at: int) -> str:
    """Return the name of the file with the pixels of a shard."""
    return f"{at:05d}.npy"


@contextlib.contextmanager
def _as_they_are(images: Iterator[Image]) -> Iterator[tuple[Iterator[Image], None]]:
    """Yield images that are decoded already; no progress is shown."""
    yield images, None


def _rows_of(
    read: Callable[[], NDArray[np.uint64] | None], start: int, stop: int
) -> NDArray[np.uint64] | None:
    digests = read()
    return None if digests is None else digests[start:stop]
