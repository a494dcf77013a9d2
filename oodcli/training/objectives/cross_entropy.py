"""Cross-entropy."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from oodcli.training.objectives.base import PlainObjective, StepOutput


@dataclass(frozen=True)
class CrossEntropy(PlainObjective):
    """Cross-entropy of the softmax of the logits, without label smoothing."""

    accepts_soft_labels: ClassVar[bool] = True

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean over the batch of ``log sum_j exp z_j - z_y``.

        For probabilities ``q`` of the classes: ``log sum_j exp z_j - sum_j q_j z_j``.
        """
        return functional.cross_entropy(output.logits.float(), labels)
