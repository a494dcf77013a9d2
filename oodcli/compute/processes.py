"""The processes of one ``torchrun`` job, and the communication between them.

Every process computes its share of every batch. Only the first process (rank 0) writes files and
prints. When one process ends, the others end too, and one of them reports it.
"""

import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from oodcli.errors import InvalidInputError, OodError

# The environment variables in which torchrun gives each process its rank and the address to join.
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The others wait while the first one fits methods, which may take hours; a process that has died
# is detected by its closed connections, or by torchrun.
_TIMEOUT = timedelta(days=7)
_CONNECTION_WORDS = ("gloo", "nccl", "connection", "by peer", "tcpstore", "socket")

T = TypeVar("T")


class ProcessLostError(OodError):
    """Another process of the job has ended before its work was finished.

    Parameters
    ----------
    cure
        How to continue, for the error message.
    """

    def __init__(self, cure: str) -> None:
        super().__init__(f"a process of this job has ended, so the others end too; {cure}")


@dataclass
class Processes:
    """The processes of the job, and the rank of this one; by default a single process.

    Parameters
    ----------
    rank
        Number of this process, from 0.
    size
        Number of processes.
    cure
        How to continue after a process has ended, for the error message.
    """

    rank: int = 0
    size: int = 1
    cure: str = "run the same command again to resume"
    _report_store: distributed_c10d.Store | None = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the process of rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def local_size(self) -> int:
        """Number of processes of the job on this host."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) if self.distributed else 1

    @property
    def distributed(self) -> bool:
        """Whether the job has several processes."""
        return self.size > 1

    def share(self, rows: Tensor) -> Tensor:
        """Return the rows of a batch that this process computes.

        Parameters
        ----------
        rows
            All rows of the batch, ``(n,)``; equal in every process.

        Returns
        -------
        Tensor
            About ``n / size`` rows; shares differ by at most one row, and lower ranks get the
            longer ones.
        """
        return rows.tensor_split(self.size)[self.rank]

    def barrier(self) -> None:
        """Wait until every process has reached this call."""
        self.total(0)

    def in_turn(self, make: Callable[[], T]) -> T:
        """Call a function in the first process, then in the others, and return its result."""
        made = make() if self.first else None
        self.barrier()
        return make() if made is None else made

    def broadcast(self, value: T) -> T:
        """Return the value of the first process; the values of the others are ignored."""
        if not self.distributed:
            return value
        with self.connection_errors():
            holder = [value]
            dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
            return holder[0]

    def first_of(self, value: T | None) -> T | None:
        """Return the value of the first process that has one; None if no process has."""
        if not self.distributed:
            return value
        rank = torch.tensor(self.size if value is None else self.rank)
        source = int(self.all_reduce_min(rank))
        if source == self.size:
            return None
        with self.connection_errors():
            holder = [value]
            dist.broadcast_object_list(holder, src=source, device=torch.device("cpu"))
            return holder[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        if not self.distributed:
            return [value]
        found = []
        with self.connection_errors():
            for rank in range(self.size):
                holder = [value]
                dist.broadcast_object_list(holder, src=rank, device=torch.device("cpu"))
                found.append(holder[0])
        return found

    def total(self, number: float) -> float:
        """Return the sum of a number over all processes, in float64."""
        return float(self.all_reduce(torch.tensor(float(number), dtype=torch.float64)))

    def all_reduce(self, values: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes (equal shapes), and return it."""
        if self.distributed:
            with self.connection_errors():
                dist.all_reduce(values)
        return values

    def all_reduce_min(self, values: Tensor) -> Tensor:
        """Replace a tensor by its minimum over all processes (equal shapes), and return it."""
        if self.distributed:
            with self.connection_errors():
                dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return values

    def broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors in place with those of the first process."""
        if self.distributed:
            with self.connection_errors(), torch.no_grad():
                for tensor in tensors:
                    whole = tensor.contiguous()
                    dist.broadcast(whole, src=0)
                    tensor.copy_(whole)

    def gather_rows(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Concatenate the rows of all processes, ordered by rank.

        Parameters
        ----------
        parts
            Rows of this process, ``(m, …)`` each; ``m`` is equal for all tensors of a process,
            and may differ between processes.

        Returns
        -------
        tuple
            ``(sum of all m, …)`` each. The gradient of a row is the sum of its gradients in all
            processes, because every process computes with all rows.
        """
        if not self.distributed:
            return tuple(parts)
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(parts[0])
        ends = [0, *accumulate(int(count) for count in self.all_reduce(counts))]
        joined: Any = _GatherRows.apply(self, ends[self.rank], ends[-1], *parts)
        return tuple(joined)

    @contextlib.contextmanager
    def connection_errors(self) -> Iterator[None]:
        """Turn a broken connection into :class:`ProcessLostError`; other errors pass unchanged.

        Raises
        ------
        ProcessLostError
            If a connection to another process breaks in the body of the context.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            text = str(error).lower()
            if self.distributed and any(word in text for word in _CONNECTION_WORDS):
                raise ProcessLostError(self.cure) from error
            raise

    def first_to_report(self) -> bool:
        """Return whether no process of the job has reported an error yet; call it only once."""
        if self._report_store is None:
            return True
        try:
            return self._report_store.add("ood/reported", 1) == 1
        except RuntimeError:  # torchrun itself has ended, and its store with it
            return True


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; the backward pass sums gradients over processes."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        processes: Processes,
        start: int,
        total: int,
        *parts: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.processes, ctx.start, ctx.count = processes, start, len(parts[0])
        every = []
        for part in parts:
            rows = part.new_zeros((total, *part.shape[1:]))
            rows[start : start + len(part)] = part  # the other processes add zeros here
            every.append(processes.all_reduce(rows))
        return tuple(every)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        own = slice(ctx.start, ctx.start + ctx.count)
        # All in one autograd node, so that every process sums them in the same order.
        added = [
            ctx.processes.all_reduce(gradient.contiguous().clone())[own] for gradient in gradients
        ]
        return (None, None, None, *added)


def started_by_torchrun() -> bool:
    """Return whether this process is one of several that torchrun started."""
    return (
        all(name in os.environ for name in _TORCHRUN_VARIABLES) and os.environ["WORLD_SIZE"] != "1"
    )


def device_of(name: str) -> str:
    """Return the name of the device of this process, given the device of the whole job.

    Parameters
    ----------
    name
        ``auto``, ``cpu`` or ``cuda``; without torchrun any device, returned unchanged.

    Raises
    ------
    InvalidInputError
        Under torchrun, if the name is that of a single device or of a kind that several processes
        cannot use, or if this host has fewer GPUs than processes.
    """
    if not started_by_torchrun():
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if name != "cuda":
        raise InvalidInputError(
            f"--device {name} cannot be used under torchrun, where each process uses its own GPU; "
            "use --device cuda or --device cpu"
        )
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise InvalidInputError(
            f"torchrun started more processes than the {gpus} GPUs of this host; start one per "
            f"GPU: --nproc-per-node {max(gpus, 1)}"
        )
    return f"cuda:{local}"


@contextlib.contextmanager
def join_processes(device: str, *, report: Callable[[str], None]) -> Iterator[Processes]:
    """Join the other processes of the job for the body of the context.

    Parameters
    ----------
    device
        Device of this process, from :func:`device_of`.
    report
        Prints one line of an error for the user; it may be called at any time, from any thread.

    Yields
    ------
    Processes
        This process and its rank; a single process if it was not started by torchrun.

    Raises
    ------
    ProcessLostError
        If a connection to another process breaks in the body of the context.

    Notes
    -----
    gloo communicates CPU tensors, nccl GPU tensors. When torchrun terminates this process because
    another one has ended, a thread reports it, because the main thread may be blocked waiting for
    the process that has ended.
    """
    if not started_by_torchrun():
        yield Processes()
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://"))
    report_store, _, _ = next(rendezvous("env://"))  # one connection cannot be shared
    processes = Processes(rank, size, _report_store=report_store)
    with _report_termination(processes, report), processes.connection_errors():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=distributed_c10d.PrefixStore("ood/group", store),
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
        yield processes
        # Reference cycles that hold the group, such as the reducer of a replica, must be collected
        # before the group is destroyed.
        gc.collect()
        dist.destroy_process_group()


@contextlib.contextmanager
def _report_termination(processes: Processes, report: Callable[[str], None]) -> Iterator[None]:
    """Report that another process has ended when torchrun terminates this one with SIGTERM."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)  # noqa: FBT003 - its parameter has no name
    finished = threading.Event()

    def wait() -> None:
        while received := receiver.recv(64):
            if signal.SIGTERM in received and not finished.is_set():
                if processes.first_to_report():
                    report(str(ProcessLostError(processes.cure)))
                os._exit(1)

    # A handler in Python would not run before torch returns from waiting for the other processes.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup_before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=wait, name="ood-processes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGTERM, before)
        sender.close()
        thread.join()
        receiver.close()
