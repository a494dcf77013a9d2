"""Images of any size at one size: the arithmetic behind ``--resize``."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.errors import InvalidInputError
from oodcli.resizing import BILINEAR, Resize


@dataclass(frozen=True)
class Resizing:
    """How images of any size are brought to one size.

    Parameters
    ----------
    size
        Height and width of the images that come out.
    how
        ``exact``, ``shorter-crop`` or ``shorter-crop:SIDE``, with or without a filter and
        ``draft`` behind it, as :class:`oodcli.resizing.Resize` reads it.

    Raises
    ------
    InvalidInputError
        If ``how`` is none of these, or the side is shorter than ``size``.
    """

    size: tuple[int, int]
    how: str = "exact"

    def __post_init__(self) -> None:
        side = self.way.side
        if side is not None and side < max(self.size):
            height, width = self.size
            raise InvalidInputError(
                f"--resize {self.how} leaves images smaller than {height} x {width}, the size of "
                f"the network; give a side from {max(self.size)} on, or another --image-size"
            )

    @property
    def way(self) -> Resize:
        """``how``, taken apart."""
        return Resize.of(self.how)

    @property
    def key(self) -> str:
        """What tells the pixels from those of other ways."""
        way = self.way
        key = f"{way.used}, {way.how}" if way.crops else way.used
        return f"{key}, draft" if way.draft else key

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image at the size.

        Parameters
        ----------
        image
            Pixels, ``(h, w, 3)``.
        """
        height, width = self.size
        larger, (top, left) = self.plan((image.shape[0], image.shape[1]))
        return scaled(image, *larger, self.way.used)[top : top + height, left : left + width]

    def plan(self, before: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size that images of a size are scaled to, and the corner to cut from there.

        Parameters
        ----------
        before
            Height and width.
        """
        way = self.way
        if not way.crops:
            return self.size, (0, 0)
        side = way.side or max(self.size)
        # Integer division rounds the longer side down, as torchvision does.
        height, width = (side * length // min(before) for length in before)
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        return (height, width), (top, left)


def scaled(
    image: NDArray[np.uint8], height: int, width: int, filter_: str = BILINEAR
) -> NDArray[np.uint8]:
    """Return an image at the wanted height and width.

    Parameters
    ----------
    image
        Pixels, ``(h, w, 3)``.
    height, width
        Of what comes out.
    filter_
        One of :data:`oodcli.resizing.FILTERS`.

    Notes
    -----
    ``bicubic-torchvision`` is Pillow's bicubic filter on floating-point pixels, rounded and clipped
    at the end: the kernel is that of torch's antialiased filter (``a = -0.5``). Torch's weights are
    in float32, so that about 3 values of 10,000, whose sums are near a half, are one level off.
    """
    if image.shape[:2] == (height, width):
        return image
    if filter_ != "bicubic-torchvision":
        how = Image.Resampling[filter_.upper()]
        return np.asarray(Image.fromarray(image).resize((width, height), how))
    channels = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC))
        for channel in np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    ]
    return np.rint(np.stack(channels, axis=2)).clip(0, 255).astype(np.uint8)
