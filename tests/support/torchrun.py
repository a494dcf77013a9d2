"""Two processes started by torchrun on this machine."""

import socket
from pathlib import Path

import torch.distributed.run

from tests.support.program import OOD, Program


def start_with_torchrun(*argv: object, size: int = 2) -> Program:
    """Start processes of a Python file with arguments, as forks of torchrun itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--nproc-per-node", size, "--master-addr", "127.0.0.1", "--master-port", port)
    forks = ("--start-method", "fork", "--run-path", "--")
    return Program(torch.distributed.run.__file__, *options, *forks, *argv)


def run_with_torchrun(*argv: object, size: int = 2) -> tuple[int, str, str]:
    """Run a command of ``ood`` in several processes."""
    return start_with_torchrun(OOD, *argv, size=size).ended()


def worker(program: Program, rank: int) -> int:
    """Return the process id of one of the processes started by torchrun."""
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    assert len(children) == 2
    return int(children[rank])
