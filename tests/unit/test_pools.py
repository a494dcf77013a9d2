"""Pools of threads and processes: who owns them, when they end, and that nobody waits in vain."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli import pools
from oodcli.data.decoding import workers
from oodcli.data.decoding.files import FileSource
from oodcli.data.decoding.random_access import Decoders, Originals, Prepared
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.incoming import decoded, items
from oodcli.models import Network, network_of, parse_architecture
from oodcli.models.extraction import extract
from oodcli.store.store import Store

RESIZING = Resizing((16, 16))


def half_used(folder: Path, files: list[str], network: Network) -> list[Iterator[object]]:
    """Return iterators of every kind that reads images, of which each has given one result.

    What they read by is open for the time of the call, as it is in a command.
    """
    source = FileSource(folder, files)
    with (
        pools.shared_pools() as own,
        Decoders(0) as decoders,
        pools.read_ahead(np.zeros((1, 3, 16, 16), np.uint8) for _ in range(9)) as shards,
    ):
        every: list[Iterator[object]] = [
            source.read(0, len(source)),
            workers.resized(own, source, 0, len(source), RESIZING),
            decoded(items([str(folder)], store=Store(folder)), RESIZING, own.threads(), None),
            decoders.batches(Originals(source), [np.arange(4)] * 9, Prepared(RESIZING)),
            extract(network, shards, mean=(0.5,) * 3, std=(0.5,) * 3),
            shards,
        ]
        for each in every[:-1]:
            next(each)
        return every


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Write sixty images of noise; return their names."""
    chance = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    for row in range(60):
        noise = chance.integers(0, 256, (12, 17, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{row:02d}.png")
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def network() -> Network:
    spec = parse_architecture("resnet18:width=2")
    return network_of(spec, spec.build(3))


def test_the_collector_never_waits_for_what_was_left_unfinished(
    tmp_path: Path, files: list[str], network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread that starts, with the lock that threading holds then, as it happened once."""
    gc.disable()
    try:
        for each in half_used(tmp_path / "files", files, network):
            cycle: list[object] = [each]
            cycle.append(cycle)
        del each, cycle
        waited = waiting_is_noted(monkeypatch)
        # Whoever ends a thread takes this lock, up to Python 3.12.
        lock = getattr(threading, "_shutdown_locks_lock", contextlib.nullcontext())
        collected: list[int] = []

        def collect() -> None:
            with lock:
                collected.append(gc.collect())

        thread = threading.Thread(target=collect, name="collector", daemon=True)
        thread.start()
        Wait.join(thread, 20)
        assert collected
        assert collected[0] > 0
        assert waited == []
    finally:
        gc.enable()


class Wait:
    """What waits, as it is before it is replaced."""

    join = staticmethod(threading.Thread.join)


def waiting_is_noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have every wait in the thread that collects noted."""
    waited: list[str] = []
    kinds: list[tuple[type, str]] = [
        (threading.Thread, "join"),
        (threading.Event, "wait"),
        (threading.Condition, "wait"),
        (Executor, "shutdown"),
        (ThreadPoolExecutor, "shutdown"),
        (Future, "result"),
    ]
    for kind, name in kinds:
        plain = getattr(kind, name)

        def noted(*args: object, plain: Callable[..., object] = plain, **how: object) -> object:
            if threading.current_thread().name == "collector":
                waited.append(plain.__qualname__)
            return plain(*args, **how)

        monkeypatch.setattr(kind, name, noted)
    return waited


def test_a_pool_serves_all_that_is_decoded_in_a_command(tmp_path: Path, files: list[str]) -> None:
    source = FileSource(tmp_path / "files", files)
    with pools.shared_pools() as shared:
        seen = set()
        for _ in range(5):
            with pools.open_pools() as own:
                assert own is shared
                list(workers.resized(own, source, 0, len(source), RESIZING))
            seen |= {t.name for t in threading.enumerate() if t.name.startswith("decode")}
        assert 1 <= len(seen) <= pools.thread_count()
        with pools.shared_pools() as nested:
            assert nested is shared
        assert own.threads() is shared.threads()
    assert not any(t.name.startswith("decode") for t in threading.enumerate())
    with pools.open_pools() as other:
        assert other is not shared


def test_the_last_of_several_threads_ends_the_pools() -> None:
    first, second = pools.shared_pools(), pools.shared_pools()
    shared = first.__enter__()
    assert second.__enter__() is shared
    first.__exit__(None, None, None)
    assert shared.threads().submit(int, "7").result() == 7
    second.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="the pools of this command have ended"):
        shared.threads()
    with pytest.raises(RuntimeError, match="the pools of this command have ended"):
        shared.processes()


def test_what_has_not_begun_is_not_done_once_the_pools_end() -> None:
    release, done = threading.Event(), []
    with pools.shared_pools() as shared:
        pool = shared.threads()
        for _ in range(pools.thread_count()):
            pool.submit(release.wait, 20)
        late = [pool.submit(done.append, number) for number in range(9)]
        threading.Timer(0.2, release.set).start()
    assert all(each.cancelled() for each in late)
    assert done == []


def test_another_number_of_processes_replaces_those_that_run() -> None:
    with pools.open_pools() as own:
        own.resize(1)
        first = own.processes().submit(os.getpid).result()
        own.resize(1)
        assert own.processes().submit(os.getpid).result() == first
        own.resize(2)
        assert not own.has_processes
        assert own.processes().submit(os.getpid).result() != first


def test_an_interrupt_while_processes_start_leaves_no_error_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    opened = pools.Pools()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened.processes()
    opened.end()
    for thread in late:  # an error in a thread fails a test
        thread.start()
        thread.join()
    assert len(late) == 1


def test_ahead_keeps_order_and_no_more_under_way_than_it_may() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            taken = number + 1
            yield number

    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    with pools.open_pools() as own:
        found = pools.map_ahead(own.threads(), slow, tasks(), depth=4)
        assert next(found) == 0
        assert taken == 5
        assert [0, *found] == list(range(50))


# What a script does when it has no main guard: each worker does it again, to import the script.
WITHOUT_GUARD = """
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from oodcli import pools
from oodcli.store.store import Store

with Store(Path(sys.argv[1])).lock("images/x"), pools.open_pools() as own:
    try:
        print(list(pools.map_ahead(own.processes(), int, [1, 2], depth=1)))
    except BrokenProcessPool:
        print("without processes")
"""


def test_workers_of_a_script_without_a_main_guard_do_not_wait_for_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_GUARD)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "store"],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "without processes\n"
    assert 'put that work under: if __name__ == "__main__":' in done.stderr
