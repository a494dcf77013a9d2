"""Archives, read and unpacked so that nothing lands outside of the folder meant for it.

Tar archives (plain, gzip, bzip2, xz) and zip archives are told apart by their content. Only
folders and plain files are made. A link becomes a copy of the earlier file that it leads to;
absolute paths, ``..``, devices and links to anywhere else are refused, and so is an archive that
unpacks to far more than its own size.
"""

import bz2
import contextlib
import gzip
import lzma
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from oodcli.errors import CorruptArtifactError, MissingArtifactError
from oodcli.files import reading

# Archives of images hardly shrink what is in them; text and index files do so tenfold.
MAX_EXPANSION = 200
EXPANSION_SLACK_BYTES = 1 << 26
MAX_MEMBERS = 5_000_000

_TEMPORARY = ".unpacking-"
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 2048
_DRIVE = re.compile(r"^[A-Za-z]:")

_COMPRESSED: Mapping[bytes, Callable[[Path], Any]] = MappingProxyType(
    {b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ": lzma.LZMAFile}
)


@dataclass(frozen=True)
class Entry:
    """A file or folder of an archive.

    Parameters
    ----------
    name
        Its path, relative, with ``/`` and without ``.`` and ``..``.
    size_bytes
        Its size, as the archive says.
    stream
        Its content, to be read before the next entry is asked for, and inside `damage_is_told`;
        None for a folder or a link.
    copy_of
        For a link, the name of the file that it leads to.
    """

    name: str
    size_bytes: int = 0
    stream: IO[bytes] | None = None
    copy_of: str | None = None


class _UnsafeError(Exception):
    """An archive holds what must not be unpacked."""


def entries(archive: Path) -> Iterator[Entry]:
    """Yield what an archive holds, in its order; nothing is written.

    Parameters
    ----------
    archive
        A tar or zip archive.

    Raises
    ------
    MissingArtifactError
        If there is no such file.
    CorruptArtifactError
        If it is damaged, is not such an archive, or holds what must not be unpacked.
    """
    if not archive.is_file():
        raise MissingArtifactError(f"there is no archive {archive}; check the path")
    with damage_is_told(archive):
        room = _room(archive)
        found = _zip_entries(archive) if _is_zip(archive) else _tar_entries(archive)
        for count, entry in enumerate(found, start=1):
            if count > MAX_MEMBERS:
                raise _UnsafeError(f"it holds more than {MAX_MEMBERS:,} files")
            room = _less(room, entry.size_bytes)
            yield entry


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder that exists only when it is complete.

    Parameters
    ----------
    archive
        A tar or zip archive.
    folder
        The folder to create. Nothing happens if it exists; the caller's lock excludes other
        processes.

    Raises
    ------
    MissingArtifactError
        If there is no such archive.
    CorruptArtifactError
        If it is damaged, is not such an archive, or holds what must not be unpacked.
    OSError
        If the disk is full.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, fresh and empty: no link that lies in it can lead a file elsewhere.
    temporary = folder.with_name(f"{_TEMPORARY}{folder.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        written: dict[str, int] = {}
        room = _room(archive) if archive.is_file() else 0
        for entry in entries(archive):
            with damage_is_told(archive):
                room = _less(room, written.get(entry.copy_of or "", 0))
                _write(entry, temporary, written)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _room(archive: Path) -> int:
    """Return the most bytes that an archive may unpack to."""
    return MAX_EXPANSION * archive.stat().st_size + EXPANSION_SLACK_BYTES


def _less(room: int, size: int) -> int:
    if size > room:
        raise _UnsafeError(f"it unpacks to more than {MAX_EXPANSION} times its size")
    return room - size


def _write(entry: Entry, folder: Path, written: dict[str, int]) -> None:
    path = folder / entry.name
    try:
        if entry.stream is None and entry.copy_of is None:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.name in written:
            if entry.copy_of == entry.name:
                return
            # As in tar, what comes later counts.
            path.unlink()
        with path.open("xb") as target:
            if entry.copy_of is not None:
                if entry.copy_of not in written:
                    raise _UnsafeError(f"link {entry.name!r} leads to no earlier file")
                with (folder / entry.copy_of).open("rb") as original:
                    shutil.copyfileobj(original, target)
            elif entry.stream is not None:
                _copy(entry, target)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _UnsafeError(
            f"{entry.name!r} collides with another name, perhaps in upper or lower case alone"
        ) from None
    written[entry.name] = written.get(entry.copy_of or "", entry.size_bytes)


def _copy(entry: Entry, target: IO[bytes]) -> None:
    """Write as many bytes as the archive promised, and no more."""
    assert entry.stream is not None
    left = entry.size_bytes
    while chunk := entry.stream.read(_CHUNK_BYTES):
        left -= len(chunk)
        if left < 0:
            raise _UnsafeError(f"{entry.name!r} is larger than it says")
        target.write(chunk)
    if left:
        raise _UnsafeError(f"{entry.name!r} ends {left:,} bytes early")


@contextlib.contextmanager
def damage_is_told(archive: Path) -> Iterator[None]:
    """Turn whatever the readers of archives raise into one line.

    Parameters
    ----------
    archive
        The archive that is being read.

    Raises
    ------
    CorruptArtifactError
        In place of what was raised; errors of the disk stay as they are.
    """
    with reading(f"archive {archive}", wrong="is damaged", cure="download it again", disk=True):
        try:
            yield
        except _UnsafeError as error:
            raise CorruptArtifactError(
                f"archive {archive} is not unpacked: {error}; get it from where it is published"
            ) from None


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _safe(name: str) -> str:
    """Return a path below the folder, without ``.``; "" for the folder itself."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or "\\" in name or "\0" in name or _DRIVE.match(name) or ".." in parts:
        raise _UnsafeError(f"{name!r} leads outside of its folder")
    path = "/".join(parts)
    longest = max((len(_encoded(part)) for part in parts), default=0)
    if longest > _MAX_NAME_BYTES or len(_encoded(path)) > _MAX_PATH_BYTES:
        raise _UnsafeError(f"the name {name[:40]!r}… is too long")
    return path


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class _Limited:
    """A tar archive, decompressed, that never hands out more than a header or a chunk at once.

    tarfile reads extended headers whole, of whatever size they claim to have.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise _UnsafeError(f"a header claims {size:,} bytes")
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        magic = file.read(6)
    for start, reader in _COMPRESSED.items():
        if magic.startswith(start):
            return reader(archive)
    return archive.open("rb")


def _tar_entries(archive: Path) -> Iterator[Entry]:
    stream: Any
    with _decompressed(archive) as plain:
        stream = _Limited(plain)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                # The list of members that tarfile keeps is not needed, and would grow.
                tar.members = []  # type: ignore[attr-defined]
                name = _safe(member.name)
                if member.isdir():
                    if name:
                        yield Entry(name)
                elif member.issym():
                    yield Entry(name, copy_of=_led_to(posixpath.dirname(name), member.linkname))
                elif member.islnk():
                    yield Entry(name, copy_of=_safe(member.linkname))
                elif not member.isreg() or member.issparse() or member.size < 0 or not name:
                    raise _UnsafeError(f"{member.name!r} is neither a file nor a folder")
                else:
                    yield Entry(name, member.size, tar.extractfile(member))


def _led_to(folder: str, link: str) -> str:
    """Return the name that a symbolic link in a folder leads to."""
    if link.startswith("/"):
        raise _UnsafeError(f"a link leads outside of its folder: {link!r}")
    return _safe(posixpath.normpath(posixpath.join(folder, link)))


def _zip_entries(archive: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = _safe(info.filename)
            mode = info.external_attr >> 16
            if info.is_dir():
                if name:
                    yield Entry(name)
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG) or not name:
                raise _UnsafeError(f"{info.filename!r} is neither a file nor a folder")
            elif info.flag_bits & 1:
                raise _UnsafeError(f"{info.filename!r} is encrypted")
            else:
                with opened.open(info) as stream:
                    yield Entry(name, info.file_size, stream)
