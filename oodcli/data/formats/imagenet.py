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
truth is a fact that comes with the tool, so that no file of labels is needed beside the images.

References
----------
Russakovsky et al. "ImageNet Large Scale Visual Recognition Challenge". IJCV 2015.
"""

import base64
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Texts
from oodcli.data.dataset import Dataset, take
from oodcli.data.decoding.extents import Extents
from oodcli.data.decoding.files import FileSource, find_images, is_image_name, list_folder
from oodcli.data.formats import parquet
from oodcli.data.formats.collections import Collection, Tree, find_tree
from oodcli.data.formats.webdataset import ShardIndex, indexed
from oodcli.data.reader import Place
from oodcli.errors import InvalidInputError
from oodcli.files import reading, regular
from oodcli.images import Part, image_name
from oodcli.store.store import Store

FACTS = Path(__file__).with_name("ilsvrc2012.json")

_WNID = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(?:_n\d{8})?\.\w+")
# Where train and val are, below the folder that is named.
_ROOTS = (
    "", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "ILSVRC2012", "ILSVRC", "imagenet", "imagenet_1k",
    "images_largescale/imagenet_1k",
)  # fmt: skip
_TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train")
_TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
_VAL_FOLDERS = ("val", "ILSVRC2012_img_val", "validation")


@cache
def wnids() -> tuple[str, ...]:
    """Return the 1,000 classes in the order of every network's outputs: sorted."""
    return tuple(_facts()["wnids"])


def readable_class(name: str) -> str:
    """Return the name of a class with its wnid, if it is a wnid of ImageNet-1k; else as it is.

    Examples
    --------
    >>> readable_class("n04254777")
    'sock (n04254777)'
    >>> readable_class("cat")
    'cat'
    """
    known = _names_of_wnids().get(name)
    return name if known is None else f"{known} ({name})"


def class_word(name: str) -> str:
    """Return the name of a class without its wnid, if it is a wnid of ImageNet-1k; else as it is.

    Examples
    --------
    >>> class_word("n04254777"), class_word("cat")
    ('sock', 'cat')
    """
    return _names_of_wnids().get(name, name)


@cache
def _names_of_wnids() -> dict[str, str]:
    facts = _facts()
    return dict(zip(facts["wnids"], facts["names"], strict=True))


@cache
def ground_truth() -> NDArray[np.int64]:
    """Return the class of every validation image by its number from 1, ``(50000,)``."""
    packed = zlib.decompress(base64.b64decode(_facts()["validation"]))
    return np.frombuffer(packed, dtype="<u2").astype(np.int64)


@cache
def _facts() -> dict[str, str]:
    facts: dict[str, str] = json.loads(FACTS.read_text("utf-8"))
    return facts


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
    """

    part: Part
    layout: str
    in_folders: bool

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
    names = wnids() if len(dataset.class_names) == len(wnids()) else dataset.class_names
    return replace(dataset, class_names=names, layout="Parquet shards")


def _named_itself(folder: Path) -> _Found | None:
    """Open a folder that is itself that of the validation images."""
    if not folder.is_dir():
        return None
    found = _validation(folder)
    # Folders of classes could be training images just as well, but for the names of the files.
    if found is None or not found.in_folders:
        return found
    first = image_name(found.part.source, 0).rpartition("/")[2]
    return found if folder.name in _VAL_FOLDERS or _VALIDATION.fullmatch(first) else None


def _validation(folder: Path) -> _Found | None:
    """Open validation images in folders of classes, or all in one."""
    found = _in_class_folders(folder)
    if found is not None or not _holds(folder, _VALIDATION, files=True):
        return found
    tree = Tree(folder)
    return _by_number(tree, f"{folder.name}/ with all images in one folder")


def _by_number(tree: Tree, layout: str) -> _Found:
    """Return validation images whose classes follow from their numbers."""
    images, truth = tree.images, ground_truth()
    numbers = []
    for path in images:
        match = _VALIDATION.fullmatch(path.rpartition("/")[2])
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(truth):
            raise InvalidInputError(
                f"{tree.root}/{path} is no validation image of ILSVRC 2012; remove it, or give "
                "your images another name than imagenet"
            )
        numbers.append(number)
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
