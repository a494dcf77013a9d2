"""What is left after Ctrl-C in the middle of a command: nothing that runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import flat

PROGRAM = """
import sys
from oodcli import pools
from oodcli.cli.app import main
from oodcli.data.decoding import workers
if __name__ == "__main__":
    workers.LEAST_WORK = 1
    pools.MAX_WORKERS = 2
    pools.cores = lambda: 2
    main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images for seconds of work."""
    return flat(tmp_path_factory.mktemp("many") / "noise", n=1500)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Write the program as it is, but that it starts processes for a handful of images."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize("after_s", [0.0, 0.7])
@pytest.mark.parametrize(
    "command",
    [
        ("score", "--method", "msp", "--ood"),
        ("predict", "--method", "msp", "--format", "csv"),
    ],
)
def test_nothing_is_left_running(
    tiny: Path, noise: Path, program: Path, command: tuple[str, ...], after_s: float
) -> None:
    process = subprocess.Popen(
        [sys.executable, program, *command, noise],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends Ctrl-C to all processes of its group
    )
    assert process.stdout is not None
    if command[0] == "predict":
        assert process.stdout.readline().startswith("path,")
    while len(list(group(process.pid))) < 2 and command[0] == "score":
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "error: interrupted" in err
    # Python's tracker of semaphores ends a moment after the process that started it.
    end = time.monotonic() + 20
    while list(group(process.pid)) and time.monotonic() < end:
        time.sleep(0.01)
    assert list(group(process.pid)) == []


def group(leader: int) -> Iterator[int]:
    """Yield the processes of a group that have not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of_group) == leader and state != "Z":
            yield int(path.parent.name)
