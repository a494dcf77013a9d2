"""SCALE: the whole feature multiplied by how much of it lies in its largest entries."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods._descending import Signed, exponential, kept_count, unsigned
from oodcli.methods.base import percentile as valid


@dataclass(frozen=True, slots=True)
class Scale:
    """Logits of features that are scaled by an exponential of their shape.

    ``z' = W exp(r) f + b`` with ``r = S / S_k``, where ``S`` is the sum of all n features of the
    image and ``S_k`` of its ``k = n - round(n · percentile / 100)`` largest (half to even).

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    percentile
        Share of features that ``S_k`` leaves out, in percent.
    signed
        What to do about features below 0: ``refuse`` them, or ``clamp`` them to 0 in both sums.

    References
    ----------
    Xu, Chen, Franchi, Yao. "Scaling for Training Time and Post-hoc Out-of-distribution Detection
    Enhancement". ICLR 2024, arXiv:2310.00227.

    Notes
    -----
    The published percentile is chosen for each data set: 65 on CIFAR-10 and CIFAR-100, 85 on
    ImageNet-1K.

    Not defined for features below 0, where the sums lose their meaning; ``signed=clamp`` is not
    published. An image whose features are all 0 gets ``r = 1``, hence ``z' = b``. Above the 95th
    percentile the logits are float64, and ``r`` is at most 600. At least one feature counts in
    ``S_k``.
    """

    head: Head
    percentile: float = 85.0
    signed: Signed = "refuse"

    @classmethod
    def fit(
        cls, reference: Reference, *, percentile: float = 85.0, signed: Signed = "refuse"
    ) -> Self:
        """Learn nothing."""
        return cls(reference.head, valid("scale:percentile", percentile), signed)

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the scaled features, ``(n, k)``."""
        ordered = unsigned(batch, "scale", signed=self.signed)
        ratio = ordered.ratio(kept_count(batch.features.shape[1], self.percentile))
        # W (e f) + b = e (z - b) + b: the logits are there, and only the factor is new.
        factor = exponential(ratio, self.percentile)
        return (batch.logits - self.head.bias) * factor + self.head.bias
