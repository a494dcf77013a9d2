"""Whether files still hold what was read of them: by content where that is cheap.

The rule: up to ``MAX_READ_FILES`` files of ``MAX_READ_BYTES`` together are told apart by path and
content, so that no time that is set back and no equal size hides a change. More or larger files are
told apart by path, size, time of the last modification and time of the last change of status, which
a program that sets the former back cannot set (Windows has no such time). Remote files are told
apart by address, size and the version (ETag, time) that their server names; where it names none,
they count as changed in every command.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from oodcli.remote.files import RemotePath, identities_of
from oodcli.store.store import digest_of_file

# A quarter of a second to read and digest; decoding as many images takes a minute.
MAX_READ_BYTES = 2**28
MAX_READ_FILES = 10_000


def identity_of(root: Path, files: Sequence[str] = ("",)) -> str:
    """Return a digest that is another one whenever files may hold something else.

    Parameters
    ----------
    root
        A folder, or a file where no files are named.
    files
        Paths of files in it, in an order that counts; a file that is missing is a state of its own.
    """
    state = hashlib.blake2b(os.fsencode(root), digest_size=16)
    if isinstance(root, RemotePath):
        every = [f"{root}/{file}" if file else str(root) for file in files]
        for file, now in zip(files, identities_of(every), strict=True):
            state.update(os.fsencode(f"\0{file}\0{now}"))
        return state.hexdigest()
    # A million paths: strings are quicker than Path.
    paths = (os.path.join(root, file) if file else str(root) for file in files)  # noqa: PTH118
    found: Iterable[tuple[str, os.stat_result | None]] = ((path, _status(path)) for path in paths)
    cheap = len(files) <= MAX_READ_FILES
    if cheap:  # else nothing is held of a million files
        found = list(found)
        cheap = sum(s.st_size for _, s in found if s is not None) <= MAX_READ_BYTES
    for file, (path, status) in zip(files, found, strict=True):
        if status is None:
            now = "missing"
        else:
            now = f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
            # A pipe would be waited for.
            now = _content(path, now) if cheap and stat.S_ISREG(status.st_mode) else now
        state.update(os.fsencode(f"\0{file}\0{now}"))
    return state.hexdigest()


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # a zero byte in a path is a wrong value
        return None


# Parts of a data set often lie in one file, which is read once for all of them.
@lru_cache(maxsize=64)
def _content(path: str, state: str) -> str:
    """Return the digest of a file in a state, or the state where it cannot be read."""
    try:
        return digest_of_file(Path(path))
    except OSError:
        return state
