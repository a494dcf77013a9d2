"""Commands that several processes run together, started by ``torchrun``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import TYPE_CHECKING

from oodcli.cli.speech import interject
from oodcli.errors import OodError
from oodcli.progress import Progress, Silent

if TYPE_CHECKING:
    from oodcli.compute.processes import Processes

# What every process finds wrong, the first one says; so the others wait for it to speak.
_AFTER_FIRST_S = 0.5


@contextmanager
def job(device: str) -> Iterator[tuple["Processes", str, Progress]]:
    """Join the processes of the job, and let one of them say what goes wrong.

    Parameters
    ----------
    device
        What the user asked for.

    Yields
    ------
    Processes
        This process among them; the only one without ``torchrun``.
    str
        Its device.
    Progress
        Where it tells of its work: nowhere but in the first process.

    Raises
    ------
    OodError
        What went wrong, in the process that says it; the others end in silence.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.compute.processes import ProcessLostError, device_of, join_processes

    own = device_of(device)
    with join_processes(own, report=interject) as processes:
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
