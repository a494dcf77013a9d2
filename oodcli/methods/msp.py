"""Maximum softmax probability."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods.base import positive


@dataclass(frozen=True, slots=True)
class MSP:
    """Largest class probability.

    Parameters
    ----------
    temperature
        Divisor of the logits; 1 in the paper.

    References
    ----------
    Hendrycks, Gimpel. "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
    Neural Networks". ICLR 2017, arXiv:1610.02136, section 2.

    Notes
    -----
    In float32 the probability of a very confident image rounds to 1, so the most confident images
    tie. Published numbers have these ties too.
    """

    temperature: float = 1.0

    @classmethod
    def fit(cls, _reference: Reference, *, temperature: float = 1.0) -> Self:
        """Learn nothing."""
        return cls(positive("msp:temperature", temperature))

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return ``max_c softmax(z / T)_c``, ``(n,)``."""
        return (logits / self.temperature).softmax(dim=1).amax(dim=1)

    def score(self, batch: Activations) -> Tensor:
        """Return the largest class probability, ``(n,)``."""
        return self.score_logits(batch.logits)
