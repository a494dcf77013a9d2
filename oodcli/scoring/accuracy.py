"""The accuracy of a classifier on the test images of its data, as training ends with it."""

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
    """How often a classifier is right.

    Parameters
    ----------
    n
        Number of test images.
    accuracy
        Share of them that it is right on.
    chance
        What guessing would reach, if the classifier is hardly better, see
        :func:`oodcli.metrics.near_chance`; None otherwise.
    by_class
        Number of test images of every class and the share that is right, None without images; in
        the order of the classes.
    """

    n: int
    accuracy: float
    chance: float | None
    by_class: tuple[tuple[int, float | None], ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in the record of a run."""
        return as_json(self)


def accuracy_on(
    activator: Activator, images: ImageSet, classes: int, *, processes: Processes
) -> Accuracy:
    """Classify test images; their activations are stored, so that scoring does not compute them.

    Parameters
    ----------
    activator
        Of the run.
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
        activator.share_out(images, processes)
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
