"""The folder in which everything is stored; no other module knows a path in it.

::

    <store>/
      runs/<name>/            run.json, weights, history, NormRatio, scores, detectors
      activations/<network>/  activations of image shards, by digest
      images/<key>/           decoded pixels in shards
      datasets/<name>/        downloaded archives

A file is written under a temporary name in its own folder, flushed, and then renamed, so that a
reader sees all of it or nothing. Whatever is made once for all is made under a lock.

Nothing is believed that is not what was written: a JSON file has a seal, the digest of its content,
as its last field; every other file has its digest in its name or in a sealed JSON file.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, ReadWriteLock, Timeout
from numpy.typing import NDArray
from platformdirs import user_data_path
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import expanded, reading, reason_of
from oodcli.pools import end_instead_of_waiting_for_parent
from oodcli.progress import SILENT, Progress
from oodcli.text import json_text

PIPE_WAIT_S = 10.0
"""How long a pipe to write to may be without a reader, in seconds."""

_TEMPORARY = ".ood-tmp-"
_SEAL = "seal"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_SCRATCH_IN_MEMORY = 2**24
_PIPE_POLL_S = 0.05


# What helps beside making room where the disk of the store is full.
ELSEWHERE = "use another store: --store DIR"


@contextlib.contextmanager
def replacing(path: Path, *, size: int | None = None, cure: str = ELSEWHERE) -> Iterator[IO[bytes]]:
    """Open a file to write and read; it takes the place of ``path`` only when all went well.

    Parameters
    ----------
    path
        The file to write; its folder is made.
    size
        About how many bytes it will have, where that is known.
    cure
        What helps beside making room where the disk is full.

    Raises
    ------
    InvalidInputError
        If the disk is full, with the room that is needed and free; ``path`` is then as it was.
    OSError
        If the file cannot be written otherwise, with its name; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}")
    try:
        with temporary.open("x+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        written = size_of(temporary)
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.filename not in (None, str(temporary)):
            raise
        if error.errno is None:  # of a server, not of the disk
            raise
        if error.errno not in _DISK_FULL:
            error.filename = str(path)
            raise
        needed = _amount(size) if size else f"more than {_amount(written)}"
        raise _no_room(error, path, needed, cure) from None


@contextlib.contextmanager
def scratch(folder: Path, *, size: int) -> Iterator[IO[bytes]]:
    """Open a file to write and read that is gone afterwards; a small one is held in memory.

    Parameters
    ----------
    folder
        Where a large one lies, without a name; the folder is made.
    size
        About how many bytes it will have.

    Raises
    ------
    InvalidInputError
        If the disk is full, with the room that is needed and free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.SpooledTemporaryFile(
            _SCRATCH_IN_MEMORY, dir=str(folder), prefix=_TEMPORARY
        ) as stream:
            yield stream
    except OSError as error:
        if error.filename is not None or error.errno not in _DISK_FULL:
            raise
        needed = f"{size / 1e6:.1f} MB"
        raise _no_room(error, folder, needed, ELSEWHERE) from None


def _no_room(error: OSError, path: Path, needed: str, cure: str) -> InvalidInputError:
    """Return what to raise where the system says that there is no room to write a path."""
    full = "the quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
    return InvalidInputError(
        f"cannot write {path}: {full}: it needs {needed}, and "
        f"{_amount(free_bytes(path.parent))} are free; free some space, or {cure}"
    )


def _amount(size: int) -> str:
    """Write a number of bytes so that little is not nothing."""
    return f"{size:,} bytes" if size < 1e5 else f"{size / 1e6:.1f} MB"


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse, before long work, what does not fit on the disk of a store.

    Parameters
    ----------
    folder
        A folder on the disk.
    needed
        Bytes to be written.
    what
        What needs them, in the plural.

    Raises
    ------
    InvalidInputError
        If there is less room.
    """
    free = free_bytes(folder)
    if needed > free:
        raise InvalidInputError(
            f"{what} need {_amount(needed)}, and the disk of {folder} has {_amount(free)} "
            "free; free some space, or use another store: --store DIR"
        )


def check_file_of_user(path: Path) -> None:
    """Refuse, before long work, a file that cannot be written after it.

    Raises
    ------
    InvalidInputError
        If it is a folder, or its folder is not there or cannot be written.
    """
    target = expanded(path).resolve()
    if target.is_dir():
        raise InvalidInputError(f"{path} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise InvalidInputError(
            f"there is no folder {target.parent} for {path.name}; create it first"
        )
    if not is_stream(path):
        _check_writable(path, target.parent)


def check_folder_of_user(path: Path, *, option: str) -> None:
    """Refuse, before long work, a folder for results that cannot be made or written after it.

    Parameters
    ----------
    path
        The folder, which need not be there.
    option
        The option that named it.

    Raises
    ------
    InvalidInputError
        If it, or a folder above it, is a file or cannot be written.
    """
    place = expanded(path).resolve()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        what = path if place == expanded(path).resolve() else place
        raise InvalidInputError(f"{what} is not a folder; name one: {option} DIR")
    _check_writable(path, place)


def _check_writable(path: Path, folder: Path) -> None:
    """Refuse a folder that takes no file, by trying: permissions say yes of ``/proc``."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=_TEMPORARY):
            pass
    except OSError as error:
        raise InvalidInputError(
            f"cannot write {path}: the folder {folder} takes no files ({reason_of(error)}); change "
            "its permissions, or name another"
        ) from None


@contextlib.contextmanager
def file_of_user(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that the user named for writing; replace a regular one only when all went well.

    Parameters
    ----------
    path
        The file. A link is followed; a device or a pipe is written to as it is.

    Raises
    ------
    InvalidInputError
        If it is a folder, or its folder is not there.
    OSError
        If it cannot be written.
    """
    check_file_of_user(path)
    if is_stream(path):
        with open_stream(path) as stream:
            yield stream
        return
    with replacing(expanded(path).resolve(), cure="choose another file") as stream:
        yield stream


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe or a device (a link to a pipe resolves to no real path)."""
    given = expanded(path)
    return given.exists() and not given.is_file()


def open_stream(path: Path) -> IO[bytes]:
    """Open a device or a pipe for writing.

    Raises
    ------
    InvalidInputError
        If no process reads the pipe, not even after ``PIPE_WAIT_S`` seconds.
    OSError
        If it cannot be written.
    """
    given = expanded(path)
    if not stat.S_ISFIFO(given.stat().st_mode):
        return given.open("wb")
    until = time.monotonic() + PIPE_WAIT_S
    while True:
        try:
            # To open a pipe without a reader waits for one, however long that takes.
            descriptor = os.open(given, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise InvalidInputError(
                    f"no process reads the pipe {path}; start its reader first, or name a file"
                ) from None
            time.sleep(_PIPE_POLL_S)
        else:
            os.set_blocking(descriptor, True)
            return os.fdopen(descriptor, "wb")


def write_json(path: Path, content: Mapping[str, Any], *, cure: str = ELSEWHERE) -> None:
    """Write a JSON object, readable by people, with its seal, in one step.

    Parameters
    ----------
    path
        The file.
    content
        The object. ``seal`` is added to it as the last field: the digest of all others.
    cure
        What helps beside making room where the disk is full.

    Raises
    ------
    InvalidInputError
        If the disk is full.
    """
    # As it will be read: tuples are lists there, and keys are strings.
    plain = json.loads(json.dumps(content))
    sealed = {**plain, _SEAL: digest_of_json(plain)}
    with replacing(path, cure=cure) as stream:
        stream.write((json_text(sealed, indent=1, finite=False) + "\n").encode())


def read_json(path: Path, *, cure: str = "remove it") -> dict[str, Any]:
    """Read a JSON object that :func:`write_json` wrote, without its seal.

    Parameters
    ----------
    path
        The file.
    cure
        What helps where it is not what was written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CorruptArtifactError
        If the file is not a JSON object, or its content does not match its seal.
    """
    raw = path.read_bytes()
    with reading(path, wrong="is damaged", cure=cure):
        content = json.loads(raw)
    if not isinstance(content, dict):
        raise CorruptArtifactError(f"{path} is damaged: not a JSON object; {cure}")
    if content.pop(_SEAL, None) != digest_of_json(content):
        raise CorruptArtifactError(
            f"{path} is damaged or was edited: its content does not match its seal; {cure}"
        )
    return content


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write named arrays as safetensors in one step and return the digest of the file."""
    content = save_safetensors({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    with replacing(path, size=len(content)) as stream:
        stream.write(content)
    return digest_of_bytes(content)


def read_arrays(path: Path, *, digest: str | None = None) -> dict[str, NDArray[Any]]:
    """Read named arrays, and check them against the digest they were written with.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CorruptArtifactError
        If the file is not what was written.
    """
    content = path.read_bytes()
    if digest is not None and digest_of_bytes(content) != digest:
        raise CorruptArtifactError(f"{path} is damaged: its digest is not {digest}; remove it")
    with reading(path, wrong="is damaged", cure="remove it"):
        return load_safetensors(content)


def digest_of_bytes(content: bytes) -> str:
    """Return a 32-digit hexadecimal digest."""
    return blake2b(content, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the digest of a file's content, whatever its size, as of :func:`digest_of_bytes`.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as stream:
        return file_digest(stream, lambda: blake2b(digest_size=16)).hexdigest()


def digest_of_json(content: object) -> str:
    """Return a 32-digit hexadecimal digest of JSON content; equal content gives equal digests.

    Examples
    --------
    >>> digest_of_json({"k": 50, "p": 2}) == digest_of_json({"p": 2, "k": 50})
    True
    """
    return digest_of_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Store:
    """The folder in which everything is kept.

    Parameters
    ----------
    root
        Any folder; files in it that are not the tool's are left alone.
    """

    root: Path

    @classmethod
    def at(cls, root: Path | None = None) -> "Store":
        """Open ``root``, else the folder named by ``OOD_HOME``, else the platform's own.

        Raises
        ------
        InvalidInputError
            If the path exists and is not a folder.
        """
        named = os.environ.get("OOD_HOME")
        path = root or (Path(named) if named else user_data_path("ood", appauthor=False))
        path = expanded(path).absolute()
        if path.exists() and not path.is_dir():
            raise InvalidInputError(f"the store {path} is not a folder; name another: --store DIR")
        return cls(path)

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.root / "runs"

    @property
    def activations(self) -> Path:
        """Folder of the activations, one subfolder a network."""
        return self.root / "activations"

    @property
    def images(self) -> Path:
        """Folder of decoded images."""
        return self.root / "images"

    @property
    def datasets(self) -> Path:
        """Folder of downloaded archives, one subfolder a data set."""
        return self.root / "datasets"

    @contextlib.contextmanager
    def lock(self, name: str, *, progress: Progress = SILENT) -> Iterator[None]:
        """Hold a lock that every process on this store respects; it ends with the process.

        Parameters
        ----------
        name
            What is locked.
        progress
            Told once when another process holds the lock.
        """
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{digest_of_bytes(name.encode())}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            end_instead_of_waiting_for_parent()
            progress.note(f"waiting for another ood process that is creating {name}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def shared(self, name: str, *, progress: Progress = SILENT) -> Iterator[None]:
        """Hold a lock together with others who use what it stands for; it ends with the process.

        Whoever wants to remove it holds it :meth:`alone`. Where the store cannot be written,
        nothing can be removed either, and nothing is held.

        Parameters
        ----------
        name
            What is used.
        progress
            Told once when another process is removing it.
        """
        try:
            lock = self._shared_lock(name)
        except OSError:
            yield
            return
        try:
            try:
                lock.acquire_read(timeout=0)
            except Timeout:
                progress.note(f"waiting for another ood process that removes {name}")
                lock.acquire_read()
            try:
                yield
            finally:
                lock.release()
        finally:
            lock.close()

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold a lock that nobody holds :meth:`shared`, and keep others from it.

        Parameters
        ----------
        name
            What is removed or renamed.

        Raises
        ------
        InvalidInputError
            If it is in use; there is no waiting.
        OSError
            If the store cannot be written.
        """
        lock = self._shared_lock(name)
        try:
            try:
                lock.acquire_write(timeout=0)
            except Timeout:
                raise InvalidInputError(
                    f"{name} is in use by another ood process; stop it, or wait until it has ended"
                ) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            lock.close()

    def _shared_lock(self, name: str) -> ReadWriteLock:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{digest_of_bytes(name.encode())}.users"
        path.touch()  # a folder that cannot be written is an OSError, not one of SQLite
        return ReadWriteLock(path, is_singleton=False)

    def usage(self) -> dict[str, int]:
        """Return the bytes on disk of each part of the store."""
        parts = {
            "runs": self.runs,
            "activations": self.activations,
            "images": self.images,
            "datasets": self.datasets,
        }
        return {name: size_of(path) for name, path in parts.items()}


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        if path.is_file():
            return path.stat().st_size
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(folder, name).lstat().st_size
    return total


def remove_leftovers(folder: Path, *, older_than_s: float = 3600.0) -> None:
    """Remove temporary files that a killed process left in ``folder``."""
    if not folder.is_dir():
        return
    times: dict[Path, float] = {}
    for path in folder.iterdir():
        # What another process is writing gets its own name at any moment.
        with contextlib.suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime
    newest = max(times.values(), default=0.0)
    for path, modified in times.items():
        if path.name.startswith(_TEMPORARY) and newest - modified >= older_than_s:
            path.unlink(missing_ok=True)


def temporary_files(folder: Path, *, older_than_s: float = 3600.0) -> list[Path]:
    """Return the temporary files below a folder that no process writes any more."""
    latest = time.time() - older_than_s
    found: list[Path] = []
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):
                if name.startswith(_TEMPORARY) and path.lstat().st_mtime < latest:
                    found.append(path)
    return sorted(found)


def free_bytes(path: Path) -> int:
    """Return the free room on the disk of ``path``, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
