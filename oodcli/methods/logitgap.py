"""LogitGap: how far the largest logit lies above the next ones."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods.base import at_least


@dataclass(frozen=True, slots=True)
class LogitGap:
    """Mean distance of the largest logit from the next largest ones.

    ``z_(1) - (1/n) Σ_{j=2..n+1} z_(j)`` with the logits in descending order.

    Parameters
    ----------
    n
        Number of next largest logits; None for all other logits.

    References
    ----------
    Liang, Hou, Hu, Chang, Shan, Chen. "Revisiting Logit Distributions for Reliable
    Out-of-Distribution Detection". NeurIPS 2025, arXiv:2510.20134; code: GIT-LJc/LogitGap
    (revision 8492a8b, ``compute_k_largest_diff_topn``).

    Notes
    -----
    The default is the paper's plain score over all logits. Its refined form averages over fewer:
    ``n`` is 5, 10, 20 and 88 for 10, 20, 100 and 1,000 classes in the published scripts, which is
    the grid; the paper counts the largest logit too, so that its N is ``n + 1``. With no more than
    ``n`` other classes, all of them count. The paper's automatic choice of N on images with added
    noise is not part of its code, and not implemented: ``--tune pseudo`` is the choice without OOD
    images here. Published logits are cosines of CLIP; with a trained last layer they are those of
    the network.
    """

    n: int | None = None

    @classmethod
    def fit(cls, reference: Reference, *, n: int | None = None) -> Self:
        """Learn nothing.

        Parameters
        ----------
        reference
            Has the last layer, for the number of classes.
        n
            Number of next largest logits; all others by default.
        """
        if n is None:
            return cls(None)
        return cls(min(at_least("logitgap:n", n, 1), len(reference.head.weight) - 1))

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return the mean distance, float64, ``(n,)``."""
        wide = logits.double()
        others = wide.shape[1] - 1
        count = others if self.n is None else min(self.n, others)
        if count == others:
            largest = wide.amax(dim=1)
            return largest - (wide.sum(dim=1) - largest) / count
        leading = wide.topk(count + 1, dim=1).values
        return leading[:, 0] - leading[:, 1:].mean(dim=1)

    def score(self, batch: Activations) -> Tensor:
        """Return the mean distance, float64, ``(n,)``."""
        return self.score_logits(batch.logits)
