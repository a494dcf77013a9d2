"""Data sets that need no download: digits and photographs inside scikit-learn, and noise."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.data.dataset import Dataset, stratified
from oodcli.data.formats.arrays import ArraySource
from oodcli.images import Part
from oodcli.store.store import Store

ID_DIGITS = 6
SPLIT_SEED = 0
TEST_SHARE = 0.2
VAL_SHARE = 0.1
CROP = 32
NOISE_IMAGES = 1000
GAUSSIAN_SEED = 1
UNIFORM_SEED = 2

_SCIKIT_LEARN = "inside scikit-learn"


@cache
def _load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all handwritten digits, ``(1797, 8, 8)``, and their classes, ``(1797,)``."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    # Values run from 0 to 16.
    pixels = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return pixels, labels.astype(np.int64)


def open_digits(store: Store) -> Dataset:  # noqa: ARG001 - every opener takes the store
    """Open the digits 0 to 5, 8x8 pixels, in fixed parts of about 70, 10 and 20 %."""
    pixels, labels = _load_digits()
    pixels, labels = pixels[labels < ID_DIGITS], labels[labels < ID_DIGITS]
    count = len(labels)
    test = stratified(labels, round(TEST_SHARE * count), seed=SPLIT_SEED)
    rest = np.setdiff1d(np.arange(count), test)
    val = rest[stratified(labels[rest], round(VAL_SHARE * count), seed=SPLIT_SEED)]
    train = np.setdiff1d(rest, val)
    parts = {
        name: Part(ArraySource(pixels[rows]), labels[rows])
        for name, rows in (("train", train), ("val", val), ("test", test))
    }
    names = tuple(str(digit) for digit in range(ID_DIGITS))
    return Dataset("digits", parts, names, _SCIKIT_LEARN, "digits")


def open_other_digits(store: Store) -> Dataset:  # noqa: ARG001 - every opener takes the store
    """Open the digits 6 to 9, which `open_digits` excludes."""
    pixels, labels = _load_digits()
    return _plain("digits-6-9", pixels[labels >= ID_DIGITS], _SCIKIT_LEARN)


def open_photographs(store: Store) -> Dataset:  # noqa: ARG001 - every opener takes the store
    """Open crops of two colour photographs."""
    return _plain("photographs", _crops(), _SCIKIT_LEARN)


def open_grey_photographs(store: Store) -> Dataset:  # noqa: ARG001 - every opener takes the store
    """Open crops of two photographs without their colour (ITU-R 601 luma)."""
    grey = np.stack([np.asarray(Image.fromarray(crop).convert("L")) for crop in _crops()])
    return _plain("photographs-grey", grey, _SCIKIT_LEARN)


@cache
def _crops() -> NDArray[np.uint8]:
    """Cut both photographs into all 32x32 squares that fit side by side, ``(520, 32, 32, 3)``."""
    from sklearn.datasets import load_sample_images

    crops = []
    for photograph in load_sample_images().images:
        rows, columns = photograph.shape[0] // CROP, photograph.shape[1] // CROP
        whole = photograph[: rows * CROP, : columns * CROP]
        grid = whole.reshape(rows, CROP, columns, CROP, 3).transpose(0, 2, 1, 3, 4)
        crops.append(grid.reshape(-1, CROP, CROP, 3))
    return np.concatenate(crops)


def open_gaussian_noise(store: Store) -> Dataset:  # noqa: ARG001 - every opener takes the store
    """Open images whose values are drawn from N(0.5, 1) and clipped to [0, 1].

    References
    ----------
    Liang, Li, Srikant. "Enhancing the Reliability of Out-of-distribution Image Detection in Neural
    Networks". ICLR 2018, arXiv:1706.02690.
    """
    generator = np.random.default_rng(GAUSSIAN_SEED)
    values = generator.standard_normal((NOISE_IMAGES, CROP, CROP, 3)) + 0.5
    return _plain("gaussian-noise", _to_bytes(values.clip(0, 1)), "generated")


def open_uniform_noise(store: Store) -> Dataset:  # noqa: ARG001 - every opener takes the store
    """Open images whose values are drawn from the uniform distribution on [0, 1].

    References
    ----------
    Liang, Li, Srikant. "Enhancing the Reliability of Out-of-distribution Image Detection in Neural
    Networks". ICLR 2018, arXiv:1706.02690.
    """
    generator = np.random.default_rng(UNIFORM_SEED)
    return _plain(
        "uniform-noise", _to_bytes(generator.random((NOISE_IMAGES, CROP, CROP, 3))), "generated"
    )


def _to_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(values * 255).astype(np.uint8)


def _plain(name: str, images: NDArray[np.uint8], location: str) -> Dataset:
    return Dataset(name, {"test": Part(ArraySource(images))}, (), location, name)
