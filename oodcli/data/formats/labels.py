"""Labels of rows as they are written, numbers or names, and the classes that come of them.

There is one rule for lists, tables, Parquet and Arrow files, and shards: see :func:`classes_of`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset, take
from oodcli.data.decoding.encoded import EncodedSource, marked
from oodcli.data.reader import Role
from oodcli.errors import InvalidInputError
from oodcli.images import Part
from oodcli.text import printable

NO_LABEL = -1
MAX_CLASSES = 65_536

_NO_LABELS = ("", "-1")
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")


@dataclass(frozen=True)
class Labels:
    """The labels of rows, as they are written.

    Parameters
    ----------
    codes
        Place of every label among ``texts``, ``(n,)``; -1 for a row without a label.
    texts
        Labels as they are written, each once.
    class_names
        Names of the classes in their order, where something beside the rows says so.
    """

    codes: NDArray[np.int64]
    texts: Sequence[str]
    class_names: tuple[str, ...] | None = None

    def take(self, rows: NDArray[np.int64]) -> "Labels":
        """Return the labels of chosen rows, ``(m,)``."""
        return Labels(self.codes[rows], self.texts, self.class_names)


@dataclass(frozen=True)
class Classes:
    """The classes of some parts, and the labels in them.

    Parameters
    ----------
    names
        Name of every class, in the order of the labels.
    labels
        Class of every row of each part, ``(n,)``; 0 where a row is bad.
    bad
        Why a row of a part has no class.
    notes
        What the user must know of how labels are read.
    """

    names: tuple[str, ...]
    labels: Mapping[str, NDArray[np.int64]]
    bad: Mapping[str, Mapping[int, str]]
    notes: tuple[str, ...] = ()


class LabelReader:
    """Takes the labels of a data set in, some rows at a time.

    Parameters
    ----------
    where
        How to call the data set in an error.
    names
        Names of the classes that numbers stand for, where they are known.
    """

    def __init__(self, where: str, names: tuple[str, ...] | None = None) -> None:
        self._where = where
        self._names = names
        self._places: dict[str, int] = {}
        self._codes: list[NDArray[np.int64]] = []

    def add_numbers(self, values: NDArray[np.int64]) -> None:
        """Take whole numbers in, ``(m,)``, -1 for none."""
        distinct, rows = np.unique(values, return_inverse=True)
        self.add_texts([self._text_of(value) for value in distinct.tolist()], rows)

    def _text_of(self, value: int) -> str | None:
        if value == NO_LABEL:
            return None
        if self._names is None:
            return str(value)
        if 0 <= value < len(self._names):
            return self._names[value]
        return f"#{value}" if str(value) in self._names else str(value)

    def add_texts(self, texts: Sequence[str | None], rows: NDArray[np.int64] | None = None) -> None:
        """Take labels in as they are written.

        Parameters
        ----------
        texts
            A label per row; None, "" or "-1" for no label; or the distinct labels, where there are
            ``rows``.
        rows
            Place in ``texts`` of every row, ``(m,)``, -1 for none.

        Raises
        ------
        InvalidInputError
            If there are too many classes.
        """
        codes = np.array(
            [*(self._place(text) for text in texts), NO_LABEL],  # a row of -1 takes the last
            dtype=np.int64,
        )
        self._codes.append(codes[:-1] if rows is None else codes[rows])
        check_number(self._places, self._where)

    def _place(self, text: str | None) -> int:
        if text is None or text in _NO_LABELS:
            return NO_LABEL
        return self._places.setdefault(text, len(self._places))

    def labels(self) -> Labels:
        """Return all labels."""
        codes = np.concatenate([*self._codes, np.empty(0, np.int64)])
        return Labels(codes, tuple(self._places), self._names)


def check_number(texts: Sequence[str] | Mapping[str, int], where: str) -> None:
    """Refuse labels that are too many different ones to be classes.

    Parameters
    ----------
    texts
        The labels, each once.
    where
        How to call the data set.

    Raises
    ------
    InvalidInputError
        If they are.
    """
    if len(texts) > MAX_CLASSES:
        raise InvalidInputError(
            f"{where} has more than {MAX_CLASSES:,} different labels; name another column of labels"
        )


def classes_of(
    parts: Mapping[str, Labels], *, name: str, where: str, from_zero: bool = False
) -> Classes:
    """Read the labels of all parts as numbers or names.

    Parameters
    ----------
    parts
        The labels of every part.
    name
        How to call the data set in a note.
    where
        How to call it in an error.
    from_zero
        Whether labels are numbers from 0, as in OpenOOD's lists, where nothing else is possible.

    Returns
    -------
    classes
        Without the parts none of whose rows has a label, as published test parts are.

    Raises
    ------
    InvalidInputError
        If no row has a label, or there are too many different ones.

    Notes
    -----
    Where something beside the rows names the classes, these are the classes. Otherwise labels are
    numbers if those of most rows are whole numbers. They count from 1 if 1 is the smallest in all
    parts, else from 0, and there are as many classes as the largest of the train part says. Else
    labels are names, and the classes are those of the train part, sorted. Without a train part all
    rows count. -1 stands for no label. A row without a label, or with one that is no class, has
    none.
    """
    labelled = {part: each for part, each in parts.items() if (each.codes >= 0).any()}
    if not labelled:
        raise InvalidInputError(f"{where} has no labels")
    for each in labelled.values():
        check_number(each.texts, where)
    out = tuple(
        f"the {part} part of {name} has no labels, and is left out"
        for part in parts
        if part not in labelled
    )
    known = next(iter(labelled.values())).class_names
    if known is not None:
        classes = _named(labelled, known, "")
    elif from_zero or _are_numbers(labelled.values()):
        classes = _numbered(labelled, name, where, from_zero=from_zero)
    else:
        counted = [labelled["train"]] if "train" in labelled else list(labelled.values())
        used = {each.texts[at] for each in counted for at in np.unique(each.codes) if at >= 0}
        classes = _named(labelled, tuple(sorted(used)), " of the train part")
    return replace(classes, notes=(*out, *classes.notes))


def _are_numbers(parts: Iterable[Labels]) -> bool:
    """Return whether the labels of most rows are whole numbers."""
    numbers = total = 0
    for each in parts:
        counts = np.bincount(each.codes[each.codes >= 0], minlength=len(each.texts))
        numeric = np.array([bool(_NUMBER.fullmatch(text)) for text in each.texts], dtype=bool)
        numbers, total = numbers + int(counts[numeric].sum()), total + int(counts.sum())
    return 2 * numbers > total


def _numbered(parts: Mapping[str, Labels], name: str, where: str, *, from_zero: bool) -> Classes:
    """Read labels as numbers."""
    values = {part: _values(each) for part, each in parts.items()}
    every = np.concatenate([each[(each >= 0) & (each < MAX_CLASSES)] for each in values.values()])
    first = 1 if not from_zero and len(every) and every.min() == 1 else 0
    known = values.get("train", every)
    known = known[(known >= 0) & (known < MAX_CLASSES)]
    if not len(known):
        raise InvalidInputError(
            f"{where}: no row has a label from 0 to {MAX_CLASSES - 1:,}; number the classes from 0"
        )
    last = int(known.max())
    which = f"of the train part, {first} to {last}" if "train" in parts else f"{first} to {last}"
    labels, bad = {}, {}
    for part, each in values.items():
        outside = (each < first) | (each > last)
        labels[part] = np.where(outside, 0, each - first)
        bad[part] = _without_class(parts[part], outside, f"outside of the classes {which}")
    names = tuple(str(number) for number in range(first, last + 1))
    notes = () if from_zero else (f"labels of {name} are numbers from {first}",)
    return Classes(names, labels, bad, notes)


def _values(labels: Labels) -> NDArray[np.int64]:
    """Return the label of every row as a number, ``(n,)``; -2 where it is none."""
    numbers = [int(each) if _NUMBER.fullmatch(each) else -2 for each in labels.texts]
    return np.array([*numbers, -1], dtype=np.int64)[labels.codes]


def _named(parts: Mapping[str, Labels], names: tuple[str, ...], of: str) -> Classes:
    """Read labels as names."""
    place = {each: at for at, each in enumerate(names)}
    labels, bad = {}, {}
    for part, each in parts.items():
        places = np.array([*(place.get(text, -1) for text in each.texts), -1], dtype=np.int64)
        found = places[each.codes]
        bad[part] = _without_class(each, found < 0, f"none of the {len(names)} classes{of}")
        labels[part] = np.maximum(found, 0)
    return Classes(names, labels, bad)


def _without_class(labels: Labels, rows: NDArray[np.bool_], why: str) -> dict[int, str]:
    """Say of rows why they have no class."""
    return {
        row: "it has no label"
        if labels.codes[row] < 0
        else f"its label {printable(labels.texts[labels.codes[row]][:40])!r} is {why}"
        for row in np.flatnonzero(rows).tolist()
    }


def assembled(
    source: EncodedSource,
    labels: Labels | None,
    parts: Mapping[str, NDArray[np.int64]],
    *,
    name: str,
    location: str,
    spec: str,
    role: Role,
    no_labels: str,
) -> Dataset:
    """Return the data set of a source.

    Parameters
    ----------
    source
        All images.
    labels
        Their labels; None if there are none, or none are wanted.
    parts
        Ascending rows of ``train``, ``val`` and ``test``, or of ``""``, where all are one whole.
    name, location, spec
        As of the data set.
    role
        ``ood`` takes the images of ``test``, else of ``val``, else of what there is.
    no_labels
        What to say where labels are wanted and there are none.

    Raises
    ------
    InvalidInputError
        If there are no images, or no labels where they are wanted.

    Notes
    -----
    A row without a label, or with one outside of the classes, is a row that cannot be read.
    """
    if not any(len(rows) for rows in parts.values()):
        raise InvalidInputError(f"{location} has no images; name one that has")
    if role == "ood":
        tested = next(each for each in ("test", "val", "train", "") if len(parts.get(each, ())))
        images = _chosen(Part(source), parts[tested])
        return Dataset(name, {"test": images}, (), location, spec)
    if labels is None or not (labels.codes != NO_LABEL).any():
        raise InvalidInputError(no_labels)
    divided = {part: rows for part, rows in parts.items() if len(rows)}
    classes = classes_of(
        {part: labels.take(rows) for part, rows in divided.items()}, name=name, where=location
    )
    bad: dict[int, str] = {}
    values = np.zeros(len(source), dtype=np.int64)
    for part, found in classes.labels.items():
        rows = divided[part]
        values[rows] = found
        bad |= {int(rows[row]): why for row, why in classes.bad[part].items()}
    whole = Part(marked(source, bad), values)
    chosen = {part or "test": _chosen(whole, divided[part]) for part in classes.labels}
    is_whole = list(chosen) == ["test"] and "" in classes.labels
    return Dataset(
        name, chosen, classes.names, location, spec, is_whole=is_whole, notes=classes.notes
    )


def _chosen(part: Part, rows: NDArray[np.int64]) -> Part:
    return part if len(rows) == len(part) else take(part, rows)


def checked_labels(values: NDArray[Any], where: str, *, count: int) -> NDArray[np.int64]:
    """Return the classes of ``count`` images, ``(n,)``.

    Parameters
    ----------
    values
        The labels as a file has them.
    where
        How to call them in an error.
    count
        How many there must be.

    Raises
    ------
    InvalidInputError
        If they are not one integer from 0 per image.
    """
    check_labels(values.dtype, values.shape, where, count=count)
    if values.min() < 0:
        raise InvalidInputError(f"{where} has label {values.min()}; labels count from 0")
    if values.max() >= MAX_CLASSES:
        raise InvalidInputError(
            f"{where} has label {values.max()}; number the classes from 0, {MAX_CLASSES} at most"
        )
    return values.reshape(-1).astype(np.int64)


def check_labels(dtype: np.dtype[Any], shape: tuple[int, ...], where: str, *, count: int) -> None:
    """Check the type and shape of an array of labels before it is read.

    Raises
    ------
    InvalidInputError
        If these are not whole numbers, one per image.
    """
    if dtype.kind not in "iu":
        raise InvalidInputError(f"{where} is {dtype}; labels are whole numbers from 0")
    if len(shape) == 2 and shape[0] == count and shape[1] > 1:
        raise InvalidInputError(
            f"{where} has {shape[1]} labels per image (multi-label); one class per image is "
            f"needed, shape ({count},)"
        )
    if shape not in ((count,), (count, 1)):
        raise InvalidInputError(f"{where} has shape {shape}; {count} images need shape ({count},)")
