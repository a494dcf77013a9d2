"""Data sets in many files: which files they are, and which part each belongs to."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.files import is_image_name, list_folder
from oodcli.data.reader import Place, has_pattern, matching
from oodcli.errors import InvalidInputError
from oodcli.files import reading
from oodcli.remote.files import RemoteEntry, RemotePath, path_of
from oodcli.text import printable

PART_NAMES = ("train", "val", "test")
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART_OF = {word: part for part, words in _PARTS.items() for word in words}
_HIDDEN = re.compile(r"(?:^|/)\.")
_WORD = re.compile(r"[a-z]+")
# A folder is known by its first names.
_MAX_NAMES = 1000
_MAX_FOLDERS = 16


@dataclass(frozen=True)
class Shards:
    """The files of a data set.

    Parameters
    ----------
    folder
        Folder that holds them all.
    files
        Their paths relative to it, in order.
    """

    folder: Path
    files: tuple[str, ...]

    def paths(self) -> list[Path]:
        """Return all paths."""
        return [self.folder / file for file in self.files]

    @property
    def location(self) -> Path:
        """The file where there is one, else the folder."""
        return self.folder / self.files[0] if len(self.files) == 1 else self.folder

    def by_part(self) -> dict[str, list[int]]:
        """Return which files belong to ``train``, ``val`` and ``test``, by their names.

        Returns
        -------
        parts
            Places in ``files``; one part ``""`` of all where no name says so.

        Raises
        ------
        InvalidInputError
            If some names say so and others do not.
        """
        parts: dict[str, list[int]] = {}
        for at, file in enumerate(self.files):
            parts.setdefault(part_of(file), []).append(at)
        if "" in parts and len(parts) > 1:
            named = next(self.files[at] for part, (at, *_) in parts.items() if part)
            raise InvalidInputError(
                f"{self.folder}: {named} is named after a part of the data set, and "
                f"{self.files[parts[''][0]]} is not; rename or move it"
            )
        return {part: parts[part] for part in (*PART_NAMES, "") if part in parts}

    def of_ood_part(self) -> tuple[Path, Sequence[str]]:
        """Return the folder, and the files of the part whose images are scored as OOD images.

        Raises
        ------
        InvalidInputError
            As :meth:`by_part`.
        """
        parts = self.by_part()
        part = next(each for each in (*reversed(PART_NAMES), "") if each in parts)
        return self.folder, [self.files[at] for at in parts[part]]

    def rows_by_part(self, counts: Sequence[int]) -> dict[str, NDArray[np.int64]]:
        """Return the ascending rows of each part.

        Parameters
        ----------
        counts
            Number of rows of every file.

        Raises
        ------
        InvalidInputError
            As :meth:`by_part`.
        """
        ends = np.cumsum(counts, dtype=np.int64)
        return {
            part: np.concatenate([np.arange(ends[at] - counts[at], ends[at]) for at in files])
            for part, files in self.by_part().items()
        }


def part_of(file: str) -> str:
    """Return the part that a file or a folder above it is named after; empty for none.

    Parameters
    ----------
    file
        A path; of several words that are parts the last one counts.

    Examples
    --------
    >>> part_of("train-00000-of-00294.parquet"), part_of("imagenet_val-000001.tar")
    ('train', 'val')
    >>> part_of("default/validation/0000.parquet"), part_of("shard-000000.tar"), part_of("a.tar")
    ('val', '', '')
    """
    words = _WORD.findall(file.lower())
    return next((_PART_OF[word] for word in reversed(words) if word in _PART_OF), "")


def find_shards(path: Path, suffixes: Sequence[str]) -> Shards:
    """Return the files that a path stands for.

    Parameters
    ----------
    path
        A file; a folder, of which all files below count; a pattern, as
        :func:`oodcli.data.reader.matching` takes it; or a ``.txt`` list of files, one per line,
        absolute or relative to the folder of the list.
    suffixes
        Endings of the names of such files, in lower case.

    Raises
    ------
    InvalidInputError
        If there is no such file, a folder cannot be listed, or a pattern is wrong.
    """
    if path.is_dir():
        files = tuple(file for file in _every_file(path) if _ends(file, suffixes))
        if not files:
            raise InvalidInputError(f"folder {path} has no {' or '.join(suffixes)} files")
        return Shards(path, files)
    if path.exists() and lists_shards(Place(path), suffixes):
        return _together(_listed(path, suffixes))
    if path.exists() or not has_pattern(path):
        return Shards(path.parent, (path.name,))
    return _together(matching(path))


def lists_shards(place: Place, suffixes: Sequence[str]) -> bool:
    """Return whether a file is a ``.txt`` list whose first line names a file of some endings.

    Parameters
    ----------
    place
        What may be such a list.
    suffixes
        The endings, in lower case.
    """
    if not (place.is_file and place.ends_with(".txt")):
        return False
    first = next((line for line in place.head.splitlines() if _is_entry(line)), b"")
    return _ends(first.decode("utf-8", "surrogateescape").strip(), suffixes)


def _is_entry(line: bytes) -> bool:
    return bool(line.strip()) and not line.startswith(b"#")


def _listed(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files that a list names; each exists."""
    with reading(path, cure="write one file per line", error=InvalidInputError):
        lines = path.read_bytes().splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        if not _is_entry(line):
            continue
        file = path.parent / os.fsdecode(line.strip())
        if not (_ends(file.name, suffixes) and file.is_file()):
            raise InvalidInputError(
                f"{path}:{number}: {printable(os.fsdecode(line.strip()))} is no "
                f"{' or '.join(suffixes)} file; name one per line, relative to the list"
            )
        found.append(file)
    return found


def _together(found: Sequence[Path]) -> Shards:
    """Return files as those of the folder that holds them all."""
    first = found[0]
    if isinstance(first, RemotePath):
        above = next(each for each in first.parents if all(each in f.parents for f in found))
        return Shards(above, tuple("/".join(f.parts[len(above.parts) :]) for f in found))
    folder = Path(os.path.commonpath([file.parent for file in found]))
    return Shards(folder, tuple(os.path.relpath(file, folder) for file in found))


def holds_shards(place: Place, suffixes: Sequence[str]) -> Path | None:
    """Return a file of some endings in a folder, or in a folder in it; None if there is none.

    Parameters
    ----------
    place
        What may be such a folder. Only the first names in it are looked at, and one that has images
        of its own is none.
    suffixes
        The endings, in lower case.
    """
    if not place.is_folder:
        return None
    folders, found = [], None
    for entry in _first(place.path):
        if entry.is_dir():
            folders.append(entry)
        elif is_image_name(entry.name):
            return None
        elif found is None and _ends(entry.name, suffixes):
            found = entry
    for folder in folders[:_MAX_FOLDERS] if found is None else ():
        found = next(
            (each for each in _first(path_of(folder.path)) if _ends(each.name, suffixes)), None
        )
        if found is not None:
            break
    return None if found is None else path_of(found.path)


def _first(folder: Path | str) -> Sequence[os.DirEntry[str] | RemoteEntry]:
    """Return the first entries of a folder that are not hidden; none if it cannot be listed."""
    if isinstance(folder, RemotePath):
        return list_folder(folder)[:_MAX_NAMES]
    try:
        with os.scandir(os.fspath(folder)) as entries:
            some = list(islice((each for each in entries if each.name[0] != "."), _MAX_NAMES))
    except OSError:
        return []
    return sorted(some, key=lambda each: each.name)


def _every_file(folder: Path) -> Iterable[str]:
    if isinstance(folder, RemotePath):
        return (file for file in folder.files_below() if not _HIDDEN.search(file))
    return _below(str(folder), "", ())


def _ends(file: str, suffixes: Sequence[str]) -> bool:
    return file.lower().endswith(tuple(suffixes))


def _below(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the files below a folder, sorted; links are not followed in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in list_folder(folder):
        if entry.is_dir():
            yield from _below(entry.path, f"{prefix}{entry.name}/", (*above, real))
        elif entry.is_file():
            yield f"{prefix}{entry.name}"
