"""Features in two dimensions: principal components, and t-SNE; no torch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 5000
"""Number of images of a map at most: t-SNE of so many takes about 12 seconds of one core."""
PERPLEXITY = 30.0
ITERATIONS = 500
_COMPONENTS = 50
_TINY = float(np.finfo(np.float64).tiny)

Points = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Plane:
    """Images on the plane of the first two principal components.

    Parameters
    ----------
    points
        Coordinates, in units of the features, ``(n, 2)``.
    shares
        Share of the total variance along each axis.
    """

    points: Points
    shares: tuple[float, float]


def principal_plane(features: NDArray[np.floating[Any]]) -> Plane:
    """Project features onto their first two principal components.

    Parameters
    ----------
    features
        One row per image, ``(n, d)``; at least one row.

    Notes
    -----
    The sign of an axis is such that the feature that weighs most on it has a positive weight, so
    that the plane does not depend on the solver.
    """
    scores, shares = _components(features, 2)
    return Plane(scores.astype(np.float32), (float(shares[0]), float(shares[1])))


def neighbour_map(features: NDArray[np.floating[Any]], *, seed: int = 0) -> Points | None:
    """Return a t-SNE map, ``(n, 2)``: images with near features are near each other.

    Distances between groups, and the extent of a group, have no meaning in it.

    Parameters
    ----------
    features
        One row per image, ``(n, d)``, up to ``MAX_POINTS``.
    seed
        Seed of the approximation of the principal components that the map starts from, and of the
        optimisation.

    Returns
    -------
    points
        None for fewer than four images, for which there is no map.

    References
    ----------
    van der Maaten, Hinton. "Visualizing Data using t-SNE". JMLR 2008; van der Maaten. "Accelerating
    t-SNE using Tree-Based Algorithms". JMLR 2014.

    Notes
    -----
    Euclidean distances of the first 50 principal components, perplexity 30 (a third of the number
    of images, if there are fewer than 90), started from the first two components; 500 iterations,
    where scikit-learn has 1,000 by default: for half of the time, the divergence of a map of 5,000
    features of a CIFAR-10 network is 9 % larger.
    """
    if len(features) < 4:
        return None
    from sklearn.manifold import TSNE

    reduced, _ = _components(features, min(_COMPONENTS, *features.shape))
    if reduced.shape[1] < 2 or not np.ptp(reduced, axis=0).any():
        return np.zeros((len(features), 2), np.float32)
    start = 1e-4 * reduced[:, :2] / reduced[:, 0].std()
    embedding = TSNE(
        perplexity=min(PERPLEXITY, (len(features) - 1) / 3),
        init=start.astype(np.float32),
        max_iter=ITERATIONS,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Equal images are at distance 0 from each other, and single precision suffices for a map.
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(embedding.fit_transform(reduced), dtype=np.float32)


def _components(
    features: NDArray[np.floating[Any]], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coordinates along the first principal components, and their shares of the variance.

    Directions beyond the number of features have coordinate and share 0.
    """
    centred = np.asarray(features, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    n, width = centred.shape
    if n < width:  # the same components from the smaller matrix of products
        values, vectors = np.linalg.eigh(centred @ centred.T)
        axes = centred.T @ vectors[:, ::-1][:, :count]
        axes /= np.maximum(np.linalg.norm(axes, axis=0), _TINY)
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        axes = vectors[:, ::-1][:, :count]
    heaviest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    scores = centred @ (axes * np.where(heaviest < 0, -1.0, 1.0))
    variances = np.maximum(values[::-1][:count], 0.0)
    shares = variances / max(float(np.square(centred).sum()), _TINY)
    missing = count - scores.shape[1]
    return np.pad(scores, ((0, 0), (0, missing))), np.pad(shares, (0, missing))


def sampled_rows(
    groups: Sequence[NDArray[np.int64]], places: int, *, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Choose images of every group, about as many of each as of the others.

    Parameters
    ----------
    groups
        For every group, the class of each image, ``(n,)``; the classes of a group are sampled
        alike.
    places
        Number of images to choose, of all groups together.
    seed
        Seed of the choice within a class.

    Returns
    -------
    rows
        Ascending row numbers of every group, ``(m,)``; all, if there is room for all.

    Examples
    --------
    >>> big, small = np.arange(100) % 2, np.zeros(3, np.int64)
    >>> rows = sampled_rows([big, small], 9)
    >>> [len(each) for each in rows], np.bincount(big[rows[0]]).tolist()
    ([6, 3], [3, 3])
    """
    random = np.random.default_rng(seed)
    counts = equal_counts([len(group) for group in groups], places)
    return [_of_classes(group, count, random) for group, count in zip(groups, counts, strict=True)]


def _of_classes(
    classes: NDArray[np.int64], count: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Choose images of one group, about as many of every class."""
    shuffled = random.permutation(len(classes))
    members = [shuffled[classes[shuffled] == each] for each in np.unique(classes)]
    shares = equal_counts([len(rows) for rows in members], count)
    chosen = [rows[:share] for rows, share in zip(members, shares, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def equal_counts(sizes: Sequence[int], places: int) -> list[int]:
    """Divide places among groups as equally as their sizes allow; the first get what is left over.

    Examples
    --------
    >>> equal_counts([5, 1, 9], 8), equal_counts([1, 1], 8), equal_counts([9] * 3, 8)
    ([4, 1, 3], [1, 1], [3, 3, 2])
    """
    counts = [0] * len(sizes)
    left = min(places, sum(sizes))
    while left:
        fillable = [at for at, size in enumerate(sizes) if counts[at] < size]
        each = max(1, left // len(fillable))
        for at in fillable[:left]:
            counts[at] += min(each, sizes[at] - counts[at])
        left = min(places, sum(sizes)) - sum(counts)
    return counts
