"""ISH: weights images in the gradient of the last layer by the shape of their activations."""

from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.training.objectives.base import PlainObjective, StepOutput


@dataclass(frozen=True)
class ISH(PlainObjective):
    """Cross-entropy, with a modified gradient for the weight of the last layer.

    For inputs ``a_i`` of the last layer, of length ``n``, and gradients ``g_i`` of its outputs::

        k'    = floor(n (1 - p))
        m_i   = mask of the k' entries of a_i with the largest magnitude
        r_i   = sum_j a_ij / sum_j m_ij |a_ij|
        dL/dW = sum_i g_i (exp(r_i) m_i |a_i|)^T        instead of sum_i g_i a_i^T

    The forward pass and the gradients of the bias and of the features are unchanged.

    Parameters
    ----------
    p
        Fraction of the entries of every feature vector that is pruned.

    References
    ----------
    Xu, Chen, Franchi, Yao. "Scaling for Training Time and Post-hoc Out-of-distribution Detection
    Enhancement". ICLR 2024, arXiv:2310.00227.

    Notes
    -----
    ``k'`` is floored in floating point, as in the code of the authors: ``1 - 0.9`` is slightly less
    than 0.1, so that 63 of 640 entries remain. An all-zero feature vector has zero gradient; the
    formula divides zero by zero there. The layer computes in float32 even under autocast.
    """

    p: float = 0.85

    accepts_soft_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise InvalidInputError(f"ish:p must be at least 0 and less than 1, not {self.p:g}")

    def attach(self, module: nn.Module, head: str) -> None:
        """Replace the last layer by one with the modified gradient; weights and names stay."""
        old = module.get_submodule(head)
        assert isinstance(old, nn.Linear)  # ensured by every architecture
        kept = kept_entries(old.in_features, self.p)
        if kept < 1:
            raise InvalidInputError(
                f"ish:p={self.p:g} keeps none of {old.in_features} features; use a smaller one"
            )
        module.set_submodule(head, _ShapedLinear(old, kept))

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the logits."""
        return functional.cross_entropy(output.logits.float(), labels)


def kept_entries(n: int, p: float) -> int:
    """Return the number of entries that remain, ``floor(n (1 - p))`` in floating point."""
    return floor(n * (1 - p))


def shaped(inputs: Tensor, kept: int) -> Tensor:
    """Return ``exp(r) m |a|`` of every row, ``(m, n)``.

    Parameters
    ----------
    inputs
        Inputs of the last layer, ``(m, n)``.
    kept
        Number of entries of each row that remain.
    """
    magnitudes = inputs.abs()  # (m, n)
    top, at = magnitudes.topk(kept, dim=1)  # (m, kept)
    mass = top.sum(dim=1, keepdim=True)
    ratio = inputs.sum(dim=1, keepdim=True) / mass.clamp(min=torch.finfo(mass.dtype).tiny)
    return torch.zeros_like(magnitudes).scatter_(1, at, top * ratio.exp())


class _ShapedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        kept: int,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.kept = kept
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        gradients: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        inputs, weight = ctx.saved_tensors
        by_weight = gradients.T @ shaped(inputs, ctx.kept)  # (k, n)
        return gradients @ weight, by_weight, gradients.sum(dim=0), None


class _ShapedLinear(nn.Linear):
    """A linear layer whose weight has the gradient of ISH in training mode."""

    def __init__(self, old: nn.Linear, kept: int) -> None:
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced below
            super().__init__(old.in_features, old.out_features)
        self.weight, self.bias = old.weight, old.bias
        self.kept = kept

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Return the logits ``(n, k)`` of features ``(n, d)``."""
        if not self.training:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return _ShapedProduct.apply(
                input.to(self.weight.dtype), self.weight, self.bias, self.kept
            )
