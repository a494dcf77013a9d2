"""T2FNorm: train on unit features, score with features at their own length."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from oodcli.models import unit_features
from oodcli.specs import positive
from oodcli.training.objectives.base import PlainObjective, StepOutput


@dataclass(frozen=True)
class T2FNorm(PlainObjective):
    """Cross-entropy of ``W (f / max(||f||, 1e-12) / tau) + b``.

    The loss cannot be lowered by longer features. Training, validation, the choice of a checkpoint
    and accuracy all use this forward pass; images are scored by ``W f / tau + b``.

    Parameters
    ----------
    tau
        Temperature: the last layer sees vectors of length ``1 / tau``.
    scoring
        ``tau``: features are divided by ``tau`` for scoring; ``omitted``: they are not, as the
        authors do for ImageNet-1K.

    References
    ----------
    Regmi, Panthi, Dotel, Gyawali, Stoyanov, Bhattarai. "T2FNorm: Train-time Feature Normalization
    for OOD Detection in Image Classification". CVPR workshops 2024, arXiv:2305.17797.

    Notes
    -----
    The authors set their temperature from outside; here it is a buffer of the last layer, and so in
    every checkpoint.
    """

    tau: float = 0.1
    scoring: Literal["tau", "omitted"] = "tau"

    def __post_init__(self) -> None:
        positive("t2fnorm:tau", self.tau)

    def attach(self, module: nn.Module, head: str) -> None:
        """Let the last layer see unit features."""
        unit_features(
            module, head, tau=self.tau, scoring_tau=self.tau if self.scoring == "tau" else 1.0
        )

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the logits, which are those of unit features."""
        return functional.cross_entropy(output.logits.float(), labels)
