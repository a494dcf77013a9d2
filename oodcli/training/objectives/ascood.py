"""ASCOOD: outliers made of training images by the gradient of the network, and z-scores."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.models import standardised_features
from oodcli.specs import positive
from oodcli.training.objectives.base import StepOutput, SynthesisObjective


@dataclass(frozen=True)
class ASCOOD(SynthesisObjective):
    """Cross-entropy on z-scores of features, plus uniform predictions for outliers made of images.

    The last layer sees ``sigma`` times the z-scores of the feature of an image, see
    :class:`~oodcli.models.heads.StandardisedLinear`. With the uniform distribution ``u`` over ``k``
    classes::

        loss = mean_in [-log p_y] + weight mean_out [KL(u || p)]
        KL(u || p) = -log k - 1/k sum_j log p_j

    Every image ``x`` of a step, normalised and augmented, gives one outlier, from the gradient
    ``g`` of the logit of its class with respect to ``x``, of the network in evaluation mode.
    ``shuffle``: the part ``share`` of the pixels with the largest ``sum_c exp(g_c)`` over the
    channels is shuffled among these pixels. ``gradient``: ``x + a g`` at the part ``share`` of the
    values with the largest ``abs(g)``; ``a`` decreases with every epoch, linearly, to ``alpha_min``
    in the last one.

    Parameters
    ----------
    weight
        Weight of the outliers.
    share
        Part of the pixels, or of the values, that is changed.
    sigma
        Standard deviation of the inputs of the last layer.
    outliers
        How an image is changed.
    alpha_max, alpha_min
        Factor of the gradient, for ``gradient``: before the first epoch, and in the last one.

    References
    ----------
    Regmi. "Going Beyond Conventional OOD Detection" (later "Image-based Outlier Synthesis With
    Training Data"). arXiv:2411.10794. Loss, outliers and defaults: ``ascood_trainer.py`` and
    ``cifar10_train_ascood.sh`` of OpenOOD at 3c35632, equal to the code of the author at f351789.

    Notes
    -----
    The defaults are those for CIFAR-10; for CIFAR-100, published code has ``weight=5,share=0.1``
    and a twentieth of the learning rate in the last layer (``--set head_lr_factor=0.05``). Pixels
    are ordered by ``log sum_c exp(g_c)``, which is the same order without overflow. If labels are
    mixed, the gradient is that of the logits weighted by them.

    Predictions use z-scores. OpenOOD scores with SCALE and AdaSCALE by the linear map on the
    feature as it is, and so do all methods here: ``msp`` and ``t2fnorm`` differ in their
    temperature. How the leaderboard's third row, by T2FNorm, was scored is not published (the
    network of the published code has no such forward pass).

    With several processes on the CPU, the gradient is that with the running statistics of each
    process, which are averaged after every epoch only.
    """

    weight: float = 1.0
    share: float = 0.15
    sigma: float = 0.5
    outliers: Literal["shuffle", "gradient"] = "shuffle"
    alpha_max: float = 10.0
    alpha_min: float = 10.0

    def __post_init__(self) -> None:
        positive("ascood:weight", self.weight)
        positive("ascood:sigma", self.sigma)
        if not 0 < self.share <= 1:
            raise InvalidInputError(
                f"ascood:share must be above 0 and at most 1, not {self.share:g}"
            )
        if not (isfinite(self.alpha_max) and 0 <= self.alpha_min <= self.alpha_max):
            raise InvalidInputError(
                f"ascood:alpha_min={self.alpha_min:g} must not be negative, nor above "
                f"alpha_max={self.alpha_max:g}"
            )

    def attach(self, module: nn.Module, head: str) -> None:
        """Standardise the inputs of the last layer."""
        standardised_features(module, head, sigma=self.sigma)

    def check(self, size: tuple[int, int]) -> None:
        """Refuse images of which fewer than two pixels would be shuffled."""
        if self.outliers == "shuffle" and self._chosen(*size) < 2:
            raise InvalidInputError(
                f"ascood:share={self.share:g} of {size[0]} x {size[1]} pixels is fewer than two, "
                "which cannot be shuffled; choose a larger share, or larger images: --image-size N"
            )

    def draws(self, height: int, width: int) -> int:
        """Return the number of pixels that are shuffled."""
        return self._chosen(height, width) if self.outliers == "shuffle" else 0

    def _chosen(self, *sides: int) -> int:
        """Return how many of the elements of a tensor with these sides are changed."""
        return int(torch.Size(sides).numel() * self.share)

    def synthesised(
        self,
        images: Tensor,
        gradients: Tensor,
        std: Tensor,
        draws: Tensor | None,
        progress: float,
    ) -> Tensor:
        """Return the outliers."""
        if self.outliers == "shuffle":
            assert draws is not None  # from `draws`
            rank = gradients.logsumexp(dim=1).flatten(1)  # (n, h w)
            at = rank.topk(self._chosen(*images.shape[2:]), dim=1).indices
            at = at[:, None].expand(-1, images.shape[1], -1)  # (n, 3, m)
            flat = images.flatten(2)
            order = draws.argsort(dim=1)[:, None].expand_as(at)
            shuffled = flat.gather(2, at).gather(2, order)
            return flat.scatter(2, at, shuffled).view(images.shape)
        largest = gradients.abs().flatten(1)
        at = largest.topk(self._chosen(*images.shape[1:]), dim=1).indices
        chosen = torch.zeros_like(largest).scatter(1, at, 1.0).view(images.shape)
        alpha = self.alpha_min + (self.alpha_max - self.alpha_min) * (1 - progress)
        return images + 255 * std * alpha * gradients * chosen

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of ID images."""
        return functional.cross_entropy(output.logits.float(), labels)

    def outlier_loss(self, output: StepOutput, targets: Tensor) -> Tensor:
        """Return the weighted mean divergence of predictions for outliers from uniform ones."""
        log_p = output.logits.float().log_softmax(dim=1)
        return self.weight * functional.kl_div(log_p, targets, reduction="batchmean")
