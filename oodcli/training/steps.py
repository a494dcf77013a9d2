"""What one training step sees, and what one epoch of them reports."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oodcli.records import as_json
from oodcli.training.augmentations.mixtures import Labels
from oodcli.training.outliers import OutlierShare


@dataclass(frozen=True, slots=True)
class EpochStats:
    """Statistics of one epoch, as stored in the history of a run.

    Parameters
    ----------
    epoch
        Number of the epoch, from 1.
    loss
        Mean loss over the augmented training images.
    train_accuracy
        Accuracy on the augmented images during training, from 0 to 1; None if the objective does
        not train the last layer.
    val_accuracy
        Accuracy on the validation images after the epoch, from 0 to 1; None without validation
        images, or if the objective does not train the last layer.
    lr
        Learning rate of the last step.
    seconds
        Duration of the training steps, without validation.
    images_per_s
        Training images per second.
    """

    epoch: int
    loss: float
    train_accuracy: float | None
    val_accuracy: float | None
    lr: float
    seconds: float
    images_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the line of the history."""
        return as_json(self)


@dataclass(frozen=True, slots=True)
class StepImages:
    """The augmented images of one step that a process computes.

    Parameters
    ----------
    seen
        The augmented views, one after the other, from 0 to 255, uint8 or float32 ``(n, 3, h, w)``;
        last, with the consistency loss of AugMix, two mixtures of every image.
    labels
        Labels of the views that the objective sees, the first of them.
    draws
        Random numbers of the objective, ``(n, r)``; None if it needs none.
    count
        Number of images of the batch that count for this process.
    images
        Number of images of the whole batch.
    rows
        Number of these views that count for this process; the others are padding.
    places
        Position of these rows among those of a single process, int64 ``(rows,)``; None if there is
        only one.
    outliers
        The outliers of the step, if there are any.
    """

    seen: Tensor
    labels: Labels
    draws: Tensor | None
    count: int
    images: int
    rows: int
    places: Tensor | None
    outliers: OutlierShare | None = None

    @property
    def pixels(self) -> Tensor:
        """All that the network sees: the views, then the outliers."""
        return self.seen if self.outliers is None else torch.cat([self.seen, self.outliers.pixels])
