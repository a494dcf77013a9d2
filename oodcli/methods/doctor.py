"""DOCTOR: the probability that two draws from the prediction agree."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference


@dataclass(frozen=True, slots=True)
class Doctor:
    """Sum of the squared class probabilities.

    ``g = Σ_c p_c²`` with ``p = softmax(z)``: 1 for a certain image, ``1 / k`` for a uniform
    prediction.

    References
    ----------
    Granese, Romanelli, Gorla, Palamidessi, Piantanida. "DOCTOR: A Simple Method for Detecting
    Misclassification Errors". NeurIPS 2021, arXiv:2106.02395.

    Notes
    -----
    The paper compares ``(1 - g) / g`` with a threshold, which falls as ``g`` grows: images are
    ranked the same. Its perturbation of the input, a second variant, is left out.

    In float32 ``g`` of a very confident image rounds to 1, so the most confident images tie.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return ``Σ_c p_c²``, ``(n,)``."""
        return logits.softmax(dim=1).square().sum(dim=1)

    def score(self, batch: Activations) -> Tensor:
        """Return the sum of the squared class probabilities, ``(n,)``."""
        return self.score_logits(batch.logits)
