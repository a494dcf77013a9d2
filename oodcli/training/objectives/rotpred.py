"""RotPred: also predicts by how much an image is rotated."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.activations import ROTATION
from oodcli.errors import InvalidInputError
from oodcli.training.objectives.base import PlainObjective, StepOutput

TURNS = 4


@dataclass(frozen=True)
class RotPred(PlainObjective):
    """Cross-entropy of the classes, plus that of the rotation of four rotated copies.

    Every augmented image is rotated by ``r`` = 0, 1, 2, 3 quarter turns (counterclockwise); a
    second linear layer on the features has logits ``q`` of the four rotations::

        loss = mean_i [-log softmax(z(x_i))_(y_i)] + mean_(i, r) [-log softmax(q(x_i^r))_r]

    The layer of the rotations stays in the weights, for the method ``rotpred``. The accuracy on
    training images is that of the upright copies.

    References
    ----------
    Hendrycks, Mazeika, Kadavath, Song. "Using Self-Supervised Learning Can Improve Model Robustness
    and Uncertainty". NeurIPS 2019, arXiv:1906.12340. Loss and schedule: ``rotpred_trainer.py`` of
    OpenOOD.

    Notes
    -----
    The paper weights the loss of rotations by 0.5; OpenOOD, whose results are published, by 1. All
    copies pass through batch normalisation together, as there. Images must be square.
    """

    copies: ClassVar[int] = TURNS
    accepts_soft_labels: ClassVar[bool] = True
    needs: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset({"features"})
    kept: ClassVar[Mapping[str, int]] = MappingProxyType({ROTATION: TURNS})

    def check(self, size: tuple[int, int]) -> None:
        """Refuse images that are not square."""
        height, width = size
        if height != width:
            raise InvalidInputError(
                f"rotpred turns images by 90 degrees, so they must be square, not {height} x "
                f"{width} pixels; resize them: --image-size {min(size)}"
            )

    def derived(self, views: list[Tensor]) -> list[Tensor]:
        """Return the views, then their copies rotated by one, two and three quarter turns."""
        return [view.rot90(turns, (2, 3)) for turns in range(TURNS) for view in views]

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the cross-entropy of upright classes plus that of all rotations."""
        upright = len(labels) // TURNS
        turns = torch.arange(TURNS, device=labels.device).repeat_interleave(upright)
        return functional.cross_entropy(
            output.logits[:upright].float(), labels[:upright]
        ) + functional.cross_entropy(output.extras[0], turns)
