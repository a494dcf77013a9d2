"""Labels as tables have them, numbers or names, and the data set that comes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset, take
from oodcli.data.decoding.encoded import EncodedSource, marked
from oodcli.data.formats.arrays import MOST_CLASSES
from oodcli.data.reader import Role
from oodcli.errors import InvalidInputError
from oodcli.images import Part
from oodcli.text import printable

NO_LABEL = -1


@dataclass(frozen=True)
class Labels:
    """The labels of rows.

    Parameters
    ----------
    values
        Class index of every row, ``(n,)``; -1 for a row without a label.
    names
        Name of every class; None where labels are plain numbers.
    found
        Whether the names are no more than those that were found among the labels.
    """

    values: NDArray[np.int64]
    names: tuple[str, ...] | None = None
    found: bool = False


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
        self._codes: dict[str, int] = {}
        self._numbers = False
        self._values: list[NDArray[np.int64]] = []

    def add_numbers(self, values: NDArray[np.int64]) -> None:
        """Take whole numbers in, ``(m,)``, -1 for none."""
        self._numbers = True
        self._values.append(values)

    def add_texts(self, texts: Sequence[str | None], rows: NDArray[np.int64] | None = None) -> None:
        """Take names of classes in.

        Parameters
        ----------
        texts
            A name per row, None for no label; or the distinct names, where there are ``rows``.
        rows
            Place in ``texts`` of every row, ``(m,)``, -1 for none.

        Raises
        ------
        InvalidInputError
            If there are too many classes.
        """
        codes = np.array(
            [*(self._code(text) for text in texts), NO_LABEL],  # a row of -1 takes the last
            dtype=np.int64,
        )
        self._values.append(codes[:-1] if rows is None else codes[rows])
        if len(self._codes) > MOST_CLASSES:
            raise InvalidInputError(
                f"{self._where} has more than {MOST_CLASSES:,} different labels; "
                "name another column of labels"
            )

    def _code(self, text: str | None) -> int:
        return NO_LABEL if text is None else self._codes.setdefault(text, len(self._codes))

    def labels(self) -> Labels:
        """Return all labels; classes that have names of their own stand in the order of these.

        Raises
        ------
        InvalidInputError
            If some labels are numbers and others are names.
        """
        values = np.concatenate([*self._values, np.empty(0, np.int64)])
        if not self._codes:
            return Labels(values, self._names)
        if self._numbers:
            raise InvalidInputError(
                f"labels of {self._where} are numbers in one place and names in another; "
                "write them in one way"
            )
        known = self._names or tuple(sorted(self._codes))
        index = {name: at for at, name in enumerate(known)}
        for name in self._codes:
            if name not in index:
                raise InvalidInputError(
                    f"{self._where} has a label {name[:80]!r}, which is none of its "
                    f"{len(known)} classes; correct it"
                )
        order = np.array([index[name] for name in self._codes] + [NO_LABEL], dtype=np.int64)
        return Labels(order[values], known, found=self._names is None)


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
    if labels is None or not (labels.values != NO_LABEL).any():
        raise InvalidInputError(no_labels)
    divided = {part: rows for part, rows in parts.items() if _labelled(labels, rows)}
    out = [part for part in parts if part not in divided]
    notes = [f"the {part} part of {name} has no labels, and is left out" for part in out]
    names, values = _classes(labels, divided, location)
    if labels.names is None:
        notes.append(f"labels of {name} are numbers from {names[0]}")
    used = np.concatenate(list(divided.values()))
    wrong = used[values[used] < 0].tolist()
    bad = {row: _no_class(labels, row, names) for row in wrong}
    whole = Part(marked(source, bad), np.maximum(values, 0))
    chosen = {part or "test": _chosen(whole, rows) for part, rows in divided.items()}
    is_whole = list(divided) == [""]
    return Dataset(name, chosen, names, location, spec, is_whole=is_whole, notes=tuple(notes))


def _chosen(part: Part, rows: NDArray[np.int64]) -> Part:
    return part if len(rows) == len(part) else take(part, rows)


def _labelled(labels: Labels, rows: NDArray[np.int64]) -> bool:
    """Return whether a part can be used: published test parts have no labels at all."""
    return bool((labels.values[rows] != NO_LABEL).any())


def _classes(
    labels: Labels, parts: Mapping[str, NDArray[np.int64]], location: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names of the classes, and the class of every row, -1 for none.

    Notes
    -----
    Plain numbers count from 1 if 1 is the smallest, else from 0, and there are as many classes as
    the largest of the train part says. Names that are only found are those of the train part.
    Without a train part all rows count.
    """
    values = labels.values
    every = np.concatenate([values[rows] for rows in parts.values()])
    known = values[parts["train"]] if "train" in parts else every
    known = known[known >= 0]
    if labels.names is None:
        first, last = int(every[every >= 0].min() == 1), int(known.max())
        if last >= MOST_CLASSES:
            raise InvalidInputError(
                f"{location}: label {last} is out of range; number the classes from 0, "
                f"{MOST_CLASSES} at most"
            )
        names = tuple(str(number) for number in range(first, last + 1))
        return names, np.where((values >= first) & (values <= last), values - first, NO_LABEL)
    if not labels.found:
        return labels.names, np.where(values < len(labels.names), values, NO_LABEL)
    used = np.unique(known)
    places = np.full(len(labels.names) + 1, NO_LABEL, dtype=np.int64)  # -1 takes the last
    places[used] = np.arange(len(used))
    return tuple(labels.names[at] for at in used), places[values]


def _no_class(labels: Labels, row: int, names: Sequence[str]) -> str:
    """Say why a row has no class."""
    value = int(labels.values[row])
    if value == NO_LABEL:
        return "it has no label"
    if labels.found and labels.names is not None:
        shown = printable(labels.names[value][:40])
        return f"its label {shown!r} is none of the {len(names)} classes of the train part"
    return f"its label {value} is outside of the {len(names)} classes"
