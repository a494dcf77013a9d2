"""Commands run by several processes together, started by ``torchrun``."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import TYPE_CHECKING

from oodcli.cli.console import print_error_now
from oodcli.errors import OodError
from oodcli.progress import Progress, Silent

if TYPE_CHECKING:
    from oodcli.compute.processes import Processes

# An error in every process is reported by the first one; the others wait for it.
_AFTER_FIRST_S = 0.5


def torchrun_size() -> int | None:
    """Return the number of processes that torchrun started; None without torchrun.

    Unlike :func:`oodcli.compute.processes.started_by_torchrun`, it needs no torch.
    """
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() and "RANK" in os.environ else None


@contextmanager
def job_if_any(device: str) -> Iterator[tuple["Processes | None", str, Progress]]:
    """Join the processes of the job; yield None for a single process, without loading torch.

    Parameters
    ----------
    device
        The value of ``--device``.
    """
    if (torchrun_size() or 1) > 1:
        with job(device) as joined:
            yield joined
    else:
        from oodcli.cli.progress import TerminalProgress

        yield None, device, TerminalProgress()


@contextmanager
def job(device: str) -> Iterator[tuple["Processes", str, Progress]]:
    """Join the processes of the job, and let only one of them report an error.

    Parameters
    ----------
    device
        The value of ``--device``.

    Yields
    ------
    Processes
        The processes of the job; only this one without ``torchrun``.
    str
        The device of this process.
    Progress
        Progress on stderr in the first process; silent in the others.

    Raises
    ------
    OodError
        The error, in the process that reports it; the others exit silently.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.compute.processes import ProcessLostError, device_of, join_processes

    own = device_of(device)
    with join_processes(own, report=print_error_now) as processes:
        progress = TerminalProgress() if processes.first else Silent()
        try:
            yield processes, own, progress
        except (OodError, OSError, KeyboardInterrupt) as error:
            if not processes.distributed:
                raise
            if not processes.first:
                sleep(_AFTER_FIRST_S)
            if not processes.first_to_report():
                sys.exit(1)
            if isinstance(error, OodError) and not (
                processes.first or isinstance(error, ProcessLostError)
            ):
                raise OodError(f"process {processes.rank} of {processes.size}: {error}") from error
            raise
