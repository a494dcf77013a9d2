"""MixOE: predictions that become uniform along the way from ID images to outliers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.specs import positive
from oodcli.training.objectives.base import OutlierObjective, StepOutput


@dataclass(frozen=True)
class MixOE(OutlierObjective):
    """Cross-entropy of ID images, and of ID images mixed with outliers.

    Each outlier is mixed with an ID image of class ``y``; ``l ~ Beta(alpha, beta)``, once a step,
    is the share of the ID image. With the uniform distribution ``u`` over ``k`` classes::

        loss = mean_in [-log p_y] + weight mean_mixed [-sum_j (l [j = y] + (1 - l) u_j) log p_j]

    Images are scored by MSP.

    Parameters
    ----------
    mix
        ``cutmix``: a box of the outlier is pasted into the ID image, and ``l`` becomes the share
        of the area that is left of it; ``mixup``: ``l`` times the ID image plus ``1 - l`` times
        the outlier.
    alpha, beta
        Parameters of the beta distribution.
    weight
        Weight of the mixed images.

    References
    ----------
    Zhang, Inkawhich, Linderman, Chen, Li. "Mixture Outlier Exposure: Towards Out-of-Distribution
    Detection in Fine-grained Environments". WACV 2023, arXiv:2106.03917.

    Notes
    -----
    As in OpenOOD, the two batches of a step have separate forward passes there; here they share
    one, and the statistics of batch normalisation. The box is that of CutMix: as wide and as high
    as the square root of ``1 - l`` of the image, its centre uniform, clipped at the border.
    """

    mix: Literal["cutmix", "mixup"] = "cutmix"
    alpha: float = 0.1
    beta: float = 1.0
    weight: float = 1.0

    paired: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("mixoe:alpha", self.alpha)
        positive("mixoe:beta", self.beta)
        positive("mixoe:weight", self.weight)

    def shown(
        self, images: Tensor, outliers: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed images and the share of the ID image in each."""
        share = beta_sample(self.alpha, self.beta, generator)
        if self.mix == "mixup":
            mixed = torch.lerp(outliers.float(), images.float(), share)
            return mixed, share.expand(len(mixed))
        inside = box(1 - share, images.shape[2], images.shape[3], generator)  # (h, w)
        mixed = torch.where(inside, outliers, images)
        return mixed, (1 - inside.float().mean()).expand(len(mixed))

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of ID images."""
        return functional.cross_entropy(output.logits.float(), labels)

    def outlier_loss(self, output: StepOutput, targets: Tensor) -> Tensor:
        """Return the weighted mean cross-entropy of mixed images."""
        return self.weight * functional.cross_entropy(output.logits.float(), targets)


def beta_sample(alpha: float, beta: float, generator: torch.Generator) -> Tensor:
    """Draw one number of a beta distribution, ``()``, on the device of the generator.

    Parameters
    ----------
    alpha, beta
        Its parameters.
    generator
        Random generator.

    Notes
    -----
    A ratio of gamma variables, ``g_alpha / (g_alpha + g_beta)``.
    """
    first, second = (
        torch._standard_gamma(  # noqa: SLF001 - the public function takes no generator
            torch.full((), value, device=generator.device, dtype=torch.float64), generator=generator
        )
        for value in (alpha, beta)
    )
    return (first / (first + second).clamp(min=torch.finfo(torch.float64).tiny)).float()


def box(area: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return which pixels are inside a random box, bool ``(h, w)``, as CutMix draws it.

    Parameters
    ----------
    area
        Share of the image that the box has before it is clipped at the border, ``()``.
    height, width
        Those of the image.
    generator
        Random generator, on the device of the result.
    """
    inside = torch.ones(height, width, dtype=torch.bool, device=area.device)
    for axis, length in enumerate((height, width)):
        half = (area.sqrt() * length / 2).floor()
        centre = (torch.rand((), generator=generator, device=area.device) * length).floor()
        at = torch.arange(length, device=area.device)
        within = (at >= centre - half) & (at < centre + half)
        inside &= within[:, None] if axis == 0 else within[None, :]
    return inside
