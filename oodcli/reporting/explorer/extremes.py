"""Which images methods judge most wrongly, from their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.metrics import Curve
from oodcli.reporting.statistics import threshold_at

ODD_IMAGES = 4
"""How many times as many odd images a strip has as images of each method and set."""

Values = NDArray[np.floating[Any]]
Place = tuple[int, int]
"""Index of a set, and row of an image in it."""


@dataclass(frozen=True, eq=False)
class ScoredSets:
    """Scores of all methods on some sets.

    Parameters
    ----------
    methods
        Names of the methods, all with scores of the first set.
    sizes
        Number of images of every set; the first has the ID test images.
    scores
        Scores by method and index of the set, ``(n,)``; a set without scores is missing.
    """

    methods: Sequence[str]
    sizes: Sequence[int]
    scores: Mapping[tuple[str, int], Values]

    def best(self, count: int) -> "ScoredSets":
        """Return the ``count`` methods of the highest mean AUROC over the OOD sets, in order."""
        if count >= len(self.methods):
            return self
        means = {method: self._mean_auroc(method) for method in self.methods}
        chosen = sorted(self.methods, key=lambda method: -means[method])[:count]
        return replace(self, methods=[method for method in self.methods if method in chosen])

    def _mean_auroc(self, method: str) -> float:
        ood = [self.scores[method, at] for at in range(1, len(self.sizes))
               if (method, at) in self.scores]  # fmt: skip
        values = [Curve.of(self.scores[method, 0], scores).auroc() for scores in ood]
        return float(np.mean(values)) if values else 0.0

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """The highest score that at least 95 % of the ID images reach, by method."""
        return {method: threshold_at(self.scores[method, 0]) for method in self.methods}

    @cached_property
    def _sorted(self) -> dict[str, Values]:
        return {method: np.sort(self.scores[method, 0]) for method in self.methods}

    def lowest(self, method: str, count: int) -> NDArray[np.int64]:
        """Return rows of the ID images of lowest score, lowest first."""
        return np.argsort(self.scores[method, 0], kind="stable")[:count]

    def highest(self, method: str, at: int, count: int) -> NDArray[np.int64]:
        """Return rows of the images of a set of highest score, highest first; none without any."""
        scores = self.scores.get((method, at))
        if scores is None:
            return np.empty(0, np.int64)
        return np.argsort(-scores, kind="stable")[:count]

    def rejected_by(self) -> NDArray[np.int64]:
        """Return how many methods reject each ID image, ``(n,)``."""
        rejected = np.zeros(self.sizes[0], np.int64)
        for method in self.methods:
            rejected += self.scores[method, 0] < self.thresholds[method]
        return rejected

    def odd(self, count: int) -> NDArray[np.int64]:
        """Return rows of the ID images that most methods reject, most rejected first.

        Of images that equally many methods reject, that of lower mean percentile is first. Images
        that no method rejects are left out.
        """
        rejected = self.rejected_by()
        least = np.sort(rejected)[-min(count, len(rejected))]
        known = np.flatnonzero(rejected >= max(1, least))
        means = self.of([(0, int(row)) for row in known]).percentiles.mean(axis=1)
        return known[np.lexsort((means, -rejected[known]))][:count]

    def of(self, places: Sequence[Place]) -> "ScoresOfImages":
        """Return scores and percentiles of some images."""
        sets = np.array([at for at, _ in places], np.int64)
        rows = np.array([row for _, row in places], np.int64)
        scores = np.full((len(places), len(self.methods)), np.nan)
        percentiles = np.full(scores.shape, np.nan)
        for column, method in enumerate(self.methods):
            below = self._sorted[method]
            for at in range(len(self.sizes)):
                found = self.scores.get((method, at))
                if found is not None:
                    chosen = sets == at
                    scores[chosen, column] = values = found[rows[chosen]]
                    percentiles[chosen, column] = np.searchsorted(below, values) / len(below)
        return ScoresOfImages(scores, percentiles)


@dataclass(frozen=True, eq=False)
class ScoresOfImages:
    """Scores of some images by all methods; NaN where there is none.

    Parameters
    ----------
    scores
        ``(n, m)``.
    percentiles
        Share of the ID images whose score is below, from 0 to 1, ``(n, m)``.
    """

    scores: Values
    percentiles: Values


@dataclass(frozen=True, eq=False)
class Extremes:
    """The images of a strip.

    Parameters
    ----------
    id_rows
        By method, rows of the ID images of lowest score, lowest first.
    ood_rows
        By method and OOD set, rows of the images of highest score, highest first.
    odd
        Rows of the ID images that most methods reject.
    """

    id_rows: Sequence[NDArray[np.int64]]
    ood_rows: Sequence[Sequence[NDArray[np.int64]]]
    odd: NDArray[np.int64]

    @classmethod
    def of(cls, scored: ScoredSets, count: int) -> "Extremes":
        """Return the ``count`` images of each method and set, or all, and the odd ones."""
        return cls(
            [scored.lowest(method, count) for method in scored.methods],
            [
                [scored.highest(method, at, count) for at in range(1, len(scored.sizes))]
                for method in scored.methods
            ],
            scored.odd(ODD_IMAGES * count),
        )

    def first(self, count: int) -> "Extremes":
        """Return only the first images of each method and set, and of the odd ones."""
        return Extremes(
            [rows[:count] for rows in self.id_rows],
            [[rows[:count] for rows in sets] for sets in self.ood_rows],
            self.odd[: ODD_IMAGES * count],
        )

    @cached_property
    def places(self) -> dict[Place, int]:
        """Every image once, with its number in the order of sets and rows."""
        found = {(0, int(row)) for rows in (*self.id_rows, self.odd) for row in rows}
        for sets in self.ood_rows:
            found |= {(at, int(row)) for at, rows in enumerate(sets, 1) for row in rows}
        return {place: number for number, place in enumerate(sorted(found))}

    def numbers(self, at: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of images of a set."""
        return np.array([self.places[at, int(row)] for row in rows], np.int64)
