"""Images inside a tar or zip archive, read in place."""

import hashlib
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.decoding.files import is_image_name
from oodcli.data.identity import identity_of
from oodcli.errors import CorruptArtifactError, InvalidInputError, UnreadableImageError
from oodcli.files import reading, reason_of, regular
from oodcli.images import Part
from oodcli.text import printable

SUFFIXES = (".tar", ".zip")
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MOST_IMAGE_BYTES = 1 << 28


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


def members_of(path: Path) -> list[Member]:
    """Return the files in an archive that can be read in place, in its order.

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
    with reading(path, wrong="cannot be read as an archive", cure="get it again"):
        if zipfile.is_zipfile(path):
            return _members_of_zip(path)
        return _members_of_tar(path)


def _members_of_zip(path: Path) -> list[Member]:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in entries:
        if entry.flag_bits & 1:
            raise ValueError(f"{entry.filename} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} is compressed in an unusual way")
    return [
        Member(
            entry.filename,
            entry.header_offset,
            entry.compress_size,
            entry.file_size,
            entry.CRC,
            entry.compress_type == zipfile.ZIP_DEFLATED,
        )
        for entry in entries
    ]


def _members_of_tar(path: Path) -> list[Member]:
    end = path.stat().st_size
    members = []
    with tarfile.open(path, "r:") as archive:
        for entry in archive:
            if entry.isreg() and not entry.issparse():
                if entry.offset_data + entry.size > end:
                    raise ValueError(f"it ends within {entry.name}")
                members.append(Member(entry.name, entry.offset_data, entry.size, entry.size))
    return members


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
    members: Sequence[Member]
    as_published: bool = False

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the archive, see :mod:`oodcli.data.identity`, and of the names in it."""
        state = hashlib.blake2b(identity_of(self.path).encode(), digest_size=16)
        state.update(b"\0as published" if self.as_published else b"")
        for member in self.members:
            state.update(f"\0{member.name}\0{member.offset}".encode("utf-8", "surrogateescape"))
        return state.hexdigest()

    def key_of(self, row: int) -> str:
        """Return the path of an image below that of the archive."""
        return f"{self.path}/{self.members[row].name}"

    def name_of(self, row: int) -> str:
        """Return the path of an image in the archive."""
        return self.members[row].name

    def take(self, rows: NDArray[np.int64], /) -> "ArchiveSource":
        """Return a source of chosen images.

        Parameters
        ----------
        rows
            Row numbers, ``(m,)``.
        """
        return replace(self, members=[self.members[row] for row in rows])

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
        for member in self.members[start:stop]:
            try:
                content = self._content(member)
            except UnreadableImageError as error:
                yield error
            else:
                yield content

    def _content(self, member: Member) -> bytes:
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise CorruptArtifactError(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            return _content(descriptor, member)
        except Exception as error:  # noqa: BLE001 - places out of any range make the reader raise anything
            where = printable(f"{self.path}/{member.name}")
            raise UnreadableImageError(where, reason_of(error)) from None
        finally:
            os.close(descriptor)


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
    with reading(f"{path}: {member.name}", cure="get the archive again"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return _content(descriptor, member)
        finally:
            os.close(descriptor)


def _content(descriptor: int, member: Member) -> bytes:
    """Read one file, by position."""
    if max(member.size, member.packed) > _MOST_IMAGE_BYTES:
        raise ValueError(f"it claims to have {member.size:,} bytes")
    offset = member.offset
    if member.crc is not None:
        header = os.pread(descriptor, 30, offset)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise ValueError("its place in the zip file holds something else")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        offset += 30 + name_length + extra_length
    content = os.pread(descriptor, member.packed, offset)
    if len(content) != member.packed:
        raise ValueError("the archive ends within it")
    if member.deflated:
        # One byte more than it may have is enough to see that there is more.
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
    if len(content) != member.size or member.crc not in (None, zlib.crc32(content)):
        raise ValueError("its bytes do not match their checksum")
    return content


def open_archive(path: Path, *, name: str, spec: str, role: Literal["id", "ood"]) -> Dataset:
    """Open all images of an archive as one set without classes; nothing is unpacked.

    Parameters
    ----------
    path
        A zip file, or a tar archive that is not compressed.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``ood`` alone: an archive has no classes.

    Raises
    ------
    InvalidInputError
        If there is no image in it, or images with classes are wanted.
    CorruptArtifactError
        If it cannot be read.
    """
    if role == "id":
        raise InvalidInputError(
            f"{path} is an archive, whose images have no classes; unpack it into a folder "
            "with train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    images = images_in(path)
    if not images:
        raise InvalidInputError(f"{path} has no images; name an archive of image files")
    return Dataset(name, {"test": Part(ArchiveSource(path, images))}, (), str(path), spec)


def images_in(path: Path) -> list[Member]:
    """Return the image files in an archive, sorted by their paths; hidden ones are skipped.

    Parameters
    ----------
    path
        A zip file, or a tar archive that is not compressed.

    Raises
    ------
    CorruptArtifactError
        If it cannot be read.
    """
    return sorted(
        (m for m in members_of(path) if is_image_name(m.name) and not _is_hidden(m.name)),
        key=lambda member: member.name.split("/"),
    )


def _is_hidden(name: str) -> bool:
    # "__MACOSX" holds what a Mac adds to zip files: names of images, but no images.
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
