"""NAN: a norm of the feature that also counts which neurons are silent."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference


@dataclass(frozen=True, slots=True)
class NegativeAwareNorm:
    """Sum of the feature divided by the number of its active neurons.

    ``‖f‖₁ / ‖f‖₀`` with ``‖f‖₀ = d - |{i: f_i ≤ 0}|``; 0 if no neuron is active.

    References
    ----------
    Park, Chai, Yoon, Teoh. "Understanding the Feature Norm for Out-of-Distribution Detection".
    ICCV 2023, arXiv:2310.05316, equations 9 and 10 (negative-aware norm, NAN).

    Notes
    -----
    In the paper the feature is that after the last activation function. Where that is not a ReLU,
    negative values count in ``‖f‖₁``, and as silent in ``‖f‖₀``, as the equations say. Of a network
    that averages its last map hardly any feature is exactly 0, and the score is near
    ``‖f‖₁ / d``. The paper's quotients with KNN and SSD are not implemented.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score(self, batch: Activations) -> Tensor:
        """Return the norm, float64, ``(n,)``."""
        active = (batch.features > 0).sum(dim=1)
        total = batch.features.abs().sum(dim=1, dtype=torch.float64)
        return total * torch.where(active > 0, 1 / active.clamp(min=1).double(), 0.0)
