"""Largest logit."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference


@dataclass(frozen=True, slots=True)
class MaxLogit:
    """Largest logit.

    References
    ----------
    Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt, Song. "Scaling Out-of-Distribution
    Detection for Real-World Settings". ICML 2022, arXiv:1911.11132, section 3.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return ``max_c z_c``, ``(n,)``."""
        return logits.amax(dim=1)

    def score(self, batch: Activations) -> Tensor:
        """Return the largest logit, ``(n,)``."""
        return self.score_logits(batch.logits)
