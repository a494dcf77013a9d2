"""Clusters of images by their features: k-means, with a number of clusters by the silhouette."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_AUTO = 12
"""The largest number of clusters that is tried if none is given."""

_SAMPLE = 2000
_FITTED = 10_000
_STARTS = 5


@dataclass(frozen=True, eq=False)
class Clustering:
    """Clusters, the largest first.

    Parameters
    ----------
    numbers
        Number of the cluster of every image, from 1, int64 ``(n,)``.
    distances
        Squared distance of the unit feature of every image to the centre of its cluster, ``(n,)``.
    silhouette
        Mean silhouette coefficient, from -1 to 1, of up to 2,000 images; None for one cluster.
    """

    numbers: NDArray[np.int64]
    distances: NDArray[np.float64]
    silhouette: float | None


def unit_rows(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return features divided by their lengths, ``(n, d)``; a feature of length 0 stays 0."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(lengths, 1e-10)).astype(np.float32)


def clustered(units: NDArray[np.float32], k: int | None, *, seed: int) -> Clustering:
    """Cluster unit features by k-means.

    Parameters
    ----------
    units
        Features of length 1 or 0, ``(n, d)``, at least one row.
    k
        Number of clusters; None for the number from 2 to :data:`MAX_AUTO` with the largest mean
        silhouette. There are no more than different features.
    seed
        Seed of the starts of k-means and of the sample behind the silhouette.

    Returns
    -------
    Clustering
        Clusters numbered from 1 in falling order of their size; of equal ones, that of the first
        image comes first.

    References
    ----------
    Rousseeuw. "Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis". Journal of Computational and Applied Mathematics 20, 1987.
    """
    different = len(np.unique(units, axis=0))
    if k is None:
        numbers = range(2, min(MAX_AUTO, different - 1, len(units) - 1) + 1)
        rng = np.random.default_rng(seed)
        few = units[np.sort(rng.permutation(len(units))[:_FITTED])]
        ratings = {each: _silhouette(few, _fit(few, each, seed)[0], seed) for each in numbers}
        k = max(ratings, key=lambda each: ratings[each], default=1)
    labels, distances = _fit(units, min(k, different), seed)
    found, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    rank = np.empty(len(found), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(1, len(found) + 1)
    several = 2 <= len(found) < len(units)
    return Clustering(
        rank[np.searchsorted(found, labels)],
        distances,
        _silhouette(units, labels, seed) if several else None,
    )


def _fit(
    units: NDArray[np.float32], k: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the cluster of every image, and its squared distance to the centre."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(k, n_init=_STARTS, random_state=seed).fit(units)
    centres = found.cluster_centers_[found.labels_]
    return found.labels_.astype(np.int64), np.square(units - centres).sum(axis=1, dtype=np.float64)


def _silhouette(units: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> float:
    """Return the mean silhouette of a sample that has images of several clusters, else -1."""
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(units))[:_SAMPLE]
    if not 2 <= len(np.unique(labels[rows])) < len(rows):
        return -1.0
    return float(silhouette_score(units[rows], labels[rows]))
