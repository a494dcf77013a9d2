"""Incoming images to judge: files, folders, all that a reader opens, and paths, read as a stream.

Nothing here holds more than a bounded number of paths or images, however many there are.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Texts
from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.decoding.files import (
    FileSource,
    decode,
    decode_stream,
    find_images,
    frame_of,
    is_image_entry,
    is_image_name,
    several_frames,
)
from oodcli.data.decoding.frames import frames_in
from oodcli.data.decoding.remote import RemoteFiles
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.opening import is_named, open_dataset
from oodcli.data.reader import Columns, Reader, without_columns
from oodcli.data.readers import is_known_suffix, is_there, no_reader, open_path, reader_of
from oodcli.data.sharding import Shard
from oodcli.errors import InvalidInputError, OodError, UnreadableImageError
from oodcli.files import check_file, reason_of
from oodcli.images import ImageSource, key_in
from oodcli.pillow import extension_of
from oodcli.pools import map_ahead, thread_count
from oodcli.progress import Progress
from oodcli.remote.addresses import is_address, without_credentials
from oodcli.remote.errors import RemoteError
from oodcli.remote.files import path_of, use_cache
from oodcli.store.store import Store
from oodcli.text import printable
from oodcli.windows import Window

STDIN = "-"
# Entries of a folder that are sorted at a time.
SORTED = 2**16
_PER_TASK = 4

Pixels = NDArray[np.uint8]
# Whether an image of some name belongs to the shard of this process.
Owns = Callable[[str], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """An image to read.

    Parameters
    ----------
    name
        How it is called in results: the path as it was given, or the key of its row, such as
        ``FILE.npz[ROW]``.
    path
        The file that it is, or lies in.
    relative
        Where it belongs below a folder that a copy of it is put into.
    row
        Row of the array in an ``.npz`` file; None for an image file.
    pixels
        The image ``(h, w, 3)``, where it comes out of an array.
    data
        The bytes of an image file that has no path.
    error
        Why there is no image.
    as_published
        As for :func:`oodcli.data.decoding.files.decode`.
    group
        Group of the image, such as its day; None without one.
    frame
        Which frame of a medical image it is, where ``data`` has several; else the path names it.
    """

    name: str
    path: str
    relative: str
    row: int | None = None
    pixels: Pixels | None = None
    data: bytes | None = None
    error: str | None = None
    as_published: bool = False
    group: str | None = None
    frame: int | None = None


def items(
    paths: Sequence[str],
    listed: Iterable[str] = (),
    *,
    store: Store,
    shard: Shard | None = None,
    window: Window | None = None,
) -> Iterator[Item]:
    """Return the images of files, folders, archives, …, in the order in which they are named.

    Parameters
    ----------
    paths
        Files, folders with all below them, and what else a reader opens
        (:mod:`oodcli.data.readers`), or names of data sets, whose OOD images are taken; ``-``
        stands for ``listed``.
    listed
        More paths. A problem with one of these becomes the error of its item.
    store
        Holds named data sets, and the indices of readers.
    shard
        The part of the images that is wanted; all if None.
    window
        Which values of medical images are black and white, and how volumes are sliced: each frame
        or slice is an image.

    Raises
    ------
    InvalidInputError
        If something that was named in ``paths`` does not exist or cannot be read.
    RemoteError
        If a server does not answer, also while the items are read: other than an image that cannot
        be read, it is no reason to go on without all images of that server.

    Notes
    -----
    What readers open is opened at once, so that what cannot be used is refused before any work. A
    folder is read name by name, sorted; of one with more than 65,536 entries each block of this
    size is sorted separately. Hidden files and folders, and files whose ending is not that of an
    image, are skipped, unless they are named themselves. Links are followed, but not in circles.

    An image file belongs to a shard by its name relative to the folder, list or table that was
    given; one that was given itself, or in ``listed``, by its path as given, without a leading
    ``/`` and ``..``. If ``paths`` name at least as many files with many images (archives, tables
    with images in them, arrays) as there are shards, each belongs to one shard, in turn; else every
    shard has consecutive rows of each of them. One in ``listed`` belongs to a shard by its path.
    """
    use_cache(store.remote)
    paths = [without_credentials(text) for text in paths]
    names = {text for text in paths if text != STDIN and not _is_path(text)}
    for text in names:
        if not is_named(text, store):
            raise InvalidInputError(f"there is no file or folder {text}; check its name")
    # With several folders their own names tell what is copied from them apart.
    prefixes = {text: path_of(text).resolve().name if len(paths) > 1 else "" for text in paths}
    owns = _every if shard is None else shard.owns
    found: list[Iterator[Item] | _Container] = [
        _all_listed(listed, store, owns)
        if text == STDIN
        else _of_name(text, store, window)
        if text in names
        else _named(text, store, owns, _without(prefixes[text], owns), prefix=prefixes[text])
        for text in paths
    ]
    return framed(chain.from_iterable(_shared(found, shard)), window)


def distinct(paths: Sequence[str], progress: Progress) -> tuple[str, ...]:
    """Return what was given, without what was given before.

    Parameters
    ----------
    paths
        Files, folders, addresses or names of data sets; ``A``, ``A/`` and ``./A`` are the same.
    progress
        Receives a note with the paths that are left out: their images would be counted twice.
    """
    found: dict[str, str] = {}
    repeated: dict[str, None] = {}
    for path in paths:
        # Without the disk: an address or a name stays what it is.
        key = path if is_address(path) else os.path.normpath(path)
        if key in found:
            repeated[printable(without_credentials(path))] = None
        found.setdefault(key, path)
    if repeated:
        progress.note(f"given more than once, and read once: {', '.join(repeated)}")
    return tuple(found.values())


def named_columns(paths: Sequence[str]) -> dict[str, str]:
    """Return the columns that are named behind paths, by the path without them.

    Parameters
    ----------
    paths
        As for :func:`items`.
    """
    divided = (without_columns(path) for path in paths if not os.path.exists(path))  # noqa: PTH110
    return {without_credentials(path): str(columns) for path, columns in divided if columns}


def at_least_one(wanted: Iterator[Item], paths: Sequence[str]) -> Iterator[Item]:
    """Return the same images after checking that there is at least one.

    Parameters
    ----------
    wanted
        The images.
    paths
        What was given, for the message.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    first = next(wanted, None)
    if first is None:
        named = [
            "stdin" if path == STDIN else printable(without_credentials(path)) for path in paths
        ]
        raise InvalidInputError(
            f"there is no image in {', '.join(named)}; give other paths: in folders, only files "
            "with an image extension are read, and hidden files are skipped"
        )
    return chain([first], wanted)


def _is_path(text: str) -> bool:
    if is_address(text):
        return True
    wholes = (text, without_columns(text)[0], frame_of(text)[0])
    return any(is_there(Path(whole)) for whole in wholes)


def _every(_name: str) -> bool:
    return True


def _without(prefix: str, owns: Owns) -> Owns:
    """Return which names below a prefix belong to a shard, by what follows the prefix."""
    if not prefix or owns is _every:
        return owns
    start = len(prefix) + 1
    return lambda name: owns(name[start:])


@dataclass(frozen=True)
class _Container:
    """One whole with many images, which a reader opens.

    Parameters
    ----------
    path
        What was given.
    relative
        Where its images belong below a folder of copies.
    opened
        Opens it.
    files
        The files that it consists of, where each can be opened alone; empty if it is one file.
    """

    path: str
    relative: str
    opened: Callable[[], ImageSource]
    files: Sequence["_Container"] = ()

    def items(self, shard: Shard | None = None) -> Iterator[Item]:
        """Open it, and return the images of the rows of a shard; all if None."""
        source = self.opened()
        rows = range(len(source)) if shard is None else shard.rows(len(source))
        return _of_source(source, self.path, self.relative, rows)


def _shared(
    found: Sequence[Iterator[Item] | _Container], shard: Shard | None
) -> list[Iterator[Item]]:
    """Open the containers that a shard needs, whole or in part, and return all images."""
    if shard is None:
        return [each.items() if isinstance(each, _Container) else each for each in found]
    parts = [(each.files or (each,)) if isinstance(each, _Container) else () for each in found]
    own = {id(each) for each in shard.chosen([each for part in parts for each in part])}
    whole = sum(map(len, parts)) >= shard.count
    images: list[Iterator[Item]] = []
    for each, files in zip(found, parts, strict=True):
        if not isinstance(each, _Container):
            images.append(each)
        elif whole:
            images += [file.items() for file in files if id(file) in own]
        else:
            images.append(each.items(shard))
    return images


def _of_name(text: str, store: Store, window: Window | None) -> _Container:
    dataset = open_dataset(text, store, role="ood", window=window)
    return _Container(text, dataset.name, lambda: dataset.ood_part.source)


def _all_listed(listed: Iterable[str], store: Store, owns: Owns) -> Iterator[Item]:
    for line in listed:
        if line:
            yield from _listed(without_credentials(line), store, owns)


def _listed(text: str, store: Store, owns: Owns) -> Iterator[Item]:
    below = _below(text)
    # Whether most lines belong to a shard is decided by their names alone, without the disk.
    mine = owns(below)
    if not mine and ("\0" in text or is_image_name(text)):
        return
    if "\0" in text:
        yield Item(text, "", "", error="a path cannot hold a zero byte; write one path per line")
        return
    try:
        inside = _every if is_image_name(text) else owns
        found = _named(text, store, owns, inside, prefix=below)
        if not isinstance(found, _Container):
            yield from found
        elif mine:
            yield from found.items()
    except RemoteError as error:
        if not error.is_of_file:
            raise
        if mine:
            yield Item(text, text, below, error=error.reason)
    except (OodError, OSError) as error:  # such as a line that is longer than any path
        if mine:
            reason = str(error) if isinstance(error, OodError) else reason_of(error).lower()
            yield Item(text, text, below, error=reason)


def _below(text: str) -> str:
    """Return a path that cannot lead out of the folder that it is put below."""
    return "/".join(part for part in PurePath(text).parts if part not in ("/", "\\", "..", "."))


def _named(
    text: str, store: Store, owns: Owns, inside: Owns, *, prefix: str
) -> Iterator[Item] | _Container:
    """Return the images of a path, or what a reader opens.

    ``owns`` says which paths, and names in lists, belong to the shard; ``inside``, which names in a
    folder do, below ``prefix``.
    """
    if is_address(text):
        return _remote(text, store, owns, inside, prefix=prefix)
    is_folder = os.path.isdir(text)  # noqa: PTH112 - a million lines may name one each
    if not is_folder and is_image_name(frame_of(text)[0]):
        return _file(text, owns, prefix)
    path, columns = (text, None) if os.path.exists(text) else without_columns(text)  # noqa: PTH110
    reader = reader_of(Path(path))
    if reader is not None and not reader.walked:
        spec = _Spec(reader, text, columns, store)
        return _read_by(spec, path, prefix or Path(path).name, owns)
    if is_folder:
        return _walk(text, prefix, (), inside)
    if is_known_suffix(path):
        check_file(Path(path), "check its name")
    return _file(text, owns, prefix)


def _remote(
    text: str, store: Store, owns: Owns, inside: Owns, *, prefix: str
) -> Iterator[Item] | _Container:
    """Return the images of an address, or what a reader opens."""
    whole, columns = without_columns(text)
    path = path_of(whole)
    if is_image_name(frame_of(str(path))[0]):
        source = RemoteFiles(path.parent, Texts.of([path.name]))
        rows = range(1 if owns(_below(str(path))) else 0)
        return _of_source(source, str(path), prefix.rpartition("/")[0], rows)
    if not is_there(path):
        raise InvalidInputError(f"there is no file or folder {path}; check its name")
    reader = reader_of(path)
    if reader is None:
        raise no_reader(path)
    if reader.walked:
        every = find_images(path)
        files = Texts.of(name for name in every if inside(f"{prefix}/{name}".lstrip("/")))
        return _of_source(RemoteFiles(path, files), str(path), prefix, range(len(files)))
    spec = _Spec(reader, text, columns, store)
    return _read_by(spec, str(path), prefix or path.name, owns)


def _file(text: str, owns: Owns, prefix: str) -> Iterator[Item]:
    if owns(_below(text)):
        yield Item(text, text, prefix or Path(text).name)


@dataclass(frozen=True)
class _Spec:
    """What is opened, and by which reader."""

    reader: Reader
    text: str
    columns: Columns | None
    store: Store

    def source(self, path: Path) -> ImageSource:
        """Open the path, or one of its files."""
        dataset = open_path(
            path, self.store, name=path.name, spec=self.text, role="ood", columns=self.columns
        )
        return dataset.ood_part.source


def _read_by(spec: _Spec, path: str, relative: str, owns: Owns) -> Iterator[Item] | _Container:
    """Return the images that a list names, or a container of images."""
    opened = partial(spec.source, path_of(path))
    if spec.reader.names_files:
        source = opened()
        if isinstance(source, FileSource):
            return _of_files(source, range(len(source)), owns)
        return _Container(path, relative, lambda: source)
    files: list[_Container] = []
    if owns is not _every and spec.reader.files is not None:
        folder, names = spec.reader.files(path_of(path), spec.columns)
        for name in names if len(names) > 1 else ():
            below = "/".join((relative, *PurePath(name).parts[:-1]))
            files.append(_Container(path, below, partial(spec.source, folder / name)))
    return _Container(path, relative, opened, files)


def _of_source(source: ImageSource, path: str, relative: str, rows: range) -> Iterator[Item]:
    """Yield images of a source, with the keys of their rows."""
    if isinstance(source, FileSource):
        yield from _of_files(source, rows)
    elif isinstance(source, EncodedSource):
        yield from _of_encoded(source, path, relative, rows)
    else:
        yield from _of_array(source, path, relative, rows)


def _of_files(source: FileSource, rows: range, owns: Owns = _every) -> Iterator[Item]:
    """Yield image files; they are read where they are decoded."""
    for row in rows:
        file = source.files[row]
        below = _below(file)
        if not owns(below):
            continue
        key = source.key_of(row)
        error = source.problem_of(row)
        path = "" if error else os.path.join(source.root, file)  # noqa: PTH118
        yield Item(key, path, below, row, error=error, as_published=source.as_published)


def _of_encoded(source: EncodedSource, path: str, relative: str, rows: range) -> Iterator[Item]:
    """Yield the bytes of image files, read in order."""
    try:
        for row, content in enumerate(source.contents(rows.start, rows.stop), rows.start):
            key = source.key_of(row)
            below = f"{relative}/{_below(source.name_of(row))}".lstrip("/")
            if isinstance(content, UnreadableImageError):
                yield Item(key, path, below, row, error=content.reason)
            else:
                if not is_image_name(below):
                    below += extension_of(content)
                published, frame = source.as_published, source.frame_at(row)
                yield Item(key, path, below, row, data=content, as_published=published, frame=frame)
    except RemoteError:
        raise  # the command can be run again, and resumes with the images that have no row
    except OodError as error:
        yield Item(path, path, relative, error=str(error))


def _of_array(source: ImageSource, path: str, relative: str, rows: range) -> Iterator[Item]:
    """Yield pixels, read in order."""
    row = rows.start
    try:
        for row, image in enumerate(source.read(rows.start, rows.stop), rows.start):
            name, below = key_in(source, row, path=path), f"{relative}[{row}].png"
            if isinstance(image, UnreadableImageError):
                yield Item(name, path, below, row, error=image.reason)
            else:
                yield Item(name, path, below, row, image)
    except RemoteError:
        raise
    except OodError as error:
        yield Item(path, path, relative, error=f"damaged after row {row}: {error}")


def _walk(folder: str, relative: str, above: tuple[str, ...], owns: Owns) -> Iterator[Item]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            while some := list(islice(entries, SORTED)):
                for entry in sorted(some, key=lambda each: each.name):
                    if entry.name.startswith("."):
                        continue
                    below = f"{relative}/{entry.name}" if relative else entry.name
                    if entry.is_dir():
                        yield from _walk(entry.path, below, (*above, real), owns)
                    # A link to nothing is kept, so that it is reported; pipes are not.
                    elif owns(below) and is_image_entry(entry):
                        yield Item(entry.path, entry.path, below)
    except OSError as error:
        if owns(relative):
            reason = f"cannot list the folder: {error.strerror or error}"
            yield Item(folder, folder, relative, error=reason)


def framed(wanted: Iterable[Item], window: Window | None) -> Iterator[Item]:
    """Yield the images, those of a medical image with several frames or slices one by one.

    Parameters
    ----------
    wanted
        The images; files are opened to count their frames if they are named as medical images.
    window
        How volumes are sliced.
    """
    for item in wanted:
        is_file = item.error is None and item.pixels is None and item.data is None
        # A row of a list or table is one image, and names its frame.
        count = frames_in(item.path, window) if is_file and item.row is None else 1
        if count == 1:
            yield item
            continue
        for frame in range(count):
            name, path, below = (
                f"{each}[{frame}]" for each in (item.name, item.path, item.relative)
            )
            yield replace(item, name=name, path=path, relative=below)


def decoded(
    wanted: Iterable[Item],
    resizing: Resizing,
    pool: Executor,
    window: Window | None,
    *,
    several: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[Item, Pixels | str]]:
    """Decode and resize images ahead of the reader, and yield them in order.

    Parameters
    ----------
    wanted
        The images.
    resizing
        How the images get to their size.
    pool
        Threads that do it.
    window
        Which values of medical images are black and white.
    several
        Called with numbers of files that have several frames or pages, whose first was decoded.

    Yields
    ------
    item
        The image's item.
    image
        Its pixels ``(h, w, 3)`` at their size, or why it cannot be read.
    """
    iterator = iter(wanted)
    some = list(islice(iterator, _PER_TASK))
    if len(some) < _PER_TASK:  # so few that a thread is not worth its start
        images, count = _each(resizing, window, some)
        if count:
            several(count)
        yield from images
        return
    iterator = chain(some, iterator)
    tasks = iter(lambda: list(islice(iterator, _PER_TASK)), [])
    work = partial(_each, resizing, window)
    for images, count in map_ahead(pool, work, tasks, depth=4 * thread_count()):
        if count:
            several(count)
        yield from images


def _each(
    resizing: Resizing, window: Window | None, some: Sequence[Item]
) -> tuple[list[tuple[Item, Pixels | str]], int]:
    """Return the images of some items, and how many files of several frames were among them."""
    before = several_frames()
    images = [(item, _pixels(item, resizing, window)) for item in some]
    return images, several_frames() - before


def _pixels(item: Item, resizing: Resizing, window: Window | None) -> Pixels | str:
    if item.error is not None:
        return item.error
    try:
        # Resized at once, so that no more than one large image a thread is held.
        return resizing.apply(full_size(item, window, to=resizing))
    except UnreadableImageError as error:
        return error.reason


def full_size(item: Item, window: Window | None, *, to: Resizing | None = None) -> Pixels:
    """Return the pixels of an image ``(h, w, 3)`` as it lies there.

    Parameters
    ----------
    item
        The image.
    window
        Which values of medical images are black and white.
    to
        How it will be resized, as for :func:`oodcli.data.decoding.files.decode`.

    Raises
    ------
    UnreadableImageError
        If it cannot be read.
    """
    if item.pixels is not None:
        return item.pixels
    if item.data is not None:
        return decode_stream(
            io.BytesIO(item.data),
            where=printable(item.name),
            as_published=item.as_published,
            window=window,
            frame=item.frame,
            to=to,
        )
    path = path_of(item.path)
    return decode(path, as_published=item.as_published, window=window, to=to)
