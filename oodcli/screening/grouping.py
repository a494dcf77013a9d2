"""Groups of incoming images, such as days or cameras, between which drift is looked for."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath

from oodcli.data.formats.tables import SUFFIXES, column_of
from oodcli.data.incoming import Item
from oodcli.data.reader import without_columns
from oodcli.errors import InvalidInputError
from oodcli.pillow import exif_time
from oodcli.text import printable

# Ways to group that are no column of a table.
WAYS = ("day", "exif-day", "folder")
_FRAME = re.compile(r"\[\d+\]\Z")

Grouping = Callable[[Item], str | None]


def grouping(way: str, paths: Sequence[str]) -> Grouping:
    """Return the function that gives the group of an image; None for one without a group.

    Parameters
    ----------
    way
        ``day``: the day (UTC) on which the file of the image was last modified; of an image in an
        archive or array, that of the archive. ``exif-day``: the day on which the image was taken,
        by its EXIF field DateTimeOriginal; images without it have no group. ``folder``: the folder
        of the image, relative to the folder, list or archive that was given. Otherwise the name of
        a column of the tables that are given.
    paths
        The paths that are given.

    Raises
    ------
    InvalidInputError
        If ``way`` is a column, and a path is no table with it.
    """
    if way == "day":
        return _modified
    if way == "exif-day":
        return _taken
    if way == "folder":
        return _folder
    values: dict[str, dict[int, str]] = {}
    for path in paths:
        table = without_columns(path)[0]
        if not table.lower().endswith(SUFFIXES) or not Path(table).is_file():
            raise InvalidInputError(
                f"--group-by {printable(way)}: {printable(path)} is no table (.csv, .tsv, .jsonl) "
                f"with this column; give tables, or group by {', '.join(WAYS[:-1])} or {WAYS[-1]}"
            )
        values[table] = column_of(Path(table), way)
    return partial(_of_column, values)


def _of_column(values: Mapping[str, Mapping[int, str]], item: Item) -> str | None:
    table, _, line = item.name.rpartition(":")
    return values.get(table, {}).get(int(line)) if line.isdigit() else None


def _modified(item: Item) -> str | None:
    for path in (item.path, _FRAME.sub("", item.path)):
        with contextlib.suppress(OSError, ValueError):
            seconds = os.stat(path).st_mtime  # noqa: PTH116 - a million images have one each
            return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    return None


def _taken(item: Item) -> str | None:
    if item.pixels is not None or item.error is not None:
        return None
    try:
        with io.BytesIO(item.data) if item.data is not None else Path(item.path).open("rb") as file:
            text = exif_time(file)
        # EXIF 2.32, section 4.6.5: "YYYY:MM:DD HH:MM:SS".
        return datetime.strptime((text or "")[:10], "%Y:%m:%d").date().isoformat()
    except (OSError, ValueError):
        return None


def _folder(item: Item) -> str | None:
    return str(PurePosixPath(item.relative).parent) if item.relative else None
