"""Negative entropy of the class probabilities."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference


@dataclass(frozen=True, slots=True)
class Entropy:
    """Negative entropy of the class probabilities, in nats.

    ``Σ_c p_c log p_c`` with ``p = softmax(z)``: 0 for a certain image, ``-log k`` for a uniform
    prediction.

    References
    ----------
    Chan, Rottmann, Gottschalk. "Entropy Maximization and Meta Classification for
    Out-of-Distribution Detection in Semantic Segmentation". ICCV 2021, arXiv:2012.06575.

    Notes
    -----
    The paper also trains the network for high entropy outside the distribution; here the score
    alone is taken. Published code returns the entropy, larger for OOD; the sign is turned.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return ``Σ_c p_c log p_c``, ``(n,)``."""
        largest = logits.max(dim=1, keepdim=True)
        below = logits - largest.values
        shares = below.exp()  # p_c over the largest p
        others = shares.scatter(1, largest.indices, 0.0).sum(dim=1)
        # Neither term loses the small entropy of a confident image in rounding.
        return (shares * below).sum(dim=1) / (1 + others) - others.log1p()

    def score(self, batch: Activations) -> Tensor:
        """Return the negative entropy, ``(n,)``."""
        return self.score_logits(batch.logits)
