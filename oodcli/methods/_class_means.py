"""Means of the training features, of all and by class, which many methods start from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError

By = Literal["labels", "predictions", "hits"]

# Rows that are widened to float64 at a time: 512 rows of 512 features, 2 MB, stay in a cache.
BLOCK_ROWS = 512


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
    """Return the features of a batch, divided by their lengths on request, computed once."""
    if not normalised:
        return batch.features
    return batch.once("directions", lambda: directions(batch.features))


def wide_blocks(features: Tensor, *, normalised: bool = False) -> Iterator[Tensor]:
    """Yield features in float64 by blocks of rows, each good until the next is asked for.

    Parameters
    ----------
    features
        ``(n, d)``.
    normalised
        Whether to divide them by their lengths, in float64.
    """
    if torch.compiler.is_compiling():  # a graph that is recorded is for any number of rows
        wide = features.double()
        yield wide / wide.norm(dim=1, keepdim=True).clamp(min=1e-10) if normalised else wide
        return
    # One buffer for all: memory that was touched before is much faster to write to.
    buffer = features.new_empty(
        min(BLOCK_ROWS, len(features)), features.shape[1], dtype=torch.float64
    )
    for block in features.split(BLOCK_ROWS):
        wide = buffer[: len(block)].copy_(block)
        if normalised:
            wide.div_(wide.norm(dim=1, keepdim=True).clamp_(min=1e-10))
        yield wide


def predicted_among(batch: Activations, present: Tensor) -> Tensor:
    """Return the predicted class of every image, ``(n,)``; of the classes present, if it is not.

    Parameters
    ----------
    batch
        The images.
    present
        Whether a class can be used, ``(k,)``; where the predicted one cannot, the largest logit
        among those that can decides.
    """
    if bool(present.all()):
        return batch.predictions
    among = batch.logits.masked_fill(~present, -torch.inf).argmax(dim=1)
    return torch.where(present[batch.predictions], batch.predictions, among)


def feature_mean(reference: Reference) -> Tensor:
    """Return the float64 mean of all training features, ``(d,)``, read in chunks and computed once.

    Raises
    ------
    UndefinedMethodError
        If there is no training image.
    """
    return reference.once("feature mean", lambda: _feature_mean(reference))


def _feature_mean(reference: Reference) -> Tensor:
    total = torch.zeros(
        reference.head.weight.shape[1], dtype=torch.float64, device=reference.head.weight.device
    )
    count = 0
    for chunk in reference.train.chunks():
        # A float32 sum of so few rows is good to seven digits, and needs no wide copy of them.
        for block in chunk.features.split(BLOCK_ROWS):
            total += block.sum(dim=0)
            count += len(block)
    if count == 0:
        raise UndefinedMethodError("no training image is left for the mean feature")
    return total / count


def class_means(reference: Reference, *, by: By = "labels", normalised: bool = False) -> ClassMeans:
    """Return the class means of the training features, read in chunks and computed once.

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


def chosen_classes(reference: Reference, by: By) -> Iterator[tuple[Activations, Tensor]]:
    """Yield every chunk of training images with the class that each counts for, ``(n,)``.

    Parameters
    ----------
    reference
        The training images.
    by
        As for :func:`class_means`; an image that counts for no class gets the number of classes.
    """
    classes = reference.classes
    # Labels are read only where they are needed: predictions are had without.
    labels = None if by == "predictions" else reference.labels.to(reference.head.weight.device)
    first = 0
    for chunk in reference.train.chunks():
        chosen = chunk.predictions if labels is None else labels[first : first + len(chunk)]
        first += len(chunk)
        if by == "hits":
            chosen = torch.where(chosen == chunk.predictions, chosen, classes)
        yield chunk, chosen


def _class_means(reference: Reference, by: By, *, normalised: bool) -> ClassMeans:
    classes, width = reference.classes, reference.head.weight.shape[1]
    device = reference.head.weight.device
    # One row more than classes, for the images that count for none.
    sums = torch.zeros(classes + 1, width, dtype=torch.float64, device=device)
    counts = torch.zeros(classes + 1, dtype=torch.int64, device=device)
    for chunk, chosen in chosen_classes(reference, by):
        counts += torch.bincount(chosen, minlength=classes + 1)
        blocks = wide_blocks(chunk.features, normalised=normalised)
        for block, of in zip(blocks, chosen.split(BLOCK_ROWS), strict=True):
            sums.index_add_(0, of, block)
    sums, counts = sums[:classes], counts[:classes]
    total = int(counts.sum())
    if total == 0:
        raise UndefinedMethodError("no training image is left for the class means")
    means = sums / counts.clamp(min=1)[:, None]
    return ClassMeans(means, counts, sums.sum(dim=0) / total)
