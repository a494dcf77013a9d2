"""Images in any order, decoded in advance by persistent worker processes.

Workers get chunks of rows and return pixels of one size. Nothing is stored, and only the next
batches are decoded in advance.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import RandomAccess
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.images import ImageSource
from oodcli.pools import Pools, open_pools, worker_count
from oodcli.progress import SILENT, Progress

_ROWS_PER_TASK = 16

_Pixels = NDArray[np.uint8]


class Change(Protocol):
    """What a worker does to an image; it can be pickled."""

    def apply(self, image: NDArray[np.uint8], row: int, /) -> NDArray[np.uint8]:
        """Return the views of an image ``(h, w, 3)`` of a row, uint8 ``(v, 3, h', w')``."""


@dataclass(frozen=True)
class Prepared:
    """Brings an image to its size as `prepare` does, without any chance.

    Parameters
    ----------
    resizing
        How it gets there.
    """

    resizing: Resizing

    def apply(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:  # noqa: ARG002
        """Return the image as one view, uint8 ``(1, 3, h, w)``."""
        return self.resizing.apply(image).transpose(2, 0, 1)[None]


@dataclass(frozen=True)
class AsStored:
    """Leaves an image as it is, for images that have their size already."""

    def apply(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:  # noqa: ARG002
        """Return the image as one view, uint8 ``(1, 3, h, w)``."""
        return image.transpose(2, 0, 1)[None]


@dataclass(frozen=True)
class Both:
    """Makes the views of two changes from an image that is decoded once.

    Parameters
    ----------
    first, second
        The changes, which give images of the same size.
    """

    first: Change
    second: Change

    def apply(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """Return the views of the first change and then those of the second."""
        return np.concatenate([self.first.apply(image, row), self.second.apply(image, row)])


class Readable(Protocol):
    """Some images that can be read from front to back."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``, each ``(h, w, 3)``, or the error of a bad one."""


class Originals:
    """The images of a source at their own sizes, in any order.

    Parameters
    ----------
    source
        The images. A source that is read from front to back, as arrays are, is read once as a whole
        and held in memory.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._kept: list[NDArray[np.uint8] | UnreadableImageError] | None = None

    def take(self, rows: NDArray[np.int64]) -> Readable:
        """Return something to read chosen rows from, which can be pickled."""
        if isinstance(self._source, RandomAccess):
            return self._source.take(rows)
        if self._kept is None:
            self._kept = list(self._source.read(0, len(self._source)))
        return Loaded([_plain(self._kept[row]) for row in rows])


@dataclass(frozen=True)
class Loaded:
    """Some images in memory.

    Parameters
    ----------
    images
        Pixels each, ``(h, w, 3)``, or where and why there are none.
    """

    images: Sequence[NDArray[np.uint8] | tuple[str, str]]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``."""
        for image in self.images[start:stop]:
            yield UnreadableImageError(*image) if isinstance(image, tuple) else image


def _plain(image: NDArray[np.uint8] | UnreadableImageError) -> NDArray[np.uint8] | tuple[str, str]:
    return (image.where, image.reason) if isinstance(image, UnreadableImageError) else image


@dataclass(slots=True)
class _Task:
    """A chunk of rows at work."""

    source: Readable
    rows: NDArray[np.int64]
    pool: Executor
    future: Future[_Pixels | tuple[str, str]]


class Decoders:
    """Worker processes of the command that decode images, or of this context where none runs.

    Where no process can be started, threads of this one decode.

    Parameters
    ----------
    workers
        Number of processes; 0 decodes in threads of this one. As
        :func:`oodcli.pools.worker_count` if None.
    progress
        Gets a note if the processes cannot be used.

    Raises
    ------
    InvalidInputError
        If the number is negative.
    """

    def __init__(self, workers: int | None = None, *, progress: Progress = SILENT) -> None:
        self.workers = worker_count() if workers is None else workers
        if self.workers < 0:
            raise InvalidInputError(f"--data-workers must be 0 or more, not {workers}")
        self.waited = 0.0
        self._progress = progress
        self._open = contextlib.ExitStack()
        self._pools: Pools | None = None
        self._proven = False

    def __enter__(self) -> Self:
        self._pools = self._open.enter_context(open_pools())
        self._pools.resize(self.workers)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pools = None
        self._open.close()

    def batches(
        self,
        originals: Originals,
        batches: Sequence[NDArray[np.int64]],
        change: Change,
        *,
        settle: Callable[[], None] = lambda: None,
    ) -> Iterator[_Pixels]:
        """Yield the images of each batch, while the workers go on with the next ones.

        Parameters
        ----------
        originals
            The images.
        batches
            Row numbers of each batch, in any order, ``(m,)``.
        change
            Makes pixels of one size of every image.
        settle
            Called before this process waits for images; what it takes is no waiting for images.

        Yields
        ------
        ndarray
            uint8 ``(v, m, 3, h, w)``. ``waited`` grows by the seconds in which there was nothing
            else to do, but for the first images after the workers were started.

        Raises
        ------
        UnreadableImageError
            If an image cannot be read.
        """
        ahead: deque[list[_Task]] = deque()
        under_way, sent = 0, 0
        for batch in batches:
            wanted = max(2 * len(batch), 3 * max(self.workers, 1) * _ROWS_PER_TASK)
            while sent < len(batches) and (not ahead or under_way < wanted):
                rows = batches[sent]
                chunks = [
                    rows[at : at + _ROWS_PER_TASK] for at in range(0, len(rows), _ROWS_PER_TASK)
                ]
                ahead.append([self._begin(originals.take(r), r, change) for r in chunks])
                under_way += len(rows)
                sent += 1
            parts = [self._finished(task, change, settle) for task in ahead[0]]
            ahead.popleft()
            under_way -= len(batch)
            yield np.concatenate(parts).swapaxes(0, 1)

    def _begin(self, source: Readable, rows: NDArray[np.int64], change: Change) -> _Task:
        try:
            pool = self._start()
            return _Task(source, rows, pool, pool.submit(_decode, source, rows, change))
        except BrokenProcessPool:
            self._replace()
            return self._begin(source, rows, change)

    def _finished(self, task: _Task, change: Change, settle: Callable[[], None]) -> _Pixels:
        """Return what came of a chunk, ``(m, v, 3, h, w)``; wait for it if need be."""
        if not task.future.done():
            settle()
        start = time.perf_counter()
        counts = self._proven
        while True:
            try:
                pixels = task.future.result()
                break
            except BrokenProcessPool:
                # Every chunk under way is lost with the pool; each is begun again when wanted.
                if self._start() is task.pool:
                    self._replace()
                again = self._begin(task.source, task.rows, change)
                task.pool, task.future = again.pool, again.future
        self._proven = True
        if counts:
            self.waited += time.perf_counter() - start
        if isinstance(pixels, tuple):
            raise UnreadableImageError(*pixels)
        return pixels

    def _start(self) -> Executor:
        assert self._pools is not None  # whoever decodes has entered the context
        return self._pools.processes() if self.workers else self._pools.threads()

    def _replace(self) -> None:
        """Start other processes for those that died, or threads where none ever worked."""
        assert self._pools is not None
        self._pools.discard_processes()
        if self._proven:
            self._progress.note("a process that decodes images has died; starting new ones")
        else:
            self._progress.note("no processes can be started; images are decoded in this one")
            self.workers = 0
        self._proven = False


def _decode(source: Readable, rows: NDArray[np.int64], change: Change) -> _Pixels | tuple[str, str]:
    """Return the changed images, ``(m, v, 3, h, w)``; where and why one cannot be read."""
    done = []
    for image, row in zip(source.read(0, len(source)), rows.tolist(), strict=True):
        if isinstance(image, UnreadableImageError):
            return image.where, image.reason
        done.append(change.apply(image, row))
    return np.stack(done)
