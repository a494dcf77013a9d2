"""ASH: all but the largest features of an image removed, the rest kept, levelled or sharpened."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods._descending import exponential, kept_count, unsigned
from oodcli.methods.base import percentile as valid


@dataclass(frozen=True, slots=True)
class ASHP:
    """Logits of the largest features of an image, the others set to 0 (ASH-P).

    ``z' = W f' + b``, where ``f'`` keeps the ``k = n - round(n · percentile / 100)`` largest of the
    n features.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    percentile
        Share of features that are removed, in percent.

    References
    ----------
    Djurisic, Bozanic, Ashok, Liu. "Extremely Simple Activation Shaping for Out-of-Distribution
    Detection". ICLR 2023, arXiv:2209.09858.

    Notes
    -----
    Not defined for features below 0. Of equal features the first are kept; published code leaves
    that to the sort. At least one feature is kept.
    """

    head: Head
    percentile: float = 90.0

    @classmethod
    def fit(cls, reference: Reference, *, percentile: float = 90.0) -> Self:
        """Learn nothing."""
        return cls(reference.head, valid("ash-p:percentile", percentile))

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the pruned features, ``(n, k)``."""
        ordered = unsigned(batch, "ash-p")
        count = kept_count(batch.features.shape[1], self.percentile)
        return self.head(batch.features * ordered.largest(batch.features, count))


@dataclass(frozen=True, slots=True)
class ASHB:
    """Logits of the largest features of an image, all set to one value (ASH-B).

    ``z' = W f' + b``: the ``k = n - round(n · percentile / 100)`` largest of the n features become
    ``S / k``, where ``S`` is the sum of all, and the others 0.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    percentile
        Share of features that are removed, in percent.

    References
    ----------
    Djurisic, Bozanic, Ashok, Liu. "Extremely Simple Activation Shaping for Out-of-Distribution
    Detection". ICLR 2023, arXiv:2209.09858.

    Notes
    -----
    OpenOOD's ASH is this form. Not defined for features below 0. Of equal features the first are
    kept; published code leaves that to the sort, which matters here where an image has fewer than
    ``k`` features above 0. At least one feature is kept.
    """

    head: Head
    percentile: float = 90.0

    @classmethod
    def fit(cls, reference: Reference, *, percentile: float = 90.0) -> Self:
        """Learn nothing."""
        return cls(reference.head, valid("ash-b:percentile", percentile))

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the levelled features, ``(n, k)``."""
        ordered = unsigned(batch, "ash-b")
        count = kept_count(batch.features.shape[1], self.percentile)
        mask = ordered.largest(batch.features, count).to(batch.features.dtype)
        return (mask @ self.head.weight.T) * (ordered.total / count)[:, None] + self.head.bias


@dataclass(frozen=True, slots=True)
class ASHS:
    """Logits of the largest features of an image, sharpened (ASH-S).

    ``z' = W f' + b``: the ``k = n - round(n · percentile / 100)`` largest of the n features are
    multiplied by ``exp(S / S_k)``, where ``S`` is the sum of all and ``S_k`` of those, and the
    others become 0.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    percentile
        Share of features that are removed, in percent.

    References
    ----------
    Djurisic, Bozanic, Ashok, Liu. "Extremely Simple Activation Shaping for Out-of-Distribution
    Detection". ICLR 2023, arXiv:2209.09858.

    Notes
    -----
    The ASH of SCALE's tables is this form. Not defined for features below 0. An image whose
    features are all 0 gets ``S / S_k = 1``, hence ``z' = b``. Above the 95th percentile the logits
    are float64, and ``S / S_k`` is at most 600. Of equal features the first are kept, and at least
    one.
    """

    head: Head
    percentile: float = 90.0

    @classmethod
    def fit(cls, reference: Reference, *, percentile: float = 90.0) -> Self:
        """Learn nothing."""
        return cls(reference.head, valid("ash-s:percentile", percentile))

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the sharpened features, ``(n, k)``."""
        ordered = unsigned(batch, "ash-s")
        count = kept_count(batch.features.shape[1], self.percentile)
        pruned = batch.features * ordered.largest(batch.features, count)
        factor = exponential(ordered.ratio(count), self.percentile)
        return (pruned @ self.head.weight.T) * factor + self.head.bias
