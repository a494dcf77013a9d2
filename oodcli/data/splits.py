"""Which images of a published set belong to a list of OpenOOD v1.5.

The lists of its CIFAR benchmarks are rebuilt from the primary archives and from facts that come
with the tool (``openood_v15.json``): of each archive, which images are in which list. The lists of
its ImageNet benchmarks are read from OpenOOD's own archive of lists, which a user has to supply.

References
----------
Zhang et al. "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection". 2023,
arXiv:2306.09301.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset, take
from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.decoding.files import FileSource
from oodcli.data.formats.archives import ArchiveSource, members_of, read_member
from oodcli.data.formats.lists import ListedImage, parse_list
from oodcli.data.formats.openood import OpenOODTree
from oodcli.data.own_names import registered
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.images import Part
from oodcli.store.store import Store

FACTS = Path(__file__).with_name("openood_v15.json")
ARCHIVE = "benchmark_imglist.zip"
FOLDER = "benchmark_imglist"
LISTS_SET = "openood-lists"
# Hugging Face's files of ImageNet, such as ILSVRC2012_val_00000293_n01440764.JPEG.
_WITH_WNID = re.compile(r"_n[0-9]{8}(\.JPEG)$")


@dataclass(frozen=True, slots=True)
class ListFacts:
    """What is known of a list of OpenOOD's CIFAR benchmarks.

    Parameters
    ----------
    lines
        Number of images.
    sha256
        Checksum of the published text.
    sorted_sha256
        Checksum of its lines in sorted order; for Places365 without the folder of the category,
        which the primary archive does not have.
    """

    lines: int
    sha256: str
    sorted_sha256: str


@dataclass(frozen=True, slots=True)
class Split:
    """The images of a list.

    Parameters
    ----------
    part
        The images, in the order of the archive.
    key
        Name of the list, such as ``cifar10/test_tin``.
    sha256
        Checksum of the published text of the list.
    """

    part: Part
    key: str
    sha256: str


@cache
def known_lists() -> Mapping[str, ListFacts]:
    """Return the lists that can be rebuilt, by name."""
    return {key: ListFacts(**facts) for key, facts in _facts()["lists"].items()}


@cache
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(FACTS.read_text("utf-8"))
    return facts


def _mask(key: str, count: int) -> NDArray[np.bool_]:
    """Return a mask over ``count`` images, in the order of their number."""
    packed = zlib.decompress(base64.b64decode(_facts()["masks"][key]))
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(bool)


def split(dataset: Dataset, key: str, store: Store) -> Split:
    """Choose the images of a data set that a list names.

    Parameters
    ----------
    dataset
        The published set, opened from its primary archive; or from OpenOOD's folder, whose own
        lists are taken.
    key
        Name of the list.
    store
        Holds OpenOOD's archive of lists, for those that cannot be rebuilt, and where its folder is.

    Raises
    ------
    MissingArtifactError
        If the archive of lists is needed and missing.
    InvalidInputError
        If the images of the data set are not those the list is about.
    """
    tree = OpenOODTree.of(store)
    if tree is not None and dataset.location == str(tree.root):
        listed = tree.listed(key)
        return Split(listed.part, key, listed.sha256)
    if key in known_lists():
        part, chosen = _chosen(dataset, key)
        rebuilt = sorted_text(dataset, key)
        if hashlib.sha256(rebuilt.encode()).hexdigest() != known_lists()[key].sorted_sha256:
            raise _foreign(dataset, key)
        return Split(take(part, chosen), key, known_lists()[key].sha256)
    return _by_file_name(dataset, key, _published(key, store))


def sorted_text(dataset: Dataset, key: str) -> str:
    """Write a list from a data set: the lines of the published text, sorted.

    Parameters
    ----------
    dataset
        The published set, opened from its primary archive.
    key
        Name of a list that can be rebuilt.

    Raises
    ------
    InvalidInputError
        If the images of the data set are not those the list is about.

    Notes
    -----
    Most of the published lists stand in the order in which a disk gave the files out, which says
    nothing and would take more room than all else. No metric depends on the order.
    """
    part, chosen = _chosen(dataset, key)
    name = _written(key)[1](dataset, part)
    return "".join(sorted(f"{name(int(row))}\n" for row in chosen))


def _chosen(dataset: Dataset, key: str) -> tuple[Part, NDArray[np.int64]]:
    """Return the part that a list is about, and the rows that it names, ascending."""
    part = dataset.ood_part
    mask = _written(key)[0](dataset, part)
    if len(mask) != len(part):
        raise _foreign(dataset, key)
    return part, np.flatnonzero(mask).astype(np.int64)


def _foreign(dataset: Dataset, key: str) -> InvalidInputError:
    return InvalidInputError(
        f"the images of {dataset.name} at {dataset.location} are not those of OpenOOD's list "
        f"{key}; get the published archive: ood datasets download {dataset.name}"
    )


_Mask = Callable[[Dataset, Part], NDArray[np.bool_]]
_Namer = Callable[[Dataset, Part], Callable[[int], str]]


def _written(key: str) -> tuple[_Mask, _Namer]:
    """Return how the images of a list are chosen and how its lines are written."""
    benchmark, _, name = key.partition("/")
    kind, _, dataset = name.partition("_")
    if dataset in ("cifar10", "cifar100"):
        return _cifar_mask(key, benchmark, kind, dataset), _cifar_lines(
            dataset, is_id=dataset == benchmark
        )
    if dataset == "tin":
        return _tin_mask(benchmark, kind), _file_lines("tin/val/images/")
    if dataset == "places365":
        return _places365_mask(benchmark), _file_lines("places365/")
    return _whole, {"mnist": _mnist_lines, "svhn": _svhn_lines, "texture": _texture_lines}[dataset]


def _whole(_dataset: Dataset, part: Part) -> NDArray[np.bool_]:
    return np.ones(len(part), dtype=bool)


def _classes(dataset: Dataset, part: Part) -> NDArray[np.int64]:
    if part.labels is None:
        raise InvalidInputError(
            f"{dataset.name} at {dataset.location} has no classes, which OpenOOD's lists refer to; "
            f"get the published archive: ood datasets download {dataset.name}"
        )
    return part.labels


def _index_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many images of its class stand before each image."""
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    index = np.empty(len(labels), dtype=np.int64)
    index[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return index


def _cifar_mask(key: str, benchmark: str, kind: str, dataset: str) -> _Mask:
    def mask(opened: Dataset, part: Part) -> NDArray[np.bool_]:
        labels = _classes(opened, part)
        if key == "cifar100/test_cifar10":
            return np.ones(len(part), dtype=bool)
        count = 10_000
        per_class = count // len(opened.class_names or "?")
        number = labels * per_class + _index_in_class(labels)
        if len(part) != count or number.max() >= count:
            raise _foreign(opened, key)
        if dataset != benchmark:
            return ~_mask(f"{benchmark}/not_{dataset}", count)[number]
        val = _mask(f"{benchmark}/val_{dataset}", count)[number]
        return val if kind == "val" else ~val

    return mask


def _cifar_lines(name: str, *, is_id: bool) -> _Namer:
    def lines(dataset: Dataset, part: Part) -> Callable[[int], str]:
        labels = _classes(dataset, part)
        index = _index_in_class(labels)

        def line(row: int) -> str:
            folder = dataset.class_names[labels[row]]
            label = labels[row] if is_id else -1
            return f"{name}/test/{folder}/{index[row] + 1:04d}.png {label}"

        return line

    return lines


def _tin_mask(benchmark: str, kind: str) -> _Mask:
    def mask(_opened: Dataset, _part: Part) -> NDArray[np.bool_]:
        # Rows stand in the order of the number in the name; the text of the list checks that.
        val = _mask(f"{benchmark}/val_tin", 10_000)
        if kind == "val":
            return val
        whole = np.ones(len(val), dtype=bool)
        return whole & ~val & ~_mask(f"{benchmark}/not_tin", 10_000)

    return mask


def _places365_mask(benchmark: str) -> _Mask:
    return lambda _opened, _part: ~_mask(f"{benchmark}/not_places365", 36_500)


def _names(dataset: Dataset, part: Part) -> list[str]:
    """Return the path of every image file."""
    source = part.source
    if isinstance(source, FileSource):
        return list(source.files)
    if isinstance(source, ArchiveSource):
        return [member.name for member in source.members]
    names = source.file_names() if isinstance(source, EncodedSource) else None
    if names is not None:
        return list(names)
    raise InvalidInputError(
        f"{dataset.name} at {dataset.location} does not consist of image files, which OpenOOD's "
        f"lists refer to; get the published archive: ood datasets download {dataset.name}"
    )


def _file_lines(prefix: str) -> _Namer:
    def lines(dataset: Dataset, part: Part) -> Callable[[int], str]:
        names = _names(dataset, part)
        return lambda row: f"{prefix}{names[row].rpartition('/')[2]} -1"

    return lines


def _texture_lines(dataset: Dataset, part: Part) -> Callable[[int], str]:
    names = [name.split("/") for name in _names(dataset, part)]
    return lambda row: f"texture/{'/'.join(names[row][-2:])} -1"


def _mnist_lines(dataset: Dataset, part: Part) -> Callable[[int], str]:
    labels = _classes(dataset, part)
    tests = 10_000

    def line(row: int) -> str:
        where, number = ("test", row) if row < tests else ("train", row - tests)
        return f"mnist/{where}/{labels[row]}_{number}.jpg -1"

    return line


def _svhn_lines(dataset: Dataset, part: Part) -> Callable[[int], str]:
    labels = _classes(dataset, part)
    return lambda row: f"svhn/test/{row + 1:06d}_{labels[row]}.jpg -1"


def _published(key: str, store: Store) -> bytes:
    """Read a list from OpenOOD's own archive, or from the folder that it unpacks to."""
    own, tree = registered(store).get(LISTS_SET), OpenOODTree.of(store)
    folder = store.datasets / LISTS_SET if own is None else own.path
    folder = folder.parent if folder.is_file() else folder
    kept = [] if tree is None else [tree.list_file(key)]
    for path in (folder / FOLDER / f"{key}.txt", folder / f"{key}.txt", *kept):
        if path.is_file():
            return path.read_bytes()
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise MissingArtifactError(
            f"OpenOOD's list {key} is not in {folder}; get {ARCHIVE} by hand: "
            f"ood datasets download {LISTS_SET}"
        )
    for member in members_of(archive):
        if member.name.endswith(f"/{key}.txt") or member.name == f"{key}.txt":
            return read_member(archive, member)
    raise CorruptArtifactError(f"{archive} has no list {key}.txt; get the archive again")


def _by_file_name(dataset: Dataset, key: str, text: bytes) -> Split:
    """Find the images of a list by their file names, wherever their folders are."""
    listed = parse_list(text, where=f"OpenOOD's list {key}")
    part = dataset.ood_part
    wanted = {image.path.rpartition("/")[2]: image for image in listed}
    rows: list[int] = []
    found: list[ListedImage] = []
    for row, path in enumerate(_names(dataset, part)):
        name = path.rpartition("/")[2]
        image = wanted.pop(name, None) or wanted.pop(_WITH_WNID.sub(r"\1", name), None)
        if image is not None:
            rows.append(row)
            found.append(image)
    if wanted:
        raise InvalidInputError(
            f"{dataset.name} at {dataset.location} has {len(rows)} of the {len(listed)} images of "
            f"OpenOOD's list {key}; the first that is missing is {next(iter(wanted))}"
        )
    chosen = take(part, np.array(rows, dtype=np.int64))
    labels = np.array([image.label for image in found], dtype=np.int64)
    known = None if (labels < 0).any() else labels
    # Lists of a Windows checkout have other line ends; the checksum is that of the same text.
    sha256 = hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()
    return Split(Part(chosen.source, known), key, sha256)
