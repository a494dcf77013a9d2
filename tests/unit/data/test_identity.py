"""Files are told apart by content where that is cheap, and by what cannot be set back elsewhere."""

import io
import os
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from oodcli.data import identity, open_dataset
from oodcli.data.decoding.prepare import prepare
from oodcli.data.identity import identity_of
from oodcli.store.store import Store


def rewrite(path: Path, content: bytes) -> None:
    """Write other content of the same size, and set the times of the file back."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_the_same_size_and_time_with_other_content_is_another_identity(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    before = identity_of(tmp_path, ["a", "b"])
    assert identity_of(tmp_path, ["a", "b"]) == before
    assert identity_of(tmp_path, ["b", "a"]) != before
    os.utime(tmp_path / "a", ns=(0, 0))
    (tmp_path / "a").chmod(0o600)
    assert identity_of(tmp_path, ["a", "b"]) == before
    time.sleep(0.02)
    rewrite(tmp_path / "a", b"eno")
    assert identity_of(tmp_path, ["a", "b"]) != before


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes")
def test_missing_unreadable_and_renamed_files_are_other_identities(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # which is not waited for
    seen = {identity_of(tmp_path, [name]) for name in ("a", "none", "folder", "pipe")}
    (tmp_path / "a").rename(tmp_path / "c")
    seen |= {
        identity_of(tmp_path, ["a"]),
        identity_of(tmp_path, ["c"]),
        identity_of(tmp_path / "c"),
    }
    assert len(seen) == 7


@pytest.mark.skipif(sys.platform == "win32", reason="has no time of the last change of status")
@pytest.mark.parametrize("most", ["MAX_READ_BYTES", "MAX_READ_FILES"])
def test_above_the_limits_files_are_not_read_and_a_time_that_is_set_back_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str
) -> None:
    monkeypatch.setattr(identity, most, 1)
    monkeypatch.setattr(identity, "digest_of_file", lambda path: pytest.fail("it was read"))
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    before = identity_of(tmp_path, ["a", "b"])
    assert identity_of(tmp_path, ["a", "b"]) == before
    time.sleep(0.02)
    rewrite(tmp_path / "a", b"eno")
    assert identity_of(tmp_path, ["a", "b"]) != before


def png(value: int) -> bytes:
    """Return an image file whose size does not depend on its one colour."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, format="BMP")
    return stream.getvalue()


def folder(path: Path, value: int) -> Path:
    path.mkdir(exist_ok=True)
    (path / "0.bmp").write_bytes(png(value))
    return path / "0.bmp"


def npz(path: Path, value: int) -> Path:
    np.savez(path.with_suffix(".npz"), images=np.full((1, 4, 4, 3), value, np.uint8))
    return path.with_suffix(".npz")


def packed(path: Path, value: int) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), images=np.full((1, 4, 4, 3), value, np.uint8))
    return path.with_suffix(".npz")


def zipped(path: Path, value: int) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.writestr(zipfile.ZipInfo("0.bmp"), png(value))
    return path.with_suffix(".zip")


def tarred(path: Path, value: int) -> Path:
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        entry = tarfile.TarInfo("0.bmp")
        entry.size = len(png(value))
        archive.addfile(entry, io.BytesIO(png(value)))
    return path.with_suffix(".tar")


@pytest.mark.parametrize("write", [folder, npz, packed, zipped, tarred])
def test_a_rewritten_data_set_is_decoded_again(tmp_path: Path, write) -> None:
    store = Store(tmp_path / "store")

    def pixels() -> np.ndarray:
        opened = open_dataset(str(path.parent if write is folder else path), store, role="ood")
        return prepare(opened.ood_part, store, name="x", size=(4, 4)).pixels()

    path = write(tmp_path / "x", 50)
    before = path.stat()
    assert (pixels()[0, 0] == 50).all()
    time.sleep(0.02)
    write(tmp_path / "x", 60)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert (pixels()[0, 0] == 60).all()
