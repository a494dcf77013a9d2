"""The files in a tar archive that is not compressed, by reading its headers alone.

A tar archive has no table of contents: every header says where the next one is. Of a remote archive
the headers are followed from many places at once, and nothing but them is read. A place that merely
looks like a header, such as one in an archive in the archive, leads nowhere: only headers that are
reached from the first one count.

References
----------
IEEE Std 1003.1-2017, "pax", for the format.
"""

import io
import json
import os
import tarfile
import zlib
from bisect import bisect_left
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from oodcli.files import regular
from oodcli.remote.files import RemoteFile, RemotePath

_PLACES = 32
_LEAST_BETWEEN = 1 << 20
_LOOK = 1 << 14
# A header, a small file such as a label, and the next header.
_HEADER_BYTES = 3072
_MAX_HELD = 1024
_KEPT = "tar-1"
_RECORD = 512
_MAGIC = slice(257, 262)


@dataclass(frozen=True, slots=True)
class Entry:
    """A regular file in a tar archive.

    Parameters
    ----------
    name
        Its path in the archive.
    header
        Where its header begins.
    offset, size
        Where its bytes begin, and how many they are.
    content
        Its bytes, if it is small and came with the header.
    """

    name: str
    header: int
    offset: int
    size: int
    content: bytes | None = None


def entries_of(path: Path) -> Generator[Entry, None, None]:
    """Yield the regular files of an archive in its order.

    Parameters
    ----------
    path
        The archive, on the disk or remote.

    Raises
    ------
    ValueError
        If the archive ends within a file.
    OSError, tarfile.TarError
        If it cannot be read, or is no such archive.
    RemoteError
        If its server fails.
    """
    if isinstance(path, RemotePath):
        yield from _remote_entries(path.ranges())
        return
    with regular(path).open("rb") as stream:
        yield from entries_in(stream, path.stat().st_size)


def entries_in(stream: IO[bytes], end: int) -> Generator[Entry, None, None]:
    """Yield the regular files of an archive from the place of a stream on.

    Parameters
    ----------
    stream
        The archive.
    end
        Its number of bytes.

    Raises
    ------
    ValueError, OSError, tarfile.TarError
        As :func:`entries_of`.
    """
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            entry = _entry(archive, member, end)
            if entry is not None:
                yield entry


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, end: int) -> Entry | None:
    # It collects members, which are larger than what is kept of them.
    archive.members = []  # type: ignore[attr-defined]
    if not member.isreg() or member.issparse():
        return None
    if member.offset_data + member.size > end:
        raise ValueError(f"it ends within {member.name}")
    return Entry(member.name, member.offset, member.offset_data, member.size)


@dataclass
class _Chain:
    """Headers that follow from one another.

    Parameters
    ----------
    starts
        Where each of them begins, of whatever kind.
    entries
        The regular files among them.
    next
        Where the next one is; the end of the archive if ``ended``.
    ended
        Whether there is none.
    """

    starts: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    next: int = 0
    ended: bool = False


def _remote_entries(file: RemoteFile) -> Generator[Entry, None, None]:
    """Yield the files of a remote archive, whose headers are followed once."""
    kept = file.kept(_KEPT)
    if kept is not None:
        for name, header, offset, size, held in json.loads(zlib.decompress(kept)):
            yield Entry(name, header, offset, size, held and held.encode("latin-1"))
        return
    found = list(_followed(file))
    yield from found
    each = [
        (one.name, one.header, one.offset, one.size, one.content and one.content.decode("latin-1"))
        for one in found
    ]
    file.keep(_KEPT, zlib.compress(json.dumps(each).encode()))


def _followed(file: RemoteFile) -> Generator[Entry, None, None]:
    places = max(1, min(_PLACES, file.size // _LEAST_BETWEEN))
    step = -(-file.size // places // _RECORD) * _RECORD
    borders = [step * at for at in range(places)] + [file.size]
    if places == 1:
        file.expect(0, file.size)
    chains = _chains(file, borders)
    first = chains[0]
    yield from first.entries
    at, ended = first.next, first.ended
    for chain, border in zip(chains[1:], borders[2:], strict=True):
        # What was found from the middle counts from where it is reached.
        while not ended and at < border and at not in chain.starts:
            step_on = _follow(file, at, at + 1)
            yield from step_on.entries
            at, ended = step_on.next, step_on.ended
        if not ended and at < border:
            known = bisect_left(chain.entries, at, key=lambda entry: entry.header)
            yield from chain.entries[known:]
            at, ended = chain.next, chain.ended


def _chains(file: RemoteFile, borders: Sequence[int]) -> list[_Chain]:
    """Follow headers from the first that begins behind every border but the last, all at once."""
    follow = partial(_follow_from, file)
    with ThreadPoolExecutor(len(borders) - 1) as threads:
        return list(threads.map(follow, borders[:-1], borders[1:]))


def _follow_from(file: RemoteFile, start: int, stop: int) -> _Chain:
    """Follow the headers that begin between two places, from the first one that there may be."""
    if start == 0:
        return _follow(file, 0, stop)
    for place in range(start, stop, _LOOK):
        block = file.read_at(place, min(_LOOK, stop - place))
        for at in range(0, len(block) - _RECORD + 1, _RECORD):
            record = block[at : at + _RECORD]
            if record[_MAGIC] == b"ustar" and _is_header(record):
                try:
                    return _follow(file, place + at, stop)
                except (tarfile.TarError, ValueError):  # it was none
                    return _Chain()
    return _Chain()


def _is_header(record: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(record, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _follow(file: RemoteFile, start: int, stop: int) -> _Chain:
    """Follow headers from one on, up to the first behind a place."""
    found = _Chain()
    look = _Look(file, start)
    with tarfile.open(fileobj=look, mode="r:") as archive:
        for member in archive:
            found.starts.append(member.offset)
            entry = _entry(archive, member, file.size)
            if entry is not None:
                content = look.held(entry.offset, entry.size)
                found.entries.append(
                    Entry(entry.name, entry.header, entry.offset, entry.size, content)
                )
            found.next = archive.offset
            if found.next >= stop:
                return found
    found.ended = True
    return found


class _Look(io.RawIOBase):
    """A remote archive as a stream of which little more than what is asked for is read."""

    def __init__(self, file: RemoteFile, at: int) -> None:
        super().__init__()
        self._file = file
        self._at = at
        self._start = at
        self._content = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        size = self._file.size - self._at if size < 0 else size
        content = self.held(self._at, size, most=size)
        if content is None:
            self._start = self._at
            self._content = self._file.look(self._at, max(size, _HEADER_BYTES))
            content = self._content[:size]
        self._at += len(content)
        return content

    def held(self, offset: int, size: int, *, most: int = _MAX_HELD) -> bytes | None:
        """Return bytes that are here already; None if they are not, or too many."""
        at = offset - self._start
        if size > most or at < 0 or at + size > len(self._content):
            return None
        return self._content[at : at + size]
