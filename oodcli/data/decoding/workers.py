"""Many images decoded and resized in advance, by threads or by worker processes.

Threads start at once, but wait for each other where Pillow and NumPy hold the interpreter's lock;
processes take a second or two to start, and every image is copied several times on its way from
one. On two cores, threads are 1.2 to 1.4 times as fast for images of 224 x 224, and processes 1.9
times as fast for those of 32 x 32.
"""

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import RandomAccess
from oodcli.data.decoding.drafts import drafted
from oodcli.data.decoding.encoded import EncodedSource, pieces
from oodcli.data.decoding.files import several_frames
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import UnreadableImageError
from oodcli.images import ImageSource
from oodcli.pools import Pools, map_ahead, thread_count

# Work is counted in pixels of the originals, and every file counts as some more. About so much is
# done by threads while processes start: 8,000 images of 32 x 32, or 650 of 500 x 375.
LEAST_WORK = 2**27
_WORK_OF_FILE = 2**14
# A task takes a tenth of a second or so, which is what Ctrl-C has to wait for.
_WORK_PER_TASK = 2**22
_MAX_ROWS_PER_TASK = 32
# Resized images of more pixels are worth copying between processes from so many workers on.
_LARGE_PIXELS, _WORKERS_FOR_LARGE = 2**14, 3
# Rows that are read first, to see how large images are.
_FIRST_ROWS = 16
_ROWS_PER_FIRST_TASK = 2

Image = NDArray[np.uint8] | UnreadableImageError
Resize = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class _Done(NamedTuple):
    """The images of a task, or where and why there is none."""

    images: list[NDArray[np.uint8] | tuple[str, str]]
    work: int
    several: int


def resized(
    pools: Pools | None,
    source: ImageSource,
    start: int,
    stop: int,
    resizing: Resizing,
    *,
    several: Callable[[int], None] = lambda _: None,
) -> Iterator[Image]:
    """Yield images ``start`` to ``stop - 1`` at their new size, or the errors of bad ones.

    Parameters
    ----------
    pools
        Who decodes. Processes do where they are running already, or where the work is worth
        starting them; without pools this thread does.
    source
        The images. One that is read from front to back, as arrays are, is read here.
    start, stop
        First row, and the row after the last.
    resizing
        How the images get to their size.
    several
        Called with numbers of files that have several frames or pages, whose first was decoded.
    """
    source, resize = drafted(source, resizing), resizing.apply
    if pools is None or not isinstance(source, RandomAccess):
        before = several_frames()
        for image in source.read(start, stop):
            yield image if isinstance(image, UnreadableImageError) else resize(image)
        several(several_frames() - before)
        return
    work = partial(_work, resize)
    rows, total, at = _ROWS_PER_FIRST_TASK, 0, start
    first = min(stop, start + _FIRST_ROWS)
    for end in (first, stop):
        if _by_processes(pools, total // max(1, at - start) * (stop - at), resizing):
            try:
                tasks = _tasks(source, at, end, rows)
                for done in map_ahead(pools.processes(), work, tasks, depth=3 * pools.workers):
                    yield from map(_unpacked, done.images)
                    at, total = at + len(done.images), total + done.work
                    several(done.several)
            except BrokenProcessPool:
                # None can be started, as from a script without a main guard, or one was killed.
                pools.discard_processes()
        for done in map_ahead(
            pools.threads(), work, _tasks(source, at, end, rows), depth=thread_count()
        ):
            yield from map(_unpacked, done.images)
            at, total = at + len(done.images), total + done.work
            several(done.several)
        rows = max(1, min(_MAX_ROWS_PER_TASK, _WORK_PER_TASK * (at - start) // max(1, total)))


def _by_processes(pools: Pools, work: int, resizing: Resizing) -> bool:
    large = resizing.size[0] * resizing.size[1] > _LARGE_PIXELS
    if pools.lost or pools.workers < (_WORKERS_FOR_LARGE if large else 2):
        return False
    return pools.has_processes or work >= LEAST_WORK


def _tasks(source: RandomAccess, start: int, stop: int, rows: int) -> Iterator[ImageSource]:
    if isinstance(source, EncodedSource) and source.in_order:
        yield from pieces(source, start, stop, rows)
        return
    for first in range(start, stop, rows):
        yield source.take(np.arange(first, min(first + rows, stop), dtype=np.int64))


def _work(resize: Resize, source: ImageSource) -> _Done:
    images: list[NDArray[np.uint8] | tuple[str, str]] = []
    work, before = 0, several_frames()
    for image in source.read(0, len(source)):
        work += _WORK_OF_FILE
        if isinstance(image, UnreadableImageError):
            images.append((image.where, image.reason))
        else:
            work += image.shape[0] * image.shape[1]
            # A copy, where the image is a part of a larger one that would be held with it.
            images.append(np.ascontiguousarray(resize(image)))
    return _Done(images, work, several_frames() - before)


def _unpacked(image: NDArray[np.uint8] | tuple[str, str]) -> Image:
    return UnreadableImageError(*image) if isinstance(image, tuple) else image
