"""CARef and CADRef: error of the feature relative to the mean of its predicted class."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._class_means import class_means, predicted_among


@dataclass(frozen=True, slots=True)
class CARef:
    """Relative distance of the feature to the mean feature of its predicted class.

    ``-‖f - μ_ŷ‖₁ / ‖f‖₁``, where ``μ_c`` is the mean feature of the training images predicted
    ``c``.

    Parameters
    ----------
    means
        Mean of every class, ``(k, n)``; zero for a class that is never predicted.
    present
        Whether a class has a mean, ``(k,)``.

    References
    ----------
    Ling, Chang, Zhao, Zhao, Chow, Deng. "CADRef: Robust Out-of-Distribution Detection via
    Class-Aware Decoupled Relative Feature Leveraging". CVPR 2025, arXiv:2503.00325.

    Notes
    -----
    The formula is that of the authors' code. An image predicted a class that no training image is
    predicted counts for the largest logit among the others. A feature of zeros is infinitely far;
    its length is set to 1e-10.
    """

    means: Tensor
    present: Tensor

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Average the training features by predicted class."""
        by_class = class_means(reference, by="predictions")
        return cls(by_class.means.to(reference.head.weight.dtype), by_class.present)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative relative distance, ``(n,)``."""
        means = self.means[predicted_among(batch, self.present)]  # (n, d)
        return -(batch.features - means).abs().sum(dim=1) / _length(batch.features)


@dataclass(frozen=True, slots=True)
class CADRef:
    """CARef with the error split by the sign of the weight, and one half scaled by the energy.

    With ``e = f - μ_ŷ`` and ``s = sign(w_ŷ)``, where ``μ_c`` is the mean feature of the training
    images predicted ``c``: ``-(Σ_i max(0, s_i e_i) / E(x) + Σ_i max(0, -s_i e_i) / Ē) / ‖f‖₁``.
    ``E`` is the negative free energy ``log Σ_c exp(z_c)``, ``Ē`` its mean over the training images.

    Parameters
    ----------
    means
        Mean of every class, ``(k, n)``; zero for a class that is never predicted.
    present
        Whether a class has a mean, ``(k,)``.
    signs
        Sign of the weights of every class, ``(k, n)``.
    energy
        ``Ē``.

    References
    ----------
    Ling, Chang, Zhao, Zhao, Chow, Deng. "CADRef: Robust Out-of-Distribution Detection via
    Class-Aware Decoupled Relative Feature Leveraging". CVPR 2025, arXiv:2503.00325.

    Notes
    -----
    The formula, with the energy as logit score, is the default of the authors' code. It presumes a
    positive energy: an ``E(x)`` below 1e-10 is set to 1e-10, where the published code would
    change the sign. Classes never predicted and features of zeros: as for CARef.
    """

    means: Tensor
    present: Tensor
    signs: Tensor
    energy: float

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Average the training features by predicted class, and the energy of all."""
        by_class = class_means(reference, by="predictions")
        weight = reference.head.weight
        energy = _mean_energy(reference)
        return cls(by_class.means.to(weight.dtype), by_class.present, weight.sign(), energy)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative sum of both relative errors, ``(n,)``."""
        classes = predicted_among(batch, self.present)
        errors = (batch.features - self.means[classes]) * self.signs[classes]  # (n, d)
        positive = errors.relu().sum(dim=1)
        negative = positive - errors.sum(dim=1)
        energy = batch.logits.logsumexp(dim=1).clamp(min=1e-10)
        return -(positive / energy + negative / self.energy) / _length(batch.features)


def _length(features: Tensor) -> Tensor:
    return features.abs().sum(dim=1).clamp(min=1e-10)


def _mean_energy(reference: Reference) -> float:
    total = sum(
        float(chunk.logits.logsumexp(dim=1).sum(dtype=torch.float64))
        for chunk in reference.train.chunks()
    )
    return max(total / len(reference.train), 1e-10)
