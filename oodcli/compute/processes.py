"""The processes of one job, as ``torchrun`` starts them, and what they say to each other.

Every process works on its share of every batch. The first one alone writes files and speaks; when
one of them ends, the others end too, and one of them says so.
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

# What torchrun tells each process of its place among the others.
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The others wait while the first one fits methods, and that may take hours; a process that has
# died is noticed by its closed connections, or by torchrun.
_PATIENCE = timedelta(days=7)
_CONNECTION = ("gloo", "nccl", "connection", "by peer", "tcpstore", "socket")

T = TypeVar("T")


class ProcessLostError(OodError):
    """Another process of the job has ended before its work was done.

    Parameters
    ----------
    cure
        How to go on.
    """

    def __init__(self, cure: str) -> None:
        super().__init__(f"a process of this job has ended, so the others end too; {cure}")


@dataclass
class Processes:
    """The process that runs, and its number among those of the job; by default the only one.

    Parameters
    ----------
    rank
        Number of this process, from 0.
    size
        Number of processes.
    cure
        How to go on after a process has ended.
    """

    rank: int = 0
    size: int = 1
    cure: str = "the same command resumes from what is finished"
    _voice: distributed_c10d.Store | None = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def here(self) -> int:
        """How many of them this host has."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) if self.many else 1

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows of a batch; the first parts are the longer ones.

        Parameters
        ----------
        rows
            The same in every process, ``(n,)``.
        """
        return rows.tensor_split(self.size)[self.rank]

    def meet(self) -> None:
        """Wait for all others."""
        self.total(0)

    def in_turn(self, make: Callable[[], T]) -> T:
        """Return what a function makes, which the first process calls before the others."""
        made = make() if self.first else None
        self.meet()
        return make() if made is None else made

    def agreed(self, value: T) -> T:
        """Return what the first process has; what the others have does not matter."""
        if not self.many:
            return value
        with self.watched():
            holder = [value]
            dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
            return holder[0]

    def total(self, number: float) -> float:
        """Return the sum of the numbers of all processes, each at least to 53 bits."""
        return float(self.add(torch.tensor(float(number), dtype=torch.float64)))

    def add(self, values: Tensor) -> Tensor:
        """Replace a tensor, of the same shape in every process, by the sum, and return it."""
        if self.many:
            with self.watched():
                dist.all_reduce(values)
        return values

    def least(self, values: Tensor) -> Tensor:
        """Replace a tensor, of the same shape in every process, by the least, and return it."""
        if self.many:
            with self.watched():
                dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return values

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Replace the content of tensors by that of the first process."""
        if self.many:
            with self.watched(), torch.no_grad():
                for tensor in tensors:
                    whole = tensor.contiguous()
                    dist.broadcast(whole, src=0)
                    tensor.copy_(whole)

    def joined(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return tensors with the rows of all processes, in the order of the processes.

        Parameters
        ----------
        parts
            Rows of this process, ``(m, …)`` each with the same ``m``, which may differ between
            processes.

        Returns
        -------
        tuple
            ``(sum of all m, …)`` each. The gradient of a row is the sum of those that all processes
            have for it, since each of them goes on with all rows.
        """
        if not self.many:
            return tuple(parts)
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(parts[0])
        ends = [0, *accumulate(int(count) for count in self.add(counts))]
        joined: Any = _Joined.apply(self, ends[self.rank], ends[-1], *parts)
        return tuple(joined)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Tell the loss of another process from every other failure of torch.

        Raises
        ------
        ProcessLostError
            If a connection to another process breaks while the context lasts.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            text = str(error).lower()
            if self.many and any(word in text for word in _CONNECTION):
                raise ProcessLostError(self.cure) from error
            raise

    def may_tell(self) -> bool:
        """Return whether no process of the job has said yet what went wrong; ask only once."""
        if self._voice is None:
            return True
        try:
            return self._voice.add("ood/told", 1) == 1
        except RuntimeError:  # torchrun itself has gone, and nobody can be asked
            return True


class _Joined(torch.autograd.Function):
    """The rows of all processes; going back, a sum over processes."""

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
            rows[start : start + len(part)] = part  # all others add zeros to it
            every.append(processes.add(rows))
        return tuple(every)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        own = slice(ctx.start, ctx.start + ctx.count)
        # All in one node, so that every process adds them in the same order.
        added = [ctx.processes.add(gradient.contiguous().clone())[own] for gradient in gradients]
        return (None, None, None, *added)


def started_by_torchrun() -> bool:
    """Return whether this process is one of several that torchrun started."""
    return all(name in os.environ for name in _PLACE) and os.environ["WORLD_SIZE"] != "1"


def device_of(name: str) -> str:
    """Return the device of this process, for what the user asked all processes for.

    Parameters
    ----------
    name
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InvalidInputError
        If it names one device for all, is not for several processes, or this host has fewer GPUs
        than processes.
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
def together(device: str, *, say: Callable[[str], None]) -> Iterator[Processes]:
    """Join the other processes of the job, for as long as the context lasts.

    Parameters
    ----------
    device
        Device of this process, from :func:`device_of`.
    say
        Writes one line of an error to where the user reads it, at any moment.

    Yields
    ------
    Processes
        This process among them; the only one where torchrun has not started any others.

    Notes
    -----
    gloo carries what is on the CPU, nccl what is on GPUs. When torchrun ends this process because
    another one has ended, a thread says so, for the process itself may be waiting for the other.
    """
    if not started_by_torchrun():
        yield Processes()
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://"))
    voice, _, _ = next(rendezvous("env://"))  # one connection cannot be shared
    processes = Processes(rank, size, _voice=voice)
    with _ended_by_torchrun(processes, say), processes.watched():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=distributed_c10d.PrefixStore("ood/group", store),
            rank=rank,
            world_size=size,
            timeout=_PATIENCE,
        )
        yield processes
        # What holds the group in a cycle, such as a replica's reducer, is to go before the group.
        gc.collect()
        dist.destroy_process_group()


@contextlib.contextmanager
def _ended_by_torchrun(processes: Processes, say: Callable[[str], None]) -> Iterator[None]:
    """Say that another process has ended, when torchrun ends this one for it."""
    here, there = socket.socketpair()
    there.setblocking(False)  # noqa: FBT003 - its parameter has no name
    over = threading.Event()

    def wait() -> None:
        while received := here.recv(64):
            if signal.SIGTERM in received and not over.is_set():
                if processes.may_tell():
                    say(str(ProcessLostError(processes.cure)))
                os._exit(1)

    # A handler in Python would have to wait until torch returns from waiting for the others.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    bell = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=wait, name="ood-processes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(bell)
        signal.signal(signal.SIGTERM, before)
        there.close()
        thread.join()
        here.close()
