"""The order of the classes of a data set, where a network's logits have another one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from oodcli.data.dataset import Dataset
from oodcli.errors import InvalidInputError
from oodcli.files import check_file
from oodcli.images import Part

_MOST_BYTES = 1 << 26
_SHOWN = 3


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a file with the name of a class on each line.

    Parameters
    ----------
    path
        The text file, UTF-8; empty lines are passed over.

    Raises
    ------
    InvalidInputError
        If it cannot be read, is no text, or has no name or one twice.
    """
    check_file(path, "name a text file: --classes FILE")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInputError(f"{path} is too large for a list of classes; name a text file")
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not a text file; write one class per line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InvalidInputError(f"{path} names no class; write one class per line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"{path} names class {twice!r} twice; name each class once")
    return names


def in_order(dataset: Dataset, names: Sequence[str], *, where: str) -> Dataset:
    """Return a data set with its classes in another order, and its labels accordingly.

    Parameters
    ----------
    dataset
        The data set.
    names
        Names of its classes, each once, in the wanted order; of a line such as ``n01440764 tench``
        the first word stands for the class where all lines are such.
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
        words = [name.split(maxsplit=1)[0] for name in names]
        if len(names) != len(own) or set(words) != set(own):
            raise InvalidInputError(_difference(dataset, names, where))
        names = words
    place = {name: at for at, name in enumerate(names)}
    moved = np.array([place[name] for name in own], dtype=np.int64)
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
        f"{what} {', '.join(map(repr, found[:_SHOWN]))}"
        + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        for what, found in (("it lacks", missing), ("only it has", unknown))
        if found
    ]
    return (
        f"{where} does not name the {len(own)} classes of {dataset.name}: {'; '.join(said)}; write "
        "the names that the data have, one per line, in the order of the network's outputs"
    )
