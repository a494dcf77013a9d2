"""Cross-entropy."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from oodcli.training.objectives.base import PlainObjective, StepOutput


@dataclass(frozen=True)
class CrossEntropy(PlainObjective):
    """Cross-entropy of the softmax of the logits, without label smoothing."""

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean over the batch of ``log sum_j exp z_j - z_y``."""
        return functional.cross_entropy(output.logits.float(), labels)
