"""WDiscOOD: distances in and outside of the space that tells the classes apart."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import wide_blocks
from oodcli.methods._moments import squared_distances
from oodcli.methods._needs import Arguments, Need, varied_within_classes
from oodcli.methods.base import at_least, not_negative
from oodcli.methods.mahalanobis import Gaussians, of_classes


def _lacking(reference: Reference, arguments: Arguments) -> str | None:
    return varied_within_classes(normalised=bool(arguments["normalised"])).check(
        reference, arguments
    )


VARIED = Need(varied_within_classes().description, _lacking, varied_within_classes().cure)


@dataclass(frozen=True, slots=True)
class WDiscOOD:
    """Distance to the nearest class mean, and weighted distance from the space of the class means.

    ``-min_c ‖Gᵀ(y - y_c)‖₂ - alpha ‖(I - G Gᵀ) y‖₂``, where ``y`` is the feature less the mean
    training feature, whitened by the covariance within classes, ``y_c`` are the class means in
    these coordinates, and the columns of ``G`` the first ``dim`` directions in which they differ.

    Parameters
    ----------
    classes
        The class means in whitened coordinates.
    basis
        ``G``, float64, ``(r, dim)``.
    dim
        Number of discriminants.
    alpha
        Weight of the residual distance.
    normalised
        Whether features are divided by their lengths first.

    References
    ----------
    Chen, Lin, Xu, Vela. "WDiscOOD: Out-of-Distribution Detection via Whitened Linear Discriminant
    Analysis". ICCV 2023, arXiv:2303.07543; code: ivalab/WDiscOOD (``ood_scores/scorer_dist.py``).

    Notes
    -----
    Settings of the published script for ImageNet: 1,000 of 2,048 discriminants, ``alpha`` 5 and
    features as they are for ResNet-50; 512 of 768, 1 and ``normalised=true`` for ViT-B. ``alpha``
    and ``normalised`` default to the former. ``dim`` defaults to all discriminants, of which there
    are as many as classes less one, but to no more than two thirds of the directions (512 of 768),
    or nothing would be left for the residual. The grid is ours.

    The published code whitens, and then solves the discriminant problem with ``1e-5`` added to the
    covariance within classes, which is the identity in these coordinates: that changes no
    direction. Its means have equal weight whatever the number of their images, as here. Everything
    is in float64; directions in which no training feature moves within its class do not count.
    """

    classes: Gaussians
    basis: Tensor
    dim: int
    alpha: float
    normalised: bool

    @classmethod
    def fit(
        cls,
        reference: Reference,
        *,
        dim: int | None = None,
        alpha: float = 5.0,
        normalised: bool = False,
    ) -> Self:
        """Find the directions in which the class means differ.

        Parameters
        ----------
        reference
            The training images and their labels.
        dim
            Number of discriminants.
        alpha
            Weight of the residual distance.
        normalised
            Whether features are divided by their lengths first.

        Raises
        ------
        UndefinedMethodError
            If no direction is left for the residual.
        """
        not_negative("wdiscood:alpha", alpha)
        classes = of_classes(reference, normalised=normalised)
        count, rank = classes.centres.shape
        most = min(count - 1, rank)
        if dim is None:
            dim = max(1, min(most, 2 * rank // 3))
        at_least("wdiscood:dim", dim, 1)
        dim = min(dim, most)
        if dim >= rank:
            raise UndefinedMethodError(
                f"wdiscood is not defined for dim {dim}: the features vary in {rank} directions, "
                f"and none is left for the residual then; choose less, as in wdiscood:dim="
                f"{max(1, rank // 2)}"
            )
        directions = torch.linalg.svd(classes.centres, full_matrices=False).Vh
        return cls(classes, directions[:dim].T.contiguous(), dim, alpha, normalised)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative sum of both distances, float64, ``(n,)``."""
        blocks = wide_blocks(batch.features, normalised=self.normalised)
        return torch.cat([self._of(block) for block in blocks])

    def _of(self, block: Tensor) -> Tensor:
        whitened = (block - self.classes.origin) @ self.classes.whitening  # (m, r)
        inside = whitened @ self.basis
        outside = (whitened - inside @ self.basis.T).norm(dim=1)
        nearest = squared_distances(inside, self.classes.centres @ self.basis).amin(dim=1)
        return -(nearest.sqrt() + self.alpha * outside)
