"""Files of labels beside ImageNet's validation images, compared with the published truth.

The class of a validation image follows from the number in its name, unless somebody has given the
names to other images. A file of labels beside the images shows it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.formats.ilsvrc2012 import devkit_order, ground_truth, wnids
from oodcli.errors import InvalidInputError
from oodcli.files import reading, regular

VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(?:_(n\d{8}))?\.\w+")

# Files of labels, below the folder of the images or one above it. Those of other names could be
# lists of classes, and must name the images.
_FILES = (
    "val_labels.txt", "val_labels.csv", "validation_labels.txt", "val.txt", "val.csv",
    "validation.txt", "validation.csv", "val_map.txt", "val_annotations.txt", "val_list.txt",
    "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "labels.txt",
    "labels.csv", "benchmark_imglist/imagenet/test_imagenet.txt",
    "benchmark_imglist/imagenet/val_imagenet.txt",
    *(
        f"{folder}ILSVRC{name}_validation_ground_truth.txt"
        for name in ("2012", "2014_clsloc", "2015_clsloc")
        for folder in ("", "data/", "devkit/data/", f"ILSVRC{name[:4]}_devkit_t12/data/")
    ),
)  # fmt: skip
# Folders that only hold the images in a published layout; files of labels are above them.
_LAYOUT = {
    "val", "validation", "ILSVRC2012_img_val", "CLS-LOC", "Data", "ILSVRC", "ILSVRC2012",
    "imagenet", "imagenet_1k", "images_largescale",
}  # fmt: skip
_MAX_BYTES = 1 << 26
_IMAGE = re.compile(r"ILSVRC2012_val_(\d{1,8})(?:_n\d{8})?(?:\.[A-Za-z]+)?")
_LABEL = re.compile(r"n\d{8}|\d{1,4}")
_WNID = re.compile(r"(?<!\w)n\d{8}(?!\w)")
_WORD = re.compile(r"(?<!\w)n\d{8}(?!\w)|(?<![\w.])\d{1,4}(?![\w.])")


@dataclass(frozen=True)
class _Labels:
    """Labels of validation images.

    Parameters
    ----------
    numbers
        The published numbers of the images, from 1, ``(n,)``.
    labels
        As they are written, ``(n,)``: wnids or whole numbers.
    """

    numbers: NDArray[np.int64]
    labels: tuple[str, ...]


def check_labels(folder: Path, numbers: Sequence[int]) -> None:
    """Compare the published truth with the files of labels beside validation images.

    Parameters
    ----------
    folder
        The folder of the images, or of their archive.
    numbers
        Numbers of the images by their names, from 1, in the order of the names.

    Raises
    ------
    InvalidInputError
        If such a file cannot be read, has fewer labels than there are images, or gives other
        classes than the truth.
    """
    for path in _label_files(folder):
        found = _read(path, sorted(numbers))
        if found is not None:
            _compare(found, str(path), f"remove {path}", by_id="ground_truth" in path.name)


def check_names(names: Iterable[str]) -> None:
    """Compare the published truth with the wnids in the names of the images themselves.

    Parameters
    ----------
    names
        Names of files, such as ``ILSVRC2012_val_00000001_n01751748.JPEG``.

    Raises
    ------
    InvalidInputError
        If a wnid is another one than that of the number.
    """
    matches = [match for name in names if (match := VALIDATION.fullmatch(name)) and match[2]]
    numbers = np.array([int(match[1]) for match in matches], dtype=np.int64)
    found = _Labels(numbers, tuple(match[2] for match in matches))
    _compare(found, "the names of the files", "give the files their published names")


def _label_files(folder: Path) -> Iterator[Path]:
    """Yield the files of labels that could be about the images in a folder."""
    places, place = [folder, folder.parent], folder.absolute()
    while place.name in _LAYOUT:
        place = place.parent
        places.append(place)
    seen = set()
    for each in places:
        for name in _FILES:
            path = each / name
            if path.is_file() and (real := path.resolve()) not in seen:
                seen.add(real)
                yield path


def _read(path: Path, numbers: Sequence[int]) -> _Labels | None:
    """Return the labels of a file; None if it is about something else."""
    with reading(path, cure="write it again, or remove it", error=InvalidInputError):
        if regular(path).stat().st_size > _MAX_BYTES:
            return None
        lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    named = [pair for line in lines if (pair := _named(line)) is not None]
    if named:
        rows = [int(number) for number, _ in named]
        labels = tuple(label for _, label in named)
        # Kaggle's ImageSets count the images in the second column, and have no labels.
        is_counted = all(label == str(row) for row, label in zip(rows, labels, strict=True))
        return None if is_counted else _Labels(np.array(rows, dtype=np.int64), labels)
    is_about_images = "val" in path.name.lower()
    if not is_about_images or not all(_LABEL.fullmatch(line) for line in lines) or not lines:
        return None
    if len(lines) == len(numbers):
        return _Labels(np.array(numbers, dtype=np.int64), tuple(lines))
    if len(lines) < numbers[-1]:
        raise InvalidInputError(
            f"{path} has {len(lines):,} labels, and there are {len(numbers):,} validation images "
            f"with numbers up to {numbers[-1]:,}; complete the file, or remove it"
        )
    return _Labels(np.arange(1, len(lines) + 1), tuple(lines))


def _named(line: str) -> tuple[str, str] | None:
    """Return number and label of an image from a line that names it; None for another line."""
    match = _IMAGE.search(line)
    if match is None:
        return None
    # After the name, or else the folder of a class before it.
    label = _WORD.search(line, match.end()) or _WNID.search(line[: match.start()])
    return None if label is None else (match[1], label[0])


def _compare(found: _Labels, where: str, cure: str, *, by_id: bool = False) -> None:
    """Raise an error if labels are not those of the published truth, in any order of classes."""
    truth = ground_truth()
    known = (found.numbers >= 1) & (found.numbers <= len(truth))
    numbers = found.numbers[known]
    labels = [label for label, is_known in zip(found.labels, known, strict=True) if is_known]
    if not labels:
        return
    expected = truth[numbers - 1]
    orders = _orders(labels, by_id=by_id)
    right = max((order == expected for order in orders), key=np.count_nonzero)
    if 2 * np.count_nonzero(right) < len(labels):
        right = orders[0] == expected  # the others agree by chance
    differ = np.flatnonzero(~right)
    if not len(differ) or _renamed(labels, expected):
        return
    first = differ[np.argmin(numbers[differ])]
    count = f"{len(differ):,} of {len(labels):,} labels" if len(labels) > 1 else "the label"
    raise InvalidInputError(
        f"{count} in {where} differ from the published truth of ImageNet's validation images, "
        f"first {labels[first]} for ILSVRC2012_val_{numbers[first]:08d}, which is "
        f"{wnids()[expected[first]]} (class {expected[first]}); if these are other images under "
        "the published names, put them into folders of their classes (val/WNID/), whose labels "
        f"are used; if they are the published images, {cure}"
    )


def _orders(labels: Sequence[str], *, by_id: bool) -> list[NDArray[np.int64]]:
    """Return the classes of labels in every way in which files count classes; -1 for none.

    The first is the most likely: by the ID of the development kit if so wanted.
    """
    place = {wnid: at for at, wnid in enumerate(wnids())}
    if any(label.startswith("n") for label in labels):
        return [np.array([place.get(label, -1) for label in labels], dtype=np.int64)]
    counted = np.array([int(label) for label in labels], dtype=np.int64)
    of_id = np.full(10_000, -1, dtype=np.int64)
    of_id[1 : len(place) + 1] = devkit_order()
    # Sorted by wnid from 0 (Caffe, OpenOOD) or from 1 (with a background class), and by ID.
    sorted_orders = [counted, counted - 1]
    return [of_id[counted], *sorted_orders] if by_id else [*sorted_orders, of_id[counted]]


def _renamed(labels: Sequence[str], expected: NDArray[np.int64]) -> bool:
    """Return whether labels are the classes under other names, as numbers of chosen classes.

    Only images of one class tell it from chance: on average two or more of each are asked for.
    """
    pairs = set(zip(labels, expected.tolist(), strict=True))
    one_to_one = len(pairs) == len(set(labels)) == len(set(expected.tolist()))
    return one_to_one and len(labels) >= 2 * len(pairs) and not labels[0].startswith("n")
