"""T2FNorm: trains on unit-length features, and scores with unnormalised features."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from oodcli.models import unit_features
from oodcli.specs import positive
from oodcli.training.objectives.base import PlainObjective, StepOutput


@dataclass(frozen=True)
class T2FNorm(PlainObjective):
    """Cross-entropy of ``W (f / max(||f||, 1e-12) / tau) + b``.

    The loss does not depend on the length of the features. Training, validation, the selection of a
    checkpoint and accuracy all use this forward pass; images are scored by ``W f / tau + b``.

    Parameters
    ----------
    tau
        Temperature: the inputs of the last layer have length ``1 / tau``.
    scoring
        ``tau``: features are divided by ``tau`` for scoring; ``omitted``: they are not, as in the
        code of the authors for ImageNet-1K.

    References
    ----------
    Regmi, Panthi, Dotel, Gyawali, Stoyanov, Bhattarai. "T2FNorm: Train-time Feature Normalization
    for OOD Detection in Image Classification". CVPR workshops 2024, arXiv:2305.17797.

    Notes
    -----
    In the code of the authors the temperature is not part of the network; here it is a buffer of
    the last layer, and so stored in every checkpoint.
    """

    tau: float = 0.1
    scoring: Literal["tau", "omitted"] = "tau"

    accepts_soft_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("t2fnorm:tau", self.tau)

    def attach(self, module: nn.Module, head: str) -> None:
        """Normalise the inputs of the last layer to length ``1 / tau``."""
        unit_features(
            module, head, tau=self.tau, scoring_tau=self.tau if self.scoring == "tau" else 1.0
        )

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the logits of normalised features."""
        return functional.cross_entropy(output.logits.float(), labels)
