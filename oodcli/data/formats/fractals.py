"""Fractal pictures, computed from a seed: the mixing set of PixMix where the published one is not.

Every picture is the attractor of a random iterated function system, rendered as a "flame": points
move by randomly chosen maps, and each map has a colour. Draves and Reckase, "The Fractal Flame
Algorithm" (2003), describe the method; the choice of maps and colours is this module's own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.images import Part
from oodcli.store.outlier_source import FRACTALS as NAME
from oodcli.store.store import Store

COUNT = 1000
SIDE = 128
VERSION = 1  # of the algorithm: part of the identity of the pictures
_SEED = 3
_CHAINS = 2000
_STEPS = 20
_BURN_IN = 10
# A picture whose points cover less of it than this is drawn again.
_SMALLEST_COVER = 0.1
_TRIES = 4

_Points = NDArray[Any]  # float32


def open_fractals(store: Store) -> Dataset:  # noqa: ARG001 - every opener takes the store
    """Open the fractal pictures; each is computed when it is read."""
    return Dataset(NAME, {"test": Part(FractalSource(COUNT))}, (), "generated", NAME)


@dataclass(frozen=True)
class FractalSource:
    """Fractal pictures.

    Parameters
    ----------
    count
        Number of pictures.
    side
        Height and width in pixels.
    """

    count: int
    side: int = SIDE

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        """Version, seed and size; the number of the pictures changes none of them."""
        return f"fractals-{VERSION}-{_SEED}-{self.side}-{self.count}"

    def read(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """Yield pictures ``start`` to ``stop - 1``, uint8 ``(h, w, 3)``."""
        for row in range(start, stop):
            yield fractal(row, self.side)


def fractal(row: int, side: int) -> NDArray[np.uint8]:
    """Compute a picture from its number, uint8 ``(side, side, 3)``."""
    best, cover = np.zeros((side, side, 3), dtype=np.uint8), -1.0
    for attempt in range(_TRIES):
        picture, covered = _flame(np.random.default_rng((_SEED, row, attempt)), side)
        if covered > cover:
            best, cover = picture, covered
        if cover >= _SMALLEST_COVER:
            break
    return best


# Maps of the plane besides affine ones; see the appendix of the paper.
_VARIATIONS: tuple[Callable[[_Points, _Points], tuple[_Points, _Points]], ...] = (
    lambda x, y: (x, y),
    lambda x, y: (np.sin(x), np.sin(y)),
    lambda x, y: _scaled(x, y, 1 / (x * x + y * y + 1e-6)),
    lambda x, y: _turned(x, y, x * x + y * y),
    lambda x, y: (np.arctan2(x, y) / np.pi, np.sqrt(x * x + y * y) - 1),
    lambda x, y: _turned(x, y, np.sqrt(x * x + y * y)),
    lambda x, y: _scaled(x, y, 4 / (x * x + y * y + 4)),
)


def _scaled(x: _Points, y: _Points, factor: _Points) -> tuple[_Points, _Points]:
    return x * factor, y * factor


def _turned(x: _Points, y: _Points, angle: _Points) -> tuple[_Points, _Points]:
    sine, cosine = np.sin(angle), np.cos(angle)
    return x * sine - y * cosine, x * cosine + y * sine


def _flame(random: np.random.Generator, side: int) -> tuple[NDArray[np.uint8], float]:
    """Draw a random system, and return its picture and the part of it that points cover."""
    maps = int(random.integers(2, 7))
    affine = random.uniform(-1.2, 1.2, (maps, 6)).astype(np.float32)
    affine[:, :4] *= random.uniform(0.5, 1.0, (maps, 1)).astype(np.float32)
    variation = random.integers(len(_VARIATIONS), size=2)
    blend = np.float32(random.uniform(0, 1))
    palette = (random.uniform(0, 1, (maps, 3)) ** 0.7).astype(np.float32)
    x: _Points
    y: _Points
    x, y = random.uniform(-1, 1, (2, _CHAINS)).astype(np.float32)
    colour: _Points = random.uniform(0, 1, (3, _CHAINS)).astype(np.float32)
    places: list[_Points] = []
    colours: list[_Points] = []
    for step in range(_BURN_IN + _STEPS):
        chosen = random.integers(maps, size=_CHAINS)
        a, b, c, d, e, f = affine.T[:, chosen]
        x, y = a * x + b * y + e, c * x + d * y + f
        (x1, y1), (x2, y2) = (_VARIATIONS[each](x, y) for each in variation)
        x, y = blend * x1 + (1 - blend) * x2, blend * y1 + (1 - blend) * y2
        # A point that escapes begins again.
        lost = ~(np.abs(x) + np.abs(y) < 1e3)
        x[lost], y[lost] = 0.1, 0.1
        colour = (colour + palette.T[:, chosen]) / 2
        if step >= _BURN_IN:
            places.append(np.stack([x, y]))
            colours.append(colour)
    return _picture(random, np.concatenate(places, axis=1), np.concatenate(colours, axis=1), side)


def _picture(
    random: np.random.Generator, places: _Points, colours: _Points, side: int
) -> tuple[NDArray[np.uint8], float]:
    """Draw points as a picture, over a gradient of two dark colours.

    Parameters
    ----------
    random
        Random generator of the background and the contrast.
    places
        Coordinates, ``(2, n)``.
    colours
        Their colours from 0 to 1, ``(3, n)``.
    side
        Height and width of the picture.
    """
    low, high = np.quantile(places[:, ::16], (0.02, 0.98), axis=1).astype(np.float32)
    at = (places - low[:, None]) / np.maximum(high - low, 1e-6)[:, None] * side
    inside = ((at >= 0) & (at < side)).all(axis=0)
    column, row = at[:, inside].astype(np.int64)
    pixel = row * side + column
    counts = np.bincount(pixel, minlength=side * side)
    sums = np.stack(
        [
            np.bincount(pixel, weights=colours[channel, inside], minlength=side * side)
            for channel in range(3)
        ],
        axis=1,
    )
    mean = sums / np.maximum(counts, 1)[:, None]
    light = np.log1p(counts) / np.log1p(max(np.quantile(counts[counts > 0], 0.99), 1))
    light = np.minimum(light, 1)[:, None] ** random.uniform(0.4, 0.9)
    slope = np.linspace(0, 1, side)
    slant = random.uniform(0, 1)
    gradient = (slant * slope[:, None] + (1 - slant) * slope[None, :]).reshape(-1, 1)
    first, second = random.uniform(0, 0.5, (2, 3))
    ground = first * gradient + second * (1 - gradient)
    picture = ground * (1 - light) + mean * light
    pixels = np.rint(picture.reshape(side, side, 3).clip(0, 1) * 255).astype(np.uint8)
    return pixels, float((counts > 0).mean())
