"""Files given by the user: which are accepted, and how errors in reading them are reported.

Every reader of external files first calls :func:`regular` and does its work inside
:func:`reading`, the only place where exceptions of libraries become errors of this package.
Third-party code is called inside :func:`third_party_code`.
"""

import contextlib
import errno
import os
import stat
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, Self

from oodcli.errors import CorruptArtifactError, InvalidInputError, OodError
from oodcli.remote.files import RemotePath

_KINDS = {
    stat.S_IFIFO: "it is a pipe, not a file",
    stat.S_IFSOCK: "it is a socket, not a file",
    stat.S_IFCHR: "it is a device, not a file",
    stat.S_IFBLK: "it is a device, not a file",
}


def regular(path: Path) -> Path:
    """Return ``path`` if it is a regular file or a link to one; reading a pipe could block.

    Raises
    ------
    OSError
        If the path does not exist or is something else; ``strerror`` says what it is.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if kind in _KINDS:
        raise OSError(errno.ENOTSUP, _KINDS[kind], str(path))
    return path


class Ranges(Protocol):
    """A file that is read by position, by any number of threads at once."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def read_at(self, offset: int, size: int, /) -> bytes:
        """Return ``size`` bytes from a place on; fewer at the end of the file."""

    def ahead(self, places: Iterable[tuple[int, int]], /) -> Iterator[None]:
        """Yield once per place (offset and size) that is read next, so that others can be sent."""


class _LocalRanges:
    """A file of the disk."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._descriptor)

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def ahead(self, places: Iterable[tuple[int, int]]) -> Iterator[None]:
        for _ in places:
            yield


def open_ranges(path: Path) -> Ranges:
    """Open a file, on the disk or remote, to be read by position.

    Raises
    ------
    OSError
        If it cannot be opened.
    OodError
        If its server refuses or does not answer.
    """
    return path.ranges() if isinstance(path, RemotePath) else _LocalRanges(path)


def check_file(path: Path, cure: str) -> None:
    """Check that a path is a regular file, without opening it.

    Parameters
    ----------
    path
        The file.
    cure
        What the user can do instead.

    Raises
    ------
    InvalidInputError
        If there is no such file, or if it is a folder, a pipe or a device.
    """
    try:
        regular(path)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise InvalidInputError(f"there is no file {path}; {cure}") from None
        raise InvalidInputError(f"cannot read {path}: {error.strerror}; {cure}") from None


def expanded(path: Path) -> Path:
    """Return a path with the home folder in place of ``~``.

    Raises
    ------
    InvalidInputError
        If the path begins with ``~NAME`` and there is no user of this name.
    """
    if isinstance(path, RemotePath):
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        if path.exists():  # a file whose name begins with "~"
            return path
        raise InvalidInputError(
            f"cannot use {path}: there is no user {path.parts[0][1:]!r}; write the whole path, or "
            f"./{path} for a file of this name"
        ) from None


@contextlib.contextmanager
def reading(
    what: object,
    *,
    cure: str,
    wrong: str = "cannot be read",
    error: type[CorruptArtifactError | InvalidInputError] = CorruptArtifactError,
    disk: bool = False,
) -> Iterator[None]:
    """Convert any exception of a library on a damaged file into one error message.

    An :class:`OodError` passes unchanged.

    Parameters
    ----------
    what
        The file, and the position in it.
    cure
        What the user can do, such as "get it again".
    wrong
        What is wrong with the file.
    error
        Class of the error to raise.
    disk
        Whether a missing file and errors of the disk pass unchanged, since they do not concern the
        content of this file.

    Raises
    ------
    OodError
        An ``error``, in place of the original exception.
    OSError
        If ``disk`` is set and the disk failed, or the file is missing.
    """
    try:
        yield
    except OodError:
        raise
    except OSError as caught:
        # A seek outside the file gives EINVAL, and libraries raise OSError without a number.
        gone = isinstance(caught, FileNotFoundError)
        if disk and (gone or caught.errno not in (None, errno.EINVAL)):
            raise
        raise error(f"{what} {wrong}: {reason_of(caught)}; {cure}") from None
    except Exception as caught:  # noqa: BLE001 - malformed files make their readers raise anything
        raise error(f"{what} {wrong}: {reason_of(caught)}; {cure}") from None


@contextlib.contextmanager
def third_party_code(what: str, *, cure: str) -> Iterator[None]:
    """Convert any exception of third-party code into one error message with file and line.

    Parameters
    ----------
    what
        What failed, such as "NAME cannot be built".
    cure
        What the user can do.

    Raises
    ------
    InvalidInputError
        In place of the original exception; an :class:`OodError` passes unchanged.
    """
    try:
        yield
    except OodError:
        raise
    except (Exception, SystemExit) as caught:
        kind = type(caught).__name__
        reason = reason_of(caught)
        said = reason if reason.startswith(kind) else f"{kind}: {reason}"
        frame = traceback.extract_tb(caught.__traceback__)[-1]
        raise InvalidInputError(
            f"{what}: {said} ({frame.filename}, line {frame.lineno}); {cure}"
        ) from caught


def reason_of(error: BaseException) -> str:
    """Return the message of an exception in one line."""
    said = getattr(error, "strerror", None) or str(error)
    if isinstance(error, (KeyError, IndexError)) or not said.strip():
        said = type(error).__name__ if not said else f"{type(error).__name__} {said}"
    return " ".join(said.split())
