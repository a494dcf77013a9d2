"""NCI: nearness of the centred feature to the weight of its predicted class."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._class_means import feature_mean
from oodcli.methods.base import not_negative


@dataclass(frozen=True, slots=True)
class NCI:
    """Nearness to the weight of the predicted class, and length of the feature.

    ``⟨w_ŷ, f - μ⟩ / ‖f - μ‖₂ + alpha ‖f‖₁``, where ``μ`` is the mean of all training features and
    ``ŷ`` the class of the largest logit.

    Parameters
    ----------
    mean
        ``μ``, ``(n,)``.
    weight
        Weight of every class, ``(k, n)``.
    alpha
        Weight of the length.

    References
    ----------
    Liu, Qin. "Detecting Out-of-Distribution Through the Lens of Neural Collapse". CVPR 2025,
    arXiv:2311.01479.

    Notes
    -----
    The nearness is not divided by the length of the weight. A feature at the mean is near to no
    weight: its first term is 0. ``alpha`` is OpenOOD's default; pytorch-ood 0.4 has 0.
    """

    mean: Tensor
    weight: Tensor
    alpha: float

    @classmethod
    def fit(cls, reference: Reference, *, alpha: float = 1e-4) -> Self:
        """Average all training features."""
        weight = reference.head.weight
        mean = feature_mean(reference).to(weight.dtype)
        return cls(mean, weight, not_negative("nci:alpha", alpha))

    def score(self, batch: Activations) -> Tensor:
        """Return nearness plus weighted length, ``(n,)``."""
        centred = batch.features - self.mean
        weights = self.weight[batch.logits.argmax(dim=1)]  # (n, d)
        near = (centred * weights).sum(dim=1) / centred.norm(dim=1).clamp(min=1e-10)
        return near + self.alpha * batch.features.abs().sum(dim=1)
