"""The largest features of every image: one sort for all percentiles of ASH, SCALE and LTS."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from oodcli.activations import Activations
from oodcli.errors import UndefinedMethodError
from oodcli.methods._percentiles import ascending

Signed = Literal["refuse", "clamp"]

# Above this percentile, exp(S / S_k) may exceed the range of float32.
FLOAT32_PERCENTILE = 95.0
# exp overflows float64 above 709; with this limit, products with logits do not overflow either.
LARGEST_EXPONENT = 600.0
# Cache key, shared by all methods of a batch.
ORDERED = "features in descending order"


@dataclass(frozen=True, slots=True)
class Descending:
    """Features of every image in descending order.

    Parameters
    ----------
    values
        ``(n, d)``, each row in descending order.
    sums
        ``(n, d)``, sums of the first 1, 2, … values of each row, negative values counted as 0.
    smallest
        The smallest feature of all images.
    """

    values: Tensor
    sums: Tensor
    smallest: float

    @property
    def total(self) -> Tensor:
        """Sum of all features, ``(n,)``."""
        return self.sums[:, -1]

    def ratio(self, count: int) -> Tensor:
        """Return ``S / S_k``, the sum of all features over that of the largest; 1 if both are 0.

        Parameters
        ----------
        count
            ``k``, the number of largest features, at least 1.

        Returns
        -------
        Tensor
            ``(n,)``, between 1 and ``d / k``.
        """
        leading = self.sums[:, count - 1]
        is_zero = leading <= 0
        return torch.where(is_zero, 1.0, self.total / leading.masked_fill(is_zero, 1.0))

    def largest(self, features: Tensor, count: int) -> Tensor:
        """Return a mask of the ``count`` largest features of every row; the first among equals.

        Parameters
        ----------
        features
            The unsorted features, ``(n, d)``.
        count
            Number of features, at least 1.

        Returns
        -------
        Tensor
            Boolean ``(n, d)`` with exactly ``count`` true entries in each row.
        """
        least = self.values[:, count - 1, None]
        mask = features >= least
        if count < features.shape[1]:
            tied = self.values[:, count] == self.values[:, count - 1]
            if tied.any():
                rows, bound = features[tied], least[tied]
                above, equal = rows > bound, rows == bound
                room = count - above.sum(dim=1, keepdim=True)
                mask[tied] = above | (equal & (equal.cumsum(dim=1) <= room))
        return mask


def descending(batch: Activations) -> Descending:
    """Sort the features of a batch, once for all methods."""
    return batch.once(ORDERED, lambda: _descending(batch.features))


def _descending(features: Tensor) -> Descending:
    values = ascending(features).flip(dims=(1,))
    smallest = float(values[:, -1].amin()) if values.numel() else 0.0
    return Descending(values, values.clamp(min=0).cumsum(dim=1), smallest)


def unsigned(batch: Activations, method: str, *, signed: Signed | None = None) -> Descending:
    """Return the sorted features of a batch for a method that sums them.

    Parameters
    ----------
    batch
        The images.
    method
        Name of the method, for the message.
    signed
        ``clamp`` accepts negative features, which count as 0 in all sums; None for a method
        without this parameter.

    Raises
    ------
    UndefinedMethodError
        If there are negative features and they are not accepted.
    """
    ordered = descending(batch)
    if ordered.smallest < 0 and signed != "clamp":
        cure = "use a method that does not sum features"
        if signed is not None:
            cure += f", or {method}:signed=clamp, which counts them as 0 in its sums"
        raise UndefinedMethodError(
            f"{method} is not defined for features below 0 (smallest: {ordered.smallest:.2g}): "
            f"{cure}"
        )
    return ordered


def kept_count(width: int, percentile: float) -> int:
    """Return the number of ``width`` features above a percentile, with halves rounded to even.

    It is at least 1, so that percentiles close to 100 are defined.
    """
    return max(1, width - round(width * percentile / 100))


def exponential(ratio: Tensor, percentile: float) -> Tensor:
    """Return ``exp(S / S_k)`` as a column, in float64 if float32 might overflow.

    Parameters
    ----------
    ratio
        ``S / S_k``, ``(n,)``.
    percentile
        The percentile that determines ``k``.

    Returns
    -------
    Tensor
        ``(n, 1)``.
    """
    if percentile > FLOAT32_PERCENTILE:
        ratio = ratio.double().clamp(max=LARGEST_EXPONENT)
    return ratio.exp()[:, None]
