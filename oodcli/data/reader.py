"""What a reader of images is: which paths it opens, and to what. Every way to the images is one.

A package offers a reader by an entry point in the group ``ood.readers``, whose object is a
:class:`Reader`; :mod:`oodcli.data.readers` finds it, and :mod:`oodcli.data.reader_contract` checks
it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from oodcli.data.columns import Columns, without_columns
from oodcli.data.dataset import Dataset
from oodcli.errors import InvalidInputError
from oodcli.files import regular
from oodcli.remote.files import RemotePath, path_of, states_of

__all__ = [
    "GROUP",
    "Columns",
    "Place",
    "Reader",
    "Role",
    "has_pattern",
    "matching",
    "without_columns",
]

GROUP = "ood.readers"
Role = Literal["id", "ood"]

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Place:
    """A path that a reader may open, and the little that is read to decide.

    Parameters
    ----------
    path
        The path; with a pattern in it, it leads to nothing.
    """

    path: Path

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a folder, or a link to one."""
        return self.path.is_dir()

    @cached_property
    def is_file(self) -> bool:
        """Whether it exists and is no folder; what is no regular file, its reader refuses."""
        return self.path.exists() and not self.is_folder

    @cached_property
    def head(self) -> bytes:
        """The first 4,096 bytes of a file; none of anything else, or if it cannot be read."""
        try:
            with regular(self.path).open("rb") as stream:
                return stream.read(HEAD_BYTES)
        except OSError:
            return b""

    def ends_with(self, *suffixes: str) -> bool:
        """Return whether the name has one of these endings, in upper or lower case."""
        return self.path.name.lower().endswith(suffixes)

    def holds(self, *names: str) -> bool:
        """Return whether it is a folder with a file or folder of one of these names."""
        return self.is_folder and any((self.path / name).exists() for name in names)


@dataclass(frozen=True)
class Reader:
    """A kind of file or folder that holds images, and how it is opened.

    Parameters
    ----------
    name
        What it is called, such as ``parquet``.
    kind
        What it opens, with an article, for errors: ``a .parquet file``.
    layout
        What it opens and how it is read, for the manual; two cells of a table.
    open
        Called as ``open(path, name=…, spec=…, role=…)``, and with those of ``options`` by name.
        ``path`` is what was given; ``name`` is what the data set is called, and ``spec`` what opens
        it again, both to be put into the :class:`~oodcli.data.dataset.Dataset` that it returns.
        ``role`` is ``id`` for images with classes, and ``ood`` for images whose classes do not
        matter: of a set with parts the test part, else the val part, else what there is. No image
        is decoded, and nothing is read that grows with the size of the images. What is wrong is an
        :class:`~oodcli.errors.InvalidInputError` or a :class:`~oodcli.errors.CorruptArtifactError`.
    suffixes
        Endings of the names of its files, lower case, with the dot.
    opens
        Whether it opens a place; by default, a file with one of the suffixes. It must be cheap:
        it may look at the name, the first bytes and the names in a folder.
    options
        What else ``open`` takes, of: ``store`` (the :class:`~oodcli.store.store.Store`, to keep an
        index in), ``columns`` (:class:`Columns` or None), ``labels`` (a file of labels, or None)
        and ``root`` (the folder that paths are relative to, or None).
    patterns
        Whether ``open`` takes a path with ``*``, ``?``, ``[…]`` or ``{000..009}``, which leads to
        no file itself; it has one of the suffixes, and :func:`oodcli.data.reader.matching` lists
        its files.
    walked
        Whether its images are all image files below the folder, which a stream may list by itself.
    names_files
        Whether it opens a list of image files, each of which belongs to a shard by its name.
    files
        Called as ``files(path, columns)``; returns the folder and the relative paths of the files
        of the OOD images, if each of them can be opened alone, with the same names of its rows. A
        single path if not.
    """

    name: str
    kind: str
    layout: tuple[str, str]
    open: Callable[..., Dataset]
    suffixes: tuple[str, ...] = ()
    opens: Callable[[Place], bool] | None = None
    options: frozenset[Literal["store", "columns", "labels", "root"]] = field(
        default_factory=frozenset
    )
    patterns: bool = False
    walked: bool = False
    names_files: bool = False
    files: Callable[[Path, "Columns | None"], tuple[Path, Sequence[str]]] | None = None

    def claims(self, place: Place) -> bool:
        """Return whether it opens a place."""
        if self.patterns and has_pattern(place.path) and not place.path.exists():
            return place.ends_with(*self.suffixes)
        if self.opens is not None:
            return self.opens(place)
        return bool(self.suffixes) and place.ends_with(*self.suffixes) and place.is_file


_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_FILES = 1_000_000


def has_pattern(path: Path) -> bool:
    """Return whether a path has ``*``, ``?``, ``[…]`` or ``{000..009}`` in it."""
    text = str(path)
    return bool(_RANGE.search(text)) or any(mark in text for mark in "*?[")


def matching(path: Path) -> list[Path]:
    """Return the files that a pattern stands for, sorted; those of a range in its order.

    Parameters
    ----------
    path
        A path with ``*``, ``?`` or ``[…]`` in its last part, or ``{000..009}`` anywhere. A path
        without any stands for itself.

    Raises
    ------
    InvalidInputError
        If no file matches, one of a range is missing, or a range has more than a million.

    Examples
    --------
    >>> matching(Path("a.tar"))
    [PosixPath('a.tar')]
    """
    found = [path]
    while ranged := _RANGE.search(str(found[0])):
        first, last = int(ranged[1]), int(ranged[2])
        if not 0 <= last - first < _MAX_FILES // len(found):
            raise InvalidInputError(
                f"{path}: {ranged[0]} is not a range of files; write the lower number first, and "
                f"{_MAX_FILES:,} at most"
            )
        numbers = [f"{number:0{len(ranged[1])}d}" for number in range(first, last + 1)]
        found = [
            path_of(str(each).replace(ranged[0], number, 1)) for each in found for number in numbers
        ]
    if any(mark in path.name for mark in "*?["):
        found = [match for each in found for match in sorted(each.parent.glob(each.name))]
        if not found:
            raise InvalidInputError(f"no file matches {path}; check the pattern")
    elif len(found) > 1:
        # Servers are asked for all at once.
        states_of(str(each) for each in found if isinstance(each, RemotePath))
        for each in found:
            if not each.is_file():
                raise InvalidInputError(f"{path} names {each}, which does not exist")
    return found
