"""What a feature has outside the principal space of the training features: Residual and ViM."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.compute.products import product
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import BLOCK_ROWS
from oodcli.methods._moments import Spectrum, moments
from oodcli.methods.base import at_least

# Below this share of the length of features, a residual is rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class ResidualSpace:
    """The directions in which the training features vary least, seen from the origin of the logits.

    Parameters
    ----------
    basis
        One direction in each column, ``(n, n - dim)``.
    offset
        The origin in these directions, ``(n - dim,)``.
    size
        Root mean square length of the training features from the origin.
    """

    basis: Tensor
    offset: Tensor
    size: float

    def lengths(self, batch: Activations) -> Tensor:
        """Return the length of every feature's residual, ``(n,)``, computed once."""
        return batch.once(("residual", self), lambda: self.lengths_of(batch.features))

    def lengths_of(self, features: Tensor) -> Tensor:
        """Return the lengths for features ``(n, d)``."""
        return product(features, self.basis.T).sub_(self.offset).norm(dim=1)


def residual_space(reference: Reference, dim: int) -> ResidualSpace:
    """Return the space beyond the ``dim`` principal directions, computed once for every ``dim``."""

    def fit() -> ResidualSpace:
        origin, spectrum = reference.once("principal directions", lambda: _directions(reference))
        basis = spectrum.vectors[:, dim:]
        kind = reference.head.weight.dtype
        size = float(spectrum.values.sum().clamp(min=0).sqrt())
        return ResidualSpace(basis.to(kind).contiguous(), (origin @ basis).to(kind), size)

    return reference.once(("residual space", dim), fit)


def _directions(reference: Reference) -> tuple[Tensor, Spectrum]:
    weight, bias = reference.head.weight, reference.head.bias.double()
    # A singular value that is rounding of the weights as they came must not be inverted.
    rtol = max(weight.shape) * torch.finfo(torch.float32).eps
    origin = -torch.linalg.pinv(weight.double(), rtol=rtol) @ bias
    return origin, Spectrum.of(moments(reference).about(origin))


def principal_dim(name: str, reference: Reference, dim: int | None) -> int:
    """Return the given number of principal directions, or the paper's for this feature width.

    Raises
    ------
    InvalidInputError
        If it is less than 1.
    UndefinedMethodError
        If it leaves no direction for the residual.
    """
    width = reference.head.weight.shape[1]
    if dim is None:
        dim = 1000 if width >= 2048 else 512 if width >= 768 else max(1, width // 2)
    at_least(f"{name}:dim", dim, 1)
    if dim >= width:
        raise UndefinedMethodError(
            f"{name} is not defined for dim {dim}: features of width {width} have no residual "
            f"then; choose less, as in {name}:dim={max(1, width // 2)}"
        )
    return dim


@dataclass(frozen=True, slots=True)
class Residual:
    """Length of the feature outside the principal space of the training features.

    ``-‖Nᵀ(f - o)‖₂`` with ``o = -W⁺ b``, where the columns of ``N`` are the eigenvectors of the
    mean of ``(f_i - o)(f_i - o)ᵀ`` over the training images beyond the ``dim`` largest.

    Parameters
    ----------
    space
        The residual space.
    dim
        Number of principal directions.

    References
    ----------
    Wang, Li, Feng, Zhang. "ViM: Out-Of-Distribution with Virtual-logit Matching". CVPR 2022,
    arXiv:2203.10807, section 3.

    Notes
    -----
    Without a classifier ``o`` is 0, as it is without a bias.

    ``dim`` is 1000 for features of width 2048 and more, 512 from 768 on, and half the width below,
    as in ViM. Eigenvectors are in float64. OpenOOD takes them from ID validation images instead.
    Singular values of ``W`` not above ``max(k, n) · 1.2e-7`` times the largest are rounding of
    float32 weights, and count as zero in ``W⁺``.
    """

    space: ResidualSpace
    dim: int

    @classmethod
    def fit(cls, reference: Reference, *, dim: int | None = None) -> Self:
        """Find the directions in which the training features vary least."""
        dim = principal_dim("residual", reference, dim)
        return cls(residual_space(reference, dim), dim)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative length of the residual, ``(n,)``."""
        return -self.space.lengths(batch)


@dataclass(frozen=True, slots=True)
class ViM:
    """Negative free energy less the virtual logit, a scaled length of the residual.

    ``log Σ_c exp(z_c) - alpha ‖Nᵀ(f - o)‖₂`` with ``o`` and ``N`` as for Residual. Over the
    training images, ``alpha`` is the mean of the largest logit divided by the mean length of the
    residual.

    Parameters
    ----------
    space
        The residual space.
    alpha
        Scale of the virtual logit.
    dim
        Number of principal directions.

    References
    ----------
    Wang, Li, Feng, Zhang. "ViM: Out-Of-Distribution with Virtual-logit Matching". CVPR 2022,
    arXiv:2203.10807, section 4.

    Notes
    -----
    The paper's score is the softmax probability of the virtual logit, which falls as this rises;
    the published code and OpenOOD use this form. ``dim`` is 1000 for features of width 2048 and
    more, 512 from 768 on, and half the width below, where the paper gives none. Eigenvectors are in
    float64; ``W⁺`` as for Residual.
    """

    space: ResidualSpace
    alpha: float
    dim: int

    @classmethod
    def fit(cls, reference: Reference, *, dim: int | None = None) -> Self:
        """Find the residual space, and match the virtual logit to the largest one."""
        dim = principal_dim("vim", reference, dim)
        space = residual_space(reference, dim)
        return cls(space, _alpha(reference, space, dim), dim)

    def score(self, batch: Activations) -> Tensor:
        """Return energy less virtual logit, ``(n,)``."""
        return batch.logits.logsumexp(dim=1) - self.alpha * self.space.lengths(batch)


def _alpha(reference: Reference, space: ResidualSpace, dim: int) -> float:
    logits = residuals = 0.0
    count = 0
    for chunk in reference.train.chunks():
        count += len(chunk)
        logits += float(chunk.logits.amax(dim=1).double().sum())
        for block in chunk.features.split(BLOCK_ROWS):
            residuals += float(space.lengths_of(block).double().sum())
    if residuals <= _ROUNDING * space.size * count:
        raise UndefinedMethodError(
            f"vim is not defined for dim {dim}: the training features have no residual then; "
            "choose less, as in vim:dim=N, or another method"
        )
    return logits / residuals
