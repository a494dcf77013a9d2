"""BATS: features clipped to the range that is typical of each neuron."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods._moments import moments
from oodcli.specs import positive


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
    ``lmbda`` 1.05 is published for ViT, and in the code of kernel PCA
    (fanghenshaometeor/ood-kernel-pca) for ResNet-50 and MobileNet, on ImageNet, with mean and
    standard deviation of the feature itself, as here. For a CIFAR-10 ResNet the published code has
    3.25 instead, and bias and weight of the last BatchNorm for ``μ`` and ``s``: those of the map
    before shortcut, activation and pooling, which vary more than the pooled feature. Not every
    network has such a layer, and it is not used here. The grid is ours.
    """

    head: Head
    low: Tensor
    high: Tensor
    lmbda: float

    @classmethod
    def fit(cls, reference: Reference, *, lmbda: float = 1.05) -> Self:
        """Measure mean and standard deviation of the training features.

        Parameters
        ----------
        reference
            The training images.
        lmbda
            Half the width of the range, in standard deviations.
        """
        positive("bats:lmbda", lmbda)
        everything = moments(reference)
        spread = lmbda * everything.covariance.diagonal().clamp(min=0).sqrt()
        kind = reference.head.weight.dtype
        low, high = everything.mean - spread, everything.mean + spread
        return cls(reference.head, low.to(kind), high.to(kind), lmbda)

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the clipped features, ``(n, k)``."""
        return self.head(batch.features.clamp(self.low, self.high))
