"""Lists of images in text files, one ``path label`` per line, as OpenOOD has them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oodcli.data.dataset import Dataset
from oodcli.data.formats.labels import MAX_CLASSES
from oodcli.data.formats.rows import Builder
from oodcli.data.formats.tables import Lines, dataset_of, delimiter_of, parts_of, text_of
from oodcli.errors import InvalidInputError

_LABEL = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A line of a list.

    Parameters
    ----------
    path
        The image file, relative to a folder.
    label
        Its class; -1 for none.
    """

    path: str
    label: int


def parse_list(content: bytes, *, where: str) -> list[ListedImage]:
    """Read a list of images.

    Parameters
    ----------
    content
        The text, UTF-8. A line without a label, or with -1, is an image without a class. Empty
        lines, and lines that begin with ``#``, are ignored.
    where
        How to call the list in an error.

    Raises
    ------
    InvalidInputError
        If it is not text, has no lines, or a line is not a relative path and a whole number.
    """
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{where} is not a text file; write one path per line") from None
    images = [
        _parsed(line, f"{where}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not images:
        raise InvalidInputError(f"{where} lists no images; write one path per line")
    return images


def _divided(line: str) -> tuple[str, str]:
    """Return path and label of a line; -1 if there is no label."""
    path, _, last = line.strip().rpartition(" ")
    if not path:
        return last, "-1"
    # Else a path with blanks, and no label.
    return (path.rstrip(), last) if _LABEL.fullmatch(last) else (line.strip(), "-1")


def _parsed(line: str, where: str) -> ListedImage:
    path, last = _divided(line)
    if not -1 <= int(last) < MAX_CLASSES:
        raise InvalidInputError(
            f"{where}: label {last[:20]} is out of range; classes count from 0 to "
            f"{MAX_CLASSES - 1}, -1 stands for none"
        )
    if "\0" in path or path.startswith("/") or ".." in path.split("/"):
        raise InvalidInputError(
            f"{where}: {path[:80]!r} is not a path below the folder of the list; write it relative"
        )
    return ListedImage(path, int(last))


def open_list(
    path: Path, *, name: str, spec: str, role: Literal["id", "ood"], root: Path | None = None
) -> Dataset:
    """Open a list of images as one set; no image is read yet.

    Parameters
    ----------
    path
        The text file: ``path label`` lines as OpenOOD has them; or, if the first line has a tab, or
        a comma behind the name of an image, ``path``, label and part divided by that.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` wants a class for every image; ``ood`` ignores labels.
    root
        Folder that relative paths start from; that of the list if None.

    Raises
    ------
    InvalidInputError
        If the list cannot be read, or no image has a class and classes are wanted.
    """
    folder = path.parent if root is None else root
    delimiter = delimiter_of(path)
    if delimiter is None:
        builder = Builder(path, folder)
        with text_of(path) as stream:
            for number, line in enumerate(Lines(stream, path), start=1):
                _add(builder, number, line)
        parts = {"": builder.rows()}
    else:
        parts = parts_of(path, folder, delimiter=delimiter)
    # Lists are the form of published benchmarks, and their images are read as those are.
    return dataset_of(
        parts, name=name, spec=spec, role=role, location=path, as_published=True,
        from_zero=delimiter is None,
    )  # fmt: skip


def _add(builder: Builder, number: int, line: str) -> None:
    """Take in a line of a list."""
    if not line.strip() or line.startswith("#"):
        return
    path, label = _divided(line)
    builder.add(number, path, label)
