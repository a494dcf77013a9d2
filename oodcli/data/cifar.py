"""CIFAR-10 as its authors publish it: a tar archive, or the folder inside, of pickled batches.

References
----------
Krizhevsky. "Learning Multiple Layers of Features from Tiny Images". Technical report, University of
Toronto, 2009.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.arrays import ArraySource
from oodcli.data.dataset import Dataset
from oodcli.data.pickles import load_pickle
from oodcli.errors import CorruptArtifactError, MissingArtifactError, UnreadableImageError
from oodcli.images import Part
from oodcli.store import Store, digest_of_json, read_json, write_json

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
PARTS = MappingProxyType(
    {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
)
NAMES = "batches.meta"

# File by file, md5 of what is inside the archive (as torchvision lists them).
MEMBERS: Mapping[str, str] = MappingProxyType(
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    }
)

_MOST_MEMBER_BYTES = 1 << 26


def find_cifar10(folder: Path) -> Path | None:
    """Return the archive or the folder of batches that lies in ``folder``, or is it; else None."""
    if folder.is_file():
        return folder if folder.name == ARCHIVE else None
    for path in (folder / FOLDER, folder):
        if (path / "data_batch_1").is_file() or (path / "test_batch").is_file():
            return path
    archive = folder / ARCHIVE
    return archive if archive.is_file() else None


def open_stored_cifar10(store: Store) -> Dataset:
    """Open CIFAR-10 from the store.

    Raises
    ------
    MissingArtifactError
        If it was not downloaded.
    CorruptArtifactError
        If a file is not the published one.
    """
    location = find_cifar10(store.datasets / "cifar10")
    if location is None:
        raise MissingArtifactError(
            "cifar10 is not in the store; run: ood datasets download cifar10, "
            f"or name a folder that holds {ARCHIVE}: --data cifar10=FOLDER"
        )
    return open_cifar10(location, store, name="cifar10", spec="cifar10")


def open_cifar10(
    location: Path,
    store: Store,
    *,
    name: str,
    spec: str,
    members: Mapping[str, str] = MEMBERS,
) -> Dataset:
    """Open CIFAR-10, images in the official order.

    Parameters
    ----------
    location
        The archive, or the folder of its batches.
    store
        Keeps the labels, so that the archive is unpacked only when pixels are wanted.
    name
        How to call the data set.
    spec
        What opens it again.
    members
        md5 of every file.

    Raises
    ------
    CorruptArtifactError
        If a file is missing or not the published one.
    """
    batches = _Batches(location, members)
    labels, class_names = _labels(batches, store)
    parts = {
        part: Part(BatchSource(batches, part, len(labels[part])), labels[part]) for part in PARTS
    }
    return Dataset(name, parts, class_names, str(location), spec)


@dataclass(frozen=True)
class _Batches:
    """The files of CIFAR-10, read together at first need and kept."""

    location: Path
    members: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        return digest_of_json(dict(self.members))

    @cached_property
    def contents(self) -> dict[str, Any]:
        """Content of every file by its name, checked."""
        contents = {}
        for member, raw in self._files():
            md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
            if md5 != self.members[member]:
                raise CorruptArtifactError(
                    f"{member} in {self.location} is not the published file: its md5 is {md5}, "
                    f"not {self.members[member]}; get the archive again"
                )
            contents[member] = load_pickle(raw, where=f"{member} in {self.location}")
        missing = sorted(self.members.keys() - contents.keys())
        if missing:
            raise CorruptArtifactError(
                f"{self.location} has no {', '.join(missing)}; get the archive again"
            )
        return contents

    def _files(self) -> Iterator[tuple[str, bytes]]:
        if self.location.is_dir():
            for member in self.members:
                if (self.location / member).is_file():
                    yield member, (self.location / member).read_bytes()
            return
        try:
            # As a stream: the archive is unpacked once, in memory, whatever it holds.
            with tarfile.open(self.location, "r|gz") as archive:
                for entry in archive:
                    member = entry.name.removeprefix(f"{FOLDER}/")
                    wanted = member in self.members and entry.name == f"{FOLDER}/{member}"
                    if wanted and entry.isfile() and entry.size <= _MOST_MEMBER_BYTES:
                        stream = archive.extractfile(entry)
                        yield member, b"" if stream is None else stream.read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise CorruptArtifactError(
                f"{self.location} cannot be unpacked: {error}; get the archive again"
            ) from None

    def labels(self, part: str) -> list[int]:
        return [label for member in PARTS[part] for label in self.contents[member][b"labels"]]

    def class_names(self) -> list[str]:
        return [name.decode() for name in self.contents[NAMES][b"label_names"]]

    def pixels(self, part: str) -> NDArray[np.uint8]:
        """Return the images of a part, ``(n, 32, 32, 3)``."""
        rows = np.concatenate([self.contents[member][b"data"] for member in PARTS[part]])
        return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class BatchSource:
    """The images of one part of CIFAR-10.

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
    path = store.datasets / "cifar10" / f"labels-{batches.digest}.json"
    try:
        known = read_json(path)
    except (FileNotFoundError, CorruptArtifactError):
        known = {}
    content = known.get("content")
    if not content or known.get("digest") != digest_of_json(content):
        content = {part: batches.labels(part) for part in PARTS}
        content["class_names"] = batches.class_names()
        write_json(path, {"content": content, "digest": digest_of_json(content)})
    labels = {part: np.asarray(content[part], dtype=np.int64) for part in PARTS}
    return labels, tuple(content["class_names"])
