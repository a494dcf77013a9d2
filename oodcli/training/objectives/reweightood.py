"""ReweightOOD: a contrastive loss whose weights fall for pairs that are well placed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.specs import positive
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.supcon import Contrastive, Projection


@dataclass(frozen=True)
class ReweightOOD(Contrastive):
    """Soft extremes of the reweighted cosines of pairs of the same and of other classes.

    With the cosines ``s_ij`` of the projected unit vectors of two views per image, pairs ``i < j``,
    and ``sigma`` the logistic function, whose values are treated as constant::

        same  = log sum_{y_i = y_j}  exp(-sigma(-(2 s_ij - 1)) s_ij / tau)
        other = log sum_{y_i != y_j} exp(sigma(5 s_ij - 4) s_ij / tau)
        loss  = ELU(same + other)

    Projection, last layer and linear probe are as for ``supcon``.

    Parameters
    ----------
    tau
        Temperature.
    same_slope, same_offset
        Line in the weight of pairs of a class, 2 and 1 above.
    other_slope, other_offset
        Line in the weight of pairs of two classes, 5 and 4 above.

    References
    ----------
    Regmi, Panthi, Ming, Gyawali, Stoyanov, Bhattarai. "ReweightOOD: Loss Reweighting for
    Distance-based OOD Detection". CVPR workshops 2024. Formula and defaults:
    ``reweightood_trainer.py`` of OpenOOD.

    Notes
    -----
    ``mds++`` (Mahalanobis distance on unit features before the projection) scores as there. If a
    batch has no pair of two classes, the loss is that of the pairs of one class.
    """

    tau: float = 0.1
    same_slope: float = 2.0
    same_offset: float = 1.0
    other_slope: float = 5.0
    other_offset: float = 4.0

    def __post_init__(self) -> None:
        positive("reweightood:tau", self.tau)
        positive("reweightood:same_slope", self.same_slope)
        positive("reweightood:other_slope", self.other_slope)

    def extras(self, features: int, channels: int, classes: int) -> nn.Module:  # noqa: ARG002
        """Build the projection of features."""
        return Projection(features)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the loss of the projected unit vectors."""
        unit = output.extras[0]
        with torch.autocast(unit.device.type, enabled=False):
            similar = unit @ unit.T  # (m, m)
        is_pair = torch.ones_like(similar, dtype=torch.bool).triu(diagonal=1)
        is_same = labels[:, None] == labels[None, :]
        fixed = similar.detach()
        same = -(self.same_offset - self.same_slope * fixed).sigmoid() * similar / self.tau
        other = (self.other_slope * fixed - self.other_offset).sigmoid() * similar / self.tau
        terms = [
            values.masked_fill(~pairs, -torch.inf).flatten().logsumexp(dim=0)
            for values, pairs in ((same, is_pair & is_same), (other, is_pair & ~is_same))
        ]
        # The logarithm of an empty sum; two views of an image are always of one class.
        found = terms[0] + torch.where(terms[1].isneginf(), 0.0, terms[1])
        return functional.elu(found)
