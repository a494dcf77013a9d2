"""Collections of image files as published: an archive, or the folder that it unpacks to.

Zip and plain tar archives are read in place. Compressed tar archives, which can only be read
from the front, are unpacked into the store once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Texts
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.files import FileSource, find_images
from oodcli.data.formats.archives import (
    PACKED_SUFFIXES,
    ArchiveSource,
    Members,
    images_in,
    members_of,
    read_member,
)
from oodcli.data.formats.arrays import NpySource, PickedSource, read_npy
from oodcli.data.formats.labels import checked_labels
from oodcli.data.identity import identity_of
from oodcli.data.unpack import unpack
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.images import Part
from oodcli.store.store import Store

CORRUPTIONS = (
    "brightness", "contrast", "defocus_blur", "elastic_transform", "fog", "frost",
    "gaussian_blur", "gaussian_noise", "glass_blur", "impulse_noise", "jpeg_compression",
    "motion_blur", "pixelate", "saturate", "shot_noise", "snow", "spatter", "speckle_noise",
    "zoom_blur",
)  # fmt: skip
SEVERITIES = 5
SAMPLE_SEED = 0
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Collection:
    """Where the images of a published set are.

    Parameters
    ----------
    name
        Its key in the registry.
    archive
        Name of the archive, which may also lie unpacked.
    folder
        Folder of the images in the archive; empty for all of it.
    """

    name: str
    archive: str
    folder: str = ""


@dataclass(frozen=True)
class Tree:
    """Files below a folder, or below a path in an archive.

    Parameters
    ----------
    root
        The folder, or the archive.
    prefix
        The path in the archive, empty or with ``/`` at its end.
    members
        The images in the archive; None for a folder.
    """

    root: Path
    prefix: str = ""
    members: Members | None = None

    @cached_property
    def images(self) -> Sequence[str]:
        """Paths of all images, sorted folder by folder."""
        if self.members is None:
            return find_images(self.root)
        every = map(_plain, self.members.names)
        return Texts.of(
            path.removeprefix(self.prefix) for path in every if path.startswith(self.prefix)
        )

    def source(self, images: Sequence[str]) -> FileSource | ArchiveSource:
        """Return a source of chosen images.

        Parameters
        ----------
        images
            Their paths, in order.
        """
        if self.members is None:
            return FileSource(self.root, Texts.of(images), as_published=True)
        row_of = {_plain(name): row for row, name in enumerate(self.members.names)}
        rows = np.array([row_of[self.prefix + path] for path in images], dtype=np.int64)
        return ArchiveSource(self.root, self.members.take(rows), as_published=True)

    def text(self, path: str) -> str:
        """Return a text file that stands among the images.

        Parameters
        ----------
        path
            Its path.

        Raises
        ------
        CorruptArtifactError
            If there is no such file, or it is not text.
        """
        try:
            if self.members is None:
                return (self.root / path).read_text("utf-8")
            every = {member.name: member for member in members_of(self.root)}
            return read_member(self.root, every[self.prefix + path]).decode("utf-8")
        except (OSError, KeyError, UnicodeDecodeError):
            raise CorruptArtifactError(
                f"{self.root} has no text file {self.prefix}{path}; get the archive again"
            ) from None


def _plain(name: str) -> str:
    """Return the path of a file in an archive without what stands for the folder itself."""
    return name.removeprefix("./")


def find_tree(folder: Path, store: Store, collection: Collection) -> Tree:
    """Find a published collection at or below a folder.

    Parameters
    ----------
    folder
        Holds the archive or what it unpacks to, or is that.
    store
        Where archives are unpacked.
    collection
        What to look for.

    Raises
    ------
    MissingArtifactError
        If it does not exist.
    CorruptArtifactError
        If the archive is damaged.
    """
    where = _unpacked(folder, collection)
    if where is not None:
        return Tree(where)
    archive = folder if folder.name == collection.archive else folder / collection.archive
    if not archive.is_file():
        raise MissingArtifactError(
            f"{collection.name} is not in {folder}: it holds neither {collection.archive} nor "
            f"{collection.folder or 'its images'}; run: ood datasets download {collection.name}"
        )
    if archive.name.endswith(PACKED_SUFFIXES):
        mark = identity_of(archive)[:8]
        target = store.datasets / collection.name / f"unpacked-{mark}"
        with store.lock(f"unpacking {archive}"):
            unpack(archive, target)
        where = _unpacked(target, collection)
        if where is None:
            raise CorruptArtifactError(
                f"{archive} has no folder {collection.folder} inside; get the archive again"
            )
        return Tree(where)
    members = images_in(archive)
    for prefix in _endings(collection.folder):
        if any(_plain(name).startswith(prefix) for name in members.names):
            return Tree(archive, prefix, members)
    raise CorruptArtifactError(f"{archive} has no images; get the archive again")


def _unpacked(folder: Path, collection: Collection) -> Path | None:
    """Return the folder of the images, whether its parents came along or not."""
    for ending in _endings(collection.folder):
        # Without anything of the archive's path, any folder would do.
        if ending and (folder / ending).is_dir():
            return folder / ending
        if ending and f"{folder.name}/" == ending:
            return folder
    if not collection.folder and folder.is_dir() and find_images(folder):
        return folder
    return None


def _endings(path: str) -> list[str]:
    """Return ``a/b/``, ``b/`` and the empty path of ``a/b``; only the last of an empty one."""
    parts = [part for part in path.split("/") if part]
    return ["".join(f"{part}/" for part in parts[at:]) for at in range(len(parts))] + [""]


def open_collection(folder: Path, store: Store, *, collection: Collection) -> Dataset:
    """Open all images of a collection as one set without classes, sorted by their paths.

    Raises
    ------
    MissingArtifactError
        If it is not in the folder.
    CorruptArtifactError
        If the archive is damaged, or has no images.
    """
    tree = find_tree(folder, store, collection)
    if not tree.images:
        raise CorruptArtifactError(f"{tree.root} has no images; get {collection.name} again")
    part = Part(tree.source(tree.images))
    return Dataset(collection.name, {"test": part}, (), str(tree.root), collection.name)


def open_tiny_imagenet(folder: Path, store: Store, *, collection: Collection) -> Dataset:
    """Open Tiny ImageNet: 200 classes, 64x64 pixels, validation images by their number.

    Raises
    ------
    MissingArtifactError
        If it is not in the folder.
    CorruptArtifactError
        If the archive is damaged, or the list of classes of the validation images is.
    """
    tree = find_tree(folder, store, collection)
    train = [path for path in tree.images if path.startswith("train/")]
    val = sorted((p for p in tree.images if p.startswith("val/")), key=_number)
    if not val:
        raise CorruptArtifactError(f"{tree.root} has no validation images; get it again")
    classes = _annotations(tree)
    names = tuple(sorted(set(classes.values())))
    index = {name: label for label, name in enumerate(names)}
    try:
        labels = {
            "train": [index[path.split("/")[1]] for path in train],
            "val": [index[classes[path.rpartition("/")[2]]] for path in val],
        }
    except KeyError as error:
        raise CorruptArtifactError(
            f"{tree.root}: val_annotations.txt has no entry for {error.args[0]}; get it again"
        ) from None
    parts = {
        part: Part(tree.source(paths), np.array(labels[part], dtype=np.int64))
        for part, paths in (("train", train), ("val", val))
        if paths
    }
    return Dataset(collection.name, parts, names, str(tree.root), collection.name)


def _annotations(tree: Tree) -> dict[str, str]:
    """Return the class of every validation image by its file name."""
    lines = [line.split("\t") for line in tree.text("val/val_annotations.txt").splitlines()]
    if not lines or any(len(line) < 2 for line in lines):
        raise CorruptArtifactError(
            f"{tree.root}: val_annotations.txt is not a list of files and classes; get it again"
        )
    return {line[0]: line[1] for line in lines}


def _number(path: str) -> tuple[int, str]:
    numbers = _NUMBER.findall(path.rpartition("/")[2])
    return (int(numbers[-1]) if numbers else -1), path


def open_cifar10_c(
    folder: Path,
    store: Store,  # noqa: ARG001 - as every opener
    *,
    collection: Collection,
) -> Dataset:
    """Open CIFAR-10-C: the CIFAR-10 test images, corrupted in 19 ways at 5 severities.

    Images are sorted by the name of the corruption, then by severity; within a severity they stand
    in the order of the test images.

    Raises
    ------
    MissingArtifactError
        If it is not in the folder.
    CorruptArtifactError
        If the archive is damaged.

    References
    ----------
    Hendrycks, Dietterich. "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations". ICLR 2019, arXiv:1903.12261.
    """
    sources, labels = _cifar10_c(folder, collection)
    which = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
    rows = np.concatenate([np.arange(len(source)) for source in sources])
    part = Part(PickedSource(sources, which, rows), np.tile(labels, len(sources)))
    return Dataset(collection.name, {"test": part}, (), str(folder), collection.name)


def open_cifar10_c_sample(
    folder: Path,
    store: Store,  # noqa: ARG001 - as every opener
    *,
    collection: Collection,
) -> Dataset:
    """Open 10,000 images of CIFAR-10-C: every test image once, corrupted in a way drawn at random.

    Raises
    ------
    MissingArtifactError
        If it is not in the folder.
    CorruptArtifactError
        If the archive is damaged.

    Notes
    -----
    OpenOOD draws such a sample too, but its list is not among those that could be rebuilt. Here
    image k has corruption and severity number ``floor(95 u_k)`` of the order of `open_cifar10_c`,
    where ``u`` are uniform numbers of NumPy's default generator with seed 0.
    """
    sources, labels = _cifar10_c(folder, collection)
    each = len(sources[0]) // SEVERITIES
    drawn = np.random.default_rng(SAMPLE_SEED).random(each) * len(sources) * SEVERITIES
    which, severity = np.divmod(np.floor(drawn).astype(np.int64), SEVERITIES)
    part = Part(PickedSource(sources, which, severity * each + np.arange(each)), labels[:each])
    return Dataset(collection.name, {"test": part}, (), str(folder), collection.name)


def _cifar10_c(
    folder: Path, collection: Collection
) -> tuple[tuple[NpySource, ...], NDArray[np.int64]]:
    """Return one array a corruption, and the labels that they all have."""
    archive = folder / collection.archive
    unpacked = next((f for f in (folder / collection.folder, folder) if _holds_npy(f)), None)
    try:
        if unpacked is not None:
            sources = tuple(NpySource(unpacked / f"{name}.npy") for name in CORRUPTIONS)
            labels = read_npy(unpacked / "labels.npy")
        elif archive.is_file():
            inside = {m.name.rpartition("/")[2]: m for m in members_of(archive)}
            sources = tuple(
                NpySource(archive, member.offset, member.size)
                for member in (inside[f"{name}.npy"] for name in CORRUPTIONS)
            )
            member = inside["labels.npy"]
            labels = read_npy(archive, offset=member.offset, size=member.size)
        else:
            raise MissingArtifactError(
                f"{collection.name} is not in {folder}: it holds neither {collection.archive} nor "
                f"{collection.folder}; run: ood datasets download {collection.name}"
            )
    except (KeyError, FileNotFoundError) as error:
        raise CorruptArtifactError(
            f"{folder} has not all files of CIFAR-10-C: {error}; get the archive again"
        ) from None
    except InvalidInputError as error:
        raise CorruptArtifactError(str(error)) from None
    where = f"labels.npy in {folder}"
    return sources, checked_labels(labels, where, count=len(sources[0]))


def _holds_npy(folder: Path) -> bool:
    return (folder / "labels.npy").is_file()


def sample_rows(total: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` of ``total`` rows, drawn at random once for all, ascending.

    Parameters
    ----------
    total
        Number of rows.
    count
        How many to draw; all rows if there are no more.

    Notes
    -----
    The rows are those of the ``count`` smallest among ``total`` uniform numbers of NumPy's default
    generator with seed 0.
    """
    chance = np.random.default_rng(SAMPLE_SEED).random(total)
    return np.sort(np.argsort(chance, kind="stable")[:count]).astype(np.int64)
