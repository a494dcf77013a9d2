"""A bounded cache of what was read of remote files, in memory and on the disk.

::

    <store>/remote/<key>/<n>    512 blocks of 16 KiB: their checksums, then the blocks; sparse

The key stands for the address, the size and the version of a file, so that a file that has changed
has other blocks. A block counts only if it has its checksum; so files may be written by several
processes at once, and cut short by a crash. The oldest files are removed when all together exceed
the limit.
"""

import contextlib
import os
import re
import struct
import threading
import time
import zlib
from collections import OrderedDict
from pathlib import Path

from oodcli.errors import InvalidInputError

BLOCK = 1 << 14
LIMIT_VARIABLE = "OOD_REMOTE_CACHE"
DEFAULT_LIMIT = 10 * 1024**3

_PER_FILE = 512
_CHECKSUM = struct.Struct("<I")
_TABLE = _PER_FILE * _CHECKSUM.size
_MEMORY_BLOCKS = (1 << 26) // BLOCK
# So much is written before the size of all is looked at again.
_WRITTEN_BETWEEN = 1 << 26
_LEFT = 0.9
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)\s*([kmgt]?)b?", re.IGNORECASE)
_TOUCHED_AFTER_S = 60.0


def limit() -> int:
    """Return how many bytes may be on the disk, as ``OOD_REMOTE_CACHE`` says.

    Raises
    ------
    InvalidInputError
        If it says something that is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidInputError(
            f"{LIMIT_VARIABLE}={text!r} is no size; write one such as 20GB, or 0 for no cache"
        )
    return int(float(found[1]) * _UNITS[found[2].lower()])


class Cache:
    """Blocks of remote files, by the key of the file and the number of the block.

    Parameters
    ----------
    folder
        Where they are on the disk; None for in memory alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._limit = limit() if folder is not None else 0
        self._written = _WRITTEN_BETWEEN
        self._touched: dict[Path, float] = {}

    def get(self, key: str, number: int) -> bytes | None:
        """Return a block; None if it is not there."""
        with self._lock:
            found = self._memory.get((key, number))
            if found is not None:
                self._memory.move_to_end((key, number))
                return found
        found = self._on_disk(key, number)
        if found is not None:
            self._hold(key, number, found)
        return found

    def put(self, key: str, first: int, content: bytes) -> None:
        """Take consecutive blocks in; the last one of a file may be shorter than the others."""
        blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
        for number, block in enumerate(blocks, first):
            self._hold(key, number, block)
        if self._limit:
            try:
                self._write(key, first, blocks)
            except OSError:  # a store that is full or cannot be written is no reason to stop
                self._limit = 0

    def _hold(self, key: str, number: int, block: bytes) -> None:
        with self._lock:
            self._memory[key, number] = block
            self._memory.move_to_end((key, number))
            while len(self._memory) > _MEMORY_BLOCKS:
                self._memory.popitem(last=False)

    def _path(self, key: str, number: int) -> Path:
        assert self.folder is not None  # there is no limit without it
        return self.folder / key / f"{number // _PER_FILE:06d}"

    def _on_disk(self, key: str, number: int) -> bytes | None:
        if not self._limit:
            return None
        path = self._path(key, number)
        at = number % _PER_FILE
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            checksum = os.pread(descriptor, _CHECKSUM.size, at * _CHECKSUM.size)
            if len(checksum) < _CHECKSUM.size or checksum == bytes(_CHECKSUM.size):
                return None
            block = os.pread(descriptor, BLOCK, _TABLE + at * BLOCK)
        finally:
            os.close(descriptor)
        if _CHECKSUM.pack(_checksum(block)) != checksum:
            return None
        self._touch(path)
        return block

    def _touch(self, path: Path) -> None:
        """Let a file count as used now."""
        now = time.monotonic()
        if now - self._touched.get(path, -_TOUCHED_AFTER_S) >= _TOUCHED_AFTER_S:
            self._touched[path] = now
            with contextlib.suppress(OSError):
                os.utime(path)

    def _write(self, key: str, first: int, blocks: list[bytes]) -> None:
        at = 0
        while at < len(blocks):
            number = first + at
            place = number % _PER_FILE
            some = blocks[at : at + _PER_FILE - place]
            path = self._path(key, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                os.pwrite(descriptor, b"".join(some), _TABLE + place * BLOCK)
                sums = b"".join(_CHECKSUM.pack(_checksum(block)) for block in some)
                os.pwrite(descriptor, sums, place * _CHECKSUM.size)
            finally:
                os.close(descriptor)
            at += len(some)
            self._written += sum(map(len, some))
        if self._written >= min(_WRITTEN_BETWEEN, self._limit // 8):
            self._written = 0
            self._shrink()

    def _shrink(self) -> None:
        """Remove the files that were used least recently, until the limit is kept."""
        assert self.folder is not None
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # another process may remove it now
                    status = os.stat(path := Path(folder, name))  # noqa: PTH116
                    found.append((status.st_mtime_ns, status.st_blocks * 512, path))
        total = sum(size for _, size, _ in found)
        if total <= self._limit:
            return
        for _, size, path in sorted(found):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it has others
                path.parent.rmdir()
            total -= size
            if total <= _LEFT * self._limit:
                break


def _checksum(block: bytes) -> int:
    """Return a checksum that is not zero, which stands for no block."""
    return zlib.crc32(block) or 1


def size_on_disk(folder: Path) -> int:
    """Return how many bytes a folder of blocks takes on the disk, which holds sparse files."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(Path(place, name)).st_blocks * 512  # noqa: PTH116
    return total
