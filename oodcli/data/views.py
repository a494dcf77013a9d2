"""Deterministic views of images: plain, or corrupted to serve as pseudo-OOD images.

What is random in a view depends on its seed and on the row of the image in its data set, never on
the batch in which the image comes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError

# A fifth of the range of values, and the noise of equal chances that is about as strong.
NOISE_SD = 51.0
NOISE_WIDTH = 89.0
# A NumPy array or a tensor: images on a device are corrupted by the same functions.
Array = Any


def place_tiles(into: Array, pixels: Array, images: Array, orders: Array, *, tiles: int) -> None:
    """Fill the tiles of images with other tiles of the same or of other images.

    Parameters
    ----------
    into
        The images to fill, ``(m, c, h, w)``. What is left over at the bottom and at the right does
        not change.
    pixels
        The images that tiles come from, ``(n, c, h, w)``.
    images
        Image that each tile comes from, ``(m, tiles²)``, row by row.
    orders
        Number of the tile in that image, ``(m, tiles²)``.
    tiles
        Tiles along each side: a tile has ``h // tiles`` by ``w // tiles`` pixels.

    Raises
    ------
    InvalidInputError
        If an image has fewer pixels along a side than tiles.
    """
    count, channels, height, width = pixels.shape
    tile_h, tile_w = tile_shape(height, width, tiles)
    whole = pixels[:, :, : tiles * tile_h, : tiles * tile_w]
    grid = whole.reshape(count, channels, tiles, tile_h, tiles, tile_w)
    for place in range(tiles**2):
        row, column = divmod(place, tiles)
        from_row, from_column = orders[:, place] // tiles, orders[:, place] % tiles
        top, left = row * tile_h, column * tile_w
        into[:, :, top : top + tile_h, left : left + tile_w] = grid[
            images[:, place], :, from_row, :, from_column
        ]  # (m, c, tile_h, tile_w)


def tile_shape(height: int, width: int, tiles: int) -> tuple[int, int]:
    """Return height and width of a tile in pixels.

    Parameters
    ----------
    height, width
        Those of the image.
    tiles
        Tiles along each side.

    Raises
    ------
    InvalidInputError
        If an image has fewer pixels along a side than tiles.
    """
    if min(height, width) < tiles:
        raise InvalidInputError(
            f"images of {height}x{width} pixels cannot be cut into {tiles}x{tiles} tiles; "
            "use larger images"
        )
    return height // tiles, width // tiles


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
    tile_shape(pixels.shape[2], pixels.shape[3], tiles)
    orders = np.empty((len(pixels), tiles**2), dtype=np.int64)
    for order, index in zip(orders, indices, strict=True):
        # Sorting uniform numbers depends on less of the generator than a permutation does.
        order[:] = np.argsort(np.random.default_rng((seed, int(index))).random(tiles**2))
    shuffled = np.zeros_like(pixels)
    own = np.broadcast_to(np.arange(len(pixels))[:, None], orders.shape)
    place_tiles(shuffled, pixels, own, orders, tiles=tiles)
    return shuffled


def framed(pixels: NDArray[np.uint8], *, tiles: int = 3) -> NDArray[np.uint8]:
    """Blacken the border that :func:`jigsaw` blackens, and leave the tiles where they are.

    With these for comparison, a detector of jigsaws cannot use the black border.

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


def gaussian_noise(
    pixels: NDArray[np.uint8], indices: NDArray[np.int64], *, seed: int = 0
) -> NDArray[np.uint8]:
    """Add normal noise of standard deviation ``NOISE_SD`` to every value, rounded and clipped.

    Parameters
    ----------
    pixels
        Images, ``(n, c, h, w)``.
    indices
        Row of every image in its data set, ``(n,)``.
    seed
        Other seeds give other noise.
    """
    noise = (rng.normal(0.0, NOISE_SD, pixels.shape[1:]) for rng in _generators(seed, indices))
    return _with_noise(pixels, noise)


def uniform_noise(
    pixels: NDArray[np.uint8], indices: NDArray[np.int64], *, seed: int = 0
) -> NDArray[np.uint8]:
    """Add uniform noise from ``-NOISE_WIDTH`` to ``NOISE_WIDTH`` to every value.

    Parameters
    ----------
    pixels, indices, seed
        As for :func:`gaussian_noise`.
    """
    noise = (
        rng.uniform(-NOISE_WIDTH, NOISE_WIDTH, pixels.shape[1:])
        for rng in _generators(seed, indices)
    )
    return _with_noise(pixels, noise)


def blurred(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blur by a Gaussian whose standard deviation is a sixteenth of the shorter side.

    Parameters
    ----------
    pixels
        Images, ``(n, c, h, w)``.

    Notes
    -----
    Beyond the border the image is mirrored, with the last pixel repeated; the kernel ends
    at four standard deviations.
    """
    from scipy.ndimage import gaussian_filter

    sd = min(pixels.shape[2:]) / 16
    # One image at a time, or the copy in floating point would be four times the batch.
    each = [gaussian_filter(image.astype(np.float32), (0, sd, sd)) for image in pixels]
    return whole(np.stack(each)).astype(np.uint8) if each else pixels.copy()


def rotated(pixels: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Turn images by 90, 180 or 270 degrees, by turns of their rows.

    Parameters
    ----------
    pixels
        Images, ``(n, c, h, w)``. Where they are not square, all are turned by 180 degrees.
    indices
        Row of every image in its data set, ``(n,)``: row ``i`` is turned ``1 + i mod 3`` times.
    """
    square = pixels.shape[2] == pixels.shape[3]
    turned = np.empty_like(pixels)
    for image, index, into in zip(pixels, indices, turned, strict=True):
        into[:] = np.rot90(image, 1 + int(index) % 3 if square else 2, axes=(1, 2))
    return turned


def shuffled_pixels(
    pixels: NDArray[np.uint8], indices: NDArray[np.int64], *, seed: int = 0
) -> NDArray[np.uint8]:
    """Shuffle the pixels of images: a jigsaw of tiles of one pixel.

    Parameters
    ----------
    pixels, indices, seed
        As for :func:`gaussian_noise`. The channels of a pixel stay together.
    """
    count = pixels.shape[2] * pixels.shape[3]
    shuffled = np.empty_like(pixels)
    for image, rng, into in zip(pixels, _generators(seed, indices), shuffled, strict=True):
        into[:] = reordered(image[None], np.argsort(rng.random(count))[None])[0]
    return shuffled


def reordered(pixels: Array, orders: Array) -> Array:
    """Return images with their pixels in another order, ``(n, c, h, w)``.

    Parameters
    ----------
    pixels
        Images, ``(n, c, h, w)``. The channels of a pixel stay together.
    orders
        Where each pixel comes from, row by row, ``(n, h w)``.
    """
    count, channels, height, width = pixels.shape
    flat = pixels.reshape(count, channels, height * width).swapaxes(1, 2)  # (n, h w, c)
    # Which image each pixel is of: its row in the orders, as an array of their kind.
    own = (orders * 0 + 1).cumsum(0) - 1
    return flat[own, orders].swapaxes(1, 2).reshape(count, channels, height, width)


def _generators(seed: int, indices: NDArray[np.int64]) -> Iterator[np.random.Generator]:
    return (np.random.default_rng((seed, int(index))) for index in indices)


def _with_noise(
    pixels: NDArray[np.uint8], noise: Iterator[NDArray[np.float64]]
) -> NDArray[np.uint8]:
    noisy = np.empty_like(pixels)
    for image, added, into in zip(pixels, noise, noisy, strict=True):
        into[:] = whole(image + added)
    return noisy


def whole(values: Array) -> Array:
    """Return values as those of pixels: rounded, from 0 to 255; NumPy arrays and tensors alike."""
    return values.round().clip(0, 255)


Kind = Literal[
    "plain", "jigsaw", "framed",
    "gaussian-noise", "uniform-noise", "blur", "rotation", "pixel-shuffle",
]  # fmt: skip
_SEEDED: dict[str, Callable[..., NDArray[np.uint8]]] = {
    "gaussian-noise": gaussian_noise,
    "uniform-noise": uniform_noise,
    "pixel-shuffle": shuffled_pixels,
}


@dataclass(frozen=True, slots=True)
class View:
    """A way to look at images.

    Parameters
    ----------
    kind
        ``plain`` leaves the images as they are; ``jigsaw`` shuffles their tiles; ``framed``
        blackens what the jigsaw does not fill. ``gaussian-noise``, ``uniform-noise``, ``blur``,
        ``rotation`` and ``pixel-shuffle`` are the functions above.
    seed
        Seed of what is random.
    tiles
        Tiles along each side of the jigsaw.
    """

    kind: Kind = "plain"
    seed: int = 0
    tiles: int = 3

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            known = ", ".join(sorted(get_args(Kind)))
            raise InvalidInputError(f"no view {self.kind!r}; there are: {known}")
        if self.seed < 0:
            raise InvalidInputError(f"a jigsaw seed of {self.seed} is negative; give 0 or more")
        if self.tiles < 2:
            raise InvalidInputError(f"a jigsaw needs at least 2 tiles per side, not {self.tiles}")

    def key(self) -> dict[str, str | int | float]:
        """Return what tells this view from others, as JSON; equal views have equal keys."""
        if self.kind in ("plain", "blur", "rotation"):
            return {"kind": self.kind}
        if self.kind == "framed":
            return {"kind": "framed", "tiles": self.tiles}
        if self.kind == "gaussian-noise":
            return {"kind": self.kind, "seed": self.seed, "sd": NOISE_SD}
        if self.kind == "uniform-noise":
            return {"kind": self.kind, "seed": self.seed, "width": NOISE_WIDTH}
        if self.kind == "pixel-shuffle":
            return {"kind": self.kind, "seed": self.seed}
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
        if self.kind == "blur":
            return blurred(pixels)
        if self.kind == "rotation":
            return rotated(pixels, indices)
        if self.kind in _SEEDED:
            return _SEEDED[self.kind](pixels, indices, seed=self.seed)
        return jigsaw(pixels, indices, seed=self.seed, tiles=self.tiles)
