"""The sizes that images have before they are resized, and what resizing keeps of them."""

import contextlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import RandomAccess
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import UnreadableImageError
from oodcli.images import ImageSource, evenly_spaced
from oodcli.pools import map_ahead, open_pools, thread_count

# Images that are looked at to tell the sizes of all.
LOOKED_AT = 64
# Images with a median shorter side of so many pixels are far larger than 32 x 32.
LARGE = 64


@dataclass(frozen=True)
class OriginalSizes:
    """Heights and widths of some images of a source, spread over all.

    Parameters
    ----------
    values
        Height and width of each that can be read, in pixels, int64, ``(n, 2)``; `n` may be 0.
    """

    values: NDArray[np.int64]

    @classmethod
    def of(cls, source: ImageSource) -> "OriginalSizes":
        """Look at 64 images at most.

        Parameters
        ----------
        source
            The images; of a source that is read from front to back, such as an array, the first.

        Notes
        -----
        Of image files only the headers are read.
        """
        rows = evenly_spaced(len(source), LOOKED_AT)
        if isinstance(source, RandomAccess):
            each = [source.take(rows[at : at + 1]) for at in range(len(rows))]
            with open_pools() as pools:
                ones = map_ahead(pools.threads(), _sizes, each, depth=thread_count())
                found = [size for sizes in ones for size in sizes]
        else:
            found = _sizes(source, len(rows))
        return cls(np.array(found, dtype=np.int64).reshape(-1, 2))

    @property
    def shorter_side(self) -> int:
        """Median of the shorter sides, in pixels; 0 if no image can be read."""
        return int(np.median(self.values.min(axis=1))) if len(self.values) else 0

    @property
    def are_large(self) -> bool:
        """Whether the images are far larger than 32 x 32."""
        return self.shorter_side >= LARGE

    @property
    def are_square(self) -> bool:
        """Whether all have the same height as width."""
        return bool((self.values[:, 0] == self.values[:, 1]).all())

    def differ_from(self, size: tuple[int, int]) -> bool:
        """Return whether any has another height or width.

        Parameters
        ----------
        size
            Height and width, in pixels.
        """
        return bool((self.values != np.array(size)).any())

    def __str__(self) -> str:
        """Return the size of all, or the smallest, the median and the largest by area."""
        if not len(self.values):
            return "of unknown size"
        order = np.argsort(self.values.prod(axis=1), kind="stable")
        few, middle, many = (
            "{} x {}".format(*self.values[order[at]]) for at in (0, (len(order) - 1) // 2, -1)
        )
        if few == many:
            return f"{few} pixels"
        return f"{few} to {many} pixels, {middle} in the middle"

    def kept(self, resizing: Resizing) -> str:
        """Describe what resizing keeps of the images; empty if it changes none of them.

        Parameters
        ----------
        resizing
            How they get to their size.

        Notes
        -----
        Shares are means over the images that were looked at: of the area of an image that is not
        cut off, and of its pixels, which is the area of the result in pixels over that of the
        original; enlarged images keep all.
        """
        height, width = resizing.size
        if not len(self.values) or not self.differ_from(resizing.size):
            return ""
        shares, ratios, stretched = [], [], []
        for before in self.values:
            (high, wide), _ = resizing.plan((int(before[0]), int(before[1])))
            area = height * width / (high * wide)
            shares.append(area)
            ratios.append(height * width / (before[0] * before[1] * area))
            stretched.append(abs(high * before[1] / (wide * before[0]) - 1))
        area, ratio = float(np.mean(shares)), float(np.mean(ratios))
        said = [f"{100 * area:.0f} % of the area"]
        if ratio < 1:
            said.append(f"{_percent(ratio)} of the pixels there")
        text = f"this keeps {' and '.join(said)}"
        if ratio > 1:
            text += f", enlarged {ratio**0.5:.1f} times"
        if len(np.unique(self.values, axis=0)) > 1:
            text += ", on average"
        # Rounding to whole pixels is no change of form.
        if np.median(stretched) > 0.05:
            text += "; height and width are scaled differently"
        return text


def _sizes(source: ImageSource, count: int = 1) -> list[tuple[int, int]]:
    """Return height and width of the first images that can be read."""
    size_of = getattr(source, "size_of", None)
    if size_of is not None:
        found = []
        for row in range(count):
            with contextlib.suppress(UnreadableImageError):
                found.append(size_of(row))
        return found
    return [
        (image.shape[0], image.shape[1])
        for image in source.read(0, count)
        if not isinstance(image, UnreadableImageError)
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
