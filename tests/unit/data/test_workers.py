"""Large sets are read by processes, with the same result as by one."""

import os

import numpy as np
import pytest

from oodcli.data import prepare, workers
from oodcli.data.arrays import ArraySource
from oodcli.data.prepare import Resizing
from oodcli.data.readers import FileSource
from oodcli.errors import UnreadableImageError
from oodcli.images import Part

RESIZING = Resizing((8, 8), "shorter-crop:10")


@pytest.fixture
def source(tmp_path, random_images, write_images, monkeypatch):
    """Return 100 files, of which one is no image, and have even so few read by processes."""
    monkeypatch.setattr(workers, "LEAST_ROWS", 50)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    paths = write_images(tmp_path / "files", random_images(100, 12, 17, 3))
    paths[70].write_bytes(b"no image")
    return FileSource(tmp_path / "files", [path.name for path in paths])


def test_workers_give_the_same_images_in_the_same_order(source, monkeypatch):
    by_processes = list(workers.resized(source, 5, 100, RESIZING.apply))
    monkeypatch.setattr(workers, "LEAST_ROWS", 1000)
    here = list(workers.resized(source, 5, 100, RESIZING.apply))
    assert len(by_processes) == len(here) == 95
    for first, second in zip(by_processes, here, strict=True):
        if isinstance(first, UnreadableImageError):
            assert (first.where, first.reason) == (second.where, second.reason)
        else:
            np.testing.assert_array_equal(first, second)
    assert [
        row for row, image in enumerate(here, start=5) if not isinstance(image, np.ndarray)
    ] == [70]


def test_images_are_read_by_other_processes(source, store, monkeypatch):
    """Were they read here, this would fail."""

    def fail(*_args):
        raise AssertionError("read in this process")

    monkeypatch.setattr(FileSource, "read", fail)
    images = prepare(
        Part(source), store, name="x", size=(8, 8), resize="shorter-crop:10", skip_unreadable=True
    )
    assert len(images) == 99


def test_reading_goes_on_here_where_no_process_can_be_started(source, monkeypatch):
    def broken(*_args, **_kwargs):
        raise workers.BrokenProcessPool

    monkeypatch.setattr(workers, "_by_workers", broken)
    assert len(list(workers.resized(source, 0, 100, RESIZING.apply))) == 100


def test_images_in_memory_are_read_here(random_images, monkeypatch):
    monkeypatch.setattr(workers, "LEAST_ROWS", 1)
    images = random_images(9, 8, 8, 3)
    seen = list(workers.resized(ArraySource(images), 0, 9, Resizing((8, 8)).apply))
    np.testing.assert_array_equal(np.stack(seen), images)
