"""The cache of remote blocks: bounded, shared, and never trusted without its checksum."""

import os
from pathlib import Path

import pytest

from oodcli.errors import InvalidInputError
from oodcli.remote.cache import BLOCK, DEFAULT_LIMIT, Cache, limit, size_on_disk


def blocks(count: int, seed: int = 0) -> bytes:
    return b"".join(bytes([(seed + n) % 251 + 1]) * BLOCK for n in range(count))


def test_blocks_are_read_by_another_process(tmp_path: Path) -> None:
    content = blocks(520) + b"the last one is short"
    Cache(tmp_path).put("key", 3, content)
    other = Cache(tmp_path)
    assert b"".join(other.get("key", 3 + n) or b"" for n in range(521)) == content
    assert other.get("key", 2) is None
    assert other.get("key", 524) is None
    assert other.get("another", 3) is None
    # The files are sparse: blocks and their checksums, not all that they have place for.
    assert len(content) < size_on_disk(tmp_path) < 1.1 * len(content)


def test_damaged_blocks_are_not_there(tmp_path: Path) -> None:
    Cache(tmp_path).put("key", 0, blocks(3))
    (path,) = (tmp_path / "key").iterdir()
    whole = bytearray(path.read_bytes())
    whole[-BLOCK - 1] ^= 1  # in the second of three
    path.write_bytes(whole)
    other = Cache(tmp_path)
    assert [other.get("key", n) is None for n in range(3)] == [False, True, False]
    path.write_bytes(whole[:-BLOCK])  # cut short, as by a disk that was full
    assert Cache(tmp_path).get("key", 2) is None


def test_the_least_recently_used_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OOD_REMOTE_CACHE", "1MB")
    cache = Cache(tmp_path)
    for n in range(12):
        cache.put(f"key{n:02d}", 0, blocks(8, n))  # 128 KiB each
        os.utime(tmp_path / f"key{n:02d}" / "000000", (n, n))
    assert size_on_disk(tmp_path) <= 1_000_000 + 2 * 8 * BLOCK
    other = Cache(tmp_path)
    assert other.get("key00", 0) is None
    assert other.get("key11", 7) == blocks(1, 18)


def test_without_a_limit_or_a_disk_blocks_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OOD_REMOTE_CACHE", "0")
    none = Cache(tmp_path / "folder")
    monkeypatch.delenv("OOD_REMOTE_CACHE")
    for cache in (none, Cache(None), Cache(tmp_path / "file")):
        cache.put("key", 0, blocks(2))
        assert cache.get("key", 1) == blocks(1, 1)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("", DEFAULT_LIMIT), ("20GB", 20 * 10**9), ("1.5 m", 1_500_000), ("0", 0)]
)
def test_sizes_are_read(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OOD_REMOTE_CACHE", text)
    assert limit() == size


def test_what_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OOD_REMOTE_CACHE", "much")
    with pytest.raises(InvalidInputError, match="OOD_REMOTE_CACHE='much' is no size"):
        limit()
