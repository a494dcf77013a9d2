"""LTS: logits multiplied by how much of the feature lies in its largest entries."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods._descending import Signed, kept_count, unsigned


@dataclass(frozen=True, slots=True)
class LTS:
    """Logits scaled by the square of the feature's shape.

    ``z' = r² z`` with ``r = S / S_k``, where ``S`` is the sum of all n features of the image and
    ``S_k`` of its ``k = n - round(n · (1 - p))`` largest (half to even).

    Parameters
    ----------
    p
        Share of features in ``S_k``, more than 0 and at most 1.
    signed
        What to do about features below 0: ``clamp`` them to 0 in both sums, or ``refuse`` them.

    References
    ----------
    Djurisic, Liu, Nikolic. "Logit Scaling for Out-of-Distribution Detection". Machine Vision and
    Applications 2025, arXiv:2409.01175.

    Notes
    -----
    The published code clamps features at 0 in both sums, which the paper does not mention; it
    affects only networks without a final ReLU. An image whose features are all 0 gets ``r = 1``. At
    least one feature counts in ``S_k``.
    """

    p: float = 0.05
    signed: Signed = "clamp"

    @classmethod
    def fit(cls, _reference: Reference, *, p: float = 0.05, signed: Signed = "clamp") -> Self:
        """Learn nothing."""
        if not 0 < p <= 1:
            raise InvalidInputError(f"lts:p must be more than 0 and at most 1, not {p:g}")
        return cls(p, signed)

    def logits(self, batch: Activations) -> Tensor:
        """Return the scaled logits, ``(n, k)``."""
        ordered = unsigned(batch, "lts", signed=self.signed)
        ratio = ordered.ratio(kept_count(batch.features.shape[1], 100 * (1 - self.p)))
        return batch.logits * ratio.square()[:, None]
