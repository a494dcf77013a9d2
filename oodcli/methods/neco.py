"""NECO: the share of a feature in the principal space of the training features."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._moments import Moments, Spectrum, moments
from oodcli.methods._needs import Arguments, Need
from oodcli.methods.base import at_least

# Share of its mean square below which the variance of a feature is rounding to float32.
_ROUNDING = 1e-14


@dataclass(frozen=True, slots=True)
class NECO:
    """Share of the standardised feature in the principal space, times the largest logit.

    ``‖P z̃‖₂ / ‖z̃‖₂ · max_c z_c``, where ``z̃`` is the feature less the mean of the training
    features, each divided by its standard deviation, and ``P`` projects on the first ``dim``
    principal components of the standardised training features.

    Parameters
    ----------
    mean
        Mean training feature, ``(n,)``.
    scale
        Standard deviation of every feature, ``(n,)``; 1 for one that never changes.
    components
        Map from the centred feature to the first components of ``z̃``, ``(n, dim)``.
    dim
        Number of principal components.

    References
    ----------
    Ben Ammar, Belkhir, Popescu, Manzanera, Franchi. "NECO: NEural Collapse Based
    Out-of-distribution detection". ICLR 2024, arXiv:2310.06823.

    Notes
    -----
    Formula and default of ``dim``, 100, are those of the authors' code; on features of width 100
    and less, where that would leave nothing out, it is half the width. The authors choose ``dim``
    for each network. Their code leaves out the factor ``max z`` for ResNet, and for DeiT and Swin
    divides by the length of the raw feature; here the factor is always there and both lengths are
    of the standardised feature. A feature equal to the mean scores 0. Covariance and eigenvectors
    are in float64.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor
    dim: int

    @classmethod
    def fit(cls, reference: Reference, *, dim: int | None = None) -> Self:
        """Standardise the training features and take their principal components."""
        width = reference.head.weight.shape[1]
        dim = at_least("neco:dim", _dim(width, dim), 1)
        if dim >= width:
            raise UndefinedMethodError(
                f"neco is not defined for dim {dim}: features of width {width} lie in their "
                f"principal space then; choose less, as in neco:dim={max(1, width // 2)}"
            )
        everything = moments(reference)
        scale, spectrum = reference.once("standardised", lambda: _standardised(everything))
        components = spectrum.vectors[:, :dim] / scale[:, None]
        kind = reference.head.weight.dtype
        return cls(everything.mean.to(kind), scale.to(kind), components.to(kind), dim)

    def score(self, batch: Activations) -> Tensor:
        """Return the share in the principal space times the largest logit, ``(n,)``."""
        centred = batch.features - self.mean
        inside = (centred @ self.components).norm(dim=1)
        whole = (centred / self.scale).norm(dim=1).clamp(min=1e-10)
        return inside / whole * batch.logits.amax(dim=1)


def _dim(width: int, dim: int | None) -> int:
    """Return the given number of principal components, or the default for features of a width."""
    if dim is not None:
        return dim
    return 100 if width > 100 else max(1, width // 2)


def _too_few(reference: Reference, arguments: Arguments) -> str | None:
    given = arguments["dim"]
    dim = _dim(reference.head.weight.shape[1], given if isinstance(given, int) else None)
    number = len(reference.train)
    return None if number > dim else f"there are {number:,} for dim {dim:,}"


MORE_IMAGES_THAN_COMPONENTS = Need(
    "more training images than principal components",
    _too_few,
    "choose fewer with neco:dim=N, or train on more images",
)


def _standardised(everything: Moments) -> tuple[Tensor, Spectrum]:
    variance = everything.covariance.diagonal()
    constant = variance <= _ROUNDING * everything.mean.square()
    scale = torch.where(constant, 1.0, variance.clamp(min=0)).sqrt()
    return scale, Spectrum.of(everything.covariance / torch.outer(scale, scale))
