"""Images inside a tar or zip archive, read in place."""

import errno
import hashlib
import io
import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Numbers, Texts, narrow
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.decoding.files import is_image_name
from oodcli.data.formats.central_directory import entries_of_zip
from oodcli.data.formats.folders import WANTED, check_no_parts, classes_of
from oodcli.data.formats.tars import Entry, entries_in, entries_of
from oodcli.data.identity import identity_of
from oodcli.errors import CorruptArtifactError, InvalidInputError, UnreadableImageError
from oodcli.files import Ranges, open_ranges, reading, reason_of, regular
from oodcli.images import Part
from oodcli.remote.errors import RemoteError
from oodcli.remote.files import RemotePath, row_problem
from oodcli.text import printable

SUFFIXES = (".tar", ".zip")
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_TAR_MARK = slice(257, 262)
_MAX_IMAGE_BYTES = 1 << 28
# Of the header of a file in a zip archive, beside its name, as usual programs write it.
_MAX_LOCAL_BYTES = 64
# Archives in archives in archives.
_MAX_DEPTH = 3
_PARTS = frozenset({"train", "val", "test"})


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Parameters
    ----------
    name
        Its path in the archive.
    offset
        Where its bytes begin; in a zip file, where its own header begins.
    packed
        Number of bytes it takes in the archive.
    size
        Number of bytes of the file.
    crc
        Checksum of the file; None in a tar archive, which has none.
    deflated
        Whether it is compressed.
    """

    name: str
    offset: int
    packed: int
    size: int
    crc: int | None = None
    deflated: bool = False


class Members(Sequence[Member]):
    """Files in an archive, each in some 20 bytes beside those of its name.

    Parameters
    ----------
    names
        Their paths in the archive.
    numbers
        Offset, packed size, size, checksum (-1 for none) and whether they are compressed, ``(n,)``
        each.
    """

    def __init__(self, names: Texts, numbers: Sequence[NDArray[np.integer]]) -> None:
        self.names = names
        self.numbers = tuple(narrow(each) for each in numbers)

    @classmethod
    def of(cls, members: Iterable[Member]) -> "Members":
        """Pack files, one at a time."""
        columns = tuple(Numbers() for _ in range(5))

        def names() -> Iterator[str]:
            for each in members:
                crc = -1 if each.crc is None else each.crc
                row = (each.offset, each.packed, each.size, crc, int(each.deflated))
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
                yield each.name

        packed = Texts.of(names())
        return cls(packed, [each.array() for each in columns])

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, at: int, /) -> Member: ...
    @overload
    def __getitem__(self, at: slice, /) -> "Members": ...
    def __getitem__(self, at: int | slice, /) -> "Member | Members":
        if isinstance(at, slice):
            return Members(self.names[at], [each[at] for each in self.numbers])
        offset, packed, size, crc, deflated = (int(each[at]) for each in self.numbers)
        return Member(
            self.names[at], offset, packed, size, None if crc < 0 else crc, bool(deflated)
        )

    def take(self, rows: NDArray[np.integer]) -> "Members":
        """Return chosen files, ``(m,)``."""
        return Members(self.names.take(rows), [each[rows] for each in self.numbers])


def members_of(path: Path) -> Iterator[Member]:
    """Yield the files in an archive that can be read in place, in its order.

    Parameters
    ----------
    path
        A zip file, or a tar archive that is not compressed.

    Raises
    ------
    CorruptArtifactError
        If it is not such an archive, or is cut short.
    """
    regular(path)
    with (
        reading(path, wrong="cannot be read as an archive", cure="get it again"),
        path.open("rb") as file,
    ):
        yield from (_members_of_zip(file) if _is_zip(file) else _members_of_tar(entries_of(path)))


def _members_in(file: IO[bytes], size: int) -> Iterator[Member]:
    if _is_zip(file):
        return _members_of_zip(file)
    return _members_of_tar(entries_in(file, size))


def _is_zip(file: IO[bytes]) -> bool:
    """Return whether an archive is a zip file; what is neither that nor a tar archive is not."""
    head = file.read(_TAR_MARK.stop)
    # A tar archive that ends with a zip file would be taken for one by the end.
    is_tar = head[_TAR_MARK] == b"ustar" and not head.startswith(b"PK\x03\x04")
    is_zip = not is_tar and zipfile.is_zipfile(file)
    file.seek(0)
    return is_zip


def _members_of_zip(file: IO[bytes]) -> Iterator[Member]:
    for entry in entries_of_zip(file):
        if entry.name.endswith("/"):
            continue
        if entry.flags & 1:
            raise ValueError(f"{entry.name} is encrypted")
        deflated = entry.method == zipfile.ZIP_DEFLATED
        if not deflated and entry.method != zipfile.ZIP_STORED:
            raise ValueError(f"{entry.name} is compressed in an unusual way")
        yield Member(entry.name, entry.offset, entry.packed, entry.size, entry.crc, deflated)


def _members_of_tar(entries: Iterator[Entry]) -> Iterator[Member]:
    return (Member(each.name, each.offset, each.size, each.size) for each in entries)


@dataclass(frozen=True)
class ArchiveSource(EncodedSource):
    """Images in an archive, decoded one at a time as they are read.

    Parameters
    ----------
    path
        The archive.
    members
        The images, in order.
    as_published
        As for `oodcli.data.decoding.files.decode`.
    """

    path: Path
    members: Members
    as_published: bool = False

    def __len__(self) -> int:
        return len(self.members)

    @property
    def in_order(self) -> bool:  # type: ignore[override]
        """Whether one reader is faster: of remote files, for it has ranges sent ahead."""
        return isinstance(self.path, RemotePath)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the archive, see :mod:`oodcli.data.identity`, and of the names in it."""
        state = hashlib.blake2b(identity_of(self.path).encode(), digest_size=16)
        state.update(b"\0as published" if self.as_published else b"")
        for name, offset in zip(self.members.names, self.members.numbers[0], strict=True):
            state.update(f"\0{name}\0{offset}".encode("utf-8", "surrogateescape"))
        return state.hexdigest()

    def key_of(self, row: int) -> str:
        """Return the path of an image below that of the archive."""
        return f"{self.path}/{self.members.names[row]}"

    def name_of(self, row: int) -> str:
        """Return the path of an image in the archive."""
        return self.members.names[row]

    def take(self, rows: NDArray[np.int64], /) -> "ArchiveSource":
        """Return a source of chosen images.

        Parameters
        ----------
        rows
            Row numbers, ``(m,)``.
        """
        return replace(self, members=self.members.take(rows))

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Raises
        ------
        CorruptArtifactError
            If the archive no longer exists.
        """
        if start >= min(stop, len(self)):
            return
        try:
            file = open_ranges(self.path)
        except OSError as error:
            raise CorruptArtifactError(f"{self.path} cannot be read: {error.strerror}") from None
        wanted = self.members[start:stop]
        with file:
            ahead = file.ahead((each.offset, _extent(each)) for each in wanted)
            for member, _ in zip(wanted, ahead, strict=True):
                content = self._content(file, member)
                if isinstance(content, str):
                    where = printable(f"{self.path}/{member.name}")
                    yield UnreadableImageError(where, content)
                else:
                    yield content

    def _content(self, file: Ranges, member: Member) -> bytes | str:
        """Return the bytes of an image, or why there are none."""
        try:
            return _content(file, member)
        except RemoteError as error:
            return row_problem(error, within=True)
        except Exception as error:  # noqa: BLE001 - places out of any range make the reader raise anything
            return reason_of(error)


def read_member(path: Path, member: Member) -> bytes:
    """Return the bytes of a file in an archive.

    Parameters
    ----------
    path
        The archive.
    member
        One of its files.

    Raises
    ------
    CorruptArtifactError
        If they are damaged.
    """
    with (
        reading(f"{path}: {member.name}", cure="get the archive again"),
        open_ranges(path) as file,
    ):
        return _content(file, member)


def _extent(member: Member) -> int:
    """Return about how many bytes a file takes in the archive, with its own header."""
    if not 0 <= member.packed <= _MAX_IMAGE_BYTES:
        return 0
    header = 0 if member.crc is None else _MAX_LOCAL_BYTES + len(member.name)
    return member.packed + header


def _content(file: Ranges, member: Member) -> bytes:
    """Read one file, by position."""
    if max(member.size, member.packed) > _MAX_IMAGE_BYTES:
        raise ValueError(f"it claims to have {member.size:,} bytes")
    content = file.read_at(_start(file, member), member.packed)
    if len(content) != member.packed:
        raise ValueError("the archive ends within it")
    if member.deflated:
        # One byte more than it may have is enough to see that there is more.
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
    if len(content) != member.size or member.crc not in (None, zlib.crc32(content)):
        raise ValueError("its bytes do not match their checksum")
    return content


def _start(file: Ranges, member: Member) -> int:
    """Return where the bytes of a file begin."""
    if member.crc is None:
        return member.offset
    header = file.read_at(member.offset, 30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise ValueError("its place in the zip file holds something else")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return member.offset + 30 + name_length + extra_length


def open_archive(path: Path, *, name: str, spec: str, role: Literal["id", "ood"]) -> Dataset:
    """Open the images of an archive; nothing is unpacked.

    Parameters
    ----------
    path
        A zip file, or a tar archive that is not compressed.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` takes class folders, with or without parts, as
        :func:`oodcli.data.formats.folders.open_folder` does; ``ood`` takes all images.

    Raises
    ------
    InvalidInputError
        If there is no image in it, or images with classes are wanted and lie otherwise.
    CorruptArtifactError
        If it cannot be read.
    """
    images = images_in(path, nested=True)
    if not images:
        raise InvalidInputError(f"{path} has no images; name an archive of image files")
    if role == "ood":
        return Dataset(name, {"test": Part(ArchiveSource(path, images))}, (), str(path), spec)
    tree = _tree(path, images)
    is_whole = "" in tree
    if not is_whole and tree.keys() == {"val"}:
        raise InvalidInputError(f"{path} has neither train nor test; {WANTED}")
    if is_whole:
        check_no_parts(path, tree[""])
    classes = classes_of(path, tree)
    parts = {part or "test": _part(path, images, classes, rows) for part, rows in tree.items()}
    return Dataset(name, parts, classes, str(path), spec, is_whole=is_whole)


# Rows of the images of every class of every part.
_Tree = dict[str, dict[str, "array[int]"]]


def _tree(path: Path, images: Members) -> _Tree:
    """Divide images by part and class; of an archive without parts, under an empty name."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    above = (tuple(_folders(name)) for name in images.names)
    folders = [known.setdefault(each, each) for each in above]
    # What is packed is often one folder, which is no class if there are folders in all of it.
    while len({each[0] for each in folders if each}) == 1 and all(
        len(each) > 1 and each[0] not in _PARTS for each in folders
    ):
        folders = [each[1:] for each in folders]
    found = {each[0] for each in folders if each} & _PARTS
    tree: _Tree = {part: {} for part in ("train", "test", "val") if part in found} or {"": {}}
    for row, each in enumerate(folders):
        part = each[0] if each and each[0] in found else ""
        if part not in tree:  # beside the parts
            continue
        below = each[1:] if part else each
        if not below:
            raise InvalidInputError(
                f"image {path}/{printable(images.names[row])} lies outside of any class folder; "
                f"{WANTED}"
            )
        tree[part].setdefault(below[0], array("q")).append(row)
    return {part: dict(sorted(classes.items())) for part, classes in tree.items()}


def _folders(name: str) -> list[str]:
    """Return the folders above a file; an archive in an archive is one of its name."""
    above = [part for part in name.split("/")[:-1] if part not in ("", ".")]
    return [part.removesuffix(".tar").removesuffix(".zip") for part in above]


def _part(
    path: Path, images: Members, classes: Sequence[str], rows: Mapping[str, "array[int]"]
) -> Part:
    counts = [len(rows.get(name, ())) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    every = np.concatenate([np.array(rows.get(name, ()), dtype=np.int64) for name in classes])
    return Part(ArchiveSource(path, images.take(every)), labels)


def images_in(path: Path, *, nested: bool = False) -> Members:
    """Return the image files in an archive, sorted by their paths; hidden ones are skipped.

    Parameters
    ----------
    path
        A zip file, or a tar archive that is not compressed.
    nested
        Whether to take those of archives in it, too, called ``INNER.zip/IMAGE``.

    Raises
    ------
    InvalidInputError
        If an archive in it is compressed, so that it cannot be read in place.
    CorruptArtifactError
        If it cannot be read.
    """
    every = _nested_members(path) if nested else members_of(path)
    images = Members.of(m for m in every if is_image_name(m.name) and not _is_hidden(m.name))
    if all(first <= second for first, second in pairwise(map(_by_folder, images.names))):
        return images
    keys = [_by_folder(name) for name in images.names]
    return images.take(np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64))


def _by_folder(name: str) -> str:
    """Return what names sort by, folder by folder; no name in an archive has a zero byte."""
    return name.replace("/", "\0")


def _nested_members(
    path: Path, members: Iterable[Member] | None = None, depth: int = 1
) -> Iterator[Member]:
    """Yield the files in an archive and in the archives in it, but hidden ones."""
    for member in members_of(path) if members is None else members:
        if _is_hidden(member.name):
            continue
        lower = member.name.lower()
        if not lower.endswith((*SUFFIXES, *PACKED_SUFFIXES)):
            yield member
            continue
        if member.deflated or lower.endswith(PACKED_SUFFIXES) or depth > _MAX_DEPTH:
            how = "too deep inside" if depth > _MAX_DEPTH else "compressed"
            raise InvalidInputError(
                f"{path} holds {printable(member.name)} {how}, so that it cannot be read in place; "
                "unpack it"
            )
        yield from _nested_members(path, _members_within(path, member), depth + 1)


def _members_within(path: Path, outer: Member) -> Iterator[Member]:
    """Yield the files of an archive that lies uncompressed in an archive."""
    with (
        reading(f"{path}: {printable(outer.name)}", cure="get the archive again"),
        open_ranges(path) as file,
    ):
        start = _start(file, outer)
        window = io.BufferedReader(_Window(file, start, outer.size))
        for each in _members_in(window, outer.size):
            yield replace(each, name=f"{outer.name}/{each.name}", offset=start + each.offset)


class _Window(io.RawIOBase):
    """A piece of a file as a file of its own."""

    def __init__(self, file: Ranges, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever bytes can be put into
        wanted = max(0, min(len(buffer), self._size - self._at))
        content = self._file.read_at(self._start + self._at, wanted)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _is_hidden(name: str) -> bool:
    # "__MACOSX" holds what a Mac adds to zip files: names of images, but no images.
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
