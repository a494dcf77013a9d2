"""Negative free energy."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.specs import positive


@dataclass(frozen=True, slots=True)
class Energy:
    """Negative free energy of the logits.

    Parameters
    ----------
    temperature
        ``T`` below; 1 in the paper.

    References
    ----------
    Liu, Wang, Owens, Li. "Energy-based Out-of-distribution Detection". NeurIPS 2020,
    arXiv:2010.03759, equation 4.
    """

    temperature: float = 1.0

    @classmethod
    def fit(cls, _reference: Reference, *, temperature: float = 1.0) -> Self:
        """Learn nothing."""
        return cls(positive("energy:temperature", temperature))

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return ``T · log Σ_c exp(z_c / T)``, ``(n,)``."""
        if self.temperature == 1:
            return logits.logsumexp(dim=1)
        return self.temperature * (logits / self.temperature).logsumexp(dim=1)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative free energy, ``(n,)``."""
        return self.score_logits(batch.logits)
