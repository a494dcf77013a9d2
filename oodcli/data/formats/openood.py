"""The folder ``data`` of OpenOOD v1.5: images as its own lists name them.

::

    benchmark_imglist/cifar10/test_tin.txt    lines such as "tin/val/images/val_0.JPEG -1"
    images_classic/tin/val/images/…           what the lists of cifar10 and cifar100 name
    images_largescale/ninco/…                 what the lists of imagenet and imagenet200 name

It is registered once (``ood datasets add openood data/``) and serves every benchmark of OpenOOD.

References
----------
Zhang et al. "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection". 2023,
arXiv:2306.09301.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.files import FileSource
from oodcli.data.formats.ilsvrc2012 import wnids
from oodcli.data.formats.lists import ListedImage, parse_list
from oodcli.data.own_names import registered
from oodcli.errors import InvalidInputError
from oodcli.images import Part
from oodcli.store.store import Store

NAME = "openood"
LISTS = "benchmark_imglist"
_IMAGES = {
    "cifar10": "images_classic",
    "cifar100": "images_classic",
    "imagenet": "images_largescale",
    "imagenet200": "images_largescale",
}


@dataclass(frozen=True)
class ListedPart:
    """The images of a list.

    Parameters
    ----------
    part
        The images in the order of the list, with labels if all of them have one.
    sha256
        Checksum of the text of the list.
    """

    part: Part
    sha256: str


@dataclass(frozen=True)
class OpenOODTree:
    """The folder ``data`` of OpenOOD.

    Parameters
    ----------
    root
        The folder.
    """

    root: Path

    @classmethod
    def of(cls, store: Store) -> "OpenOODTree | None":
        """Return the tree that is registered as ``openood``; None without one."""
        own = registered(store).get(NAME)
        return None if own is None else cls(own.path)

    @property
    def has_lists(self) -> bool:
        """Whether the lists are there."""
        return (self.root / LISTS).is_dir()

    def list_file(self, key: str) -> Path:
        """Return where a list is or would be, such as ``cifar10/test_tin``."""
        return self.root / LISTS / f"{key}.txt"

    def has(self, key: str) -> bool:
        """Return whether a list and the first of its images are there."""
        try:
            with self.list_file(key).open(encoding="utf-8") as lines:
                first = parse_list(next(lines).encode(), where=key)[0]
        except (OSError, UnicodeDecodeError, StopIteration, InvalidInputError):
            return False
        return (self._images(key) / first.path).is_file()

    def listed(self, key: str) -> ListedPart:
        """Return the images of a list; none is read yet.

        Raises
        ------
        InvalidInputError
            If the list cannot be read or is damaged.
        """
        content = self._content(key)
        images = parse_list(content, where=str(self.list_file(key)))
        # Lists of a Windows checkout have other line ends; the checksum is that of the same text.
        sha256 = hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()
        return ListedPart(self._part(key, images), sha256)

    def dataset(self, name: str, key: str) -> Dataset:
        """Return the images of a list as an OOD or covariate-shifted set.

        Raises
        ------
        InvalidInputError
            If the list cannot be read or is damaged.
        """
        part = self.listed(key).part
        return Dataset(name, {"test": part}, (), str(self.root), f"{NAME}:{key}")

    def has_id_set(self, name: str) -> bool:
        """Return whether the test images of an ID set are there."""
        return name in _IMAGES and self.has(f"{name}/test_{name}")

    def id_set(self, name: str) -> Dataset:
        """Return an ID set: its training images, if they are there, and all test images.

        Parameters
        ----------
        name
            ``cifar10``, ``cifar100``, ``imagenet`` or ``imagenet200``.

        Returns
        -------
        dataset
            The test part has the test and the validation images of OpenOOD, sorted by their paths.

        Raises
        ------
        InvalidInputError
            If a list cannot be read or is damaged.
        """
        keys = {kind: f"{name}/{kind}_{name}" for kind in ("train", "test", "val")}
        lists = {
            kind: parse_list(self._content(key), where=str(self.list_file(key)))
            for kind, key in keys.items()
            if kind != "val" or self.list_file(key).is_file()
        }
        tested = sorted((*lists["test"], *lists.get("val", ())), key=lambda image: image.path)
        parts = {"test": self._part(keys["test"], tested)}
        if self.has(keys["train"]):
            parts = {"train": self._part(keys["train"], lists["train"]), **parts}
        names = wnids() if name == "imagenet" else _class_names(lists["train"])
        return Dataset(name, parts, names, str(self.root), name)

    def found(self) -> str:
        """Return which lists have images, for display.

        Raises
        ------
        InvalidInputError
            If the folder is none of OpenOOD.
        """
        if not self.has_lists:
            raise InvalidInputError(
                f"{self.root} has no folder {LISTS}; name the folder data of OpenOOD"
            )
        said = []
        for benchmark in _IMAGES:
            every = sorted(path.stem for path in (self.root / LISTS / benchmark).glob("*.txt"))
            here = [name for name in every if self.has(f"{benchmark}/{name}")]
            if every:
                missing = ", ".join(name for name in every if name not in here)
                rest = f" (no images of {missing})" if missing else ""
                said.append(f"{len(here)} of {len(every)} lists of {benchmark}{rest}")
        if not said:
            raise InvalidInputError(
                f"{self.root / LISTS} has no lists of {', '.join(_IMAGES)}; name the folder data "
                "of OpenOOD"
            )
        return "; ".join(said)

    def _images(self, key: str) -> Path:
        return self.root / _IMAGES.get(key.partition("/")[0], "")

    def _content(self, key: str) -> bytes:
        try:
            return self.list_file(key).read_bytes()
        except OSError as error:
            raise InvalidInputError(
                f"cannot read OpenOOD's list {self.list_file(key)}: {error.strerror}"
            ) from None

    def _part(self, key: str, images: list[ListedImage]) -> Part:
        labels = np.array([image.label for image in images], dtype=np.int64)
        paths = [image.path for image in images]
        source = FileSource(self._images(key), paths, as_published=True)
        return Part(source, None if (labels < 0).any() else labels)


def _class_names(images: list[ListedImage]) -> tuple[str, ...]:
    """Return the names of the classes: the folders of their training images."""
    names = {image.label: image.path.split("/")[-2] for image in images}
    return tuple(names.get(label, str(label)) for label in range(max(names) + 1))
