"""ORA: angles between a feature and its decision boundaries, seen from the mean feature."""

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._class_means import class_means
from oodcli.methods.fdbd import nearness_of_weights

# Lower bound of a denominator, so that a feature at the mean has the angle 0.
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class ORA:
    """Largest angle between a feature and a decision boundary, seen from the mean feature.

    ``max_{c≠ŷ} θ_c / π``, where ``ŷ`` is the class of the largest logit, and ``θ_c`` the angle
    between ``f - μ`` and ``f_c - μ``. The feature projected onto the boundary between the classes
    ``ŷ`` and ``c`` is ``f_c = f - (z_ŷ - z_c) (w_ŷ - w_c) / ‖w_ŷ - w_c‖₂²``, and ``μ`` is the mean
    of the class means of the training features.

    Parameters
    ----------
    nearness
        ``1 / ‖w_a - w_c‖₂`` of every pair of classes, ``(k, k)``; 0 for the same weights.
    origin
        ``μ``, ``(d,)``.
    origin_logits
        Logits of ``μ``, ``(k,)``.
    over
        Aggregation of the angles: ``max``, ``mean`` or ``min``.

    References
    ----------
    Demirel, Fumero, Locatello. "Out-of-Distribution Detection with Relative Angles". NeurIPS 2025,
    arXiv:2410.04525; code: berkerdemirel/ORA-OOD-Detection-with-Relative-Angles
    (``util/ood_methods.py``).

    Notes
    -----
    The authors' code takes ``μ`` from the ID images that are tested; here, as in the authors' pull
    request 311 for OpenOOD, it comes from the training images. A class without training images does
    not count in ``μ``; in that pull request it counts as zero. ``over`` is the pull request's
    ``aggregation``, whose default there is ``mean``; paper and authors' code use the maximum. The
    mean is over all classes, with 0 for ``ŷ``, as there.

    The code takes the arc cosine of a float32 cosine, which resolves small angles to about 3e-4;
    here the angle is ``2 atan(y / (r + x))`` of the scalar product ``x`` and the area ``y`` of both
    vectors, with ``r`` the product of their lengths, which follows from the logits and ``‖f - μ‖₂``
    without the projections themselves. Within a thousandth of half a turn of 1, where the area
    vanishes beside a negative scalar product, the score is 1. A feature equal to ``μ`` has no angle
    and gets the score 0. Two classes with the same weights have no boundary, so that pair is
    excluded. The table of pairs takes ``4 K²`` bytes and is shared with ``fdbd``.
    """

    nearness: Tensor
    origin: Tensor
    origin_logits: Tensor
    over: str

    @classmethod
    def fit(cls, reference: Reference, *, over: Literal["max", "mean", "min"] = "max") -> Self:
        """Measure how far the weights lie apart, and average the class means of the features.

        Raises
        ------
        UndefinedMethodError
            If all classes have the same weights, or no class has training images.
        """
        nearness = nearness_of_weights(reference, "ora")
        found = class_means(reference)
        origin = found.means[found.present].mean(dim=0).to(reference.head.weight.dtype)
        return cls(nearness, origin, reference.head(origin[None])[0], over)

    def score(self, batch: Activations) -> Tensor:
        """Return the aggregated angle as a share of half a turn, ``(n,)``."""
        largest, classes = batch.logits.max(dim=1)
        near = self.nearness[classes]  # (n, k)
        boundary = (largest[:, None] - batch.logits) * near  # distance to each boundary
        centred = batch.logits - self.origin_logits
        along = (centred.gather(1, classes[:, None]) - centred) * near  # f - μ across the boundary
        square = (batch.features - self.origin).square().sum(dim=1, keepdim=True)
        product = square - boundary * along
        area = boundary * (square - along.square()).clamp(min=0).sqrt()
        length = (product.square() + area.square()).sqrt()
        angles = 2 / math.pi * torch.atan(area / (length + product).clamp(min=_TINY))
        if self.over == "mean":
            return angles.mean(dim=1)
        if self.over == "max":
            return angles.amax(dim=1)
        return torch.where(near > 0, angles, torch.inf).amin(dim=1)
