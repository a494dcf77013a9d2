"""Threads and processes that decode images: one pool of each per command, which ends with it.

Code that needs decoded images opens :func:`open_pools` and gets the pools of the command or,
outside a command, pools that end with the context. Iterators over images own no pool: an unfinished
iterator is closed by the garbage collector, at any time and in any thread, where blocking is not
allowed.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import Final, TypeVar

MAX_THREADS = 8
MAX_WORKERS = 16
THREAD_NAME: Final = "decode"

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Pools:
    """A pool of threads and a pool of processes, each started on first use.

    Attributes
    ----------
    workers
        Number of processes; 0 for none. See :meth:`resize`.

    Notes
    -----
    The worker processes ignore Ctrl-C, which the parent process handles, and exit when the parent
    exits for any reason.
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
        """Whether processes are running."""
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
        """Return the pool of processes; it has at least one process.

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
                # Started in a separate thread: Ctrl-C, which reaches only the main thread, must not
                # interrupt the transfer of data to a new process.
                self._starter = threading.Thread(
                    target=_start_all, args=(self._processes, count), name="ood-start"
                )
                self._starter.start()
                self._starter.join()
            return self._processes

    def resize(self, workers: int) -> None:
        """Change the number of processes; running processes end after their current work."""
        with self._lock:
            running = self._processes if workers != self.workers else None
            if running is not None:
                self._processes = None
            self.workers = workers
        if running is not None:
            running.shutdown(wait=True)

    def discard_processes(self) -> None:
        """Discard the pool after one of its processes died; the next use starts a new pool."""
        with self._lock:
            broken, self._processes, self._lost = self._processes, None, True
        if broken is not None:
            broken.shutdown(wait=True, cancel_futures=True)

    def end(self) -> None:
        """End all threads and processes; pending tasks are cancelled."""
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


_commands_lock = threading.Lock()
_command_pools: Pools | None = None
_open_commands = 0


@contextlib.contextmanager
def shared_pools() -> Iterator[Pools]:
    """Share one set of pools among all decoding in this context, and end them with it.

    Contexts may be nested and may overlap in several threads: the last one to end ends the pools.
    """
    global _command_pools, _open_commands  # noqa: PLW0603 - one set per process is the purpose
    with _commands_lock:
        if _command_pools is None:
            _command_pools = Pools()
        pools = _command_pools
        _open_commands += 1
    try:
        yield pools
    finally:
        with _commands_lock:
            _open_commands -= 1
            last = _open_commands == 0
            if last:
                _command_pools = None
        if last:
            pools.end()


@contextlib.contextmanager
def open_pools() -> Iterator[Pools]:
    """Yield the pools of the command or, outside a command, pools that end with this context."""
    if (shared := _command_pools) is not None:
        yield shared
        return
    own = Pools()
    try:
        yield own
    finally:
        own.end()


def command_pools() -> Pools | None:
    """Return the pools of the command; None outside a command."""
    return _command_pools


def map_ahead(
    pool: Executor, work: Callable[[_Task], _Result], tasks: Iterable[_Task], *, depth: int
) -> Iterator[_Result]:
    """Apply a function to tasks ahead of the consumer, and yield the results in order.

    Parameters
    ----------
    pool
        Runs the tasks. If the consumer stops early, only the tasks already submitted still run.
    work
        The function.
    tasks
        Its arguments, consumed one at a time.
    depth
        Maximum number of submitted tasks while the consumer holds a result.
    """
    pending: deque[Future[_Result]] = deque()
    for task in tasks:
        pending.append(pool.submit(work, task))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def process_pool(count: int) -> ProcessPoolExecutor:
    """Return a pool of processes that exit when this process exits.

    Parameters
    ----------
    count
        Maximum number of processes; they are started as needed.
    """
    return ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=_initialize_worker
    )


def _start_all(pool: Executor, count: int) -> None:
    """Start all processes of a pool, with SIGINT blocked in each from its start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # A pool that cannot start processes raises this for the next task too, and a pool that Ctrl-C
    # has shut down before this thread ran needs none.
    with contextlib.suppress(RuntimeError):
        for _ in range(count):
            pool.submit(int)


def _initialize_worker() -> None:
    """Make a worker process exit when its parent exits."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def exit_worker_that_runs_script() -> None:
    """Exit a worker process that is executing the user's script because it imports it.

    A script without a ``__main__`` guard runs again in each worker process that it starts. There it
    would wait for a lock that the parent process holds until the worker is ready: a deadlock. If
    the worker exits, threads of the parent decode instead.

    Raises
    ------
    SystemExit
        In a worker process whose main module is being imported.
    """
    # multiprocessing sets this while it prepares a process and allows no further ones.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(
            "no worker process can import this script: it does its work at import; put that work "
            'under: if __name__ == "__main__":'
        )


def cores() -> int:
    """Return the number of processors that this process may use."""
    # In a container it may be smaller than that of the host, where the system reports it.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count() -> int:
    """Return the number of threads that decode images."""
    return min(MAX_THREADS, cores())


def worker_count(processes: int = 1) -> int:
    """Return the number of workers for each of ``processes`` processes: their share of cores.

    It is at least 1 and at most ``MAX_WORKERS``.
    """
    return max(1, min(MAX_WORKERS, cores() // processes))


@contextlib.contextmanager
def read_ahead(shards: Iterable[_Result]) -> Iterator[Iterator[_Result]]:
    """Yield an iterator over shards of images that reads the next shard in a thread.

    The thread reads only on request, and puts results into an unbounded queue, so that neither side
    can block on the other after it has ended. The thread ends with the context.

    Parameters
    ----------
    shards
        The shards.
    """
    wanted = threading.Semaphore(1)
    stop = threading.Event()
    answers: queue.SimpleQueue[_Result | BaseException] = queue.SimpleQueue()

    def read() -> None:
        try:
            iterator = iter(shards)
            while wanted.acquire() and not stop.is_set():
                answers.put(next(iterator))
        except BaseException as error:  # noqa: BLE001 - raised again in the consuming thread
            answers.put(error)
        finally:
            if isinstance(shards, Generator):
                shards.close()  # in the thread that opened its resources

    def results() -> Iterator[_Result]:
        while not isinstance(answer := answers.get(), StopIteration):
            if isinstance(answer, BaseException):
                raise answer
            wanted.release()
            yield answer

    # A daemon, so that a disk that does not respond cannot block the exit of the program.
    thread = threading.Thread(target=read, name="ood-read-ahead", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        stop.set()
        wanted.release()
        # Wait for a read in progress, but not for one that hangs.
        thread.join(timeout=1.0)
