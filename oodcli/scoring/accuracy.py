"""The accuracy of a classifier on the test images of its data, computed after training."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from oodcli.compute.processes import Processes
from oodcli.images import ImageSet
from oodcli.metrics import near_chance
from oodcli.records import as_json
from oodcli.scoring.activate import Activator


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a classifier.

    Parameters
    ----------
    n
        Number of test images.
    accuracy
        Accuracy on all test images, a fraction.
    chance
        Accuracy of guessing, if the classifier is hardly better, see
        :func:`oodcli.metrics.near_chance`; None otherwise.
    by_class
        Number of test images and accuracy for each class, in the order of the classes; the accuracy
        is None without images.
    """

    n: int
    accuracy: float
    chance: float | None
    by_class: tuple[tuple[int, float | None], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object ``training.test`` of a run's record."""
        return as_json(self)


def accuracy_on(
    activator: Activator, images: ImageSet, classes: int, *, processes: Processes
) -> Accuracy:
    """Return the accuracy on test images; their activations are stored for later scoring.

    Parameters
    ----------
    activator
        The activator of the run.
    images
        The test images, with labels.
    classes
        Number of classes.
    processes
        The processes that share the forward pass.

    Raises
    ------
    OodError
        If the network cannot be run on the images.
    """
    assert images.labels is not None  # a data set with classes has labels in every part
    if processes.distributed:
        activator.compute_together(images, processes)
    predicted = activator.activations(images).predictions.cpu().numpy()
    labels = images.labels
    right = predicted == labels
    seen = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[right], minlength=classes)
    accuracy = float(right.mean())
    return Accuracy(
        n=len(labels),
        accuracy=accuracy,
        chance=near_chance(accuracy, labels),
        by_class=tuple(
            (int(n), float(k / n) if n else None) for n, k in zip(seen, hits, strict=True)
        ),
    )
