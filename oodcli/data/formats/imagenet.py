"""ImageNet (ILSVRC 2012) in the layouts in which it lies on disks.

::

    train/<wnid>/*.JPEG                     a folder for every class
    ILSVRC2012_img_train.tar                as published: an archive of every class
    val/<wnid>/*.JPEG                       a folder for every class
    val/ILSVRC2012_val_00000001.JPEG        all in one folder, as published
    ILSVRC2012_img_val.tar                  as published
    ILSVRC/Data/CLS-LOC/{train,val}/        as Kaggle has it
    data/train-00000-of-00294.parquet       as Hugging Face has it, whose classes are in this order

The class of a validation image without a folder of its class follows from its number; the ground
truth is a fact that comes with the tool, so that no file of labels is needed beside the images. If
there is one, the truth is compared with it; see :mod:`oodcli.data.formats.imagenet_labels`.

References
----------
Russakovsky et al. "ImageNet Large Scale Visual Recognition Challenge". IJCV 2015.
"""

import os
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Texts
from oodcli.data.dataset import Dataset, take
from oodcli.data.decoding.extents import Extents
from oodcli.data.decoding.files import FileSource, find_images, is_image_name, list_folder
from oodcli.data.formats import parquet
from oodcli.data.formats.collections import Collection, Tree, find_tree
from oodcli.data.formats.ilsvrc2012 import class_word, ground_truth, wnids
from oodcli.data.formats.imagenet_labels import VALIDATION, check_labels, check_names
from oodcli.data.formats.webdataset import ShardIndex, indexed
from oodcli.data.reader import Place
from oodcli.errors import InvalidInputError
from oodcli.files import reading, regular
from oodcli.images import Part, image_name
from oodcli.store.store import Store

_WNID = re.compile(r"n\d{8}")
# Where train and val are, below the folder that is named.
_ROOTS = (
    "", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "ILSVRC2012", "ILSVRC", "imagenet", "imagenet_1k",
    "images_largescale/imagenet_1k",
)  # fmt: skip
_TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train")
_TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
_VAL_FOLDERS = ("val", "ILSVRC2012_img_val", "validation")


@dataclass(frozen=True)
class _Found:
    """A part of ImageNet.

    Parameters
    ----------
    part
        Its images; labels count in the order of :func:`wnids`.
    layout
        How it lies on the disk, for display.
    in_folders
        Whether each class has a folder of its own.
    notes
        What the user must know about it, in sentences.
    """

    part: Part
    layout: str
    in_folders: bool
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> NDArray[np.int64]:
        """The classes that have images, ascending."""
        assert self.part.labels is not None  # every part has labels
        return np.unique(self.part.labels)

    def of_classes(self, classes: NDArray[np.int64]) -> Part:
        """Return the images of some classes, whose labels count in the order of these."""
        labels = self.part.labels
        assert labels is not None
        inside = np.flatnonzero(np.isin(labels, classes))
        chosen = self.part if len(inside) == len(labels) else take(self.part, inside)
        return Part(chosen.source, np.searchsorted(classes, labels[inside]))


def open_imagenet(folder: Path, store: Store, *, collection: Collection) -> Dataset:
    """Open ImageNet, or some of its classes, in any of the layouts above.

    Parameters
    ----------
    folder
        The folder.
    store
        Where archives are unpacked.
    collection
        Archive of the validation images.

    Returns
    -------
    dataset
        With the training images as ``train`` and the validation images as ``val``, either of
        which may be missing. Of validation images that are not in folders of classes, those of the
        classes that have training images.

    Raises
    ------
    MissingArtifactError
        If there is none of it in the folder.
    InvalidInputError
        If a file or folder among the images belongs to no class of ILSVRC 2012, or validation
        images in folders have other classes than training images.
    """
    train = _first(folder, _TRAIN_FOLDERS, _in_class_folders) or _train_archive(folder, store)
    val = _first(folder, _VAL_FOLDERS, _validation) or _named_itself(folder)
    if train is None and val is None and parquet.opens(Place(folder)):
        return _in_parquet(folder, collection.name)
    if val is None and (train is None or (folder / collection.archive).is_file()):
        val = _in_archive(folder, store, collection)
    if train is not None and val is not None and val.in_folders:
        foreign = np.setdiff1d(val.classes, train.classes)
        if len(foreign):
            raise InvalidInputError(
                f"{folder} has validation images of {wnids()[foreign[0]]} and no training images "
                "of that class; remove the folder, or add training images"
            )
    parts = {name: each for name, each in (("train", train), ("val", val)) if each is not None}
    classes = next(iter(parts.values())).classes
    dataset = Dataset(
        collection.name,
        {name: each.of_classes(classes) for name, each in parts.items()},
        tuple(wnids()[at] for at in classes),
        str(folder),
        collection.name,
        notes=tuple(note for each in parts.values() for note in each.notes),
        layout="; ".join(f"{name}: {each.layout}" for name, each in parts.items()),
    )
    if collection.name != "imagenet" and train is None and len(classes) == len(wnids()):
        # Which classes it has, only the lists of its benchmark say.
        (name, part), *_ = dataset.parts.items()
        return replace(dataset, parts={name: Part(part.source)}, class_names=())
    return dataset


def _first(
    folder: Path, names: tuple[str, ...], opener: Callable[[Path], _Found | None]
) -> _Found | None:
    """Return the first folder of these names that holds images in a known layout."""
    for root in _ROOTS:
        for name in names:
            place = folder / root / name
            if place.is_dir() and (found := opener(place)) is not None:
                return found
    return None


def _train_archive(folder: Path, store: Store) -> _Found | None:
    """Open the training images in their published archive of archives; None if it is not there."""
    for root in _ROOTS:
        path = folder / root / _TRAIN_ARCHIVE
        if path.is_file():
            index = indexed(path, store, _index_of_train)
            place = {name: at for at, name in enumerate(wnids())}
            labels = np.array([place[wnid] for wnid in index.labels], dtype=np.int64)
            which = np.zeros(len(labels), dtype=np.int64)
            source = Extents(
                path.parent, [path.name], which, index.offsets, index.sizes, index.keys
            )
            return _Found(Part(source, labels), path.name, in_folders=True)
    return None


def _index_of_train(path: Path) -> ShardIndex:
    """Read the headers of an archive with an archive for every class.

    Raises
    ------
    CorruptArtifactError
        If it is anything else, or is cut short.
    """
    known = set(wnids())
    rows: list[tuple[str, str, int, int]] = []
    with (
        reading(path, cure="get the archive again"),
        regular(path).open("rb") as stream,
        tarfile.open(fileobj=stream, mode="r:") as archive,
    ):
        end = os.fstat(stream.fileno()).st_size
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it holds those of all files
            wnid, dot, kind = member.name.removeprefix("./").partition(".")
            if not member.isreg():
                continue
            if wnid not in known or f"{dot}{kind}" != ".tar":
                raise ValueError(f"it holds {member.name}, and not an archive for every class")
            if member.offset_data + member.size > end:
                raise ValueError(f"it ends within {member.name}")
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                for image in inner:
                    inner.members = []  # type: ignore[attr-defined]
                    if image.isreg() and is_image_name(image.name):
                        at = member.offset_data + image.offset_data
                        rows.append((wnid, f"/{wnid}/{image.name}", at, image.size))
    rows.sort()
    places = np.array([row[2:] for row in rows], dtype=np.int64).reshape(-1, 2)
    return ShardIndex(
        Texts.of([row[1] for row in rows]),
        places[:, 0].copy(),
        places[:, 1].copy(),
        Texts.of([row[0] for row in rows]),
    )


def _in_parquet(folder: Path, name: str) -> Dataset:
    """Open Parquet shards, and call their 1,000 classes by wnid instead of words."""
    dataset = parquet.open_parquet(folder, name=name, spec=name, role="id")
    names = wnids() if in_order_of_wnids(dataset.class_names) else dataset.class_names
    return replace(dataset, class_names=names, layout="Parquet shards")


def in_order_of_wnids(names: Sequence[str]) -> bool:
    """Return whether 1,000 names of classes are in the order of wnids, if they are known at all."""
    place = {known: at for at, wnid in enumerate(wnids()) for known in (wnid, class_word(wnid))}
    where = [(at, place.get(name.partition(",")[0].strip())) for at, name in enumerate(names)]
    right = sum(at == found for at, found in where)
    return len(names) == len(wnids()) and 2 * right >= sum(found is not None for _, found in where)


def _named_itself(folder: Path) -> _Found | None:
    """Open a folder that is itself that of the validation images."""
    if not folder.is_dir():
        return None
    found = _validation(folder)
    # Folders of classes could be training images just as well, but for the names of the files.
    if found is None or not found.in_folders:
        return found
    first = image_name(found.part.source, 0).rpartition("/")[2]
    return found if folder.name in _VAL_FOLDERS or VALIDATION.fullmatch(first) else None


def _validation(folder: Path) -> _Found | None:
    """Open validation images in folders of classes, or all in one."""
    found = _in_class_folders(folder)
    if found is not None:
        return replace(found, notes=_misplaced(found.part, folder))
    if not _holds(folder, VALIDATION, files=True):
        return None
    tree = Tree(folder)
    return _by_number(tree, f"{folder.name}/ with all images in one folder")


def _misplaced(part: Part, folder: Path) -> tuple[str, ...]:
    """Return a note if images are in folders of other classes than their published numbers have."""
    truth, labels = ground_truth(), part.labels
    assert labels is not None  # it has folders of classes
    placed, differ = 0, []
    for row, label in enumerate(labels.tolist()):
        name = image_name(part.source, row)
        match = VALIDATION.fullmatch(name.rpartition("/")[2])
        if match and 1 <= int(match[1]) <= len(truth):
            placed += 1
            published = int(truth[int(match[1]) - 1])
            if published != label:
                differ.append((name, wnids()[published]))
    if not differ:
        return ()
    return (
        f"{len(differ):,} of {placed:,} validation images in {folder} are in folders of other "
        "classes than the published truth has for their names (first "
        f"{differ[0][0]}, published as {differ[0][1]}); the classes are those of the folders",
    )


def _by_number(tree: Tree, layout: str) -> _Found:
    """Return validation images whose classes follow from their numbers.

    Raises
    ------
    InvalidInputError
        If an image is none of these, or labels beside the images are other than the truth.
    """
    images, truth = tree.images, ground_truth()
    numbers = []
    for path in images:
        match = VALIDATION.fullmatch(path.rpartition("/")[2])
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(truth):
            raise InvalidInputError(
                f"{tree.root}/{path} is no validation image of ILSVRC 2012; remove it, or give "
                "your images another name than imagenet"
            )
        numbers.append(number)
    if numbers:
        check_names(path.rpartition("/")[2] for path in images)
        check_labels(tree.root if tree.members is None else tree.root.parent, numbers)
    labels = truth[np.array(numbers, dtype=np.int64) - 1]
    return _Found(Part(tree.source(images), labels), layout, in_folders=False)


def _in_archive(folder: Path, store: Store, collection: Collection) -> _Found:
    """Return the validation images in their published archive."""
    tree = find_tree(folder, store, collection)
    return _by_number(tree, f"{tree.root.name}{'' if tree.members is not None else '/'}")


def _in_class_folders(folder: Path) -> _Found | None:
    """Open a folder with a folder for every class; None if it is not laid out so."""
    if not _holds(folder, _WNID, files=False):
        return None
    place = {name: at for at, name in enumerate(wnids())}
    found: dict[str, Texts] = {}
    for entry in list_folder(folder):
        if entry.name not in place or not entry.is_dir():
            raise InvalidInputError(
                f"{entry.path} is no folder of a class of ILSVRC 2012; remove it, or give your "
                "images another name than imagenet"
            )
        found[entry.name] = find_images(Path(entry.path))
        if not found[entry.name]:
            raise InvalidInputError(f"class folder {entry.path} has no images; remove it")
    paths = Texts.of(f"{name}/{image}" for name, images in found.items() for image in images)
    classes = np.array([place[name] for name in found], dtype=np.int64)
    part = Part(
        FileSource(folder, paths), np.repeat(classes, [len(each) for each in found.values()])
    )
    return _Found(part, f"{folder.name}/ with a folder for every class", in_folders=True)


def _holds(folder: Path, pattern: re.Pattern[str], *, files: bool) -> bool:
    """Return whether a folder has a file, or a folder, of such a name."""
    with os.scandir(folder) as entries:
        return any(pattern.fullmatch(e.name) and e.is_file() == files for e in entries)
