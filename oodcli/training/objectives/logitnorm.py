"""LogitNorm: cross-entropy of logits normalised to constant length."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from oodcli.specs import positive
from oodcli.training.objectives.base import PlainObjective, StepOutput


@dataclass(frozen=True)
class LogitNorm(PlainObjective):
    """Cross-entropy of ``z / (tau (||z|| + 1e-7))``.

    Accuracy and scores use the unnormalised logits ``z``.

    Parameters
    ----------
    tau
        Temperature.

    References
    ----------
    Wei, Xie, Cheng, Feng, An, Li. "Mitigating Neural Network Overconfidence with Logit
    Normalization". ICML 2022, arXiv:2205.09310.

    Notes
    -----
    The default temperature is that of OpenOOD for all data sets; the paper tuned it per data set.
    """

    tau: float = 0.04

    accepts_soft_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("logitnorm:tau", self.tau)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the logits divided by their length and ``tau``."""
        logits = output.logits.float()
        length = logits.norm(dim=1, keepdim=True) + 1e-7  # (m, 1)
        return functional.cross_entropy(logits / (length * self.tau), labels)
