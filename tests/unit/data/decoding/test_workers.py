"""Large sets are read by processes, with the same result as by one."""

import numpy as np
import pytest

from oodcli import pools
from oodcli.data import prepare
from oodcli.data.decoding import workers
from oodcli.data.decoding.files import FileSource
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.formats.arrays import ArraySource
from oodcli.errors import UnreadableImageError
from oodcli.images import Part

RESIZING = Resizing((8, 8), "shorter-crop:10")


@pytest.fixture
def source(tmp_path, random_images, write_images, monkeypatch):
    """Return 100 files, of which one is no image, and have even so few read by processes."""
    monkeypatch.setattr(workers, "LEAST_WORK", 1)
    monkeypatch.setattr(pools, "cores", lambda: 2)
    paths = write_images(tmp_path / "files", random_images(100, 12, 17, 3))
    paths[70].write_bytes(b"no image")
    return FileSource(tmp_path / "files", [path.name for path in paths])


def test_workers_give_the_same_images_in_the_same_order(source, monkeypatch):
    by_processes = resized(source, 5, 100, processes=True)
    monkeypatch.setattr(workers, "LEAST_WORK", 10**9)
    here = resized(source, 5, 100, processes=False)
    assert len(by_processes) == len(here) == 95
    for first, second in zip(by_processes, here, strict=True):
        if isinstance(first, UnreadableImageError):
            assert (first.where, first.reason) == (second.where, second.reason)
        else:
            np.testing.assert_array_equal(first, second)
    assert [
        row for row, image in enumerate(here, start=5) if not isinstance(image, np.ndarray)
    ] == [70]


def test_images_are_read_by_other_processes_but_for_the_first_ones(source, store, monkeypatch):
    read = []
    plain = FileSource.read

    def counted(self, start, stop):
        read.extend(self.files[start:stop])
        return plain(self, start, stop)

    monkeypatch.setattr(FileSource, "read", counted)
    images = prepare(
        Part(source), store, name="x", size=(8, 8), resize="shorter-crop:10", skip_unreadable=True
    )
    assert len(images) == 99
    assert sorted(read) == source.files[:16]


def test_processes_are_started_where_the_pixels_of_the_originals_are_worth_it(
    tmp_path, random_images, write_images, monkeypatch
):
    """Forty files count as 16,384 pixels each beside their own, of which the first 16 are read."""
    monkeypatch.setattr(pools, "cores", lambda: 2)
    paths = write_images(tmp_path / "files", random_images(40, 12, 17, 3))
    source = FileSource(tmp_path / "files", [path.name for path in paths])
    left = (40 - 16) * (16384 + 12 * 17)
    for least, wanted in ((left, True), (left + 1, False)):
        monkeypatch.setattr(workers, "LEAST_WORK", least)
        assert len(resized(source, 0, 40, processes=wanted)) == 40


@pytest.mark.parametrize(
    ("side", "cores", "wanted"), [(128, 2, True), (129, 2, False), (129, 3, True)]
)
def test_large_results_are_copied_from_processes_only_where_there_are_many(
    side, cores, wanted, source, monkeypatch
):
    monkeypatch.setattr(pools, "cores", lambda: cores)
    monkeypatch.setattr("tests.unit.data.decoding.test_workers.RESIZING", Resizing((side, side)))
    assert len(resized(source, 0, 40, processes=wanted)) == 40


def test_shards_that_are_read_again_use_the_processes_that_run(source, store, monkeypatch):
    """What is not kept is decoded at every load: by processes, however few rows a shard has."""
    with pools.shared_pools() as shared:
        images = prepare(
            Part(source), store, name="x", size=(8, 8), skip_unreadable=True, max_pixels_bytes=0
        )
        monkeypatch.setattr(workers, "LEAST_WORK", 10**9)
        before = set(shared.processes()._processes)
        monkeypatch.setattr(FileSource, "read", None)  # were one read here, this would fail
        again = images.pixels()
        assert set(shared.processes()._processes) >= before
    assert again.shape == (99, 3, 8, 8)


def test_reading_continues_here_where_no_process_can_be_started(source, monkeypatch):
    class Broken:
        def submit(self, *_args):
            raise workers.BrokenProcessPool

        def shutdown(self, **_how):
            pass

    monkeypatch.setattr(pools, "process_pool", lambda _count: Broken())
    assert len(resized(source, 0, 100, processes=False)) == 100


def test_images_in_memory_are_read_here(random_images, monkeypatch):
    monkeypatch.setattr(workers, "LEAST_WORK", 1)
    images = random_images(9, 8, 8, 3)
    with pools.open_pools() as own:
        seen = list(workers.resized(own, ArraySource(images), 0, 9, Resizing((8, 8))))
        assert not own.has_processes
    np.testing.assert_array_equal(np.stack(seen), images)


def resized(source, start, stop, *, processes):
    """Return the images, and check whether processes were used."""
    with pools.open_pools() as own:
        images = list(workers.resized(own, source, start, stop, RESIZING))
        assert own.has_processes == processes
    return images
