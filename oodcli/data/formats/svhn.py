"""SVHN as published: house numbers in .mat files.

References
----------
Netzer, Wang, Coates, Bissacco, Wu, Ng. "Reading Digits in Natural Images with Unsupervised Feature
Learning". NIPS workshop on deep learning and unsupervised feature learning, 2011.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.data.formats.arrays import WholeFileSource
from oodcli.data.formats.mat import read_mat
from oodcli.errors import CorruptArtifactError, MissingArtifactError
from oodcli.files import reading
from oodcli.images import Part
from oodcli.store.store import Store

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
CLASSES = tuple("0123456789")
PER_DIGIT = 1000


def open_svhn(folder: Path, store: Store) -> Dataset:  # noqa: ARG001 - as every opener
    """Open SVHN, cropped digits; the digit 0, which its files label 10, is class 0.

    Raises
    ------
    MissingArtifactError
        If the folder has no file of it.
    CorruptArtifactError
        If a file is damaged.
    """
    parts = {}
    for part, file in FILES.items():
        path = folder / file
        if path.is_file():
            labels = _labels(path)
            parts[part] = Part(WholeFileSource(path, len(labels), _images), labels)
    if "test" not in parts:
        raise MissingArtifactError(
            f"svhn is not in {folder}: it holds no {FILES['test']}; run: ood datasets download svhn"
        )
    return Dataset("svhn", parts, CLASSES, str(folder), "svhn")


def first_of_each_digit(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the first 1,000 images of each digit, ascending.

    Parameters
    ----------
    labels
        Digit of every image, ``(n,)``.

    References
    ----------
    Sun, Ming, Zhu, Li. "Out-of-Distribution Detection with Deep Nearest Neighbors". ICML 2022,
    arXiv:2204.06507. The released code takes these images of the test part of SVHN.
    """
    rows = [np.flatnonzero(labels == digit)[:PER_DIGIT] for digit in range(10)]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def _images(path: Path) -> NDArray[np.uint8]:
    """Return all images of a file, ``(n, 32, 32, 3)``."""
    images = _array(path, "X")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise CorruptArtifactError(
            f"{path}: X is {images.dtype} of shape {images.shape}, not uint8 (h, w, 3, n); "
            "get it again"
        )
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2))  # (n, h, w, 3)


def _labels(path: Path) -> NDArray[np.int64]:
    """Return the digit of every image, ``(n,)``."""
    values = _array(path, "y").ravel()
    if values.dtype.kind not in "iuf" or not np.isin(values, np.arange(1, 11)).all():
        raise CorruptArtifactError(f"{path}: y has other labels than 1 to 10; get it again")
    return values.astype(np.int64) % 10


def _array(path: Path, name: str) -> NDArray[Any]:
    """Read one array of a MATLAB file."""
    with reading(path, wrong="is not a MATLAB file of SVHN", cure="get it again"):
        found = read_mat(path, name)
    if found is None:
        raise CorruptArtifactError(f"{path} has no array {name!r}; get it again")
    return found
