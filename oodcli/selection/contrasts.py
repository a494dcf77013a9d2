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
        Name of the corruption.
    family
        Family of similar corruptions; all families have the same weight.
    id_scores, pseudo_scores
        Scores of each candidate, ``(n, c)``; row ``i`` of both belongs to image ``i``.
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
        """Influence of each image on the AUROC of each candidate, ``(n, c)``, with zero means."""
        return self._measured[1]


def aurocs(id_scores: Floats, pseudo_scores: Floats) -> tuple[Floats, Floats]:
    """Return the AUROC of each candidate, and the influence of each image on it.

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
    Operating Characteristic Curves". Biometrics 44, 1988: placement values. Here an image and its
    corrupted copy are sampled together, so both belong to one row.
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


def family_weights(families: Sequence[str]) -> Floats:
    """Return the weight of each contrast, ``(k,)``: equal for all families, with a sum of 1."""
    counts = {family: families.count(family) for family in families}
    return np.array([1 / (len(counts) * counts[family]) for family in families])


def merits(measured: Floats, families: Sequence[str]) -> Floats:
    """Return the mean AUROC over families of each candidate, ``(…, c)``.

    Parameters
    ----------
    measured
        AUROC by contrast and candidate, ``(…, k, c)``.
    families
        Families of the ``k`` contrasts.

    Notes
    -----
    A contrast that all candidates separate perfectly adds the same to all and does not affect their
    order; an AUROC below one half reduces the mean accordingly.
    """
    return np.einsum("k,...kc->...c", family_weights(families), measured)


def bootstrap_merits(contrasts: Sequence[Contrast], *, draws: int, seed: int) -> Floats:
    """Return the mean AUROC of the candidates in bootstrap samples of images and contrasts.

    Parameters
    ----------
    contrasts
        The contrasts, at least one.
    draws
        Number of bootstrap samples.
    seed
        Seed of the bootstrap samples.

    Returns
    -------
    merits
        ``(draws, c)``. Each sample consists of ``n`` images drawn with replacement, together with
        their corrupted copies, and omits one family of contrasts, each in turn.

    Notes
    -----
    The AUROC of a sample is approximated to first order, by the mean influence of its images. A
    single family is not omitted.
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
    sampled = np.empty((draws, measured.shape[2]))
    for turn, family in enumerate(distinct):
        others = [index for index, each in enumerate(families) if each != family]
        sampled[turn :: len(distinct)] = merits(
            measured[turn :: len(distinct), others], [families[index] for index in others]
        )
    return sampled


def greedy_ensemble(
    contrasts: Sequence[Contrast], *, max_members: int = 4, min_gain: float = 0.001
) -> tuple[int, ...]:
    """Select candidates for an ensemble by their mean rank, greedily.

    Parameters
    ----------
    contrasts
        Contrasts of ranks, so that candidates can be averaged.
    max_members
        Maximum number of members.
    min_gain
        Minimum increase of the mean AUROC by a further member.

    Returns
    -------
    tuple
        Columns of the members: the best candidate, then each time the one that adds most.
    """
    families = [each.family for each in contrasts]
    count = contrasts[0].id_scores.shape[1]
    single = merits(np.stack([each.auroc for each in contrasts]), families)
    chosen = [int(np.argmax(single))]
    best = float(single[chosen[0]])
    while len(chosen) < min(max_members, count):
        others = [column for column in range(count) if column not in chosen]
        measured = [
            aurocs(
                each.id_scores[:, chosen].sum(axis=1, keepdims=True) + each.id_scores[:, others],
                each.pseudo_scores[:, chosen].sum(axis=1, keepdims=True)
                + each.pseudo_scores[:, others],
            )[0]
            for each in contrasts
        ]
        extended = merits(np.stack(measured), families)
        if float(extended.max()) < best + min_gain:
            break
        best = float(extended.max())
        chosen.append(others[int(np.argmax(extended))])
    return tuple(chosen)
