"""Deterministic views of images: plain, or cut into tiles that change places or stay."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError


def jigsaw(
    pixels: NDArray[np.uint8], indices: NDArray[np.int64], *, seed: int = 0, tiles: int = 3
) -> NDArray[np.uint8]:
    """Cut images into tiles and shuffle them: pseudo-OOD images.

    Parameters
    ----------
    pixels
        Images, ``(n, c, h, w)``.
    indices
        Row of every image in its data set, ``(n,)``. Seed and row fix the order of the tiles, in
        whatever batch the image comes.
    seed
        Other seeds give other orders.
    tiles
        Tiles along each side.

    Returns
    -------
    shuffled
        Images of the same shape. What is left over at the bottom and at the right is 0.

    Raises
    ------
    InvalidInputError
        If an image has fewer pixels along a side than tiles.

    References
    ----------
    Yu, Shin, Lee, Jun, Lee. "Block Selection Method for Using Feature Norm in Out-of-Distribution
    Detection". CVPR 2023, arXiv:2212.02295. Pseudo-OOD images for NormRatio.

    Notes
    -----
    Every order of the tiles is as likely as any other, the original one included. The released code
    draws without a seed, a new order at each access; here an image has one order for each seed. It
    takes the side of a tile from the height alone; here a tile is ``h // tiles`` by ``w // tiles``,
    which is the same for square images. The black border (2 pixels of 32) is that of the
    released code.
    """
    count, channels, height, width = pixels.shape
    tile_h, tile_w = height // tiles, width // tiles
    if min(tile_h, tile_w) < 1:
        raise InvalidInputError(
            f"images of {height}x{width} pixels cannot be cut into {tiles}x{tiles} tiles; "
            "use larger images"
        )
    whole = pixels[:, :, : tiles * tile_h, : tiles * tile_w]
    grid = whole.reshape(count, channels, tiles, tile_h, tiles, tile_w)
    every = np.arange(count)
    orders = np.empty((count, tiles**2), dtype=np.int64)
    for order, index in zip(orders, indices, strict=True):
        # Sorting uniform numbers depends on less of the generator than a permutation does.
        order[:] = np.argsort(np.random.default_rng((seed, int(index))).random(tiles**2))
    shuffled = np.zeros_like(pixels)
    for place in range(tiles**2):
        row, column = divmod(place, tiles)
        from_row, from_column = np.divmod(orders[:, place], tiles)
        top, left = row * tile_h, column * tile_w
        shuffled[:, :, top : top + tile_h, left : left + tile_w] = grid[
            every, :, from_row, :, from_column
        ]  # (n, c, tile_h, tile_w)
    return shuffled


def framed(pixels: NDArray[np.uint8], *, tiles: int = 3) -> NDArray[np.uint8]:
    """Blacken the border that :func:`jigsaw` blackens, and leave the tiles where they are.

    A detector of jigsaws that is compared with these cannot live on the black border.

    Parameters
    ----------
    pixels
        Images, ``(n, c, h, w)``.
    tiles
        Tiles along each side.
    """
    height, width = pixels.shape[2:]
    bordered = pixels.copy()
    bordered[:, :, tiles * (height // tiles) :] = 0
    bordered[:, :, :, tiles * (width // tiles) :] = 0
    return bordered


@dataclass(frozen=True, slots=True)
class View:
    """A way to look at images.

    Parameters
    ----------
    kind
        ``plain`` leaves the images as they are; ``jigsaw`` shuffles their tiles; ``framed``
        blackens what the jigsaw does not fill.
    seed
        Seed of the jigsaw.
    tiles
        Tiles along each side of the jigsaw.
    """

    kind: Literal["plain", "jigsaw", "framed"] = "plain"
    seed: int = 0
    tiles: int = 3

    def __post_init__(self) -> None:
        if self.kind not in ("plain", "jigsaw", "framed"):
            raise InvalidInputError(f"no view {self.kind!r}; there are: framed, jigsaw, plain")
        if self.seed < 0:
            raise InvalidInputError(f"a jigsaw seed of {self.seed} is negative; give 0 or more")
        if self.tiles < 2:
            raise InvalidInputError(f"a jigsaw needs 2 tiles a side or more, not {self.tiles}")

    def key(self) -> dict[str, str | int]:
        """Return what tells this view from others, as JSON; equal views have equal keys."""
        if self.kind == "plain":
            return {"kind": "plain"}
        if self.kind == "framed":
            return {"kind": "framed", "tiles": self.tiles}
        return {"kind": "jigsaw", "seed": self.seed, "tiles": self.tiles}

    def apply(self, pixels: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images as this view shows them.

        Parameters
        ----------
        pixels
            Images, ``(n, c, h, w)``.
        indices
            Row of every image in its data set, ``(n,)``.
        """
        if self.kind == "plain":
            return pixels
        if self.kind == "framed":
            return framed(pixels, tiles=self.tiles)
        return jigsaw(pixels, indices, seed=self.seed, tiles=self.tiles)
