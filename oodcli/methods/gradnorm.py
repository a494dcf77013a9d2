"""GradNorm: length of the gradient of the last layer, in closed form."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference


@dataclass(frozen=True, slots=True)
class GradNorm:
    """L1 norm of the gradient of the last layer's weight, for a uniform target.

    ``‖f‖₁ · Σ_c |K p_c - 1|`` with ``p = softmax(z)``: the gradient of ``Σ_c -log p_c`` with
    respect to ``W`` is the outer product of ``K p - 1`` and ``f``.

    References
    ----------
    Huang, Geng, Li. "On the Importance of Gradients for Detecting Distributional Shifts in the
    Wild". NeurIPS 2021, arXiv:2110.00218.

    Notes
    -----
    The paper's mean over classes would divide by ``K``, a constant; the published code and OpenOOD
    sum. No backward pass is needed. The gradient of the bias is omitted, as in the published code.

    For a confident image ``Σ_c |K p_c - 1|`` comes near ``2 (K - 1)``, in float32 to a rounding:
    here it is in float64.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score(self, batch: Activations) -> Tensor:
        """Return the norm, float64, ``(n,)``."""
        classes = batch.logits.shape[1]
        outputs = (classes * batch.logits.double().softmax(dim=1) - 1).abs().sum(dim=1)
        return batch.features.abs().sum(dim=1, dtype=torch.float64) * outputs
