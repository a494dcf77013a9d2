"""Relation: how much an image resembles the training images in feature and prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.activations import Activations, Reference
from oodcli.compute.products import product, ready
from oodcli.errors import InvalidInputError
from oodcli.methods._bank import Bank, unit_features
from oodcli.methods._class_means import feature_rows
from oodcli.specs import positive

# Training images and scored images at a time: two blocks of products take 2 MB each.
_BANK_ROWS, _ROWS = 1024, 512


@dataclass(frozen=True, slots=True)
class Relation:
    """Sum of the similarities to all training images that are similar at all.

    ``Σ_i v_i^power`` over the training images with ``v_i > threshold``, where
    ``v_i = max(0, ⟨u, u_i⟩) · ⟨p, p_i⟩``, ``u = f / ‖f‖₂`` and ``p = softmax(z)``.

    Parameters
    ----------
    units
        Training features divided by their lengths.
    probabilities
        Softmax values of the same images.
    power
        What similarities are raised to; 1 for OOD detection in the authors' code.
    threshold
        Similarities up to this count nothing; 0.03 in the authors' code.

    References
    ----------
    Kim, Yun, Song. "Neural Relation Graph: A Unified Framework for Identifying Label Noise and
    Outlier Data". NeurIPS 2023, arXiv:2301.12321.

    Notes
    -----
    As in the authors' code, the power is taken after the threshold. For OOD detection that code
    turns the sum ``s`` into an outlier score ``1 / (s + 1e-6)``; the ranks are those of the sum.
    """

    units: Bank
    probabilities: Bank
    power: float
    threshold: float

    @classmethod
    def fit(cls, reference: Reference, *, power: float = 1.0, threshold: float = 0.03) -> Self:
        """Take all training images."""
        positive("relation:power", power)
        if not 0 <= threshold < 1:
            raise InvalidInputError(
                f"relation:threshold must be at least 0 and less than 1, not {threshold:g}"
            )
        probabilities = reference.once(
            "probabilities",
            lambda: Bank.of(
                reference.train,
                lambda images: images.logits.softmax(dim=1),
                size=len(reference.train),
            ),
        )
        return cls(unit_features(reference), probabilities, power, threshold)

    def score(self, batch: Activations) -> Tensor:
        """Return the sum of similarities, float64, ``(n,)``."""
        return self.score_all([self], batch)[0]

    @staticmethod
    def score_all(detectors: Sequence["Relation"], batch: Activations) -> list[Tensor]:
        """Return the scores of each, ``(n,)``; similarities are computed once per threshold."""
        scores: dict[tuple[Bank, float, float], Tensor] = {}
        for units, threshold in dict.fromkeys((each.units, each.threshold) for each in detectors):
            kin = [each for each in detectors if (each.units, each.threshold) == (units, threshold)]
            powers = sorted({each.power for each in kin})
            sums = _sums(kin[0], powers, batch)
            scores.update({(units, threshold, power): sums[power] for power in powers})
        return [scores[each.units, each.threshold, each.power] for each in detectors]


def _sums(detector: Relation, powers: Sequence[float], batch: Activations) -> dict[float, Tensor]:
    def cut(rows: Tensor) -> list[Tensor]:
        return [ready(few, queries=len(batch)) for few in rows.split(_ROWS)]

    units = cut(feature_rows(batch, normalised=True))
    probabilities = cut(batch.logits.softmax(dim=1))
    sums = {
        power: torch.zeros(len(batch), dtype=torch.float64, device=batch.features.device)
        for power in powers
    }
    # The two banks are cut alike, whichever of them is streamed.
    for (_, train), (_, train_probabilities) in zip(
        detector.units.blocks(_BANK_ROWS), detector.probabilities.blocks(_BANK_ROWS), strict=True
    ):
        bank = ready(train, queries=len(batch))
        bank_probabilities = ready(train_probabilities, queries=len(batch))
        for index, (few, few_probabilities) in enumerate(zip(units, probabilities, strict=True)):
            part = slice(index * _ROWS, (index + 1) * _ROWS)
            similarities = product(few, bank)
            similarities *= product(few_probabilities, bank_probabilities)
            # Negative cosines fall below the threshold, too.
            functional.threshold(similarities, detector.threshold, 0.0, inplace=True)
            raised = {1.0: similarities}
            for power in powers:
                sums[power][part] += _raised(raised, power).sum(dim=1)
    return sums


def _raised(made: dict[float, Tensor], power: float) -> Tensor:
    """Return ``made[1]`` to a power, by products where it is a whole number."""
    if power not in made:
        if power % 2 == 0:
            made[power] = _raised(made, power / 2).square()
        elif power % 1 == 0:
            made[power] = _raised(made, power - 1) * made[1.0]
        else:
            made[power] = made[1.0] ** power
    return made[power]
