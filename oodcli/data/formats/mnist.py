"""MNIST as published: digits in idx files.

References
----------
LeCun, Bottou, Bengio, Haffner. "Gradient-based learning applied to document recognition".
Proceedings of the IEEE, 1998.
"""

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset
from oodcli.data.formats.arrays import WholeFileSource
from oodcli.errors import MissingArtifactError
from oodcli.files import reading
from oodcli.images import Part
from oodcli.store.store import Store

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
CLASSES = tuple("0123456789")

_MAX_BYTES = 1 << 30


def open_mnist(folder: Path, store: Store) -> Dataset:  # noqa: ARG001 - as every opener
    """Open MNIST.

    Raises
    ------
    MissingArtifactError
        If the folder does not have the files of the test part.
    CorruptArtifactError
        If a file is damaged.
    """
    parts = {}
    for part, names in FILES.items():
        images, labels = (_plain_or_packed(folder / name) for name in names)
        if images is not None and labels is not None:
            values = read_idx(labels, dimensions=1).astype(np.int64)
            parts[part] = Part(WholeFileSource(images, len(values), _images), values)
    if "test" not in parts:
        raise MissingArtifactError(
            f"mnist is not in {folder}: it holds no {' and '.join(FILES['test'])}; "
            "run: ood datasets download mnist"
        )
    return Dataset("mnist", parts, CLASSES, str(folder), "mnist")


def _plain_or_packed(path: Path) -> Path | None:
    return next((p for p in (path, path.with_suffix("")) if p.is_file()), None)


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read an array of bytes from an idx file, compressed with gzip or not.

    Parameters
    ----------
    path
        The file.
    dimensions
        How many dimensions the array must have.

    Raises
    ------
    CorruptArtifactError
        If the file is not such an array, or cut short.
    """
    with reading(path, wrong="is not an idx file", cure="get it again"):
        return _idx_array(path, dimensions)


def _idx_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        with gzip.open(path) as file:
            content = file.read(_MAX_BYTES)
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"it does not start like an array of {dimensions} dimensions")
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _images(path: Path) -> NDArray[np.uint8]:
    return read_idx(path, dimensions=3)
