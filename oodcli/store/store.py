"""The folder in which everything is stored; only this package knows the paths in it.

::

    <store>/
      runs/<name>/            run.json, weights, history, NormRatio, scores, detectors
      activations/<network>/  activations of image shards, by digest
      images/<key>/           decoded pixels in shards
      indices/<key>           where the images in a tar archive of a WebDataset lie
      remote/<key>/           blocks of remote files, see oodcli.remote.cache
  datasets/<name>/        downloaded archives

A file is written under a temporary name in the same folder, flushed and then renamed, so that a
reader sees either the complete file or none. Shared results are created under a lock.

Every file is verified when it is read: a JSON file has a seal, the digest of its other fields, as
its last field; every other file has its digest in its name or in a sealed JSON file.
"""

import contextlib
import errno
import fcntl
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
from oodcli.pools import exit_worker_that_runs_script
from oodcli.progress import SILENT, Progress
from oodcli.remote.cache import size_on_disk
from oodcli.text import json_text

PIPE_WAIT_S = 10.0
"""How long to wait for a reader of a named pipe, in seconds."""

_TEMPORARY = ".ood-tmp-"
_SEAL = "seal"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_SCRATCH_IN_MEMORY = 2**24
_PIPE_POLL_S = 0.05


# Second suggestion in errors about a full disk of the store, after freeing some space.
OTHER_STORE = "use another store: --store DIR"


@contextlib.contextmanager
def atomic_write(
    path: Path, *, size: int | None = None, cure: str = OTHER_STORE
) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing and reading that replaces ``path`` on success.

    On any error ``path`` is unchanged.

    Parameters
    ----------
    path
        The file to write; its folder is created.
    size
        Approximate size in bytes, if known.
    cure
        What the user can do besides freeing space if the disk is full.

    Raises
    ------
    InvalidInputError
        If the disk is full; the message gives the required and the free space.
    OSError
        If the file cannot be written for another reason; ``filename`` is ``path``.
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
        written_bytes = size_of(temporary)
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.filename not in (None, str(temporary)):
            raise
        if error.errno is None:  # an error of a server, not of the disk
            raise
        if error.errno not in _DISK_FULL:
            error.filename = str(path)
            raise
        needed = format_bytes(size) if size else f"more than {format_bytes(written_bytes)}"
        raise _disk_full_error(error, path, needed, cure) from None


@contextlib.contextmanager
def scratch_file(folder: Path, *, size: int) -> Iterator[IO[bytes]]:
    """Open an anonymous temporary file for writing and reading; a small one stays in memory.

    Parameters
    ----------
    folder
        Folder whose disk holds a large file; the folder is created.
    size
        Approximate size in bytes.

    Raises
    ------
    InvalidInputError
        If the disk is full; the message gives the required and the free space.
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
        raise _disk_full_error(error, folder, needed, OTHER_STORE) from None


def _disk_full_error(error: OSError, path: Path, needed: str, cure: str) -> InvalidInputError:
    """Return the error to raise when the system reports a full disk or an exceeded quota."""
    full = "the disk quota is exceeded" if error.errno == errno.EDQUOT else "the disk is full"
    return InvalidInputError(
        f"cannot write {path}: {full}: it needs {needed}, and "
        f"{format_bytes(free_bytes(path.parent))} are free; free some space, or {cure}"
    )


def format_bytes(size: int) -> str:
    """Return a size as text, in bytes or, from 100 kB, in MB."""
    return f"{size:,} bytes" if size < 1e5 else f"{size / 1e6:.1f} MB"


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """Check, before long work, that its results fit on the disk.

    Parameters
    ----------
    folder
        A folder on the disk.
    needed
        Number of bytes to be written.
    what
        Description of the results, in the plural, for the message.

    Raises
    ------
    InvalidInputError
        If the free space is smaller.
    """
    free = free_bytes(folder)
    if needed > free:
        raise InvalidInputError(
            f"{what} need {format_bytes(needed)}, and the disk of {folder} has "
            f"{format_bytes(free)} free; free some space, or use another store: --store DIR"
        )


def check_output_file(path: Path) -> None:
    """Check, before long work, that an output file of the user can be written.

    Raises
    ------
    InvalidInputError
        If the path is a folder, or its folder does not exist or is not writable.
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


def check_output_folder(path: Path, *, option: str, parents: bool = False) -> None:
    """Check, before long work, that an output folder of the user can be created and written.

    Parameters
    ----------
    path
        The folder; it need not exist.
    option
        The option that gives the folder, for the message.
    parents
        Whether the folder that it lies in need not exist either.

    Raises
    ------
    InvalidInputError
        If the path, or its nearest existing parent, is a file or is not writable; or the folder
        that it lies in does not exist.
    """
    target = place = expanded(path).resolve()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        what = path if place == target else place
        raise InvalidInputError(f"{what} is not a folder; name one: {option} DIR")
    if not parents and place not in (target, target.parent):
        raise InvalidInputError(f"there is no folder {target.parent}; create it first")
    _check_writable(path, place)


def check_fresh_folder(path: Path, *, overwrite: bool) -> None:
    """Check, before long work, that files written to ``--output DIR`` replace no others unasked.

    Parameters
    ----------
    path
        The folder; it need not exist.
    overwrite
        Whether it may have files.

    Raises
    ------
    InvalidInputError
        As :func:`check_output_folder`, or if it has files and ``overwrite`` is not set.
    """
    check_output_folder(path, option="--output")
    folder = expanded(path)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise InvalidInputError(
            f"{path} is not empty; choose another folder, or let files of the same names be "
            "replaced: --overwrite"
        )


def _check_writable(path: Path, folder: Path) -> None:
    """Check that a folder is writable by creating a file; permission bits can be wrong."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=_TEMPORARY):
            pass
    except OSError as error:
        raise InvalidInputError(
            f"cannot write {path}: the folder {folder} is not writable ({reason_of(error)}); "
            "change its permissions, or name another"
        ) from None


@contextlib.contextmanager
def open_output_file(path: Path) -> Iterator[IO[bytes]]:
    """Open an output file of the user; a regular file is replaced only on success.

    Parameters
    ----------
    path
        The file. A symbolic link is followed; a device or a pipe is written to directly.

    Raises
    ------
    InvalidInputError
        If the path is a folder, or its folder does not exist.
    OSError
        If the file cannot be written.
    """
    check_output_file(path)
    if is_stream(path):
        with open_stream(path) as stream:
            yield stream
        return
    with atomic_write(expanded(path).resolve(), cure="choose another file") as stream:
        yield stream


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe or a device, also through a link such as /dev/stdout."""
    given = expanded(path)
    return given.exists() and not given.is_file()


def open_stream(path: Path) -> IO[bytes]:
    """Open a device or a pipe for writing.

    Raises
    ------
    InvalidInputError
        If no process has opened the pipe for reading after ``PIPE_WAIT_S`` seconds.
    OSError
        If it cannot be opened.
    """
    given = expanded(path)
    if not stat.S_ISFIFO(given.stat().st_mode):
        return given.open("wb")
    until = time.monotonic() + PIPE_WAIT_S
    while True:
        try:
            # A blocking open of a pipe would wait for a reader without a time limit.
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


def write_json(path: Path, content: Mapping[str, Any], *, cure: str = OTHER_STORE) -> None:
    """Write a JSON object, indented and with its seal, atomically.

    Parameters
    ----------
    path
        The file.
    content
        The object. ``seal``, the digest of all other fields, is added as the last field.
    cure
        What the user can do besides freeing space if the disk is full.

    Raises
    ------
    InvalidInputError
        If the disk is full.
    """
    # In the form in which it is read back: tuples become lists, and keys become strings.
    plain = json.loads(json.dumps(content))
    sealed = {**plain, _SEAL: digest_of_json(plain)}
    with atomic_write(path, cure=cure) as stream:
        stream.write((json_text(sealed, indent=1, finite=False) + "\n").encode())


def read_json(path: Path, *, cure: str = "remove it") -> dict[str, Any]:
    """Read a JSON object that :func:`write_json` wrote, without its seal.

    Parameters
    ----------
    path
        The file.
    cure
        What the user can do if the file is damaged.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
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
    """Write named arrays as safetensors, atomically, and return the digest of the file."""
    content = save_safetensors({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    with atomic_write(path, size=len(content)) as stream:
        stream.write(content)
    return digest_of_bytes(content)


def read_arrays(path: Path, *, digest: str | None = None) -> dict[str, NDArray[Any]]:
    """Read named arrays and verify the digest of the file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    CorruptArtifactError
        If the digest differs, or the file is not a safetensors file.
    """
    content = path.read_bytes()
    if digest is not None and digest_of_bytes(content) != digest:
        raise CorruptArtifactError(f"{path} is damaged: its digest is not {digest}; remove it")
    with reading(path, wrong="is damaged", cure="remove it"):
        return load_safetensors(content)


def digest_of_bytes(content: bytes) -> str:
    """Return a 32-digit hexadecimal digest (BLAKE2b, 128 bits)."""
    return blake2b(content, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the digest of a file, as :func:`digest_of_bytes`, without loading it into memory.

    Raises
    ------
    OSError
        If the file cannot be read.
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
    """The folder in which everything is stored.

    Parameters
    ----------
    root
        Any folder; unrelated files in it are not touched.
    """

    root: Path

    @classmethod
    def at(cls, root: Path | None = None) -> "Store":
        """Return the store at ``root``, else at ``OOD_HOME``, else in the platform's data folder.

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
        """Folder of the activations, with one subfolder per network."""
        return self.root / "activations"

    @property
    def images(self) -> Path:
        """Folder of decoded images."""
        return self.root / "images"

    @property
    def indices(self) -> Path:
        """Folder of what was found once in large archives of the user's."""
        return self.root / "indices"

    @property
    def remote(self) -> Path:
        """Folder of the blocks of remote files that were read, see `oodcli.remote.cache`."""
        return self.root / "remote"

    @property
    def datasets(self) -> Path:
        """Folder of downloaded archives, with one subfolder per data set."""
        return self.root / "datasets"

    @contextlib.contextmanager
    def lock(self, name: str, *, progress: Progress = SILENT) -> Iterator[None]:
        """Hold an exclusive lock among all processes that use this store.

        The system releases it if the process dies.

        Parameters
        ----------
        name
            Name of what is created under the lock.
        progress
            Receives a note if another process holds the lock.
        """
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{digest_of_bytes(name.encode())}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            exit_worker_that_runs_script()
            progress.note(f"waiting for another ood process that is creating {name}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @property
    def is_writable(self) -> bool:
        """Whether the store exists and files can be created in it; permission bits can be wrong."""
        try:
            with tempfile.TemporaryFile(dir=self.root, prefix=_TEMPORARY):
                return True
        except OSError:
            return False

    @contextlib.contextmanager
    def shared(self, name: str, *, progress: Progress = SILENT) -> Iterator[None]:
        """Hold a shared lock (read lock) on something in use, so that nobody removes it.

        A process that removes it holds the lock with :meth:`exclusive`. If the store is not
        writable, nothing can be removed and no lock is held.

        Parameters
        ----------
        name
            Name of what is used.
        progress
            Receives a note if another process is removing it.
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
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold the exclusive lock (write lock) that belongs to :meth:`shared`.

        Parameters
        ----------
        name
            Name of what is removed or renamed.

        Raises
        ------
        InvalidInputError
            If it is in use; the call does not wait.
        OSError
            If the store is not writable.
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
        path.touch()  # raises OSError if the folder is not writable, instead of an SQLite error
        return ReadWriteLock(path, is_singleton=False)

    def usage(self) -> dict[str, int]:
        """Return the size of each part of the store, in bytes."""
        parts = {
            "runs": self.runs,
            "activations": self.activations,
            "images": self.images,
            "datasets": self.datasets,
        }
        return {
            **{name: size_of(path) for name, path in parts.items()},
            "remote": size_on_disk(self.remote),
        }


@contextlib.contextmanager
def file_lock(path: Path, *, progress: Progress = SILENT) -> Iterator[None]:
    """Hold an exclusive lock on a file of the user, for any process on any store.

    The system releases it if the process dies. On a file system without locks, none is held.

    Parameters
    ----------
    path
        The file; it is created if it does not exist.
    progress
        Receives a note if another process holds the lock.

    Raises
    ------
    OSError
        If the file cannot be opened for writing.
    """
    while True:
        with path.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                exit_worker_that_runs_script()
                progress.note(f"waiting for another ood process that is writing {path}")
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            # The other process may have replaced the file, and its lock is that of the old one.
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                yield
                return


def size_of(path: Path) -> int:
    """Return the size of a file, or of all files below a folder, in bytes."""
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
    """Remove temporary files of killed processes from ``folder``."""
    if not folder.is_dir():
        return
    times: dict[Path, float] = {}
    for path in folder.iterdir():
        # Another process may rename its temporary file at any moment.
        with contextlib.suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime
    newest = max(times.values(), default=0.0)
    for path, modified in times.items():
        if path.name.startswith(_TEMPORARY) and newest - modified >= older_than_s:
            path.unlink(missing_ok=True)


def temporary_files(folder: Path, *, older_than_s: float = 3600.0) -> list[Path]:
    """Return the temporary files below a folder that no running process writes."""
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
    """Return the free space on the disk of ``path``, in bytes; the path need not exist."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
