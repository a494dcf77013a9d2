"""G-ODIN: logits are cosines divided by a learned number of the image."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.models import quotient
from oodcli.training.objectives.base import PlainObjective, StepOutput


@dataclass(frozen=True)
class GODIN(PlainObjective):
    """Cross-entropy of ``h(f) / g(f)``, cosines over a sigmoid of the features.

    ``h_c`` is the cosine of the features with the weight of class ``c``, and ``g`` is
    ``sigmoid(BatchNorm(v . f + b))``; see :class:`~oodcli.models.heads.QuotientLinear`. Weight
    decay does not apply to ``h``, unless ``--set head_weight_decay`` says otherwise. The method
    ``g-odin`` scores by ``h``; all other methods take ``f . w_c / ||w_c||`` as logits, which
    predict the same classes.

    References
    ----------
    Hsu, Shen, Jin, Kira. "Generalized ODIN: Detecting Out-of-distribution Image without Learning
    from Out-of-distribution Data". CVPR 2020, arXiv:2002.11297. Layer: ``godin_net.py`` of OpenOOD.

    Notes
    -----
    In OpenOOD a second scheduler steps the wrong optimiser, so that the learning rate of ``h``
    never decays; here it follows the schedule. Published code starts the weight of ``h`` from
    normal numbers of variance ``2 / d``; here its rows are given that length, and keep the
    directions of the network that training starts from.
    """

    accepts_soft_labels: ClassVar[bool] = True
    decays_last_layer: ClassVar[bool] = False

    def attach(self, module: nn.Module, head: str) -> None:
        """Replace the last layer by the quotient."""
        quotient(module, head)
        last = module.get_submodule(head)
        assert isinstance(last, nn.Linear)  # a subclass
        with torch.no_grad():
            length = last.weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
            last.weight.mul_(sqrt(2) / length)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the quotients."""
        return functional.cross_entropy(output.logits.float(), labels)
