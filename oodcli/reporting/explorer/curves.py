"""What a method accepts at each of its thresholds, exactly; and histograms of its scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.metrics import Convention, Curve
from oodcli.reporting.explorer.packing import packed_counts
from oodcli.reporting.explorer.payload import Histogram
from oodcli.reporting.statistics import Floats

BINS = 60
_OUTSIDE = 0.2  # percent of the scores of a side that its axis leaves out at either end
_TAIL = 0.02  # share of the ID images with the lowest scores, where thresholds are denser


@dataclass(frozen=True)
class MethodScores:
    """The scores of one method on ID images and OOD sets.

    Parameters
    ----------
    id_scores
        Scores of the ID images, float64 ``(n,)``.
    ood_scores
        Scores by OOD set, float64; None for a set without scores.
    """

    id_scores: Floats
    ood_scores: tuple[Floats | None, ...]

    @property
    def id_sorted(self) -> Floats:
        """Ascending scores of the ID images."""
        return np.sort(self.id_scores)

    @property
    def known(self) -> list[Floats]:
        """Scores of the sets that have any."""
        return [scores for scores in self.ood_scores if scores is not None]


def accepted(ascending: Floats, thresholds: Floats) -> NDArray[np.int64]:
    """Return how many of ``ascending`` scores ``(n,)`` are at or above each threshold, ``(t,)``."""
    return len(ascending) - np.searchsorted(ascending, thresholds, side="left")


def thresholds_of(
    scores: MethodScores, needed: Sequence[float], *, limit: int
) -> tuple[Floats, bool]:
    """Return the thresholds that the page can show, ascending ``(t,)``, and whether they are all.

    Parameters
    ----------
    scores
        The scores of a method.
    needed
        Scores that must be among them.
    limit
        The number of thresholds, apart from the needed ones.

    Returns
    -------
    tuple
        All distinct scores, if there are no more than ``limit``; otherwise the needed ones, scores
        of ID images at equal distances in rank, more of them among the lowest 2 %, and scores of
        every OOD set at equal distances in rank.
    """
    distinct = np.unique(np.concatenate([scores.id_scores, *scores.known]))
    if len(distinct) <= limit:
        return distinct, True
    half = limit // 2
    id_sorted = scores.id_sorted
    tail = max(1, int(_TAIL * len(id_sorted)))
    chosen = [
        np.asarray(needed, dtype=np.float64),
        _spread(id_sorted, half - half // 4),
        _spread(id_sorted[:tail], half // 4),
        distinct[[0, -1]],
        *(_spread(np.sort(each), half // len(scores.known)) for each in scores.known),
    ]
    return np.unique(np.concatenate(chosen)), False


def _spread(ascending: Floats, count: int) -> Floats:
    """Return about ``count`` of the scores, at equal distances in rank."""
    places = np.linspace(0, len(ascending) - 1, max(count, 2))
    return ascending[np.unique(np.round(places).astype(np.int64))]


def fpr95_scores(
    scores: MethodScores, conventions: Sequence[Convention]
) -> Mapping[str, tuple[float | None, ...]]:
    """Return the threshold at which every convention measures FPR95, by OOD set.

    Returns
    -------
    mapping
        By name of the convention, the lowest accepted score; infinite where no image is accepted,
        None for a set without scores.
    """
    id_sorted = scores.id_sorted
    found: dict[str, list[float | None]] = {each.name: [] for each in conventions}
    for ood in scores.ood_scores:
        if ood is None:
            for values in found.values():
                values.append(None)
            continue
        curve, ood_sorted = Curve.of(scores.id_scores, ood), np.sort(ood)
        for each in conventions:
            n_id, n_ood = curve.accepted_at_95(each)
            found[each.name].append(min(_lowest(id_sorted, n_id), _lowest(ood_sorted, n_ood)))
    return {name: tuple(values) for name, values in found.items()}


def _lowest(ascending: Floats, n: int) -> float:
    """Return the lowest of the ``n`` highest scores; infinite if there is none."""
    return float(ascending[len(ascending) - n]) if n else np.inf


def finite(scores: Mapping[str, tuple[float | None, ...]]) -> Iterator[float]:
    """Yield the scores of :func:`fpr95_scores` that are scores of images."""
    for values in scores.values():
        yield from (value for value in values if value is not None and np.isfinite(value))


def histogram(id_scores: Floats, ood_scores: Floats) -> Histogram:
    """Return the histogram of ID and OOD scores on one axis.

    Notes
    -----
    The axis leaves out the outermost 0.2 % of either side; scores beyond are in the outer bins.
    """
    ends = np.array(
        [np.percentile(each, [_OUTSIDE, 100 - _OUTSIDE]) for each in (id_scores, ood_scores)]
    )
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [
        packed_counts(np.histogram(np.clip(each, low, high), BINS, (low, high))[0])
        for each in (id_scores, ood_scores)
    ]
    return Histogram(low, high, *counts)
