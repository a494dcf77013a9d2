"""BATS: features clipped to the range that is typical of each neuron."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods._moments import moments
from oodcli.specs import positive

# Number of classes from which on the default range is the published one for ImageNet.
_MANY_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class BATS:
    """Logits of features that are clipped to a range of their own for each neuron.

    ``z' = W min(max(f, μ - lmbda s), μ + lmbda s) + b``, where ``μ`` and ``s`` are mean and
    standard deviation of every feature over the training images.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    low, high
        The range of every feature, ``(d,)``.
    lmbda
        Half the width of the range, in standard deviations.

    References
    ----------
    Zhu, Chen, Xie, Li, Zhang, Xue, Tian, Zheng, Chen. "Boosting Out-of-distribution Detection with
    Typical Features". NeurIPS 2022, arXiv:2210.04200; code: alibaba/easyrobust
    (``examples/ood_detection/BATS``).

    Notes
    -----
    For a CIFAR-10 ResNet the published code takes bias and weight of the last BatchNorm for ``μ``
    and ``s`` of the pooled feature, which are those of its map before shortcut, activation and
    pooling; for ViT, which has no BatchNorm, values that are stored. Here both are measured on the
    training features themselves, which every network has. As pooled features vary less, the same
    ``lmbda`` clips more than there.

    ``lmbda`` is 1.05 in published code for ViT, ResNet-50 and MobileNet on ImageNet, and 3.25 for
    CIFAR-10; the default is 1.05 from 1,000 classes on, and 3.25 below. The grid is ours.
    """

    head: Head
    low: Tensor
    high: Tensor
    lmbda: float

    @classmethod
    def fit(cls, reference: Reference, *, lmbda: float | None = None) -> Self:
        """Measure mean and standard deviation of the training features.

        Parameters
        ----------
        reference
            The training images.
        lmbda
            Half the width of the range, in standard deviations.
        """
        if lmbda is None:
            lmbda = 1.05 if len(reference.head.weight) >= _MANY_CLASSES else 3.25
        positive("bats:lmbda", lmbda)
        everything = moments(reference)
        spread = lmbda * everything.covariance.diagonal().clamp(min=0).sqrt()
        kind = reference.head.weight.dtype
        low, high = everything.mean - spread, everything.mean + spread
        return cls(reference.head, low.to(kind), high.to(kind), lmbda)

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the clipped features, ``(n, k)``."""
        return self.head(batch.features.clamp(self.low, self.high))
