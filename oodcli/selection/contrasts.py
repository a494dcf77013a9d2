"""Choosing among candidates by how well they separate images from corrupted versions of them.

All of it is arithmetic on scores: the corruptions, and how the scores were computed, belong to
:mod:`oodcli.workflows.recommend`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """Scores of the same images twice: unchanged, and corrupted in one way.

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
        Scores of ``n`` images unchanged and corrupted, ``(n, c)``.

    Returns
    -------
    auroc
        ``(c,)``; ties count half.
    influence
        ``(n, c)``: the share of corrupted images that score below image ``i``, and of images
        that score more than corrupted image ``i``, each less the AUROC.

    References
    ----------
    DeLong, DeLong, Clarke-Pearson. "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves". Biometrics 44, 1988. The placement values; here image and
    corrupted image are drawn together, so that both belong to one row.
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


def merits(measured: Floats, families: Sequence[str]) -> Floats:
    """Return the mean AUROC over families of each candidate, ``(…, c)``.

    Parameters
    ----------
    measured
        AUROC by contrast and candidate, ``(…, k, c)``.
    families
        Of the contrasts.

    Notes
    -----
    A contrast that every candidate masters moves all of them alike, and so decides nothing; one
    that a candidate gets the wrong way round costs it what it lost.
    """
    return np.einsum("k,...kc->...c", weights_of(families), measured)


def resampled(contrasts: Sequence[Contrast], *, draws: int, seed: int) -> Floats:
    """Return what the candidates would have been worth on other images and other contrasts.

    Parameters
    ----------
    contrasts
        At least one.
    draws
        Number of bootstrap samples.
    seed
        Seed of the bootstrap samples.

    Returns
    -------
    merits
        ``(draws, c)``. Every sample takes as many images with replacement, each with all that was
        made of it, and leaves out one family, each in turn.

    Notes
    -----
    The AUROC of drawn images is taken to first order, as the mean of what each image adds. One
    family alone cannot be omitted.
    """
    generator = np.random.default_rng(seed)
    n = len(contrasts[0].id_scores)
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=draws) / n
    measured = np.stack(
        [each.auroc + drawn @ each.influence for each in contrasts], axis=1
    )  # (draws, k, c)
    families = [each.family for each in contrasts]
    distinct = list(dict.fromkeys(families))
    if len(distinct) == 1:
        return merits(measured, families)
    worth = np.empty((draws, measured.shape[2]))
    for turn, family in enumerate(distinct):
        kept = [index for index, each in enumerate(families) if each != family]
        worth[turn :: len(distinct)] = merits(
            measured[turn :: len(distinct), kept], [families[index] for index in kept]
        )
    return worth


def joined_greedily(
    contrasts: Sequence[Contrast], *, most: int = 4, gain: float = 0.001
) -> tuple[int, ...]:
    """Choose candidates whose mean is worth more than each alone.

    Parameters
    ----------
    contrasts
        Of ranks, so that candidates can be averaged.
    most
        The most to join.
    gain
        The least that a further one must add.

    Returns
    -------
    tuple
        Columns, the best one first; then each time the one that adds most.
    """
    families = [each.family for each in contrasts]
    count = contrasts[0].id_scores.shape[1]
    worth = merits(np.stack([each.auroc for each in contrasts]), families)
    chosen = [int(np.argmax(worth))]
    best = float(worth[chosen[0]])
    while len(chosen) < min(most, count):
        others = [column for column in range(count) if column not in chosen]
        measured = [
            aurocs(
                each.id_scores[:, chosen].sum(axis=1, keepdims=True) + each.id_scores[:, others],
                each.pseudo_scores[:, chosen].sum(axis=1, keepdims=True)
                + each.pseudo_scores[:, others],
            )[0]
            for each in contrasts
        ]
        tried = merits(np.stack(measured), families)
        if float(tried.max()) < best + gain:
            break
        best = float(tried.max())
        chosen.append(others[int(np.argmax(tried))])
    return tuple(chosen)
