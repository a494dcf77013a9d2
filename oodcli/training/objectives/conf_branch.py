"""ConfBranch: a second output learns how much the network may ask for the right answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from oodcli.activations import CONFIDENCE
from oodcli.specs import positive
from oodcli.training.objectives.base import PlainObjective, StepOutput

# Probabilities and confidences are at least this, as in published code.
_LEAST = 1e-12
_DOWN, _UP = 1.01, 0.99


@dataclass(frozen=True)
class ConfBranch(PlainObjective):
    """Cross-entropy with hints of the label, which a learned confidence pays for.

    With the class probabilities ``p``, the confidence ``c = sigmoid(v . f + b)`` of a second layer,
    and ``h`` = 0 or 1 with equal chances for every image::

        c'   = h c + 1 - h
        loss = mean_i -log(c'_i p_i(y_i) + 1 - c'_i) + lambda mean_i -log c_i

    After every step ``lambda`` is divided by 1.01 if ``mean_i -log c_i < budget``, else by 0.99.
    The layer of the confidence stays in the weights, for the method ``conf-branch``.

    Parameters
    ----------
    budget
        The mean of ``-log c`` that ``lambda`` aims at.
    weight
        ``lambda`` of the first step.

    References
    ----------
    DeVries, Taylor. "Learning Confidence for Out-of-Distribution Detection in Neural Networks".
    arXiv:1802.04865. Defaults, schedule and clamps: ``conf_branch_trainer.py`` of OpenOOD.

    Notes
    -----
    Published code draws ``h`` from Bernoulli(u) with u from U(0, 1) for each image; its chances are
    equal, so that one number is drawn here. ``lambda`` is part of the stored state of a training.
    With several processes, the mean for the budget is that of the whole batch.
    """

    budget: float = 0.3
    weight: float = 0.1

    needs: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset({"features"})
    kept: ClassVar[Mapping[str, int]] = MappingProxyType({CONFIDENCE: 1})
    compares_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("conf-branch:budget", self.budget)
        positive("conf-branch:weight", self.weight)

    def draws(self, height: int, width: int) -> int:  # noqa: ARG002
        """Return 1: one number decides whether an image has a hint."""
        return 1

    def extras(self, features: int, channels: int, classes: int) -> nn.Module:  # noqa: ARG002
        """Build the state: ``lambda``."""
        return _Weight(self.weight)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the loss, and adapt ``lambda`` to the budget."""
        assert isinstance(output.state, _Weight)  # from `extras`
        assert output.draws is not None  # from `draws`
        p = output.logits.float().softmax(dim=1).gather(1, labels[:, None])[:, 0]
        c = output.extras[0][:, 0].sigmoid().clamp(_LEAST, 1 - _LEAST)
        hinted = torch.where(output.draws[:, 0] < 0.5, c, 1.0)
        right = hinted * p.clamp(_LEAST, 1 - _LEAST) + 1 - hinted
        asked = -c.log().mean()
        weight = output.state.value.clone()
        output.state.adapt(is_low=asked.detach() < self.budget)
        return -right.log().mean() + weight * asked


class _Weight(nn.Module):
    """The weight ``lambda``, a buffer."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))

    def forward(self, _features: Tensor, _maps: Tensor) -> tuple[Tensor, ...]:
        """Return no inputs of the loss."""
        return ()

    def adapt(self, *, is_low: Tensor) -> None:
        """Divide it by 1.01 if the mean is below the budget, else by 0.99."""
        self.value.copy_(torch.where(is_low, self.value / _DOWN, self.value / _UP))
