"""Objectosphere: the largest class probability times the length of the feature."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference


@dataclass(frozen=True, slots=True)
class Objectosphere:
    """Largest class probability times the length of the feature.

    ``max_c softmax(z)_c ‖f‖₂``, for networks that are trained with ``objectosphere``: features of
    images that belong to no class are short.

    References
    ----------
    Dhamija, Günther, Boult. "Reducing Network Agnostophobia". NeurIPS 2018, arXiv:1811.04110,
    section 4.

    Notes
    -----
    pytorch-ood takes the length of the logits; here, as in the paper, it is that of the features
    that the loss makes short or long.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score(self, batch: Activations) -> Tensor:
        """Return the product, float64, ``(n,)``."""
        largest = batch.logits.double().softmax(dim=1).amax(dim=1)
        return largest * batch.features.double().norm(dim=1)
