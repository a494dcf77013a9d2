"""Features of judged images, in a file beside their verdicts: one row per row of verdicts.

``FILE.features.npy`` is a NumPy file of float32 values ``(rows, d)``: the input of the last layer.
It is appended to like the verdicts, and its rows are written before theirs, so that after an
interruption it has at least as many. The length in its header is updated every few seconds; after
an interruption the size of the file counts.

float32 keeps the values of the forward pass, so that what is computed from the file equals what is
computed from the images. float16 would halve the file, but end at 65,504, which features that are
not normalised can exceed.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import expanded
from oodcli.store.store import open_output_file
from oodcli.text import counted

_FLOAT = np.dtype("<f4")
_COPIED = 4096  # rows at a time
_CURE = "remove it and the file of verdicts"


def feature_path(verdicts: Path) -> Path:
    """Return the path of the features of a file of verdicts."""
    return verdicts.with_name(f"{verdicts.name}.features.npy")


def read_features(verdicts: Path, *, rows: int | None = None) -> NDArray[np.float32]:
    """Return the features of a file of verdicts, read-only and mapped from disk.

    Parameters
    ----------
    verdicts
        The file of verdicts.
    rows
        Number of its rows; if given, exactly as many rows are returned.

    Returns
    -------
    float32 ``(rows, d)``
        Features in the order of the rows; NaN for images that cannot be read.

    Raises
    ------
    InvalidInputError
        If there are no features of this file.
    CorruptArtifactError
        If the file is damaged, or has fewer rows than ``rows``.
    """
    path = feature_path(expanded(verdicts).resolve())
    if not path.is_file():
        raise InvalidInputError(
            f"there is no {path.name} beside {verdicts}; ood predict --features stores features"
        )
    with path.open("rb") as stream:
        layout = _layout(path, stream)
    found = layout.rows_in(path)
    if rows is not None and found < rows:
        raise CorruptArtifactError(
            f"{path.name} has features of {counted(found, 'image')}, {verdicts} has "
            f"{counted(rows, 'row')}; {_CURE}"
        )
    shape = (found if rows is None else rows, layout.dim)
    if not shape[0]:
        return np.empty(shape, _FLOAT)
    return np.memmap(path, _FLOAT, "r", layout.start, shape)


def join_features(sources: Sequence[Path], verdicts: Path, *, rows: int) -> None:
    """Write the features of several finished files of verdicts beside a merged one, atomically.

    Parameters
    ----------
    sources
        The files of verdicts, in order; one without rows has no features.
    verdicts
        The merged file.
    rows
        Number of all their rows.

    Raises
    ------
    InvalidInputError
        If the features of the files have different lengths.
    CorruptArtifactError
        If a file of features is missing or damaged.
    """
    places = [expanded(source).resolve() for source in sources]
    parts = [read_features(place) for place in places if feature_path(place).is_file()]
    found = sum(map(len, parts))
    if found != rows:
        raise CorruptArtifactError(
            f"the files have {counted(rows, 'row')} and features of {counted(found, 'image')}; "
            "keep each FILE.features.npy beside its FILE"
        )
    dims = {part.shape[1] for part in parts}
    if len(dims) > 1:
        raise InvalidInputError(
            f"the features of these files have lengths {sorted(dims)}; merge files of the same "
            "network"
        )
    with open_output_file(feature_path(expanded(verdicts).resolve())) as stream:
        npy.write_array_header_1_0(stream, _header(rows, dims.pop()))
        for part in parts:
            for start in range(0, len(part), _COPIED):
                stream.write(part[start : start + _COPIED].tobytes())


@dataclass(frozen=True)
class _Layout:
    """Where the rows of a file start, and how many values a row has."""

    start: int
    dim: int

    def rows_in(self, path: Path) -> int:
        """Return the number of complete rows of a file."""
        return (path.stat().st_size - self.start) // (self.dim * _FLOAT.itemsize)

    def end_of(self, rows: int) -> int:
        """Return the offset behind a number of rows."""
        return self.start + rows * self.dim * _FLOAT.itemsize


def _layout(path: Path, stream: IO[bytes]) -> _Layout:
    damaged = f"{path} is damaged: it does not start like a file of features; {_CURE}"
    try:
        version = npy.read_magic(stream)
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    except ValueError:
        raise CorruptArtifactError(damaged) from None
    if version != (1, 0) or len(shape) != 2 or not shape[1] or fortran or dtype != _FLOAT:
        raise CorruptArtifactError(damaged)
    return _Layout(stream.tell(), shape[1])


class FeatureFile:
    """The features beside an open file of verdicts.

    Parameters
    ----------
    path
        The file of features. It is created when the first features are written.
    new
        Whether there are no verdicts yet, so that an existing file of features is replaced.

    Raises
    ------
    CorruptArtifactError
        If there are verdicts but no features, or the features are damaged.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        self._path = path
        self._layout: _Layout | None = None
        self._stream: IO[bytes] | None = None
        self._rows = 0
        if new:
            path.unlink(missing_ok=True)
        elif path.is_file() and path.stat().st_size:
            self._stream = path.open("r+b")
            self._layout = _layout(path, self._stream)
            self._rows = self._layout.rows_in(path)

    @property
    def rows(self) -> int | None:
        """Number of complete rows; None if there is no file yet."""
        return None if self._stream is None else self._rows

    def truncate(self, rows: int) -> None:
        """Remove all rows after the first ``rows``; there must be at least as many."""
        if self._stream is None or self._layout is None:
            if rows:
                raise CorruptArtifactError(
                    f"{self._path.name} with the features of {counted(rows, 'row')} is missing; "
                    "restore it, or remove the file of verdicts"
                )
            return
        end = self._layout.end_of(rows)
        self._stream.truncate(end)
        self._stream.seek(end)
        self._rows = rows

    def write(self, features: NDArray[np.float32]) -> None:
        """Append rows, ``(n, d)``."""
        if self._stream is None or self._layout is None:
            self._stream = self._path.open("w+b")
            npy.write_array_header_1_0(self._stream, _header(0, features.shape[1]))
            self._layout = _Layout(self._stream.tell(), features.shape[1])
        if features.shape[1] != self._layout.dim:
            raise CorruptArtifactError(
                f"{self._path} has rows of {self._layout.dim} features, and the network gives "
                f"{features.shape[1]}; {_CURE}"
            )
        self._stream.write(np.ascontiguousarray(features, dtype=_FLOAT).tobytes())
        self._stream.flush()
        self._rows += len(features)

    def sync(self) -> None:
        """Update the length in the header, and flush to disk."""
        if self._stream is None or self._layout is None:
            return
        self._stream.seek(0)
        # The header has spare room for a larger number of rows, so that its length is the same.
        npy.write_array_header_1_0(self._stream, _header(self._rows, self._layout.dim))
        self._stream.seek(self._layout.end_of(self._rows))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file, with a header that counts all its rows."""
        if self._stream is not None:
            with contextlib.closing(self._stream):
                self.sync()


def _header(rows: int, dim: int) -> dict[str, object]:
    return {"descr": _FLOAT.str, "fortran_order": False, "shape": (rows, dim)}
