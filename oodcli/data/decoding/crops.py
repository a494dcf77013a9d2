"""Random parts of images, as torchvision's ``RandomResizedCrop`` draws them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.data.decoding.scaling import scaled
from oodcli.resizing import BILINEAR

# Smallest and largest ratio of width to height, and how often a part is drawn that does not fit.
ASPECT = (3 / 4, 4 / 3)
TRIES = 10


@dataclass(frozen=True)
class RandomCrops:
    """Cuts random boxes out of an image, and resizes each to one size.

    Parameters
    ----------
    size
        Height and width of what comes out.
    scale
        Smallest and largest share of the area.
    seed, epoch
        Where chance comes from, with the row of the image and the number of the view: crops are the
        same in whatever order, and by however many processes, images are read.
    views
        How many boxes are cut out of each image.
    filter
        Which filter resizes a box, as :data:`oodcli.resizing.FILTERS` has it.

    Notes
    -----
    Boxes have the distribution, and pixels are those, of torchvision's ``RandomResizedCrop`` for an
    image of Pillow: cut, then resized by Pillow's filter, which averages when it shrinks.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    seed: int
    epoch: int
    views: int = 1
    filter: str = BILINEAR

    def apply(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """Return the views of an image, uint8 ``(v, 3, h, w)``.

        Parameters
        ----------
        image
            Pixels, ``(h, w, 3)``.
        row
            Its row in the source.
        """
        views = np.empty((self.views, 3, *self.size), dtype=np.uint8)
        for view in range(self.views):
            chance = np.random.default_rng((self.seed, self.epoch, row, view))
            top, left, height, width = random_box(
                image.shape[0], image.shape[1], self.scale, chance
            )
            part = np.ascontiguousarray(image[top : top + height, left : left + width])
            views[view] = scaled(part, *self.size, self.filter).transpose(2, 0, 1)
        return views


def random_box(
    height: int, width: int, scale: tuple[float, float], chance: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a box within an image.

    Parameters
    ----------
    height, width
        Size of the image.
    scale
        Smallest and largest share of its area, drawn evenly; the ratio of width to height is from
        3/4 to 4/3, even on a logarithmic scale.
    chance
        Random number generator.

    Returns
    -------
    tuple
        First row, first column, height and width. A box that is not within the image is drawn
        again, ten times at most; then it is the largest centred one with a possible ratio.
    """
    low, high = (math.log(ratio) for ratio in ASPECT)
    for _ in range(TRIES):
        area = chance.uniform(*scale) * height * width
        ratio = math.exp(chance.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(chance.integers(0, height - box_height + 1))
            left = int(chance.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    box_width = round(height * ASPECT[1]) if width / height > ASPECT[1] else width
    box_height = round(width / ASPECT[0]) if width / height < ASPECT[0] else height
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
