"""Labels as tables have them, numbers or names, and the data set that comes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset, take
from oodcli.data.formats.arrays import MOST_CLASSES
from oodcli.data.reader import Role
from oodcli.errors import InvalidInputError
from oodcli.images import ImageSource, Part, image_name
from oodcli.text import counted

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
    source: ImageSource,
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
        If there are no images, or a label that is wanted is missing or out of range.
    """
    if not any(len(rows) for rows in parts.values()):
        raise InvalidInputError(f"{location} has no images; name one that has")
    if role == "ood":
        tested = next(each for each in ("test", "val", "train", "") if len(parts.get(each, ())))
        images = _chosen(Part(source), parts[tested])
        return Dataset(name, {"test": images}, (), location, spec)
    if labels is None:
        raise InvalidInputError(no_labels)
    whole = Part(source, labels.values)
    divided = {
        part: _chosen(whole, rows) for part, rows in parts.items() if _labelled(labels, rows)
    }
    divided = divided or {part: _chosen(whole, rows) for part, rows in parts.items()}
    for chosen in divided.values():
        _check_all_labelled(chosen, location)
    if labels.found and "train" in divided:
        _check_trained(divided, labels.names or (), location)
    names = labels.names or _numbers(divided, location)
    _check_range(divided, names, location)
    if list(divided) == [""]:
        return Dataset(name, {"test": divided[""]}, names, location, spec, is_whole=True)
    return Dataset(name, divided, names, location, spec)


def _chosen(part: Part, rows: NDArray[np.int64]) -> Part:
    return part if len(rows) == len(part) else take(part, rows)


def _labelled(labels: Labels, rows: NDArray[np.int64]) -> bool:
    """Return whether a part can be used: published test parts have no labels at all."""
    return bool((labels.values[rows] != NO_LABEL).any())


def _check_all_labelled(part: Part, location: str) -> None:
    missing = np.flatnonzero(_labels(part) == NO_LABEL)
    if len(missing):
        rest = f", nor have {counted(len(missing) - 1, 'other row')}" if len(missing) > 1 else ""
        raise InvalidInputError(
            f"{location}: {image_name(part.source, int(missing[0]))} has no label{rest}; give each "
            "row a label, or use the set as OOD images"
        )


def _check_trained(parts: Mapping[str, Part], names: Sequence[str], location: str) -> None:
    """Refuse classes that the training images do not have, where nothing else names them."""
    trained = np.unique(_labels(parts["train"]))
    for part, content in parts.items():
        foreign = np.flatnonzero(~np.isin(_labels(content), trained))
        if len(foreign):
            row = int(foreign[0])
            raise InvalidInputError(
                f"{location}: {image_name(content.source, row)} of {part} has label "
                f"{names[_labels(content)[row]]!r}, which no train image has; remove it, or add "
                "train images of it"
            )


def _labels(part: Part) -> NDArray[np.int64]:
    assert part.labels is not None  # of a data set with classes
    return part.labels


def _numbers(parts: Mapping[str, Part], location: str) -> tuple[str, ...]:
    """Name classes by number, as many as the training images have, else all images."""
    counted_in = [parts["train"]] if "train" in parts else list(parts.values())
    most = max(int(_labels(part).max()) for part in counted_in)
    if most >= MOST_CLASSES:
        raise InvalidInputError(
            f"{location}: label {most} is out of range; number the classes from 0, "
            f"{MOST_CLASSES} at most"
        )
    return tuple(str(number) for number in range(most + 1))


def _check_range(parts: Mapping[str, Part], names: Sequence[str], location: str) -> None:
    for part in parts.values():
        wrong = np.flatnonzero(_labels(part) >= len(names))
        if len(wrong):
            row = int(wrong[0])
            raise InvalidInputError(
                f"{location}: {image_name(part.source, row)} has label {_labels(part)[row]}, but "
                f"there are {len(names)} classes, counted from 0"
            )
