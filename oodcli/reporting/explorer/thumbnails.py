"""Small pictures of images for a page, side by side in sheets, within a number of characters."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.reporting.explorer.image_payload import Sheets

Pixels = NDArray[np.uint8]

QUALITY = 65
SHEET_PIXELS = 4_000_000
"""Pixels of a sheet at most: 16 MB of memory while a page shows it."""
_SAMPLE = 24


@dataclass(frozen=True)
class Tile:
    """Size of a picture in a sheet.

    Parameters
    ----------
    width, height
        In pixels.
    """

    width: int
    height: int

    @classmethod
    def of(cls, image: Pixels, side: int) -> "Tile":
        """Return the size of an image whose longer side has at most so many pixels."""
        height, width = image.shape[:2]
        factor = min(1.0, side / max(height, width))
        return cls(max(1, round(width * factor)), max(1, round(height * factor)))

    @property
    def columns(self) -> int:
        """Number of pictures side by side, so that a full sheet is about square."""
        return max(1, int(SHEET_PIXELS**0.5) // self.width)

    @property
    def per_sheet(self) -> int:
        """Number of pictures of a full sheet."""
        return self.columns * max(1, int(SHEET_PIXELS**0.5) // self.height)


def sheets(images: Sequence[Pixels], sides: Sequence[int], characters: int) -> Sheets:
    """Return pictures of images at the largest size at which all have room.

    Parameters
    ----------
    images
        Images of one size, each uint8 ``(h, w, 3)``.
    sides
        Longer sides to try, descending, at least one; a smaller image keeps its size.
    characters
        Number of characters that the pictures may have. If there is no room for all at the smallest
        size, the first images get a picture.
    """
    if not images:
        return Sheets((), 1, 1, 1, 1, 0)
    sizes = list(dict.fromkeys(Tile.of(images[0], side) for side in sides))
    for tile in sizes:
        if estimated(images, tile) <= 1.1 * characters:
            made = _sheets(images, tile)
            if _characters(made) <= characters:
                return made
    count = len(images)
    while count:
        made = _sheets(images[:count], sizes[-1])
        if _characters(made) <= characters:
            return made
        count = min(count - 1, int(0.97 * count * characters / _characters(made)))
    return Sheets((), sizes[-1].width, sizes[-1].height, 1, 1, 0)


def estimated(images: Sequence[Pixels], tile: Tile) -> float:
    """Return about how many characters pictures of all images have, from some of them."""
    if not images:
        return 0.0
    some = images[:: -(-len(images) // _SAMPLE)]
    return len(images) / len(some) * _characters(_sheets(some, tile))


def _characters(made: Sheets) -> int:
    return sum(map(len, made.files))


def _sheets(images: Sequence[Pixels], tile: Tile) -> Sheets:
    files = tuple(
        _file(images[first : first + tile.per_sheet], tile)
        for first in range(0, len(images), tile.per_sheet)
    )
    return Sheets(files, tile.width, tile.height, tile.columns, tile.per_sheet, len(images))


def _file(images: Sequence[Pixels], tile: Tile) -> str:
    """Return a sheet as a WebP file in base64."""
    columns = min(tile.columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * tile.height, columns * tile.width, 3), np.uint8)
    for number, image in enumerate(_reduced(images, tile)):
        top, left = number // columns * tile.height, number % columns * tile.width
        sheet[top : top + tile.height, left : left + tile.width] = image
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(stream.getvalue()).decode()


def _reduced(images: Sequence[Pixels], tile: Tile) -> Iterator[Pixels]:
    for image in images:
        if image.shape[:2] == (tile.height, tile.width):
            yield image
        else:
            reduced = Image.fromarray(np.ascontiguousarray(image)).resize(
                (tile.width, tile.height), Image.Resampling.LANCZOS
            )
            yield np.asarray(reduced)
