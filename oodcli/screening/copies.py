"""Copies of judged images in a folder of the user."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.data.decoding.files import decode, frame_of
from oodcli.data.incoming import STDIN, Item, full_size
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.files import expanded
from oodcli.remote.addresses import is_address
from oodcli.store.store import atomic_write, check_output_folder
from oodcli.text import printable
from oodcli.windows import Window

_COPIES = 1000


def check_copies(into: Path, paths: Sequence[str]) -> None:
    """Check, before any image is judged, that copies can be written to a folder.

    Parameters
    ----------
    into
        The folder.
    paths
        The input, as given by the caller.

    Raises
    ------
    InvalidInputError
        If the folder is not writable, or is inside an input folder.
    """
    target = expanded(into).resolve()
    check_output_folder(into, option="--copy-ood")
    for path in paths:
        if path == STDIN or is_address(path):
            continue
        if Path(path).is_dir() and target.is_relative_to(Path(path).resolve()):
            raise InvalidInputError(
                f"{into} is inside the input folder {path}; choose another folder for the copies"
            )


@lru_cache(maxsize=1024)
def _resolved(folder: str) -> Path:
    return Path(folder).resolve()


@dataclass(frozen=True)
class Copies:
    """A folder that receives copies of images; existing files are never changed.

    Parameters
    ----------
    folder
        The folder.
    window
        The window of medical images, of which single frames are copied as PNG files.
    """

    folder: Path
    window: Window | None = None

    def holds(self, item: Item) -> bool:
        """Return whether an image is in the folder of copies, so that it is not copied again."""
        parent = _resolved(os.path.dirname(item.path))  # noqa: PTH120 - a million items
        return parent.is_relative_to(_resolved(str(expanded(self.folder))))

    def add(self, item: Item) -> None:
        """Copy an image to its relative path; with a number if that is another image."""
        ending = ".png" if _is_frame(item) else ""
        wanted = expanded(self.folder) / f"{item.relative}{ending}"
        try:
            for number in range(1, _COPIES):
                target = wanted if number == 1 else wanted.with_stem(f"{wanted.stem}-{number}")
                if not os.path.lexists(target):
                    with atomic_write(target, cure="choose another folder") as stream:
                        self._write(item, stream)
                    return
                if self._is_copy(item, target):
                    return
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InvalidInputError(
                f"cannot copy {printable(item.name)} into {self.folder}: {reason}; correct this, "
                "or choose another folder: --copy-ood DIR"
            ) from None
        raise InvalidInputError(
            f"there are {_COPIES} different images with the name {wanted}; choose another folder: "
            "--copy-ood DIR"
        )

    def _pixels(self, item: Item) -> NDArray[np.uint8] | None:
        """Return the pixels of an image that is copied as such, not as a file."""
        if _is_frame(item):
            return full_size(item, self.window)
        return item.pixels

    def _write(self, item: Item, stream: IO[bytes]) -> None:
        pixels = self._pixels(item)
        if pixels is not None:
            Image.fromarray(pixels).save(stream, format="PNG")
        elif item.data is not None:
            stream.write(item.data)
        else:
            with Path(item.path).open("rb") as source:
                shutil.copyfileobj(source, stream)

    def _is_copy(self, item: Item, target: Path) -> bool:
        """Return whether a file already holds the image."""
        if not target.is_file():
            return False
        pixels = self._pixels(item)
        if pixels is not None:
            with contextlib.suppress(UnreadableImageError):
                return np.array_equal(decode(target), pixels)
            return False
        if item.data is not None:
            return target.stat().st_size == len(item.data) and target.read_bytes() == item.data
        return _are_equal(Path(item.path), target)


def _is_frame(item: Item) -> bool:
    if item.pixels is not None or item.data is not None:
        return item.frame is not None
    return frame_of(item.path)[1] is not None


def _are_equal(one: Path, other: Path) -> bool:
    """Return whether two files have the same content."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(2**20):
            if block != second.read(2**20):
                return False
    return True
