"""Settings of all tests: a separate store, one thread, no colour, no internet access."""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give each test its own store, a fixed width and no colour."""
    monkeypatch.setenv("OOD_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("OOD_RUN", "FORCE_COLOR", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an error for connections to other machines."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Check that no threads or processes of ood are running after each test."""
    yield
    assert ood_threads() == []
    assert multiprocessing.active_children() == []


def ood_threads() -> list[str]:
    """Return the names of running threads of ood; threads of torch are not included."""
    names = ("decode", "ood-")
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(names) or "ExecutorManager" in type(thread).__name__
    ]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Run torch on one thread: faster for small networks, and deterministic."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and reference values next to the checkout, or skip."""
    if not (SHARED / "data" / "MANIFEST.md").is_file():
        pytest.skip(f"needs the shared test data, which is not at {SHARED}")
    return SHARED


@pytest.fixture
def ood(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command in this process: ``code, out, err = ood("runs")``."""
    from oodcli.cli.app import main

    def run(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in argv])
        captured = capsys.readouterr()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return code or 0, captured.out, captured.err

    return run
