"""Incoming images to judge: files, folders, arrays and lists of paths, read as a stream.

Nothing here holds more than a bounded number of paths or images, however many there are.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.files import decode, decode_stream, is_image_name
from oodcli.data.formats.arrays import open_npz
from oodcli.errors import InvalidInputError, OodError, UnreadableImageError
from oodcli.files import check_file
from oodcli.images import ImageSource
from oodcli.pools import map_ahead, thread_count
from oodcli.text import printable

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
        How it is called in results: the path as it was given, or ``FILE.npz[ROW]``.
    path
        The file.
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
    """

    name: str
    path: str
    relative: str
    row: int | None = None
    pixels: Pixels | None = None
    data: bytes | None = None
    error: str | None = None


def items(paths: Sequence[str], listed: Iterable[str] = ()) -> Iterator[Item]:
    """Yield all images of files, folders and arrays, in the order in which they were named.

    Parameters
    ----------
    paths
        Files, folders with all below them, and ``.npz`` files; ``-`` stands for ``listed``.
    listed
        More of them. A problem with one of these becomes the error of its item.

    Raises
    ------
    InvalidInputError
        If an array that was named in ``paths`` cannot be read.

    Notes
    -----
    A folder is read name by name, sorted; of one with more than 65,536 entries each block of this
    size is sorted separately. Hidden files and folders, and files whose ending is not that of an
    image, are skipped, unless they are named themselves. Links are followed, but not in circles.
    """
    for text in paths:
        if text == STDIN:
            for line in listed:
                if line:
                    yield from _listed(line)
        else:
            # With several folders their own names tell what is copied from them apart.
            yield from _named(text, prefix=Path(text).resolve().name if len(paths) > 1 else "")


def _listed(text: str) -> Iterator[Item]:
    if "\0" in text:
        yield Item(text, "", "", error="a path cannot hold a zero byte; write one path per line")
        return
    try:
        yield from _named(text, prefix=_below(text))
    except OodError as error:
        yield Item(text, text, _below(text), error=str(error))


def _below(text: str) -> str:
    """Return a path that cannot lead out of the folder that it is put below."""
    return "/".join(part for part in PurePath(text).parts if part not in ("/", "\\", "..", "."))


def _named(text: str, *, prefix: str) -> Iterator[Item]:
    if os.path.isdir(text):  # noqa: PTH112 - a million lines may name one each
        yield from _walk(text, prefix, ())
    elif is_array(text):
        yield from _of_array(Path(text), prefix or Path(text).name)
    else:
        yield Item(text, text, prefix or Path(text).name)


def is_array(path: str) -> bool:
    """Return whether a path is read as an array file."""
    return path.lower().endswith(".npz")


def open_array(path: Path) -> ImageSource:
    """Open the images of an ``.npz`` file.

    Parameters
    ----------
    path
        The file, as :func:`oodcli.data.formats.arrays.open_npz` takes it.

    Raises
    ------
    InvalidInputError
        If it holds no images.
    """
    return open_npz(path, name=path.name, spec=str(path), role="ood").ood_part.source


def _of_array(path: Path, relative: str) -> Iterator[Item]:
    check_file(path, "check its name")
    source = open_array(path)
    row = 0
    try:
        for row, image in enumerate(source.read(0, len(source))):
            name, below = f"{path}[{row}]", f"{relative}[{row}].png"
            if isinstance(image, UnreadableImageError):
                yield Item(name, str(path), below, row, error=image.reason)
            else:
                yield Item(name, str(path), below, row, image)
    except InvalidInputError as error:
        yield Item(str(path), str(path), relative, error=f"damaged after row {row}: {error}")


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
                    elif is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
                        yield Item(entry.path, entry.path, below)
    except OSError as error:
        reason = f"cannot list the folder: {error.strerror or error}"
        yield Item(folder, folder, relative, error=reason)


def decoded(
    wanted: Iterable[Item], resize: Resize, pool: Executor
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
        yield from _each(resize, some)
        return
    iterator = chain(some, iterator)
    tasks = iter(lambda: list(islice(iterator, _PER_TASK)), [])
    for done in map_ahead(pool, partial(_each, resize), tasks, depth=4 * thread_count()):
        yield from done


def _each(resize: Resize, some: Sequence[Item]) -> list[tuple[Item, Pixels | str]]:
    return [(item, _pixels(item, resize)) for item in some]


def _pixels(item: Item, resize: Resize) -> Pixels | str:
    if item.error is not None:
        return item.error
    try:
        # Resized at once, so that no more than one large image a thread is held.
        return resize(_full_size(item))
    except UnreadableImageError as error:
        return error.reason


def _full_size(item: Item) -> Pixels:
    if item.pixels is not None:
        return item.pixels
    if item.data is not None:
        return decode_stream(io.BytesIO(item.data), where=printable(item.name))
    return decode(Path(item.path))
