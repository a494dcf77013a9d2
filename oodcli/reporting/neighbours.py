"""Nearest training images by stored features; no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training images of some images, nearest first.

    Parameters
    ----------
    rows
        Row numbers of the training images, ``(n, k)``.
    distances
        Squared distances between unit vectors, from 0 to 4, ``(n, k)``.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float32]


def nearest(features: Features, training: Iterable[Features], k: int) -> Nearest:
    """Find the training images whose features have the most similar direction.

    Parameters
    ----------
    features
        Inputs of the last layer, ``(n, d)``.
    training
        Those of the training images in order, in chunks ``(m, d)``; only one chunk is in memory.
    k
        Number of neighbours; all training images if there are fewer.

    Notes
    -----
    Features are divided by their lengths, as by the method ``knn``, and as there a feature of
    length zero is at distance 1 from every direction, and 0 from another one. Distances are
    computed from products in single precision: those below 1e-6 may be 0.
    """
    queries = _units(features)
    lengths = np.square(queries).sum(axis=1, keepdims=True)
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    first = 0
    for chunk in training:
        vectors = _units(chunk)
        distances = lengths + np.square(vectors).sum(axis=1) - 2 * (queries @ vectors.T)
        at = np.broadcast_to(np.arange(first, first + len(vectors)), distances.shape)
        best, rows = _smallest(
            np.concatenate([best, distances], axis=1), np.concatenate([rows, at], axis=1), k
        )
        first += len(vectors)
    order = np.argsort(best, axis=1, kind="stable")
    return Nearest(
        np.take_along_axis(rows, order, axis=1),
        np.clip(np.take_along_axis(best, order, axis=1), 0, 4),
    )


def _units(features: Features) -> NDArray[np.float32]:
    values = np.asarray(features, np.float32)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)


def _smallest(
    distances: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the ``k`` smallest distances of every row, in any order, and what they are of."""
    if distances.shape[1] <= k:
        return distances, rows
    at = np.argpartition(distances, k - 1, axis=1)[:, :k]
    return np.take_along_axis(distances, at, axis=1), np.take_along_axis(rows, at, axis=1)
