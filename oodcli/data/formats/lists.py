"""Lists of images in text files, one ``path label`` per line, as OpenOOD has them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.files import FileSource
from oodcli.data.formats.arrays import MOST_CLASSES
from oodcli.errors import InvalidInputError
from oodcli.files import regular
from oodcli.images import Part

_MOST_LIST_BYTES = 1 << 30
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


def _parsed(line: str, where: str) -> ListedImage:
    path, _, last = line.strip().rpartition(" ")
    if not path:
        path, last = last, "-1"
    elif not _LABEL.fullmatch(last):
        # A path with blanks, and no label.
        path, last = line.strip(), "-1"
    if not -1 <= int(last) < MOST_CLASSES:
        raise InvalidInputError(
            f"{where}: label {last[:20]} is out of range; classes count from 0 to "
            f"{MOST_CLASSES - 1}, -1 stands for none"
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
        The text file.
    name
        How to call the data set.
    spec
        What opens it again.
    role
        ``id`` wants a class for every image; ``ood`` ignores labels.
    root
        Folder that the paths are relative to; that of the list if None.

    Raises
    ------
    InvalidInputError
        If the list cannot be read, or an image has no class and classes are wanted.
    """
    folder = path.parent if root is None else root
    try:
        if regular(path).stat().st_size > _MOST_LIST_BYTES:
            raise InvalidInputError(f"{path} is too large for a list of images; name a text file")
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    images = parse_list(content, where=str(path))
    # Lists are the form of published benchmarks, and their images are read as those are.
    source = FileSource(folder, [image.path for image in images], as_published=True)
    if role == "ood":
        return Dataset(name, {"test": Part(source)}, (), str(path), spec)
    labels = np.array([image.label for image in images], dtype=np.int64)
    if labels.min() < 0:
        raise InvalidInputError(
            f"{path}: {images[int(labels.argmin())].path} has no label; write it after the path"
        )
    names = tuple(str(k) for k in range(int(labels.max()) + 1))
    return Dataset(name, {"test": Part(source, labels)}, names, str(path), spec, is_whole=True)
