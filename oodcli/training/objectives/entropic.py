"""Entropic open-set and Objectosphere: little is said of outliers, and with short features."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from oodcli.specs import positive
from oodcli.training.objectives.base import OutlierObjective, StepOutput


@dataclass(frozen=True)
class Entropic(OutlierObjective):
    """Cross-entropy of ID images, and of outliers with the uniform distribution, equally weighted.

    The loss is the mean over all images of a step: ``-log p_y`` of an ID image, and
    ``-1/k sum_j log p_j`` of an outlier. Images are scored by MSP.

    References
    ----------
    Dhamija, Günther, Boult. "Reducing Network Agnostophobia". NeurIPS 2018, arXiv:1811.04110.

    Notes
    -----
    It is the loss of ``oe`` with another weight of outliers: their share of the images of a step.
    """

    pooled: ClassVar[bool] = True

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of ID images."""
        return functional.cross_entropy(output.logits.float(), labels)

    def outlier_loss(self, output: StepOutput, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of outliers."""
        return functional.cross_entropy(output.logits.float(), targets)


@dataclass(frozen=True)
class Objectosphere(Entropic):
    """The loss of ``entropic``, with long features of ID images and short ones of outliers.

    The loss is the mean over all images of a step, with features ``f``: of an ID image
    ``-log p_y + weight max(0, length - ||f||)^2``, of an outlier
    ``-1/k sum_j log p_j + weight ||f||^2``. Images are scored by the method ``objectosphere``: the
    maximum softmax probability times the length of the features.

    Parameters
    ----------
    weight
        Weight of the terms with lengths.
    length
        Length that features of ID images are to exceed.

    References
    ----------
    Dhamija, Günther, Boult. "Reducing Network Agnostophobia". NeurIPS 2018, arXiv:1811.04110.

    Notes
    -----
    Defaults are those of pytorch-ood. The paper chooses ``length`` for each network; the authors'
    script (github.com/Vastlab/Reducing-Network-Agnostophobia at c94c6b8) has
    ``length=50,weight=0.0001``, as the recipe ``objectosphere-cifar``. With a weight of 1 from the
    first step, a ResNet-18 hardly learned its classes in 12 epochs.
    """

    weight: float = 1.0
    length: float = 1.0

    needs: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset({"features"})

    def __post_init__(self) -> None:
        positive("objectosphere:weight", self.weight)
        positive("objectosphere:length", self.length)

    def extras(self, features: int, channels: int, classes: int) -> nn.Module:  # noqa: ARG002
        """Build the layer that passes on features with their gradients."""
        return _Features()

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of ID images, and of what their features lack in length."""
        lacks = (self.length - output.extras[0].norm(dim=1)).relu()
        return super().loss(output, labels) + self.weight * lacks.square().mean()

    def outlier_loss(self, output: StepOutput, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of outliers and squared length of their features."""
        squared = output.extras[0].square().sum(dim=1)  # (m,)
        return super().outlier_loss(output, targets) + self.weight * squared.mean()


class _Features(nn.Module):
    def forward(self, features: Tensor, maps: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        return (features.float(),)
