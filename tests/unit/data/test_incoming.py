"""Incoming images are found and decoded as a stream."""

import itertools
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli import pools
from oodcli.data import incoming
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.incoming import Item, decoded, items
from oodcli.store.store import Store


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 9).save(root / name)


def test_a_folder_is_read_name_by_name(tmp_path):
    make(tmp_path, "b/2.png", "b/10.jpg", "a.PNG", "c/d/e.png", ".hidden/x.png", "b/.y.png")
    (tmp_path / "b" / "notes.txt").touch()
    assert [item.relative for item in items([str(tmp_path)], store=Store(tmp_path))] == [
        "a.PNG", "b/10.jpg", "b/2.png", "c/d/e.png",
    ]  # fmt: skip


def test_of_a_large_folder_pieces_are_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(incoming, "SORTED", 4)
    make(tmp_path, *(f"{number:02d}.png" for number in range(11)))
    names = [item.relative for item in items([str(tmp_path)], store=Store(tmp_path))]
    assert sorted(names) == [f"{number:02d}.png" for number in range(11)]
    for at in range(0, 11, 4):
        assert names[at : at + 4] == sorted(names[at : at + 4])


def test_nothing_is_listed_before_it_is_wanted(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png")

    def lines() -> Iterator[str]:
        yield str(tmp_path / "a")
        raise AssertionError("read too early")

    assert next(items(["-"], lines(), store=Store(tmp_path))).relative.endswith("a/1.png")


def test_a_folder_that_cannot_be_listed_is_an_error_of_its_own(tmp_path, monkeypatch):
    make(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    real = incoming.os.scandir

    def scandir(folder: str) -> object:
        if folder.endswith("b"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(incoming.os, "scandir", scandir)
    found = list(items([str(tmp_path)], store=Store(tmp_path)))
    assert [item.relative for item in found] == ["a/1.png", "b", "c/3.png"]
    assert found[1].error == "cannot list the folder: Permission denied"


def test_copies_cannot_leave_their_folder(tmp_path):
    paths = ["../../etc/x.png", "/var/y.png", "./z.png"]
    found = [item.relative for item in items(["-"], paths, store=Store(tmp_path))]
    assert found == ["etc/x.png", "var/y.png", "z.png"]


def test_several_folders_are_distinguished(tmp_path):
    make(tmp_path, "one/x.png", "two/x.png")
    found = items([str(tmp_path / "one"), str(tmp_path / "two")], store=Store(tmp_path))
    assert [item.relative for item in found] == ["one/x.png", "two/x.png"]


def test_an_array_that_ends_early_keeps_its_first_rows(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "whole.npz", images=rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive:
        start = archive.infolist()[0].header_offset
    content = bytearray((tmp_path / "whole.npz").read_bytes())
    content[start + 100_000] ^= 255  # its checksum is wrong, which is seen at the end
    (tmp_path / "x.npz").write_bytes(content)
    found = list(items([str(tmp_path / "x.npz")], store=Store(tmp_path)))
    assert found[-1].name == str(tmp_path / "x.npz")
    assert "damaged after row" in str(found[-1].error)


def test_decoding_keeps_order_and_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "MAX_THREADS", 1)
    make(tmp_path, *(f"{number:03d}.png" for number in range(50)))
    (tmp_path / "025.png").write_bytes(b"")
    taken = itertools.count()
    last = 0

    def counted() -> Iterator[Item]:
        nonlocal last
        for item in items([str(tmp_path)], store=Store(tmp_path)):
            last = next(taken)
            yield item

    with ThreadPoolExecutor(2) as pool:
        found = decoded(counted(), Resizing((2, 3)), pool, None)
        first = next(found)
        assert last < 25
        every = [first, *found]
    assert [item.relative for item, _ in every] == [f"{number:03d}.png" for number in range(50)]
    assert every[25][1] == "the file is empty"
    assert all(
        isinstance(image, np.ndarray) and image.shape == (2, 3, 3)
        for at, (_, image) in enumerate(every)
        if at != 25
    )


@pytest.mark.parametrize("text", ["x.npz", "missing.npz"])
def test_a_listed_array_that_is_none_is_an_error(tmp_path, text):
    (tmp_path / "x.npz").write_text("hello")
    (found,) = items(["-"], [str(tmp_path / text)], store=Store(tmp_path))
    assert found.error
