"""Background class: outliers are a class of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.activations import BACKGROUND
from oodcli.training.objectives.base import OutlierObjective, StepOutput


@dataclass(frozen=True)
class Background(OutlierObjective):
    """Cross-entropy with one more class, to which all outliers belong.

    With logits ``z`` of ``k`` classes and ``b`` of the background, the loss is the mean over all
    images of a step of ``log(exp b + sum_j exp z_j)`` less ``z_y`` of an ID image, and less ``b``
    of an outlier. Images are scored by the method ``background``.

    References
    ----------
    Dhamija, Günther, Boult. "Reducing Network Agnostophobia". NeurIPS 2018, arXiv:1811.04110: the
    baseline with a background class.

    Notes
    -----
    The logit of the background is a head of its own beside the last layer, which stays in the
    weights. The network so has ``k`` classes for predictions, accuracy and all other methods: they
    see the logits of the classes alone.
    """

    needs: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset({"features"})
    kept: ClassVar[Mapping[str, int]] = MappingProxyType({BACKGROUND: 1})
    pooled: ClassVar[bool] = True

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of ID images over classes and background."""
        if labels.is_floating_point():
            labels = functional.pad(labels, (0, 1))  # no background in a mixture of classes
        return functional.cross_entropy(_with_background(output), labels)

    def outlier_loss(self, output: StepOutput, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return the mean of minus the log-probability of the background."""
        return -_with_background(output).log_softmax(dim=1)[:, -1].mean()


def _with_background(output: StepOutput) -> Tensor:
    """Return the logits of the classes and of the background, float32, ``(m, k + 1)``."""
    return torch.cat([output.logits.float(), output.extras[0]], dim=1)
