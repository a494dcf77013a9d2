"""Pillow's filters as two matrices, for programs that have no Pillow.

A filter is separable. A row of output pixels is a weighted mean of input pixels under a kernel,
such as a triangle as wide as two output pixels, or two input pixels when enlarging; the weights are
rounded to multiples of 2^-22; each of the two passes is rounded and clipped to 8 bits. The nearest
pixel has the weight 1. An axis whose length stays is left alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import InvalidInputError
from oodcli.resizing import BILINEAR

_PRECISION = 22


def _triangle(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _cubic(x: float) -> float:
    """Return Keys' cubic kernel with a = -1/2, in the order of Pillow's operations."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


def _windowed_sinc(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)


# Kernels by filter, and how far they reach, in pixels of the longer axis.
_KERNELS: dict[str, tuple[Callable[[float], float], float]] = {
    BILINEAR: (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_windowed_sinc, 3.0),
}


def axis_matrix(before: int, after: int, filter_: str = BILINEAR) -> NDArray[np.float64]:
    """Return the weights of one axis, ``(after, before)``.

    Parameters
    ----------
    before, after
        Lengths of the axis.
    filter_
        ``bilinear``, ``bicubic``, ``lanczos`` or ``nearest``.

    Notes
    -----
    The weights are whole multiples of 2^-22, so that a product with 8-bit pixels is exact in
    float64, and rounding half up gives Pillow's bits.
    """
    if before == after:
        return np.eye(before)
    if filter_ == "nearest":
        places = Image.fromarray(np.arange(before, dtype=np.int32)[None])
        return np.eye(before)[np.asarray(places.resize((after, 1), Image.Resampling.NEAREST))[0]]
    kernel, support = _KERNELS[filter_]
    scale = before / after
    stretch = max(scale, 1.0)
    reach = support * stretch
    weights = np.zeros((after, before))
    for row in range(after):
        centre = (row + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), before)
        # Times the reciprocal, and one after the other: the last bit of a weight may decide.
        distances = (np.arange(first, last) - centre + 0.5) * (1.0 / stretch)
        values = np.array([kernel(distance) for distance in distances.tolist()])
        weights[row, first:last] = values / np.cumsum(values)[-1]
    # Away from zero, where a half is between two.
    return np.trunc(weights * 2**_PRECISION + np.copysign(0.5, weights)) / 2**_PRECISION


@dataclass(frozen=True, slots=True)
class Matrices:
    """What resizes images of one size, cutting out the centre included.

    Parameters
    ----------
    rows
        Weights of rows, ``(h, before_h)``.
    columns
        Weights of columns, ``(w, before_w)``.
    columns_first
        Whether columns are made before rows.
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    columns_first: bool

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return images ``(…, before_h, before_w)`` at the new size, ``(…, h, w)``."""
        if self.columns_first:
            between = _whole(pixels @ self.columns.T)
            done = self.rows @ between
        else:
            between = _whole(self.rows @ pixels)
            done = between @ self.columns.T
        return _whole(done).astype(np.uint8)


def _whole(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.floor(values + 0.5).clip(0, 255)


def resizing_matrices(resizing: Resizing, before: tuple[int, int]) -> Matrices:
    """Return the matrices that do what a resizing does with images of one size.

    Parameters
    ----------
    resizing
        Where the images go.
    before
        Their height and width.

    Raises
    ------
    InvalidInputError
        If JPEG files are decoded at a reduced size, the installed Pillow rounds in another way, or
        the filter does not round to 8 bits.

    Notes
    -----
    Which pass comes first differs between sizes and versions of Pillow; it is measured with noise.
    """
    if resizing.way.draft:
        raise InvalidInputError(
            "the run decodes JPEG files at a reduced size (--jpeg-draft), and a graph that resizes "
            "gets whole images, so scores would differ; omit --input-size, or import or train the "
            "network without --jpeg-draft"
        )
    filter_ = resizing.way.used
    if filter_ != "nearest" and filter_ not in _KERNELS:
        raise InvalidInputError(
            f"a graph cannot resize by {filter_}: it would add in another order, so some pixels "
            "would differ by one level; omit --input-size, and resize images before"
        )
    scaled, (top, left) = resizing.plan(before)
    height, width = resizing.size
    rows = axis_matrix(before[0], scaled[0], filter_)[top : top + height]
    columns = axis_matrix(before[1], scaled[1], filter_)[left : left + width]
    noise = np.random.default_rng(0).integers(0, 256, (*before, 3), dtype=np.uint8)
    wanted = resizing.apply(noise).transpose(2, 0, 1)
    for columns_first in (True, False):
        found = Matrices(rows, columns, columns_first)
        if np.array_equal(found.apply(noise.transpose(2, 0, 1)), wanted):
            return found
    raise InvalidInputError(
        f"the installed Pillow does not resize {before[0]}x{before[1]} pixels to "
        f"{height}x{width} as expected; omit --input-size, and resize images before"
    )
