"""Choosing among candidates by how well they tell images from spoilt versions of themselves.

All of it is arithmetic on scores: what was spoilt, and how the scores came about, is the business
of :mod:`oodcli.workflows.recommend`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """Scores of the same images twice: as they are, and spoilt in one way.

    Parameters
    ----------
    kind
        In what way.
    family
        Which ways are much the same; each family counts once.
    id_scores, pseudo_scores
        Scores by candidate, ``(n, c)``; row ``i`` of both comes of image ``i``.
    """

    kind: str
    family: str
    id_scores: Floats
    pseudo_scores: Floats

    @cached_property
    def _measured(self) -> tuple[Floats, Floats]:
        return aurocs(self.id_scores, self.pseudo_scores)

    @property
    def auroc(self) -> Floats:
        """AUROC of each candidate, ``(c,)``."""
        return self._measured[0]

    @property
    def influence(self) -> Floats:
        """What each image adds to the AUROC of each candidate, ``(n, c)``; means are zero."""
        return self._measured[1]


def aurocs(id_scores: Floats, pseudo_scores: Floats) -> tuple[Floats, Floats]:
    """Measure candidates, and what each image contributes.

    Parameters
    ----------
    id_scores, pseudo_scores
        Scores of ``n`` images as they are and spoilt, ``(n, c)``.

    Returns
    -------
    auroc
        ``(c,)``; ties count half.
    influence
        ``(n, c)``: the share of spoilt images that score less than image ``i``, and of images that
        score more than spoilt image ``i``, each less the AUROC.

    References
    ----------
    DeLong, DeLong, Clarke-Pearson. "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves". Biometrics 44, 1988. The placement values; here image and
    spoilt image are drawn together, so that both belong to one row.
    """
    first, second = np.empty_like(id_scores), np.empty_like(id_scores)
    for column in range(id_scores.shape[1]):
        ids, pseudo = id_scores[:, column], pseudo_scores[:, column]
        first[:, column] = _share_below(ids, np.sort(pseudo))
        second[:, column] = 1 - _share_below(pseudo, np.sort(ids))
    auroc = first.mean(axis=0)
    return auroc, first + second - 2 * auroc


def _share_below(values: Floats, ordered: Floats) -> Floats:
    less = np.searchsorted(ordered, values, side="left")
    at_most = np.searchsorted(ordered, values, side="right")
    return (less + at_most) / (2 * len(ordered))


def weights_of(families: Sequence[str]) -> Floats:
    """Return the weight of each contrast: every family counts the same, ``(k,)``; they add to 1."""
    counts = {family: families.count(family) for family in families}
    return np.array([1 / (len(counts) * counts[family]) for family in families])
