"""GradUncertainty: the squared length of the last layer's gradient, in closed form."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference


@dataclass(frozen=True, slots=True)
class GradUncertainty:
    """Squared length of the gradient of the last layer, for a target that contains every class.

    ``‖K p - 1‖₂² (‖f‖₂² + 1)`` with ``p = softmax(z)``: the gradient of ``Σ_c -log p_c``, the
    binary cross-entropy of ``p`` for a target of ones, is ``K p - 1`` with respect to the bias, and
    its outer product with ``f`` with respect to ``W``.

    References
    ----------
    Lee, AlRegib. "Gradients as a Measure of Uncertainty in Neural Networks". ICIP 2020,
    arXiv:2008.08030.

    Notes
    -----
    The paper trains a small network on the squared lengths of the gradients of all layers, with OOD
    images. As in pytorch-ood, the length itself is the score here, without training; of all layers
    only the last counts, so that no backward pass is needed. It is the squared sibling of GradNorm,
    and includes the gradient of the bias. For a confident image ``‖K p - 1‖₂`` comes near a
    constant, in float32 to a rounding: here it is in float64.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score(self, batch: Activations) -> Tensor:
        """Return the squared length, float64, ``(n,)``."""
        classes = batch.logits.shape[1]
        outputs = (classes * batch.logits.double().softmax(dim=1) - 1).square().sum(dim=1)
        return outputs * (batch.features.square().sum(dim=1, dtype=torch.float64) + 1)
