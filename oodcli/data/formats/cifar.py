"""CIFAR-10 and CIFAR-100 as published: a tar archive, or the folder inside, of pickled batches.

References
----------
Krizhevsky. "Learning Multiple Layers of Features from Tiny Images". Technical report, University of
Toronto, 2009.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.data.formats.arrays import ArraySource
from oodcli.errors import CorruptArtifactError, MissingArtifactError, UnreadableImageError
from oodcli.files import reading
from oodcli.images import Part
from oodcli.pickles import load_pickle
from oodcli.store.store import Store, digest_of_json, read_json, write_json


@dataclass(frozen=True)
class Release:
    """How one of the two data sets was published.

    Parameters
    ----------
    name
        Its key in the registry.
    archive
        Name of the archive.
    folder
        Name of the folder inside.
    parts
        Files of batches of each part, in order.
    label_key, names_key
        Under what a batch has its labels, and the file of names those of the classes.
    names_file
        File of the names of the classes.
    members
        md5 of every file inside the archive (as torchvision lists them).
    """

    name: str
    archive: str
    folder: str
    parts: Mapping[str, tuple[str, ...]]
    label_key: bytes
    names_key: bytes
    names_file: str
    members: Mapping[str, str]


CIFAR10 = Release(
    name="cifar10",
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    parts=MappingProxyType(
        {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
    ),
    label_key=b"labels",
    names_key=b"label_names",
    names_file="batches.meta",
    members=MappingProxyType(
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        }
    ),
)
CIFAR100 = Release(
    name="cifar100",
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    parts=MappingProxyType({"train": ("train",), "test": ("test",)}),
    label_key=b"fine_labels",
    names_key=b"fine_label_names",
    names_file="meta",
    members=MappingProxyType(
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        }
    ),
)
RELEASES = (CIFAR10, CIFAR100)

# A batch of CIFAR-100 has 154 MB.
_MAX_MEMBER_BYTES = 1 << 28


def find_release(path: Path) -> tuple[Release, Path] | None:
    """Return what was published of the two sets at or in a folder, and where exactly; else None."""
    for release in RELEASES:
        location = find(path, release)
        if location is not None:
            return release, location
    return None


def find(path: Path, release: Release) -> Path | None:
    """Return the archive or the folder of batches that lies in ``path``, or is it; else None.

    Parameters
    ----------
    path
        A folder or file.
    release
        Which of the two sets.
    """
    if path.is_file():
        return path if path.name == release.archive else None
    for folder in (path / release.folder, path):
        if any((folder / file).is_file() for files in release.parts.values() for file in files):
            return folder
    archive = path / release.archive
    return archive if archive.is_file() else None


def open_stored(folder: Path, store: Store, *, release: Release) -> Dataset:
    """Open one of the two sets from the folder its archive was put in.

    Raises
    ------
    MissingArtifactError
        If it does not exist.
    CorruptArtifactError
        If a file is not the published one.
    """
    location = find(folder, release)
    if location is None:
        raise MissingArtifactError(
            f"{release.name} is not in {folder}; run: ood datasets download {release.name}, "
            f"or name a folder that holds {release.archive}: {release.name}=FOLDER"
        )
    return open_cifar(location, store, release=release, name=release.name, spec=release.name)


def open_cifar(location: Path, store: Store, *, release: Release, name: str, spec: str) -> Dataset:
    """Open one of the two sets, images in the official order.

    Parameters
    ----------
    location
        The archive, or the folder of its batches.
    store
        Stores the labels, so that the archive is unpacked only when pixels are needed.
    release
        Which set it is.
    name
        How to call the data set.
    spec
        What opens it again.

    Raises
    ------
    CorruptArtifactError
        If a file is missing or not the published one.
    """
    batches = _Batches(location, release)
    labels, class_names = _labels(batches, store)
    parts = {
        part: Part(BatchSource(batches, part, len(labels[part])), labels[part])
        for part in release.parts
    }
    return Dataset(name, parts, class_names, str(location), spec)


@dataclass(frozen=True)
class _Batches:
    """The files of one of the two sets, read together at first need and kept."""

    location: Path
    release: Release

    @cached_property
    def digest(self) -> str:
        return digest_of_json(dict(self.release.members))

    @cached_property
    def contents(self) -> dict[str, Any]:
        """Content of every file by its name, checked."""
        contents = {}
        for member, raw in self._files():
            md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
            if md5 != self.release.members[member]:
                raise CorruptArtifactError(
                    f"{member} in {self.location} is not the published file: its md5 is {md5}, "
                    f"not {self.release.members[member]}; get the archive again"
                )
            contents[member] = load_pickle(raw, where=f"{member} in {self.location}")
        missing = sorted(self.release.members.keys() - contents.keys())
        if missing:
            raise CorruptArtifactError(
                f"{self.location} has no {', '.join(missing)}; get the archive again"
            )
        return contents

    def _files(self) -> Iterator[tuple[str, bytes]]:
        if self.location.is_dir():
            for member in self.release.members:
                if (self.location / member).is_file():
                    yield member, (self.location / member).read_bytes()
            return
        with (
            reading(self.location, wrong="cannot be unpacked", cure="get the archive again"),
            # As a stream: the archive is unpacked once, in memory, whatever it holds.
            tarfile.open(self.location, "r|gz") as archive,
        ):
            for entry in archive:
                member = entry.name.removeprefix(f"{self.release.folder}/")
                wanted = member in self.release.members and member != entry.name
                if wanted and entry.isfile() and entry.size <= _MAX_MEMBER_BYTES:
                    stream = archive.extractfile(entry)
                    yield member, b"" if stream is None else stream.read()

    def labels(self, part: str) -> list[int]:
        key = self.release.label_key
        return [int(k) for file in self.release.parts[part] for k in self.contents[file][key]]

    def class_names(self) -> list[str]:
        names = self.contents[self.release.names_file][self.release.names_key]
        return [name.decode() for name in names]

    def pixels(self, part: str) -> NDArray[np.uint8]:
        """Return the images of a part, ``(n, 32, 32, 3)``."""
        rows = np.concatenate(
            [self.contents[member][b"data"] for member in self.release.parts[part]]
        )
        return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class BatchSource:
    """The images of one part of CIFAR-10 or CIFAR-100.

    Parameters
    ----------
    batches
        The files.
    part
        ``train`` or ``test``.
    count
        Number of images.
    """

    batches: _Batches
    part: str
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        """Digest of the part and of the checksums of the files, wherever they lie."""
        return digest_of_json([self.part, self.batches.digest])

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Raises
        ------
        CorruptArtifactError
            If a file is missing or not the published one.
        """
        return ArraySource(self.batches.pixels(self.part)).read(start, stop)


def _labels(
    batches: _Batches, store: Store
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Return the labels of both parts and the class names; from the store where they are known."""
    path = store.datasets / batches.release.name / f"labels-{batches.digest}.json"
    try:
        content = read_json(path)
    except (FileNotFoundError, CorruptArtifactError):
        content = {part: batches.labels(part) for part in batches.release.parts}
        content["class_names"] = batches.class_names()
        write_json(path, content)
    labels = {part: np.asarray(content[part], dtype=np.int64) for part in batches.release.parts}
    return labels, tuple(content["class_names"])
