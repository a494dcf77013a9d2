"""The order of the classes of a data set, where a network's logits have another one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from oodcli.data.dataset import Dataset
from oodcli.data.formats.ilsvrc2012 import wnids
from oodcli.errors import InvalidInputError
from oodcli.files import check_file
from oodcli.images import Part

IMAGENET = "imagenet"
"""What stands for the classes of ImageNet-1k in place of a file."""

_MAX_BYTES = 1 << 26
_SHOWN = 3


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a file with the name of a class on each line.

    Parameters
    ----------
    path
        The text file, UTF-8; empty lines are ignored. Where there is no file ``imagenet``, this
        stands for the wnids of ImageNet-1k in the order of every network's outputs.

    Raises
    ------
    InvalidInputError
        If it cannot be read, is not text, has no names, or has a name twice.
    """
    if str(path) == IMAGENET and not path.exists():
        return wnids()
    names = read_lines(path, option="--classes", what="classes")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"{path} names class {twice!r} twice; name each class once")
    return names


def read_lines(path: Path, *, option: str, what: str) -> tuple[str, ...]:
    """Read the lines of a text file, without those that are empty.

    Parameters
    ----------
    path
        The text file, UTF-8.
    option
        The option that names it, for messages.
    what
        What stands on its lines, for messages.

    Raises
    ------
    InvalidInputError
        If it cannot be read, is not text, or has no such line.
    """
    cure = f"write one per line: {option} FILE"
    check_file(path, f"name a text file: {option} FILE")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidInputError(f"{path} is too large for a list of {what}; {cure}")
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not a text file of {what}; {cure}") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise InvalidInputError(f"{path} has no {what}; {cure}")
    return found


def places_among(dataset: Dataset, names: Sequence[str]) -> tuple[int, ...]:
    """Return where each class of a data set stands among the outputs of a network with more.

    Parameters
    ----------
    dataset
        The data set.
    names
        Names of all outputs in order; of a line such as ``n01440764 tench`` the first word may
        stand for the class.

    Returns
    -------
    tuple
        The place of each class, in the order of the data set; empty where the names are not more
        than its classes, or lack one.
    """
    own = dataset.class_names
    for written in (tuple(names), _first_words(names)):
        place = {name: at for at, name in enumerate(written)}
        if len(place) == len(names) > len(own) == len(set(own)) and set(own) <= place.keys():
            return tuple(place[name] for name in own)
    return ()


def _first_words(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.split(maxsplit=1)[0] for name in names)


def logits_line(kept: Mapping[str, Any]) -> str:
    """Say which logits of a network with more classes than the data count.

    Parameters
    ----------
    kept
        What a run's record has of it: ``kept`` (``data`` or ``all``), ``classes`` of the data, and
        ``outputs`` of the network.

    Examples
    --------
    >>> logits_line({"kept": "data", "classes": 200, "outputs": 1000})
    "restricted to the data's 200 of the network's 1,000 classes"
    """
    classes, outputs = kept["classes"], kept["outputs"]
    if kept["kept"] == "all":
        return f"all {outputs:,} of the network, of which the data have {classes:,} classes"
    return f"restricted to the data's {classes:,} of the network's {outputs:,} classes"


def among(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Return a data set with the classes of a network that has more, most of them without images.

    Parameters
    ----------
    dataset, names
        As for :func:`places_among`, which must not be empty.
    """
    place = places_among(dataset, names)
    own = dict(zip(place, dataset.class_names, strict=True))
    every = [own.get(at, name) for at, name in enumerate(names)]
    return _moved(dataset, place, every)


def with_labels_of(
    dataset: Dataset, names: Sequence[str], *, numbered: Sequence[str] = ()
) -> Dataset:
    """Return a data set whose labels are positions in a list of classes, which may be longer.

    Parameters
    ----------
    dataset
        A data set with labels; its classes are some or all of those in the list.
    names
        Names of the classes in the order of the new labels; of a line such as ``n01440764 tench``
        the first word may stand for the class.
    numbered
        The same names in the order by which a data set without class names numbers them.

    Raises
    ------
    InvalidInputError
        If the data set has a class that is not in the list.
    """
    own = dataset.class_names
    numbers = tuple(str(label) for label in range(len(own)))
    written: list[Sequence[str]] = [names, _first_words(names)]
    if own == numbers and len(own) <= len(numbered):
        own = tuple(numbered[: len(own)])
    for each in written:
        place = {name: at for at, name in enumerate(each)}
        if len(place) == len(names) and set(own) <= place.keys():
            return _moved(dataset, [place[name] for name in own], names)
    unknown = [name for name in own if name not in names]
    raise InvalidInputError(
        f"{dataset.name} has classes that the network does not have: {_some(unknown)}; the "
        f"network's are {_some(names)}; give it the same class names, or score it as OOD"
    )


def in_order(dataset: Dataset, names: Sequence[str], *, where: str) -> Dataset:
    """Return a data set with its classes in another order, and its labels accordingly.

    Parameters
    ----------
    dataset
        The data set.
    names
        Names of its classes, each once, in the wanted order; of a line such as ``n01440764 tench``
        the first word is the class, if all lines have this form.
    where
        How to call the list of names in an error.

    Raises
    ------
    InvalidInputError
        If these are not the classes of the data set.
    """
    own = dataset.class_names
    if tuple(names) == tuple(own):
        return dataset
    if len(set(own)) < len(own):
        raise InvalidInputError(
            f"classes of {dataset.name} have the same name, so that no list can give their order"
        )
    if set(names) != set(own):
        words = _first_words(names)
        if len(names) != len(own) or set(words) != set(own):
            raise InvalidInputError(_difference(dataset, names, where))
        names = words
    place = {name: at for at, name in enumerate(names)}
    return _moved(dataset, [place[name] for name in own], names)


def _moved(dataset: Dataset, place: Sequence[int], names: Sequence[str]) -> Dataset:
    """Return a data set whose class at each position stands at another place among the names."""
    moved = np.array(place, dtype=np.int64)
    parts = {
        part: images if images.labels is None else Part(images.source, moved[images.labels])
        for part, images in dataset.parts.items()
    }
    return replace(dataset, parts=parts, class_names=tuple(names))


def _difference(dataset: Dataset, names: Sequence[str], where: str) -> str:
    own = dataset.class_names
    missing = sorted(set(own) - set(names))
    unknown = sorted(set(names) - set(own))
    said = [
        f"{what} {_some(found)}"
        for what, found in (("it lacks", missing), ("only it has", unknown))
        if found
    ]
    return (
        f"{where} does not name the {len(own)} classes of {dataset.name}: {'; '.join(said)}; write "
        "the names that the data have, one per line, in the order of the network's outputs"
    )


def _some(names: Sequence[str]) -> str:
    """Return the first names of many, and how many more there are."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + rest
