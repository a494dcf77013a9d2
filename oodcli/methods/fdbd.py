"""fDBD: distance of the feature to the decision boundaries of its predicted class."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import feature_mean

# Weights whose distance is below this share of their lengths are the same.
_ROUNDING = 1e-7
_BLOCK_CLASSES = 1024


@dataclass(frozen=True, slots=True)
class FDBD:
    """Distances to the decision boundaries, relative to that to the mean training feature.

    ``Σ_{c≠ŷ} (z_ŷ - z_c) / ‖w_ŷ - w_c‖₂``, divided by ``‖f - μ‖₂``, where ``μ`` is the mean of all
    training features and ``ŷ`` the class of the largest logit.

    Parameters
    ----------
    nearness
        ``1 / ‖w_a - w_c‖₂`` of every pair of classes, ``(k, k)``; 0 for the same weights.
    origin
        What the length of a feature is taken from, ``(n,)``: ``μ`` or zero.
    distance_as_normalizer
        Whether to divide by ``‖f - μ‖₂``; else by ``‖f‖₂``.

    References
    ----------
    Liu, Qin. "Fast Decision Boundary based Out-of-Distribution Detector". ICML 2024,
    arXiv:2312.11536.

    Notes
    -----
    The paper divides by ``K - 1`` as well, a constant, and always by ``‖f - μ‖₂``; the choice is
    OpenOOD's. Two classes with the same weights have no boundary, so that pair is excluded. Lengths
    are at least 1e-8. The table of pairs takes ``4 K²`` bytes.
    """

    nearness: Tensor
    origin: Tensor
    distance_as_normalizer: bool

    @classmethod
    def fit(cls, reference: Reference, *, distance_as_normalizer: bool = True) -> Self:
        """Measure how far the weights lie apart, and average all training features.

        Raises
        ------
        UndefinedMethodError
            If all classes have the same weights.
        """
        nearness = nearness_of_weights(reference, "fdbd")
        weight = reference.head.weight
        origin = torch.zeros_like(weight[0])
        if distance_as_normalizer:
            origin = feature_mean(reference).to(weight.dtype)
        return cls(nearness, origin, distance_as_normalizer)

    def score(self, batch: Activations) -> Tensor:
        """Return the sum of distances over the length of the feature, ``(n,)``."""
        largest, classes = batch.logits.max(dim=1)
        gaps = largest[:, None] - batch.logits  # (n, k)
        total = (gaps * self.nearness[classes]).sum(dim=1)
        return total / (batch.features - self.origin).norm(dim=1).clamp(min=1e-8)


def nearness_of_weights(reference: Reference, method: str) -> Tensor:
    """Return ``1 / ‖w_a - w_c‖₂`` of every pair of classes, ``(k, k)``, computed once.

    Parameters
    ----------
    reference
        The last layer.
    method
        Name of the method, for the message.

    Returns
    -------
    nearness
        0 where two classes have the same weights, as on the diagonal.

    Raises
    ------
    UndefinedMethodError
        If all classes have the same weights.
    """
    weight = reference.head.weight
    nearness = reference.once("nearness of weights", lambda: _nearness(weight))
    if not nearness.any():
        raise UndefinedMethodError(
            f"{method} is not defined here: the weights of all {len(weight):,} classes are the "
            "same, so that no boundary lies between them; use another method"
        )
    return nearness


def _nearness(weight: Tensor) -> Tensor:
    wide = weight.double()
    lengths = wide.square().sum(dim=1)
    nearness = torch.empty(len(weight), len(weight), dtype=weight.dtype, device=weight.device)
    for start in range(0, len(weight), _BLOCK_CLASSES):
        rows = slice(start, start + _BLOCK_CLASSES)
        both = lengths[rows, None] + lengths
        squares = both - 2 * wide[rows] @ wide.T
        apart = squares > _ROUNDING**2 * both
        nearness[rows] = torch.where(apart, squares, torch.inf).rsqrt().to(weight.dtype)
    return nearness
