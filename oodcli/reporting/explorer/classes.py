"""Accepted images by class, at some of the thresholds of a method."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.reporting.explorer.curves import MethodScores
from oodcli.reporting.explorer.packing import packed_counts
from oodcli.reporting.explorer.payload import ClassCounts
from oodcli.reporting.statistics import Floats

CLASSES_OF_A_SET = 25
"""Number of classes that are counted of an OOD set."""

_LEVELS = (0.99, 0.95, 0.9)  # shares of accepted ID images that are always among the places


@dataclass(frozen=True)
class Classes:
    """Classes of the images of an evaluation; None where they are not known.

    Parameters
    ----------
    n
        Number of classes.
    correct
        Whether the classifier was right on each ID image.
    of_id
        True class of every ID image, or the predicted one without labels.
    of_ood
        Predicted class of every image, by OOD set.
    shown
        The classes that most images of an OOD set are taken for, by set.
    """

    n: int
    correct: NDArray[np.bool_] | None
    of_id: NDArray[np.int64] | None
    of_ood: tuple[NDArray[np.int64] | None, ...]
    shown: tuple[NDArray[np.int64] | None, ...]


def places_of(id_accepted: NDArray[np.int64], *, at_most: int) -> NDArray[np.int64]:
    """Return indices of thresholds, ascending ``(k,)``, with the shares of ID images spread evenly.

    Parameters
    ----------
    id_accepted
        Number of ID images accepted at every threshold, non-increasing ``(t,)``.
    at_most
        The number of places; at least 8.
    """
    total = len(id_accepted)
    if total <= at_most:
        return np.arange(total)
    n = id_accepted[0]
    shares = np.concatenate([_LEVELS, np.linspace(1, 0, at_most - len(_LEVELS))])
    # The last threshold that still accepts this share.
    return np.unique(np.searchsorted(-id_accepted, -np.ceil(shares * n), side="right") - 1)


def class_counts(
    scores: MethodScores,
    classes: Classes,
    thresholds: Floats,
    places: NDArray[np.int64],
) -> ClassCounts | None:
    """Count accepted images by class.

    Parameters
    ----------
    scores
        The scores of a method.
    classes
        The classes of the same images.
    thresholds, places
        Thresholds ``(t,)``, and indices of those at which images are counted ``(k,)``.

    Returns
    -------
    counts
        None if no class is known.
    """
    at, n = thresholds[places], classes.n
    of_id = classes.of_id
    id_counts = None if of_id is None else accepted_by_class(scores.id_scores, of_id, at, n=n)
    ood_counts = [
        None
        if each is None or taken is None or columns is None
        else accepted_by_class(each, taken, at, n=n)[:, columns]
        for each, taken, columns in zip(
            scores.ood_scores, classes.of_ood, classes.shown, strict=True
        )
    ]
    if id_counts is None and not any(each is not None for each in ood_counts):
        return None
    return ClassCounts(
        places=packed_counts(places),
        id_accepted=None if id_counts is None else packed_counts(id_counts),
        ood_accepted=tuple(None if each is None else packed_counts(each) for each in ood_counts),
    )


def accepted_by_class(
    scores: Floats, classes: NDArray[np.int64], thresholds: Floats, *, n: int
) -> NDArray[np.int64]:
    """Return how many images of each class are at or above each threshold, ``(k, n)``.

    Parameters
    ----------
    scores, classes
        Score and class of every image, ``(m,)``.
    thresholds
        Ascending, ``(k,)``.
    n
        Number of classes.

    Examples
    --------
    >>> accepted_by_class(
    ...     np.array([1.0, 2.0, 3.0]), np.array([0, 1, 0]), np.array([2.0, 4.0]), n=2
    ... ).tolist()
    [[1, 1], [0, 0]]
    """
    reached = np.searchsorted(thresholds, scores, side="right")
    k = len(thresholds)
    counts = np.bincount(reached * n + classes, minlength=(k + 1) * n).reshape(k + 1, n)
    return np.cumsum(counts[::-1], axis=0)[::-1][1:]
