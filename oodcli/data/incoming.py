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

from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.decoding.files import (
    FileSource,
    decode,
    decode_stream,
    is_image_entry,
    is_image_name,
)
from oodcli.data.decoding.frames import frames_in
from oodcli.data.opening import is_named, open_dataset
from oodcli.data.reader import without_columns
from oodcli.data.readers import is_known_suffix, is_there, open_path, reader_of
from oodcli.errors import InvalidInputError, OodError, UnreadableImageError
from oodcli.files import check_file
from oodcli.images import ImageSource, key_in
from oodcli.pillow import extension_of
from oodcli.pools import map_ahead, thread_count
from oodcli.store.store import Store
from oodcli.text import printable
from oodcli.windows import Window

STDIN = "-"
# Entries of a folder that are sorted at a time.
SORTED = 2**16
_PER_TASK = 4

Pixels = NDArray[np.uint8]
Resize = Callable[[Pixels], Pixels]


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
    """

    name: str
    path: str
    relative: str
    row: int | None = None
    pixels: Pixels | None = None
    data: bytes | None = None
    error: str | None = None
    as_published: bool = False


def items(paths: Sequence[str], listed: Iterable[str] = (), *, store: Store) -> Iterator[Item]:
    """Return all images of files, folders, archives, …, in the order in which they are named.

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

    Raises
    ------
    InvalidInputError
        If something that was named in ``paths`` does not exist or cannot be read.

    Notes
    -----
    What readers open is opened at once, so that what cannot be used is refused before any work. A
    folder is read name by name, sorted; of one with more than 65,536 entries each block of this
    size is sorted separately. Hidden files and folders, and files whose ending is not that of an
    image, are skipped, unless they are named themselves. Links are followed, but not in circles.
    """
    names = {text for text in paths if text != STDIN and not _is_path(text)}
    for text in names:
        if not is_named(text, store):
            raise InvalidInputError(f"there is no file or folder {text}; check its name")
    # With several folders their own names tell what is copied from them apart.
    prefixes = {text: Path(text).resolve().name if len(paths) > 1 else "" for text in paths}
    found = [
        _all_listed(listed, store)
        if text == STDIN
        else _of_name(text, store)
        if text in names
        else _named(text, store, prefix=prefixes[text])
        for text in paths
    ]
    return chain.from_iterable(found)


def _is_path(text: str) -> bool:
    return is_there(Path(text)) or is_there(Path(without_columns(text)[0]))


def _of_name(text: str, store: Store) -> Iterator[Item]:
    dataset = open_dataset(text, store, role="ood")
    return _of_source(dataset.ood_part.source, text, dataset.name)


def _all_listed(listed: Iterable[str], store: Store) -> Iterator[Item]:
    for line in listed:
        if line:
            yield from _listed(line, store)


def _listed(text: str, store: Store) -> Iterator[Item]:
    if "\0" in text:
        yield Item(text, "", "", error="a path cannot hold a zero byte; write one path per line")
        return
    try:
        yield from _named(text, store, prefix=_below(text))
    except OodError as error:
        yield Item(text, text, _below(text), error=str(error))


def _below(text: str) -> str:
    """Return a path that cannot lead out of the folder that it is put below."""
    return "/".join(part for part in PurePath(text).parts if part not in ("/", "\\", "..", "."))


def _named(text: str, store: Store, *, prefix: str) -> Iterator[Item]:
    """Return the images of a path; what a reader opens is opened now."""
    is_folder = os.path.isdir(text)  # noqa: PTH112 - a million lines may name one each
    if not is_folder and is_image_name(text):
        return iter([Item(text, text, prefix or Path(text).name)])
    path, columns = (text, None) if os.path.exists(text) else without_columns(text)  # noqa: PTH110
    reader = reader_of(Path(path))
    if reader is not None and not reader.walked:
        name = Path(path).name
        dataset = open_path(Path(path), store, name=name, spec=text, role="ood", columns=columns)
        return _of_source(dataset.ood_part.source, path, prefix or name)
    if is_folder:
        return _walk(text, prefix, ())
    if is_known_suffix(path):
        check_file(Path(path), "check its name")
    return iter([Item(text, text, prefix or Path(text).name)])


def _of_source(source: ImageSource, path: str, relative: str) -> Iterator[Item]:
    """Yield the images of a source, with the keys of their rows."""
    if isinstance(source, FileSource):
        yield from _of_files(source)
    elif isinstance(source, EncodedSource):
        yield from _of_encoded(source, path, relative)
    else:
        yield from _of_array(source, path, relative)


def _of_files(source: FileSource) -> Iterator[Item]:
    """Yield image files; they are read where they are decoded."""
    for row, file in enumerate(source.files):
        key = source.key_of(row)
        error = source.problem_of(row)
        path = "" if error else os.path.join(source.root, file)  # noqa: PTH118
        yield Item(key, path, _below(file), row, error=error, as_published=source.as_published)


def _of_encoded(source: EncodedSource, path: str, relative: str) -> Iterator[Item]:
    """Yield the bytes of image files, read in order."""
    try:
        for row, content in enumerate(source.contents(0, len(source))):
            key = source.key_of(row)
            below = f"{relative}/{_below(source.name_of(row))}"
            if isinstance(content, UnreadableImageError):
                yield Item(key, path, below, row, error=content.reason)
            else:
                if not is_image_name(below):
                    below += extension_of(content)
                yield Item(key, path, below, row, data=content, as_published=source.as_published)
    except OodError as error:
        yield Item(path, path, relative, error=str(error))


def _of_array(source: ImageSource, path: str, relative: str) -> Iterator[Item]:
    """Yield pixels, read in order."""
    row = 0
    try:
        for row, image in enumerate(source.read(0, len(source))):
            name, below = key_in(source, row, path=path), f"{relative}[{row}].png"
            if isinstance(image, UnreadableImageError):
                yield Item(name, path, below, row, error=image.reason)
            else:
                yield Item(name, path, below, row, image)
    except OodError as error:
        yield Item(path, path, relative, error=f"damaged after row {row}: {error}")


def _walk(folder: str, relative: str, above: tuple[str, ...]) -> Iterator[Item]:
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
                        yield from _walk(entry.path, below, (*above, real))
                    # A link to nothing is kept, so that it is reported; pipes are not.
                    elif is_image_entry(entry):
                        yield Item(entry.path, entry.path, below)
    except OSError as error:
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
    wanted: Iterable[Item], resize: Resize, pool: Executor, window: Window | None = None
) -> Iterator[tuple[Item, Pixels | str]]:
    """Decode and resize images ahead of the reader, and yield them in order.

    Parameters
    ----------
    wanted
        The images.
    resize
        Brings an image to its size.
    pool
        Threads that do it.
    window
        Which values of medical images are black and white.

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
        yield from _each(resize, window, some)
        return
    iterator = chain(some, iterator)
    tasks = iter(lambda: list(islice(iterator, _PER_TASK)), [])
    for done in map_ahead(pool, partial(_each, resize, window), tasks, depth=4 * thread_count()):
        yield from done


def _each(
    resize: Resize, window: Window | None, some: Sequence[Item]
) -> list[tuple[Item, Pixels | str]]:
    return [(item, _pixels(item, resize, window)) for item in some]


def _pixels(item: Item, resize: Resize, window: Window | None) -> Pixels | str:
    if item.error is not None:
        return item.error
    try:
        # Resized at once, so that no more than one large image a thread is held.
        return resize(_full_size(item, window))
    except UnreadableImageError as error:
        return error.reason


def _full_size(item: Item, window: Window | None) -> Pixels:
    if item.pixels is not None:
        return item.pixels
    if item.data is not None:
        return decode_stream(
            io.BytesIO(item.data),
            where=printable(item.name),
            as_published=item.as_published,
            window=window,
        )
    return decode(Path(item.path), as_published=item.as_published, window=window)
