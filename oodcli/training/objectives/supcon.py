"""SupCon: views of the same class attract, views of other classes repel."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.specs import positive
from oodcli.training.objectives.base import PlainObjective, StepOutput

PROJECTED = 128
# The fixed base temperature of the SupContrast code; the loss has the factor tau / base.
BASE_TEMPERATURE = 0.07


class Contrastive(PlainObjective):
    """An objective on projected features of two views, whose last layer is a linear probe."""

    views: ClassVar[int] = 2
    needs: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset({"features"})
    trains_last_layer: ClassVar[bool] = False
    compares_images: ClassVar[bool] = True

    def attach(self, module: nn.Module, head: str) -> None:
        """Freeze the last layer."""
        module.get_submodule(head).requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class SupCon(Contrastive):
    """Supervised contrastive loss of projected features, of two views per image.

    For unit vectors ``u`` of all views, with ``P(i)`` the other views of the class of ``i``::

        l_i  = -1 / |P(i)| sum_{p in P(i)} [u_i u_p / tau - log sum_{j != i} exp(u_i u_j / tau)]
        loss = (tau / 0.07) mean_i l_i

    The projection Linear(d, d)-ReLU-Linear(d, 128) is discarded after training. The last layer of
    the network is not trained: it is replaced by a linear probe.

    Parameters
    ----------
    tau
        Temperature.

    References
    ----------
    Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan. "Supervised Contrastive
    Learning". NeurIPS 2020, arXiv:2004.11362.

    Notes
    -----
    The factor tau / 0.07 is that of the SupContrast code; it matters in the sum with ALPA. The mean
    is over all anchors; the loss of an anchor without positives is 0.
    """

    tau: float = 0.1

    def __post_init__(self) -> None:
        positive("supcon:tau", self.tau)

    def extras(self, features: int, channels: int, classes: int) -> nn.Module:  # noqa: ARG002
        """Build the projection of features."""
        return Projection(features)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the loss of the projected unit vectors."""
        return supcon_loss(output.extras[0], labels, tau=self.tau)


class Projection(nn.Module):
    """Two linear layers with a ReLU in between, and normalisation to unit length.

    Parameters
    ----------
    features
        Length of a feature vector.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Linear(features, PROJECTED)
        )

    def forward(self, features: Tensor, maps: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return unit vectors ``(m, 128)`` in float32."""
        return (functional.normalize(self.layers(features).float(), dim=1),)


def supcon_loss(unit: Tensor, labels: Tensor, *, tau: float) -> Tensor:
    """Return the SupCon loss of unit vectors ``(m, e)`` with labels ``(m,)``."""
    with torch.autocast(unit.device.type, enabled=False):
        similar = unit @ unit.T / tau  # (m, m)
    return tau / BASE_TEMPERATURE * contrastive(similar, labels)


def contrastive(similarities: Tensor, labels: Tensor) -> Tensor:
    """Return minus the mean log-probability of positives among all others.

    Parameters
    ----------
    similarities
        Scaled similarity of every pair of views, ``(m, m)``; the diagonal is ignored.
    labels
        Class of every view, ``(m,)``.
    """
    diagonal = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    others = similarities.masked_fill(diagonal, -torch.inf).logsumexp(dim=1, keepdim=True)
    positives = (labels[:, None] == labels[None, :]) & ~diagonal  # (m, m)
    log_probabilities = torch.where(positives, similarities - others, 0.0)
    return -(log_probabilities.sum(dim=1) / positives.sum(dim=1).clamp(min=1)).mean()
