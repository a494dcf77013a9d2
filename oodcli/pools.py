"""Threads and processes that decode images: one pool of each per command, which ends with it.

Whoever wants images decoded opens :func:`decoding` and gets the pools of the command, or, where
there is no command, pools that end with the context. What iterates over images owns neither: an
iterator that is left unfinished is closed by the garbage collector, at any moment and in any
thread, where nothing may wait.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import Final, TypeVar

MOST_THREADS = 8
MOST_WORKERS = 16
THREAD_NAME: Final = "decode"

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Pools:
    """A pool of threads and one of processes, each started when it is first wanted.

    Attributes
    ----------
    workers
        How many processes there may be; with 0 there is none. See :meth:`resize`.

    Notes
    -----
    The processes leave Ctrl-C to this one, and end with it however it ends.
    """

    def __init__(self) -> None:
        self.workers = worker_count()
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._processes: ProcessPoolExecutor | None = None
        self._starter: threading.Thread | None = None
        self._lost = False
        self._ended = False

    @property
    def has_processes(self) -> bool:
        """Whether processes are running already."""
        return self._processes is not None

    @property
    def lost(self) -> bool:
        """Whether processes could not be started, or one has died."""
        return self._lost

    def threads(self) -> Executor:
        """Return the pool of threads.

        Raises
        ------
        RuntimeError
            If the pools have ended.
        """
        with self._lock:
            self._check_open()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(thread_count(), thread_name_prefix=THREAD_NAME)
            return self._threads

    def processes(self) -> Executor:
        """Return the pool of processes, of which there is one at least.

        Raises
        ------
        RuntimeError
            If the pools have ended.
        """
        with self._lock:
            self._check_open()
            if self._processes is None:
                count = max(1, self.workers)
                self._processes = process_pool(count)
                # A thread of its own, for Ctrl-C must not come between a process and what it is
                # sent, and comes to the main thread only.
                self._starter = threading.Thread(
                    target=_start_all, args=(self._processes, count), name="ood-start"
                )
                self._starter.start()
                self._starter.join()
            return self._processes

    def resize(self, workers: int) -> None:
        """Have another number of processes from now on; those that run end with their work."""
        with self._lock:
            running = self._processes if workers != self.workers else None
            if running is not None:
                self._processes = None
            self.workers = workers
        if running is not None:
            running.shutdown(wait=True)

    def lose_processes(self) -> None:
        """Give up processes of which one has died; the next that are asked for are new."""
        with self._lock:
            broken, self._processes, self._lost = self._processes, None, True
        if broken is not None:
            broken.shutdown(wait=True, cancel_futures=True)

    def end(self) -> None:
        """End all threads and processes; what has not begun is not done any more."""
        with self._lock:
            self._ended = True
            if self._starter is not None and self._starter.is_alive():
                self._starter.join()
            pools = (self._threads, self._processes)
            self._threads = self._processes = None
        for pool in pools:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _check_open(self) -> None:
        if self._ended:
            raise RuntimeError("the pools of this command have ended")


_owners = threading.Lock()
_of_command: Pools | None = None
_commands = 0


@contextlib.contextmanager
def one_for_all() -> Iterator[Pools]:
    """Let the same pools serve everything that is decoded in this context, and end them with it.

    Contexts may be nested, and overlap in several threads: the last that ends ends the pools.
    """
    global _of_command, _commands  # noqa: PLW0603 - one for the process is what this is for
    with _owners:
        if _of_command is None:
            _of_command = Pools()
        pools = _of_command
        _commands += 1
    try:
        yield pools
    finally:
        with _owners:
            _commands -= 1
            last = _commands == 0
            if last:
                _of_command = None
        if last:
            pools.end()


@contextlib.contextmanager
def decoding() -> Iterator[Pools]:
    """Yield the pools of the command, or such as end with this context where no command runs."""
    if (shared := _of_command) is not None:
        yield shared
        return
    own = Pools()
    try:
        yield own
    finally:
        own.end()


def pools_of_command() -> Pools | None:
    """Return the pools of the command; None where no command runs."""
    return _of_command


def ahead(
    pool: Executor, work: Callable[[_Task], _Result], tasks: Iterable[_Task], *, depth: int
) -> Iterator[_Result]:
    """Do tasks ahead of the reader, and yield what comes of them in order.

    Parameters
    ----------
    pool
        Does them. A reader that stops early leaves to it what is under way, and nothing else.
    work
        What is done.
    tasks
        What it is done to; taken one by one.
    depth
        How many may be under way while the reader has one.
    """
    under_way: deque[Future[_Result]] = deque()
    for task in tasks:
        under_way.append(pool.submit(work, task))
        if len(under_way) > depth:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def process_pool(count: int) -> ProcessPoolExecutor:
    """Return a pool of processes that leave Ctrl-C to this one, and end with it.

    Parameters
    ----------
    count
        How many; they are started as they are needed.
    """
    return ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    )


def _start_all(pool: Executor, count: int) -> None:
    """Start all processes of a pool; they inherit that Ctrl-C is blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # A pool that cannot start processes raises this for the next task too, and one that Ctrl-C has
    # shut down before this thread ran needs none.
    with contextlib.suppress(RuntimeError):
        for _ in range(count):
            pool.submit(int)


def _begin() -> None:
    """Prepare a process to end with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def end_instead_of_waiting_for_parent() -> None:
    """End a worker process that runs a script of the user again, to import it.

    A script without a main guard does its work a second time in each worker that it starts, and
    there would wait for what this process holds and, as long as no worker is ready, does not give
    back. Without the worker, its threads do the work.

    Raises
    ------
    SystemExit
        In a worker whose main module is being imported.
    """
    # Set by multiprocessing while it prepares a process, where it refuses to start further ones.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(
            "no worker process can import this script: it does its work when it is imported; put "
            'it under: if __name__ == "__main__":'
        )


def cores() -> int:
    """Return how many processors this process may use."""
    # A container may have fewer than the host, where that is known.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count() -> int:
    """Return how many threads decode images."""
    return min(MOST_THREADS, cores())


def worker_count(processes: int = 1) -> int:
    """Return how many workers each of several processes takes: the cores divided, 16 at most."""
    return max(1, min(MOST_WORKERS, cores() // processes))
