"""Pillow's bilinear filter as two matrices, for programs that have no Pillow.

The filter is separable. A row of output pixels is a weighted mean of input pixels under a triangle
as wide as two output pixels, or two input pixels when enlarging; the weights are rounded to
multiples of 2^-22; each of the two passes is rounded to 8 bits. An axis whose length stays is left
alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.prepare import Resizing
from oodcli.errors import InvalidInputError

_PRECISION = 22


def axis_matrix(before: int, after: int) -> NDArray[np.float64]:
    """Return the weights of one axis, ``(after, before)``.

    Parameters
    ----------
    before, after
        Lengths of the axis.

    Notes
    -----
    The weights are whole multiples of 2^-22, so that a product with 8-bit pixels is exact in
    float64, and rounding half up gives Pillow's bits.
    """
    if before == after:
        return np.eye(before)
    scale = before / after
    reach = max(scale, 1.0)
    weights = np.zeros((after, before))
    for row in range(after):
        centre = (row + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), before)
        # Times the reciprocal, and one after the other: the last bit of a weight may decide.
        distance = np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / reach))
        triangle = np.maximum(1.0 - distance, 0.0)
        weights[row, first:last] = triangle / np.cumsum(triangle)[-1]
    return np.floor(weights * 2**_PRECISION + 0.5) / 2**_PRECISION


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
            between = np.floor(pixels @ self.columns.T + 0.5)
            done = self.rows @ between
        else:
            between = np.floor(self.rows @ pixels + 0.5)
            done = between @ self.columns.T
        return np.floor(done + 0.5).astype(np.uint8)


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
        If the installed Pillow rounds in another way.

    Notes
    -----
    Which pass comes first differs between sizes and versions of Pillow; noise tells.
    """
    scaled, (top, left) = resizing.plan(before)
    height, width = resizing.size
    rows = axis_matrix(before[0], scaled[0])[top : top + height]
    columns = axis_matrix(before[1], scaled[1])[left : left + width]
    noise = np.random.default_rng(0).integers(0, 256, (*before, 3), dtype=np.uint8)
    wanted = resizing.apply(noise).transpose(2, 0, 1)
    for columns_first in (True, False):
        found = Matrices(rows, columns, columns_first)
        if np.array_equal(found.apply(noise.transpose(2, 0, 1)), wanted):
            return found
    raise InvalidInputError(
        f"the installed Pillow does not resize {before[0]}x{before[1]} pixels to "
        f"{height}x{width} as it is known to; leave out --input-size, and resize images before"
    )
