"""Image files on servers, one by one: listed in a folder, or named by a table."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from oodcli.data.compact import Texts
from oodcli.data.decoding.encoded import EncodedSource
from oodcli.data.decoding.extents import MAX_IMAGE_BYTES
from oodcli.data.decoding.files import FileSource, frame_of
from oodcli.data.identity import identity_of
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.files import reason_of, regular
from oodcli.remote.addresses import checked, is_address
from oodcli.remote.errors import RemoteError
from oodcli.remote.files import (
    RemoteFile,
    RemotePath,
    identities_of,
    path_of,
    row_problem,
    states_of,
)
from oodcli.store.store import digest_of_json
from oodcli.text import printable

_AHEAD = 64


def files_in(folder: Path, files: Sequence[str]) -> "FileSource | RemoteFiles":
    """Return image files of a folder, on the disk or remote.

    Parameters
    ----------
    folder
        The folder.
    files
        Paths relative to it, in order.
    """
    if isinstance(folder, RemotePath):
        return RemoteFiles(folder, Texts.of(files))
    return FileSource(folder, files)


@dataclass(frozen=True)
class RemoteFiles(EncodedSource):
    """Image files some of which are remote, each read at once with the next ones on their way.

    Parameters
    ----------
    root
        Folder that relative paths start from, remote or not.
    files
        Paths or addresses, in order.
    as_published
        As for `oodcli.data.decoding.files.decode`.
    table
        The list or table that names them; None for those of a folder.
    lines
        Line of every image in the table, from 1, ``(n,)``.
    bad
        Why a row has no image, by its number, where its line says so.
    """

    root: Path
    files: Texts
    as_published: bool = False
    table: Path | None = None
    lines: NDArray[np.integer] = field(default_factory=lambda: np.empty(0, np.int64))
    bad: Mapping[int, str] = field(default_factory=dict)

    in_order = True

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the files, see :mod:`oodcli.data.identity`, and of how they are read."""
        places = [self._place(row) for row in range(len(self))]
        remote = [row for row, place in enumerate(places) if isinstance(place, RemotePath)]
        identities = identities_of(str(places[row]) for row in remote)
        known = dict(zip(remote, identities, strict=True))
        local = [str(place) for place in places if isinstance(place, Path) and not
                 isinstance(place, RemotePath)]  # fmt: skip
        wrong = [place for place in places if isinstance(place, str)]
        frames = [(row, at) for row in range(len(self)) if (at := self.frame_at(row)) is not None]
        others = identity_of(Path("/"), local) if local else ""
        each = [str(self.root), list(known.items()), others, wrong, self.as_published]
        return digest_of_json([*each, frames] if frames else each)

    def _place(self, row: int) -> Path | str:
        """Return where an image is, or why it is nowhere."""
        reason = self.bad.get(row)
        return reason if reason is not None else place_of(self.root, self._divided(row)[0])

    def _divided(self, row: int) -> tuple[str, int | None]:
        """Divide what a row names into the path of a file, and the number of a frame."""
        file = self.files[row]
        if not file.endswith("]"):
            return file, None
        frame = frame_of(file if is_address(file) else f"{self.root}/{file}")[1]
        return (file if frame is None else file[: file.rindex("[")]), frame

    def frame_at(self, row: int) -> int | None:
        """Return which frame of a medical image a row names."""
        return self._divided(row)[1]

    def key_of(self, row: int) -> str:
        """Return the address of an image, or the table and its line."""
        if self.table is not None:
            return f"{self.table}:{self.lines[row]}"
        return f"{self.root}/{self.files[row]}"

    def name_of(self, row: int) -> str:
        """Return the path of an image in the folder or as it is in the table."""
        file = self.files[row]
        return file.partition("://")[2] if is_address(file) else file

    def take(self, rows: NDArray[np.int64], /) -> "RemoteFiles":
        """Return a source of chosen rows."""
        bad = {at: self.bad[row] for at, row in enumerate(rows.tolist()) if row in self.bad}
        lines = self.lines if self.table is None else self.lines[rows]
        return replace(self, files=self.files.take(rows), lines=lines, bad=bad)

    def contents(self, start: int, stop: int, /) -> Iterator[bytes | UnreadableImageError]:
        """Yield the bytes of images ``start`` to ``stop - 1``, or why there are none.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Raises
        ------
        RemoteError
            If a server does not answer.
        """
        stop = min(stop, len(self))
        opened: deque[RemoteFile | Path | str] = deque()
        next_row = start
        for row in range(start, stop):
            while next_row < stop and len(opened) <= _AHEAD // 2:
                rows = range(next_row, min(next_row + _AHEAD, stop))
                opened += _open_all([self._place(each) for each in rows])
                next_row = rows.stop
            found = _bytes_of(opened.popleft())
            if isinstance(found, str):
                yield UnreadableImageError(self._where(row), found)
            else:
                yield found

    def _where(self, row: int) -> str:
        named = self.table is not None and self.files[row]
        return printable(f"{self.key_of(row)} ({self.files[row]})" if named else self.key_of(row))


def place_of(root: Path, file: str) -> Path | str:
    """Return where an image is that a table or listing names, or why it is nowhere.

    Parameters
    ----------
    root
        Folder that relative paths start from.
    file
        A path or an address. Of something remote a path leads below the folder alone: a table from
        elsewhere names no file of this disk.
    """
    if is_address(file):
        try:
            return RemotePath(checked(file))
        except InvalidInputError as error:
            return str(error)
    if not isinstance(root, RemotePath):
        return root / file
    parts = [part for part in file.split("/") if part not in ("", ".")]
    if file.startswith("/") or ".." in parts:
        return "its path does not lead below the folder of the table"
    try:
        return path_of(f"{root}/{'/'.join(map(quote, parts) if root.is_web else parts)}")
    except InvalidInputError as error:
        return str(error)


def _open_all(places: Sequence[Path | str]) -> list[RemoteFile | Path | str]:
    """Return some files, the remote ones opened, and what they hold on its way."""
    opened = list[RemoteFile | Path | str](places)
    remote = [at for at, place in enumerate(places) if isinstance(place, RemotePath)]
    states = states_of(str(places[at]) for at in remote)
    for at, state in zip(remote, states, strict=True):
        if isinstance(state, RemoteError):
            opened[at] = row_problem(state, within=False)
            continue
        file = RemoteFile(str(places[at]), state)
        if file.size <= MAX_IMAGE_BYTES:
            file.expect(0, file.size)
        opened[at] = file
    return opened


def _bytes_of(place: RemoteFile | Path | str) -> bytes | str:
    if isinstance(place, str):
        return place
    try:
        if isinstance(place, RemoteFile):
            size = place.size
            content = place.read_at(0, size) if size <= MAX_IMAGE_BYTES else b""
        else:
            size = regular(place).stat().st_size
            content = place.read_bytes() if size <= MAX_IMAGE_BYTES else b""
    except RemoteError as error:
        return row_problem(error, within=False)
    except (OSError, ValueError) as error:
        gone = isinstance(error, FileNotFoundError)
        return "the file no longer exists" if gone else reason_of(error)
    return content if size <= MAX_IMAGE_BYTES else f"it has {size:,} bytes"
