"""Files named by the user: which are accepted, and how errors in reading them are reported.

Every reader of files from outside begins with :func:`regular`, and does its work inside
:func:`reading`, the one place where exceptions of libraries become errors of this package. Code of
the user's is called inside :func:`code_of_others`.
"""

import contextlib
import errno
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path

from oodcli.errors import CorruptArtifactError, InvalidInputError, OodError

_KINDS = {
    stat.S_IFIFO: "it is a pipe, not a file",
    stat.S_IFSOCK: "it is a socket, not a file",
    stat.S_IFCHR: "it is a device, not a file",
    stat.S_IFBLK: "it is a device, not a file",
}


def regular(path: Path) -> Path:
    """Return the path of a regular file, or of a link to one; a pipe would be waited for.

    Raises
    ------
    OSError
        If it is anything else, or not there; ``strerror`` says what it is.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if kind in _KINDS:
        raise OSError(errno.ENOTSUP, _KINDS[kind], str(path))
    return path


def check_file(path: Path, cure: str) -> None:
    """Refuse what is no regular file, before it is opened.

    Parameters
    ----------
    path
        The file.
    cure
        What to do instead.

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
        If it begins with the name of a user that there is not.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        if path.exists():  # a file that is called so
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
    """Turn whatever a library raises on a damaged file into one line; errors of ours stay.

    Parameters
    ----------
    what
        The file, and the place in it.
    cure
        What helps, such as "get it again".
    wrong
        What is wrong with it.
    error
        Class of what is raised.
    disk
        Whether errors of the disk stay as they are, since they are not about this file.

    Raises
    ------
    OodError
        An ``error``, in place of what was raised.
    OSError
        Where ``disk`` says so.
    """
    try:
        yield
    except OodError:
        raise
    except OSError as caught:
        # A place that leads nowhere in the file is EINVAL, and libraries give no number at all.
        gone = isinstance(caught, FileNotFoundError)
        if disk and (gone or caught.errno not in (None, errno.EINVAL)):
            raise
        raise error(f"{what} {wrong}: {reason_of(caught)}; {cure}") from None
    except Exception as caught:  # noqa: BLE001 - malformed files make their readers raise anything
        raise error(f"{what} {wrong}: {reason_of(caught)}; {cure}") from None


@contextlib.contextmanager
def code_of_others(what: str, *, cure: str) -> Iterator[None]:
    """Turn whatever code of the user's or of another package raises into one line with its place.

    Parameters
    ----------
    what
        What was being done, such as "NAME cannot be built".
    cure
        What helps.

    Raises
    ------
    InvalidInputError
        In place of what was raised; errors of ours stay.
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
    """Return what an exception says, in one line."""
    said = getattr(error, "strerror", None) or str(error)
    if isinstance(error, (KeyError, IndexError)) or not said.strip():
        said = type(error).__name__ if not said else f"{type(error).__name__} {said}"
    return " ".join(said.split())
