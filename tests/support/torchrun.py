"""Two processes that torchrun starts on this machine."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def begun(*argv: object, size: int = 2) -> subprocess.Popen[str]:
    """Start processes of a file, or of ``-m -- package`` with arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--nproc-per-node", size, "--master-addr", "127.0.0.1", "--master-port", port)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    own = os.environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([own] if own else [])])
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, (*options, *argv))],
        env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], *, within_s: float = 240) -> tuple[int, str, str]:
    """Wait for processes, and return exit code, stdout and stderr of them all."""
    try:
        out, err = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, out, err


def together(*argv: object, size: int = 2) -> tuple[int, str, str]:
    """Run a command of ``ood`` in several processes."""
    return ended(begun("-m", "--", "oodcli", *argv, size=size))


def worker(process: subprocess.Popen[str], rank: int) -> int:
    """Return the process id of one of the processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    wanted = f"RANK={rank}".encode()
    (found,) = [
        int(child)
        for child in children
        if wanted in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    ]
    return found
