"""Many images decoded and resized by worker processes.

Pillow lets threads decode side by side, but not resize; with threads alone, resizing large images
keeps all but one processor waiting.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from numpy.typing import NDArray

from oodcli.data import readers
from oodcli.data.dataset import RandomAccess
from oodcli.errors import UnreadableImageError
from oodcli.images import ImageSource

# Starting the workers takes a second or two, in which threads read some thousand small images.
LEAST_ROWS = 8192

_ROWS_PER_TASK = 32
_MOST_WORKERS = 16

Image = NDArray[np.uint8] | UnreadableImageError
Resize = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def resized(source: ImageSource, start: int, stop: int, resize: Resize) -> Iterator[Image]:
    """Yield images ``start`` to ``stop - 1`` at their new size, or the errors of bad ones.

    Parameters
    ----------
    source
        The images. Large sets of files are divided among processes, all else is read here.
    start, stop
        First row, and the row after the last.
    resize
        Brings an image to its size; a function or method that can be pickled.
    """
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    if isinstance(source, RandomAccess) and stop - start >= LEAST_ROWS and workers > 1:
        try:
            for image in _by_workers(source, start, stop, resize, workers=workers):
                yield image
                start += 1
        except BrokenProcessPool:
            # No process can be started, as from a script without a main guard: go on in this one.
            pass
        else:
            return
    for image in source.read(start, stop):
        yield image if isinstance(image, UnreadableImageError) else resize(image)


def _by_workers(
    source: RandomAccess, start: int, stop: int, resize: Resize, *, workers: int
) -> Iterator[Image]:
    pool = process_pool(workers)
    ahead: deque[Future[list[NDArray[np.uint8] | tuple[str, str]]]] = deque()
    try:
        for first in range(start, stop, _ROWS_PER_TASK):
            rows = np.arange(first, min(first + _ROWS_PER_TASK, stop), dtype=np.int64)
            ahead.append(pool.submit(_work, source.take(rows), resize))
            if len(ahead) > 3 * workers:
                yield from map(_unpacked, ahead.popleft().result())
        while ahead:
            yield from map(_unpacked, ahead.popleft().result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of workers that leave Ctrl-C to this process, and end with it.

    Parameters
    ----------
    workers
        How many; they are started as they are needed.
    """
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    )


def _begin() -> None:
    """Prepare a worker: one thread, no answer to Ctrl-C, and an end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    readers.MOST_THREADS = 1
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(source: ImageSource, resize: Resize) -> list[NDArray[np.uint8] | tuple[str, str]]:
    return [
        (image.where, image.reason) if isinstance(image, UnreadableImageError) else resize(image)
        for image in source.read(0, len(source))
    ]


def _unpacked(image: NDArray[np.uint8] | tuple[str, str]) -> Image:
    return UnreadableImageError(*image) if isinstance(image, tuple) else image
