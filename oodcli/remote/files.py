"""Remote files as paths: looked at, listed, and read in ranges through the cache.

A :class:`RemotePath` is a path, so that whoever opens a path with its own methods reads remote
files, too. Its text is the address without credentials.
"""

import contextlib
import hashlib
import io
import os
import secrets
import stat
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PosixPath
from typing import IO, TYPE_CHECKING, Any, Self

from oodcli.errors import InvalidInputError
from oodcli.remote.addresses import (
    WEB,
    checked,
    credentials,
    hold,
    is_address,
)
from oodcli.remote.cache import BLOCK, Cache
from oodcli.remote.errors import Kind, RemoteError
from oodcli.remote.state import State

if TYPE_CHECKING:
    from oodcli.remote.transport import Transport

KNOWN_S = 30.0
"""How long what a server said of a file counts before it is asked again."""
_GROUP_BLOCKS = (1 << 22) // BLOCK
_AHEAD_BLOCKS = 8 * _GROUP_BLOCKS
_WINDOW_BYTES = 1 << 24
# Ranges that lie as near as this are one request.
_NEAR_BLOCKS = 4
_FIRST_AHEAD, _MAX_AHEAD = 1 << 16, 1 << 22


@dataclass
class _Door:
    """What this process knows of remote files."""

    cache: Cache
    process: int = field(default_factory=os.getpid)
    states: dict[str, tuple[float, State | RemoteError]] = field(default_factory=dict)
    listings: dict[str, tuple[float, dict[str, State], list[str]]] = field(default_factory=dict)
    pending: dict[tuple[str, int], "Future[None]"] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Stands for the version of files of which servers say none: read anew by every process.
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    @cached_property
    def transport(self) -> "Transport":
        """The connections, opened with the first request."""
        from oodcli.remote.transport import Transport

        return Transport()


_folder: Path | None = None
_door: _Door | None = None
_opening = threading.Lock()


def use_cache(folder: Path | None) -> None:
    """Say where blocks of remote files are cached on the disk; nowhere if None.

    What is known of remote files is forgotten if it is another folder; connections are kept.
    """
    global _folder, _door
    if folder != _folder:
        before, _folder, _door = _door, folder, None
        if before is not None and before.process == os.getpid() and "transport" in vars(before):
            _opened().__dict__["transport"] = before.transport


def _opened() -> _Door:
    """Return what this process knows; a process that was forked begins anew."""
    global _door  # noqa: PLW0603
    door = _door
    if door is None or door.process != os.getpid():
        with _opening if door is None else contextlib.nullcontext():
            door = _door
            if door is None or door.process != os.getpid():
                door = _door = _Door(Cache(_folder))
    return door


def path_of(text: str | Path) -> Path:
    """Return a path: of something remote if the text is an address.

    Parameters
    ----------
    text
        A path or an address.

    Raises
    ------
    InvalidInputError
        If it is an address that cannot be one.
    """
    if isinstance(text, RemotePath):
        return text
    if is_address(str(text)):
        return RemotePath(checked(str(text)))
    return Path(text)


class RemotePath(PosixPath):
    """A remote file or folder.

    Parameters
    ----------
    address
        As :func:`oodcli.remote.addresses.checked` returns it.

    Notes
    -----
    What does not exist raises FileNotFoundError, as on a disk; anything else that is wrong, such as
    a server that refuses, raises :class:`oodcli.remote.errors.RemoteError`.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __truediv__(self, key: str | os.PathLike[str]) -> "RemotePath":
        # An absolute path would lead from here to this disk.
        return super().__truediv__(os.fspath(key).lstrip("/"))

    def __reduce__(self) -> Any:  # noqa: ANN401 - as in the base class
        return _restored, (str(self), _folder, *credentials())

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which has no list of files."""
        return self.parts[0][:-1] in WEB

    def is_absolute(self) -> bool:
        """Return that it is."""
        return True

    def absolute(self) -> "RemotePath":
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":  # noqa: ARG002, FBT001, FBT002
        """Return the path itself."""
        return self

    def expanduser(self) -> "RemotePath":
        """Return the path itself."""
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:  # noqa: ARG002
        """Return size and kind.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        RemoteError
            If the server refuses or does not answer.
        """
        found = self.state()
        kind = stat.S_IFDIR if found.is_folder else stat.S_IFREG
        return os.stat_result((kind | 0o444, 0, 0, 1, 0, 0, max(0, found.size), 0, 0, 0))

    lstat = stat

    def state(self) -> State:
        """Return what the server says of the file.

        Raises
        ------
        FileNotFoundError, RemoteError
            As :meth:`stat`.
        """
        (found,) = states_of([str(self)])
        if isinstance(found, RemoteError):
            raise found.as_os_error() if found.kind is Kind.MISSING else found
        return found

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        """Return whether there is such a file or folder."""
        with contextlib.suppress(FileNotFoundError):
            self.state()
            return True
        return False

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        """Return whether it is a folder; nothing on a web server is."""
        with contextlib.suppress(FileNotFoundError):
            return not self.is_web and self.state().is_folder
        return False

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        """Return whether it is a file."""
        with contextlib.suppress(FileNotFoundError):
            return not self.state().is_folder
        return False

    def open(  # type: ignore[override]
        self,
        mode: str = "r",
        buffering: int = -1,  # noqa: ARG002
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open the file for reading; what is read of it is read in ranges."""
        if mode not in ("r", "rt", "rb"):
            raise InvalidInputError(f"cannot write {self}: remote files are only read")
        raw = io.BufferedReader(_Stream(self.ranges()), BLOCK)
        if mode == "rb":
            return raw
        return io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)

    def ranges(self) -> "RemoteFile":
        """Return the file to be read by position."""
        return RemoteFile(str(self), self.state())

    def files_below(self) -> list[str]:
        """Return all files below a folder, as paths relative to it, folder by folder, sorted.

        Raises
        ------
        InvalidInputError
            If it is on a web server.
        RemoteError
            If it cannot be listed.
        """
        return sorted(self._listing()[0], key=lambda name: name.split("/"))

    def entries(self) -> list["RemoteEntry"]:
        """Return what lies in a folder, sorted by name.

        Raises
        ------
        InvalidInputError, RemoteError
            As :meth:`files_below`.
        """
        states, _ = self._listing()
        found: dict[str, bool] = {}
        for name in states:
            first, slash, _ = name.partition("/")
            found[first] = bool(slash)
        return [RemoteEntry(name, f"{self}/{name}", found[name]) for name in sorted(found)]

    def glob(self, pattern: str, **_options: Any) -> Iterator["RemotePath"]:  # type: ignore[override]  # noqa: ANN401
        """Yield the files in the folder whose names match a pattern."""
        for entry in self.entries():
            if not entry.is_dir() and fnmatchcase(entry.name, pattern):
                yield self / entry.name

    def _listing(self) -> tuple[dict[str, State], list[str]]:
        if self.is_web:
            raise InvalidInputError(
                f"cannot list {self}: a web server has no list of its files; name an archive, a "
                "Parquet file, a table of images, or a pattern such as shard-{000..009}.tar"
            )
        return _listing_of(str(self))


def _restored(
    address: str, folder: Path | None, users: Mapping[str, str], queries: Mapping[str, str]
) -> RemotePath:
    """Return a path in a worker process, with the credentials of its parent."""
    hold(users, queries)
    use_cache(folder)
    return RemotePath(address)


@dataclass(frozen=True, slots=True)
class RemoteEntry:
    """What lies in a remote folder; it has what is used of os.DirEntry.

    Parameters
    ----------
    name, path
        Name and address.
    folder
        Whether it is a folder.
    """

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return not self.folder

    def is_symlink(self) -> bool:
        """Return that it is no link."""
        return False


def states_of(addresses: Iterable[str]) -> list[State | RemoteError]:
    """Return what servers say of files, asked at once; what was just asked is not asked again.

    Parameters
    ----------
    addresses
        The files, without credentials.

    Raises
    ------
    RemoteError
        If a server does not answer at all.
    """
    door, wanted = _opened(), list(addresses)
    missing = [each for each in dict.fromkeys(wanted) if _known(door, each) is None]
    asked = door.transport.states(missing) if missing else []
    for address, state in zip(missing, asked, strict=True):
        if isinstance(state, RemoteError) and not state.is_of_file:
            raise state
        if isinstance(state, State) and state.content is not None:
            door.cache.put(_key(door, address, state), 0, state.content)
        kept = replace(state, content=None) if isinstance(state, State) else state
        door.states[address] = (time.monotonic(), kept)
    return [_known(door, each) or door.states[each][1] for each in wanted]


def _known(door: _Door, address: str) -> State | RemoteError | None:
    """Return what is known of a file from before; None if too little."""
    now = time.monotonic()
    at, state = door.states.get(address, (0.0, None))
    if state is not None and now - at < KNOWN_S:
        return state
    folder = address
    while folder.count("/") > 2:
        folder = folder.rpartition("/")[0]
        at, states, names = door.listings.get(folder, (0.0, {}, []))
        if names and now - at < KNOWN_S:
            below = address[len(folder) + 1 :]
            if below in states:
                return states[below]
            place = bisect_left(names, f"{below}/")
            if place < len(names) and names[place].startswith(f"{below}/"):
                return State(-1, "")
            return RemoteError(address, Kind.MISSING, "it does not exist")
    return None


def _listing_of(address: str) -> tuple[dict[str, State], list[str]]:
    """Return all files below a folder, and their names sorted."""
    door, now = _opened(), time.monotonic()
    folder = address
    while folder.count("/") > 1:
        at, states, names = door.listings.get(folder, (0.0, {}, []))
        if names and now - at < KNOWN_S:
            prefix = f"{address[len(folder) + 1 :]}/" if folder != address else ""
            first = bisect_left(names, prefix)
            below = []
            for name in names[first:]:
                if not name.startswith(prefix):
                    break
                below.append(name)
            return {n[len(prefix) :]: states[n] for n in below}, [n[len(prefix) :] for n in below]
        folder = folder.rpartition("/")[0]
    states = door.transport.listing(address)
    names = sorted(states)
    door.listings[address] = (now, states, names)
    return states, names


def _key(door: _Door, address: str, state: State) -> str:
    """Return what stands for a file in a state; of no version, for this process alone."""
    text = f"{address}\0{state.size}\0{state.version or door.nonce}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def identities_of(addresses: Iterable[str]) -> list[str]:
    """Return what changes with each of some files; "missing" of one that there is not.

    Parameters
    ----------
    addresses
        The files, without credentials.

    Raises
    ------
    RemoteError
        If a server does not answer.
    """
    wanted, door = list(addresses), _opened()
    found = states_of(wanted)
    return [_identity(door, address, state) for address, state in zip(wanted, found, strict=True)]


def _identity(door: _Door, address: str, state: State | RemoteError) -> str:
    again = ""
    if door.cache.folder is not None:
        with contextlib.suppress(OSError):
            again = _mark(door.cache.folder, address).read_text("ascii")
    if isinstance(state, RemoteError):
        lasting = state.kind is Kind.MISSING
        return f"{state.kind.name.lower()}{again}{'' if lasting else door.nonce}"
    return f"{_key(door, address, state)}{again}"


def read_again(address: str) -> None:
    """Let a file that could not be read for now count as another one in the next command.

    What is stored of its images is kept under the identity of the file, so that a failure that has
    passed would be remembered with it.

    Parameters
    ----------
    address
        The file.
    """
    folder = _opened().cache.folder
    if folder is not None:
        with contextlib.suppress(OSError):
            mark = _mark(folder, address)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(secrets.token_hex(8), "ascii")


def row_problem(error: RemoteError, *, within: bool) -> str:
    """Return why one image cannot be had, where the failure is about it alone.

    Parameters
    ----------
    error
        What went wrong. The file counts as another one from the next command on, so that the image
        is tried again.
    within
        Whether the image lies in a larger file, which is missing or refused as a whole.

    Raises
    ------
    RemoteError
        If it is about the server, so that no other image could be had either; or if the file has
        changed, so that places in it are those of something else.
    """
    if not error.is_of_file or (within and error.kind is not Kind.BROKEN):
        raise error
    read_again(error.address)
    return error.reason


def _mark(folder: Path, address: str) -> Path:
    name = hashlib.blake2b(address.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return folder / "again" / name


class RemoteFile:
    """A remote file in one state, read by position; any number of threads may read at once.

    Parameters
    ----------
    address
        The file.
    state
        What the server says of it.
    """

    def __init__(self, address: str, state: State) -> None:
        self.address = address
        self.size = max(0, state.size)
        self._state = state
        self._key = _key(_opened(), address, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Keep the connections, which belong to the process."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from a place on; fewer at the end of the file.

        Raises
        ------
        RemoteError
            If they cannot be had.
        """
        stop, content = min(offset + size, self.size), bytearray()
        start = offset
        while start < stop:
            end = min(stop, start + _WINDOW_BYTES)
            first, last = start // BLOCK, (end - 1) // BLOCK
            self._request(range(first, last + 1))
            blocks = b"".join(self._block(number) for number in range(first, last + 1))
            content += blocks[start - first * BLOCK : end - first * BLOCK]
            start = end
        return bytes(content)

    def look(self, offset: int, size: int) -> bytes:
        """Return bytes that are not read again, without the blocks around them.

        Raises
        ------
        RemoteError
            If they cannot be had.
        """
        door, stop = _opened(), min(offset + size, self.size)
        if offset >= stop:
            return b""
        numbers = range(offset // BLOCK, (stop - 1) // BLOCK + 1)
        if all(door.cache.get(self._key, number) is not None for number in numbers):
            return self.read_at(offset, size)
        door.transport.system(self.address)
        work = door.transport.fetch(self.address, offset, stop, self._state)
        return door.transport.start(work).result()

    def kept(self, name: str) -> bytes | None:
        """Return what was found out of the file before; None if nothing is known."""
        folder = _opened().cache.folder
        if folder is None:
            return None
        try:
            content = (folder / self._key / name).read_bytes()
        except OSError:
            return None
        digest, rest = content[:16], content[16:]
        return rest if hashlib.blake2b(rest, digest_size=16).digest() == digest else None

    def keep(self, name: str, content: bytes) -> None:
        """Keep what was found out of the file with its blocks."""
        folder = _opened().cache.folder
        if folder is not None:
            digest = hashlib.blake2b(content, digest_size=16).digest()
            with contextlib.suppress(OSError):
                path = folder / self._key / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(digest + content)

    def expect(self, offset: int, size: int) -> None:
        """Begin to read bytes that are wanted soon."""
        stop = min(offset + size, self.size)
        if offset < stop:
            self._request(range(offset // BLOCK, (stop - 1) // BLOCK + 1))

    def ahead(self, places: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Yield once per place that is read next, while the following ones are on their way.

        Parameters
        ----------
        places
            Offset and size of each.
        """
        waiting: deque[int] = deque()
        held, group = 0, list[int]()
        for offset, size in places:
            stop = min(offset + size, self.size)
            numbers = range(offset // BLOCK, (stop - 1) // BLOCK + 1) if offset < stop else range(0)
            if group and numbers and not 0 <= numbers[0] - group[-1] <= _NEAR_BLOCKS:
                self._request(group)
                group = []
            if numbers:
                first = group[-1] + 1 if group else numbers[0]
                group += range(min(first, numbers[-1] + 1), numbers[-1] + 1)
            if len(group) >= _GROUP_BLOCKS:
                self._request(group)
                group = []
            waiting.append(len(numbers))
            held += len(numbers)
            while held > _AHEAD_BLOCKS and waiting:
                yield
                held -= waiting.popleft()
        self._request(group)
        for _ in waiting:
            yield

    def _request(self, numbers: Iterable[int]) -> None:
        """Begin to fetch blocks that are neither here nor on their way."""
        door = _opened()
        with door.lock:
            missing = [
                number
                for number in numbers
                if (self._key, number) not in door.pending
                and door.cache.get(self._key, number) is None
            ]
            start = 0
            for at in range(1, len(missing) + 1):
                whole = at - start == _GROUP_BLOCKS
                if at == len(missing) or missing[at] != missing[at - 1] + 1 or whole:
                    self._begin(door, missing[start], missing[at - 1])
                    start = at

    def _begin(self, door: _Door, first: int, last: int) -> None:
        door.transport.system(self.address)
        future = door.transport.start(self._load(door, first, last))
        for number in range(first, last + 1):
            door.pending[self._key, number] = future

    async def _load(self, door: _Door, first: int, last: int) -> None:
        try:
            stop = min((last + 1) * BLOCK, self.size)
            content = await door.transport.fetch(self.address, first * BLOCK, stop, self._state)
            await self._check_unchanged(door)
            door.cache.put(self._key, first, content)
        finally:
            with door.lock:
                for number in range(first, last + 1):
                    door.pending.pop((self._key, number), None)

    async def _check_unchanged(self, door: _Door) -> None:
        """Ask again for the state of files whose ranges do not say of which state they are."""
        if self.address.startswith(("http", "s3:")):
            return
        at, before = door.states.get(self.address, (0.0, None))
        if time.monotonic() - at > KNOWN_S / 6:
            now = await door.transport.state_soon(self.address)
            door.states[self.address] = (time.monotonic(), now)
            # A listing may say less of a file than it does itself.
            if now.size != self._state.size or before not in (None, now):
                raise RemoteError(self.address, Kind.CHANGED, "it has changed while it was read")

    def _block(self, number: int) -> bytes:
        door = _opened()
        while True:
            found = door.cache.get(self._key, number)
            if found is not None:
                return found
            with door.lock:
                future = door.pending.get((self._key, number))
            if future is None:
                self._request([number])
            else:
                future.result()


class _Stream(io.RawIOBase):
    """A remote file as a stream, which reads ahead as long as it is read from front to back."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._at = 0
        self._ahead = 0
        self._asked = 0
        self._expected = -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise OSError(22, "a place before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever bytes can be put into
        if self._at != self._expected:
            self._ahead, self._asked = 0, self._at
        elif self._at + len(buffer) + self._ahead // 2 >= self._asked:
            self._ahead = min(max(2 * self._ahead, _FIRST_AHEAD), _MAX_AHEAD)
            self._asked = self._at + len(buffer) + self._ahead
            self._file.expect(self._at, len(buffer) + self._ahead)
        content = self._file.read_at(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        self._expected = self._at
        return len(content)
