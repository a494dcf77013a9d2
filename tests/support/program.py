"""Programs in processes of their own that are forked from one with torch imported.

A new interpreter takes seconds to import torch and scikit-learn, a fork of one that has done so
takes none. What depends on how an interpreter begins or ends is tested with ``subprocess``.
"""

import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import oodcli.__main__

OOD = Path(oodcli.__main__.__file__)
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.support.imported"])


class Program:
    """A file of Python that runs in a process of its own, with environment and folder of this one.

    Parameters
    ----------
    argv
        The file and its arguments.
    """

    def __init__(self, *argv: object) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="program-"))
        for name in ("out", "err"):
            (self._folder / name).touch()
        line = [str(each) for each in argv]
        self._process = _FORKS.Process(
            target=_run, args=(line, dict(os.environ), Path.cwd(), self._folder)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def err(self) -> str:
        """What the process has written to stderr so far."""
        return (self._folder / "err").read_text()

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def wait_until(self, condition: Callable[[], object], *, within_s: float = 120) -> None:
        """Wait until a condition holds; the process must not end before."""
        end = time.monotonic() + within_s
        while not condition():
            assert self.runs, self.ended()
            assert time.monotonic() < end, f"still waiting after {within_s} s: {self.err}"
            time.sleep(0.005)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def ended(self, *, within_s: float = 240) -> tuple[int, str, str]:
        """Wait for the process, and return exit code, stdout and stderr."""
        self._process.join(within_s)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, err = (self._folder / "out").read_text(), self.err
        shutil.rmtree(self._folder)
        assert code is not None, f"it ran for more than {within_s} s: {err}"
        return code, out, err


def start_program(*argv: object) -> Program:
    """Start a command of ``ood``."""
    return Program(OOD, *argv)


def _run(argv: list[str], environment: dict[str, str], cwd: Path, written: Path) -> None:
    """Run a file in a fork, which becomes what an interpreter of its own would be."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(written / name, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    # Whoever started the tests in the background had Ctrl-C ignored for all their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
