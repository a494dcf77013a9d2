"""Two processes that torchrun starts on this machine."""

import socket
from pathlib import Path

import torch.distributed.run

from tests.support.program import OOD, Program


def begun(*argv: object, size: int = 2) -> Program:
    """Start processes of a file of Python with its arguments, as forks of torchrun itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--nproc-per-node", size, "--master-addr", "127.0.0.1", "--master-port", port)
    forks = ("--start-method", "fork", "--run-path", "--")
    return Program(torch.distributed.run.__file__, *options, *forks, *argv)


def together(*argv: object, size: int = 2) -> tuple[int, str, str]:
    """Run a command of ``ood`` in several processes."""
    return begun(OOD, *argv, size=size).ended()


def worker(program: Program, rank: int) -> int:
    """Return the process id of one of the processes that torchrun has started, in their order."""
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    assert len(children) == 2
    return int(children[rank])
