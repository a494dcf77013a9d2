"""Entropy of the class probabilities."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._softmax import Magnitude, Softmax, log_log1p, log_sum, magnitude


@dataclass(frozen=True, slots=True)
class Entropy:
    """Minus the logarithm of the entropy of the class probabilities.

    ``-log H`` with ``H = -Σ_c p_c log p_c`` in nats and ``p = softmax(z)``: the more, the more
    certain; ``-log log k`` for a uniform prediction over ``k`` classes.

    Parameters
    ----------
    scale
        ``log``, or ``linear`` for ``-H`` itself, float64.

    References
    ----------
    Chan, Rottmann, Gottschalk. "Entropy Maximization and Meta Classification for
    Out-of-Distribution Detection in Semantic Segmentation". ICCV 2021, arXiv:2012.06575.

    Notes
    -----
    The paper also trains the network for high entropy outside the distribution; here only the score
    is used. Published code returns the entropy, larger for OOD; ``scale=linear`` gives that with
    its sign turned. Published code computes it in float32, where it rounds for confident images; in
    float64 it is 0 from a lead of about 700 nats over all other classes on, and such images tie.
    Its logarithm, which ranks images as ``-H`` does, keeps distinct logits distinct.
    """

    scale: Magnitude = "log"

    @classmethod
    def fit(cls, _reference: Reference, *, scale: Magnitude = "log") -> Self:
        """Learn nothing.

        Parameters
        ----------
        _reference
            Not used.
        scale
            How the entropy is written: ``linear`` as published, but for its sign.
        """
        return cls(scale)

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return ``-log H``, or ``-H``, float64, ``(n,)``."""
        found = Softmax.of(logits)
        # H is log Σ exp(z - max z) plus the mean of max z - z; both are sums of what is not
        # negative, so that no small entropy is lost in a difference.
        down = (-found.below).clamp(max=torch.finfo(torch.float32).max)
        means = log_sum(found.below + down.log()) - found.log_total
        terms = torch.cat([log_log1p(found.log_rest), means], dim=1)
        return magnitude(log_sum(terms)[:, 0], self.scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the score of the entropy, ``(n,)``."""
        return self.score_logits(batch.logits)
