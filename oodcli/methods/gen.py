"""GEN: generalised entropy of the largest class probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods.base import at_least
from oodcli.methods.softmax import Softmax
from oodcli.specs import positive


@dataclass(frozen=True, slots=True)
class GEN:
    """Negative generalised entropy of the largest class probabilities.

    ``-Σ_{c among the m largest} (p_c (1 - p_c))^gamma`` with ``p = softmax(z)``.

    Parameters
    ----------
    gamma
        Exponent, more than 0.
    m
        Number of largest probabilities; all if there are fewer classes.

    References
    ----------
    Liu, Lochman, Zach. "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection".
    CVPR 2023.

    Notes
    -----
    Probabilities are in float64, and ``1 - p`` of the largest is the sum of the others. Published
    code subtracts in float32, where what is left of a very confident image is rounding, and an
    exponent of 0.1 makes much of it: scores of images above 0.999 differ by that.
    One other library clamps ``p`` at 1e-7 and divides by ``m``.
    """

    gamma: float = 0.1
    m: int = 100

    @classmethod
    def fit(cls, _reference: Reference, *, gamma: float = 0.1, m: int = 100) -> Self:
        """Learn nothing."""
        return cls(positive("gen:gamma", gamma), at_least("gen:m", m, 1))

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return the negative generalised entropy, ``(n,)``."""
        return -_products(logits, [self.m]).pow(self.gamma).sum(dim=1)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative generalised entropy, ``(n,)``."""
        return self.score_logits(batch.logits)

    @staticmethod
    def score_all(detectors: Sequence["GEN"], batch: Activations) -> Sequence[Tensor]:
        """Return the scores of several settings, sorting the probabilities once."""
        products = _products(batch.logits, [each.m for each in detectors])
        return [-products[:, : each.m].pow(each.gamma).sum(dim=1) for each in detectors]


def _products(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Return ``p_c (1 - p_c)``, float64, ``(n, min(largest count, k))``.

    They are in descending order of ``p_c`` if any of the counts leaves classes out.
    """
    found = Softmax.of(logits)
    values = found.log_p.exp()
    products = values * found.complement(values)
    most = min(max(counts), logits.shape[1])
    if min(counts) < logits.shape[1]:
        return products.gather(1, found.below.topk(most, dim=1).indices)
    return products
