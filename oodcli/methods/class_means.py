"""Means of the training features, of all and by class, which many methods start from."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError

By = Literal["labels", "predictions", "hits"]


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """Mean training feature of every class.

    Parameters
    ----------
    means
        float64, ``(k, d)``; zero for a class without images.
    counts
        Training images of every class, ``(k,)``.
    overall
        float64 mean of all those images, ``(d,)``.
    """

    means: Tensor
    counts: Tensor
    overall: Tensor

    @property
    def present(self) -> Tensor:
        """Whether a class has images, ``(k,)``."""
        return self.counts > 0


def directions(features: Tensor) -> Tensor:
    """Return features divided by their lengths; a feature of length zero stays zero.

    Parameters
    ----------
    features
        ``(n, d)``.
    """
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-10)


def feature_rows(batch: Activations, *, normalised: bool) -> Tensor:
    """Return the features of a batch, divided by their lengths on request, made once."""
    if not normalised:
        return batch.features
    return batch.once("directions", lambda: directions(batch.features))


def class_means(reference: Reference, *, by: By = "labels", normalised: bool = False) -> ClassMeans:
    """Return the class means of the training features, read in chunks and made once.

    Parameters
    ----------
    reference
        The training images.
    by
        Which images make the mean of a class: those with that label, those predicted so, or those
        for which both hold (``hits``).
    normalised
        Whether features are divided by their lengths first.

    Raises
    ------
    UndefinedMethodError
        If no class has an image.
    """
    return reference.once(
        ("class means", by, normalised), lambda: _class_means(reference, by, normalised=normalised)
    )


def _class_means(reference: Reference, by: By, *, normalised: bool) -> ClassMeans:
    classes, width = reference.head.weight.shape
    device = reference.head.weight.device
    sums = torch.zeros(classes, width, dtype=torch.float64, device=device)
    counts = torch.zeros(classes, dtype=torch.int64, device=device)
    # Labels are read only where they are needed: predictions are had without.
    labels = None if by == "predictions" else reference.labels.to(device)
    first = 0
    for chunk in reference.train.chunks():
        rows = feature_rows(chunk, normalised=normalised).double()
        chosen = chunk.predictions if labels is None else labels[first : first + len(chunk)]
        first += len(chunk)
        if by == "hits":
            hits = chosen == chunk.predictions
            rows, chosen = rows[hits], chosen[hits]
        sums.index_add_(0, chosen, rows)
        counts += torch.bincount(chosen, minlength=classes)
    total = int(counts.sum())
    if total == 0:
        raise UndefinedMethodError("no training image is left to take class means of")
    means = sums / counts.clamp(min=1)[:, None]
    return ClassMeans(means, counts, sums.sum(dim=0) / total)
