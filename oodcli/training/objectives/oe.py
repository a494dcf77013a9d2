"""Outlier exposure: uniform predictions for outliers."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from oodcli.specs import positive
from oodcli.training.objectives.base import OutlierObjective, StepOutput


@dataclass(frozen=True)
class OutlierExposure(OutlierObjective):
    """Cross-entropy, plus ``weight`` times that of outliers with the uniform distribution.

    For logits ``z`` of ``k`` classes::

        loss = mean_in [log sum_j exp z_j - z_y]
               + weight mean_out [log sum_j exp z_j - 1/k sum_j z_j]

    Images are scored by MSP, as in the paper.

    Parameters
    ----------
    weight
        Weight of the outliers.

    References
    ----------
    Hendrycks, Mazeika, Dietterich. "Deep Anomaly Detection with Outlier Exposure". ICLR 2019,
    arXiv:1812.04606.

    Notes
    -----
    As in the code of the authors and in OpenOOD, ID images and outliers share one forward pass, and
    so the statistics of batch normalisation, and there are twice as many outliers.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        positive("oe:weight", self.weight)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of ID images."""
        return functional.cross_entropy(output.logits.float(), labels)

    def outlier_loss(self, output: StepOutput, targets: Tensor) -> Tensor:
        """Return the weighted mean cross-entropy of outliers."""
        return self.weight * functional.cross_entropy(output.logits.float(), targets)
