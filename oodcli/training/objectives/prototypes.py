"""Prototypes of classes: unit vectors that follow projected features by moving averages."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.training.objectives.supcon import PROJECTED, Projection


class Prototypes(nn.Module):
    """A projection of features, and prototypes of the classes as a buffer.

    The buffer has no gradient; it is part of the stored state of a training, and equal in all
    processes, because each computes it from the whole batch.

    Parameters
    ----------
    features
        Length of a feature vector.
    classes
        Number of classes.
    each
        Prototypes of each class. Row ``k classes + c`` is the ``k``-th prototype of class ``c``.
    """

    values: Tensor

    def __init__(self, features: int, classes: int, each: int = 1) -> None:
        super().__init__()
        self.projection = Projection(features)
        self.classes = classes
        start = torch.rand(each * classes, PROJECTED)
        self.register_buffer("values", functional.normalize(start, dim=1))

    def forward(self, features: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        """Return projected features, unit vectors ``(m, 128)`` in float32."""
        return self.projection(features, maps)


class ClassMeanPrototypes(Prototypes):
    """One prototype per class, which starts as the mean of projected features of the class."""

    def start(self, features: Tensor, labels: Tensor) -> None:
        """Start from the class means of features ``(n, d)`` with labels ``(n,)``.

        A class without images keeps its random prototype.
        """
        (unit,) = self.projection(features, features)
        sums = torch.zeros_like(self.values).index_add(0, labels, unit)
        has_images = torch.bincount(labels, minlength=self.classes)[:, None] > 0
        self.values.copy_(torch.where(has_images, functional.normalize(sums, dim=1), self.values))


def moved(prototypes: Tensor, unit: Tensor, labels: Tensor, *, momentum: float) -> Tensor:
    """Move each prototype towards the features of its class, one after the other.

    ``mu_y <- unit(m mu_y + (1 - m) f)`` for every row in turn; the gradient flows through ``f``.

    Parameters
    ----------
    prototypes
        One per class, ``(k, e)``.
    unit
        Features, ``(m, e)``.
    labels
        Classes of the features, ``(m,)``.
    momentum
        ``m``.

    Returns
    -------
    Tensor
        The new prototypes, ``(k, e)``.

    Notes
    -----
    Classes do not affect each other: the first features of all classes are used together, then the
    second ones, and so on, which takes as many steps as the largest class has features. Their
    number is read from the device once per call.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=len(prototypes))
    starts = counts.cumsum(0) - counts
    for turn in range(int(counts.max())):
        rows = order[(starts + turn).clamp(max=len(labels) - 1)]  # (k,)
        towards = functional.normalize(momentum * prototypes + (1 - momentum) * unit[rows], dim=1)
        prototypes = torch.where((counts > turn)[:, None], towards, prototypes)
    return prototypes
