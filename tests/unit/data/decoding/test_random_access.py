"""Images in any order from worker processes, with the same result as here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from oodcli import pools
from oodcli.data.decoding.crops import RandomCrops
from oodcli.data.decoding.files import FileSource
from oodcli.data.decoding.random_access import Decoders, Originals, Prepared
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.formats.arrays import ArraySource
from oodcli.errors import InvalidInputError, UnreadableImageError

RESIZING = Resizing((8, 8), "shorter-crop:10")
BATCHES = [np.array(rows) for rows in ([5, 3, 90, 3], list(range(99, 40, -1)), [0])]
CHANGES = [Prepared(RESIZING), RandomCrops((8, 8), (0.2, 1.0), seed=1, epoch=1, views=2)]


@pytest.fixture
def images(random_images):
    return random_images(100, 12, 17, 3)


@pytest.fixture
def source(tmp_path, images, write_images):
    paths = write_images(tmp_path / "files", images)
    return FileSource(tmp_path / "files", [path.name for path in paths])


def read(source, change, workers, batches=BATCHES):
    with Decoders(workers) as decoders:
        return list(decoders.batches(Originals(source), batches, change))


@pytest.mark.parametrize("change", CHANGES)
def test_any_number_of_workers_gives_the_images_in_the_order_asked_for(source, images, change):
    for workers in (0, 1, 3):
        found = read(source, change, workers)
        for rows, pixels in zip(BATCHES, found, strict=True):
            wanted = [change.apply(images[row], row) for row in rows]
            np.testing.assert_array_equal(pixels, np.stack(wanted, axis=1))


def test_images_that_are_read_from_front_to_back_come_in_any_order(images):
    for workers in (0, 1):
        found = read(ArraySource(images), CHANGES[1], workers)
        wanted = [CHANGES[1].apply(images[row], row) for row in BATCHES[1]]
        np.testing.assert_array_equal(found[1], np.stack(wanted, axis=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(source, workers):
    (source.root / source.files[70]).write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"00070\.png: not an image file"):
        read(source, CHANGES[0], workers)
    assert len(read(source, CHANGES[0], workers, [np.array([1, 2])])) == 1


def test_images_are_read_by_other_processes(source, monkeypatch):
    """Were they read here, this would fail."""

    def fail(*_args):
        raise AssertionError("read in this process")

    monkeypatch.setattr(FileSource, "read", fail)
    assert len(read(source, CHANGES[0], 1)) == 3
    with pytest.raises(AssertionError, match="read in this process"):
        read(source, CHANGES[0], 0)


def test_no_more_is_under_way_than_the_next_batches_need(images):
    """A source that counts what was taken shows how far the workers are ahead."""
    taken = 0

    class Counting(Originals):
        def take(self, rows):
            nonlocal taken
            taken += len(rows)
            return super().take(rows)

    batches = [np.arange(20) for _ in range(50)]
    with Decoders(0) as decoders:
        for done, _ in enumerate(
            decoders.batches(Counting(ArraySource(images)), batches, CHANGES[0]), start=1
        ):
            assert taken <= 20 * done + 3 * 16 + 20
    assert taken == 1000


def test_reading_continues_after_a_worker_has_died(source, recorder):
    with Decoders(1, progress=recorder) as decoders:
        batches = decoders.batches(Originals(source), [np.arange(100)] * 3, CHANGES[0])
        first = next(batches)
        (worker,) = decoders._pools.processes()._processes
        os.kill(worker, signal.SIGKILL)
        rest = list(batches)
    assert len(rest) == 2
    for each in rest:
        np.testing.assert_array_equal(each, first)
    assert recorder.notes == ["a process that decodes images has died; starting new ones"]


def test_threads_read_where_no_process_can_be_started(source, recorder, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    class Broken:
        def submit(self, *_args):
            raise BrokenProcessPool

        def shutdown(self, **_how):
            pass

    monkeypatch.setattr(pools, "process_pool", lambda _count: Broken())
    with Decoders(2, progress=recorder) as decoders:
        found = list(decoders.batches(Originals(source), BATCHES, CHANGES[0]))
    for ours, wanted in zip(found, read(source, CHANGES[0], 0), strict=True):
        np.testing.assert_array_equal(ours, wanted)
    assert recorder.notes == ["no processes can be started; images are decoded in this one"]


def test_waiting_for_images_is_counted_and_that_for_the_device_is_not(source, monkeypatch):
    """Each chunk takes five seconds of a clock, and the device one hundred before it."""
    from concurrent.futures import Future

    from oodcli.data.decoding import random_access as module

    clock = 0.0

    def passes(seconds):
        nonlocal clock
        clock += seconds

    class Late(Future):
        def result(self, timeout=None):
            passes(5)
            self.set_result(self.work())
            return super().result(timeout)

    class Pool:
        def submit(self, function, *args):
            future = Late()
            future.work = lambda: function(*args)
            return future

        def shutdown(self, **_how):
            pass

    monkeypatch.setattr(pools, "process_pool", lambda _count: Pool())
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock)
    with Decoders(1) as decoders:
        batches = [np.arange(16)] * 4
        originals = Originals(source)
        list(decoders.batches(originals, batches, CHANGES[0], settle=lambda: passes(100)))
        assert decoders.waited == 15  # the first came with the start of the workers
        list(decoders.batches(originals, batches, CHANGES[0], settle=lambda: passes(100)))
        assert decoders.waited == 35
    assert clock == 840


def test_workers_end_with_a_parent_that_is_killed(source, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from oodcli.data.decoding.random_access import Decoders, Originals, Prepared\n"
        "from oodcli.data.decoding.scaling import Resizing\n"
        "from oodcli.data.decoding.files import FileSource\n"
        "if __name__ == '__main__':\n"
        "    source = FileSource(Path(sys.argv[1]), sys.argv[2:])\n"
        "    with Decoders(1) as decoders:\n"
        "        change = Prepared(Resizing((8, 8)))\n"
        "        next(decoders.batches(Originals(source), [np.arange(3)] * 9, change))\n"
        "        print(*decoders._pools.processes()._processes, flush=True)\n"
        "        time.sleep(60)\n"
    )
    argv = [sys.executable, str(program), str(source.root), *source.files[:3]]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    os.kill(worker, 0)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _lives(worker):
        time.sleep(0.05)
    assert not _lives(worker)


def _lives(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_the_number_of_workers_is_that_of_the_cores_and_no_less_than_none(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(24)), raising=False)
    assert [pools.worker_count(n) for n in (1, 2, 8, 50)] == [16, 12, 3, 1]
    with pytest.raises(InvalidInputError, match="--data-workers must be 0 or more, not -1"):
        Decoders(-1)
