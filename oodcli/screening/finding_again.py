"""The images of rows of verdicts, found again by their names."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from oodcli.data.decoding.files import is_image_name
from oodcli.data.incoming import Item, items
from oodcli.data.opening import is_named
from oodcli.data.readers import is_known_suffix
from oodcli.errors import OodError
from oodcli.remote.addresses import is_address
from oodcli.store.store import Store
from oodcli.windows import Window

_GONE = "it no longer exists; relative paths start at the folder in which ood predict ran"
# Where the name of a row may continue that of the file it lies in: FILE[ROW], FILE:LINE, FILE/NAME.
_ENDS = re.compile(r"[\[:/]")


def found_again(
    names: Sequence[str],
    store: Store,
    window: Window | None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Item]:
    """Yield the images with the given names, each name as often as it is given.

    Parameters
    ----------
    names
        Names of items, as in rows of verdicts.
    store
        Holds named data sets, and the indices of readers.
    window
        How medical images are read.
    columns
        The columns that were named of tables, by their paths as they were given: files, folders or
        patterns.

    Yields
    ------
    Item
        The images, file by file in the order of their first name; of what cannot be found, an item
        with the reason.
    """
    inside: dict[str, dict[str, int]] = {}
    for name in names:
        place = _container(name, store)
        counts = inside.setdefault(place or "", {})
        counts[name] = counts.get(name, 0) + 1
    for place, counts in inside.items():
        if place:
            wanted = _with_columns(place, columns or {})
            yield from _in_file(place, wanted, counts, store, window)
        else:
            yield from (Item(n, n, "", error=_GONE) for n in counts for _ in range(counts[n]))


def _container(name: str, store: Store) -> str | None:
    """Return the file, or the name of a data set, that an image lies in; None if it is gone."""
    if os.path.isfile(name):  # noqa: PTH113 - a million names
        return name
    if is_address(name):  # known by its name alone, for a server would be asked for each
        ends = (name[: found.start()] for found in _ENDS.finditer(name))
        return next((place for place in ends if is_known_suffix(place)), name)
    for found in reversed(list(_ENDS.finditer(name))):
        place = name[: found.start()]
        if place and (Path(place).is_file() or is_named(place, store)):
            return place
    return None


def _with_columns(place: str, columns: Mapping[str, str]) -> str:
    """Return a file with the columns that were named of it, or of the folder or pattern."""
    for path, named in columns.items():
        if place == path or place.startswith(f"{path.rstrip('/')}/") or fnmatchcase(place, path):
            return f"{place}:{named}"
    return place


def _in_file(
    place: str, wanted: str, counts: dict[str, int], store: Store, window: Window | None
) -> Iterator[Item]:
    """Yield the images of one file, opened with its columns, that have the given names."""
    left = dict(counts)
    reason = f"{place} has no such image any more"
    try:
        alone = place in left and is_image_name(place)
        found = (
            iter([Item(place, place, "")]) if alone else items([wanted], store=store, window=window)
        )
        for item in found:
            for _ in range(left.pop(item.name, 0)):
                yield item
            if not left:
                break
    except OodError as error:
        reason = str(error)
    for name, count in left.items():
        yield from (Item(name, name, "", error=reason) for _ in range(count))
