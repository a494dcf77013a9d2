"""Kernel PCA of the features: CoP and CoRP, and PCA in its fusion with the energy."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods._class_means import directions, feature_rows, wide_blocks
from oodcli.methods._moments import Moments, Spectrum, moments, moments_of
from oodcli.methods.base import at_least
from oodcli.specs import positive

# Number of classes from which on the published parameters for ImageNet are the defaults.
_MANY_CLASSES = 1000
# Random features for each direction of the feature, at most, unless more are given.
_PER_DIRECTION = 8


@dataclass(frozen=True, slots=True, eq=False)
class PrincipalSpace:
    """A point, and the directions from it in which most of the training images lie.

    Parameters
    ----------
    mean
        ``(m,)``.
    basis
        One direction in each column, ``(m, q)``.
    """

    mean: Tensor
    basis: Tensor

    def errors(self, points: Tensor) -> Tensor:
        """Return the length of what the space does not reconstruct of points ``(n, m)``."""
        centred = points - self.mean
        return (centred - (centred @ self.basis) @ self.basis.T).norm(dim=1)


def _space(
    everything: Moments, spectrum: Spectrum, count: int, kind: torch.dtype
) -> PrincipalSpace:
    basis = spectrum.vectors[:, :count].to(kind).contiguous()
    return PrincipalSpace(everything.mean.to(kind), basis)


def _explaining(name: str, spectrum: Spectrum, ratio: float) -> int:
    """Return the least number of directions that explain a share of the variance.

    Raises
    ------
    UndefinedMethodError
        If that is all of them, so that nothing is left to reconstruct.
    """
    values = spectrum.values.clamp(min=0)
    shares = values.cumsum(0) / values.sum()
    count = int((shares < ratio).sum()) + 1
    if count >= len(values):
        raise UndefinedMethodError(
            f"{name} is not defined for ratio {ratio:g}: it takes all {len(values):,} directions "
            f"to explain that share of the variance; choose less, as in {name}:ratio=0.5"
        )
    return count


def _ratio(name: str, ratio: float) -> float:
    if not 0 < ratio < 1:
        raise InvalidInputError(f"{name}:ratio must be more than 0 and less than 1, not {ratio:g}")
    return ratio


def _many(reference: Reference) -> bool:
    return len(reference.head.weight) >= _MANY_CLASSES


@dataclass(frozen=True, slots=True)
class CoP:
    """Reconstruction error of the normalised feature by principal components (cosine kernel).

    ``-‖(I - U Uᵀ)(u - μ)‖₂`` with ``u = f / ‖f‖₂``, ``μ`` its mean over the training images, and
    ``U`` the first principal components of the same, as many as explain ``ratio`` of the variance.

    Parameters
    ----------
    space
        The principal space.
    ratio
        Explained share of the variance.
    components
        Their number.

    References
    ----------
    Fang, Tao, Lv, He, Huang, Yang. "Kernel PCA for Out-of-Distribution Detection". NeurIPS 2024,
    arXiv:2402.02949; code: fanghenshaometeor/ood-kernel-pca (revision 56d348e,
    ``CoP_CoRP_c10.py``).

    Notes
    -----
    ``ratio`` is 0.85 for a CIFAR-10 ResNet-18 and 0.99 for an ImageNet ResNet-50 in the published
    scripts: the defaults below and from 1,000 classes on. With supervised contrastive training
    ImageNet has 0.7. The grid holds the ratios of all published scripts, those of the fusions too.
    Covariance and eigenvectors are in float64. A feature of length zero stays zero.
    """

    space: PrincipalSpace
    ratio: float
    components: int

    @classmethod
    def fit(cls, reference: Reference, *, ratio: float | None = None) -> Self:
        """Find the principal components of the normalised training features.

        Parameters
        ----------
        reference
            The training images.
        ratio
            Share of the variance that the principal components explain.
        """
        if ratio is None:
            ratio = 0.99 if _many(reference) else 0.85
        _ratio("cop", ratio)
        everything = moments(reference, normalised=True)
        spectrum = reference.once("normalised spectrum", lambda: Spectrum.of(everything.covariance))
        count = _explaining("cop", spectrum, ratio)
        return cls(_space(everything, spectrum, count, reference.head.weight.dtype), ratio, count)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative reconstruction error, ``(n,)``."""
        return -self.space.errors(feature_rows(batch, normalised=True))


@dataclass(frozen=True, slots=True, eq=False)
class FourierFeatures:
    """Random Fourier features of a Gaussian kernel: ``√(2 / m) cos(Ω u + φ)``.

    Parameters
    ----------
    frequencies
        ``Ω``, ``(d, m)``, each from a normal distribution of variance ``2 gamma``.
    phases
        ``φ``, ``(m,)``, each from 0 to 2 pi.
    """

    frequencies: Tensor
    phases: Tensor

    @classmethod
    def draw(cls, width: int, count: int, gamma: float, seed: int, like: Tensor) -> Self:
        """Draw ``count`` features of vectors of a width, on the device and in the type of a tensor.

        The numbers are drawn on the CPU, so that they are the same on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        frequencies = torch.randn(width, count, generator=generator) * math.sqrt(2 * gamma)
        phases = torch.rand(count, generator=generator) * (2 * math.pi)
        return cls(frequencies.to(like), phases.to(like))

    def of(self, units: Tensor) -> Tensor:
        """Return the features of vectors ``(n, d)``, ``(n, m)``."""
        waves = torch.addmm(self.phases, units, self.frequencies)
        return waves.cos() * math.sqrt(2 / len(self.phases))


@dataclass(frozen=True, slots=True)
class CoRP:
    """Reconstruction error of random Fourier features of the normalised feature.

    ``-‖(I - U Uᵀ)(φ - μ)‖₂`` with ``φ = √(2 / M) cos(Ω f / ‖f‖₂ + b)``, whose inner products
    approximate the Gaussian kernel ``exp(-gamma ‖u - v‖²)``; ``μ`` and ``U`` as for CoP, of ``φ``.

    Parameters
    ----------
    map
        The random Fourier features.
    space
        The principal space.
    ratio
        Explained share of the variance.
    gamma
        Parameter of the kernel.
    features
        ``M``.
    seed
        Seed of the random features.
    components
        Number of principal components.

    References
    ----------
    Fang, Tao, Lv, He, Huang, Yang. "Kernel PCA for Out-of-Distribution Detection". NeurIPS 2024,
    arXiv:2402.02949; code: fanghenshaometeor/ood-kernel-pca (revision 56d348e,
    ``CoP_CoRP_c10.py``).

    Notes
    -----
    Published are ``ratio`` 0.8, ``gamma`` 2 and ``M`` 2,048 for a CIFAR-10 ResNet-18, and 0.5, 3
    and 4,096 for an ImageNet ResNet-50: the defaults below, and from 1,000 classes on, with no more
    than eight random features for each direction (512 of a feature of width 64).

    The covariance of ``M`` features costs ``M²`` per training image, whatever the classes, so that
    this method is scored on request, or with ``--method all``. Covariance and eigenvectors are in
    float64. The random numbers are drawn on the CPU from ``seed``, and differ from those of the
    published code. A feature of length zero stays zero.
    """

    map: FourierFeatures
    space: PrincipalSpace
    ratio: float
    gamma: float
    features: int
    seed: int
    components: int

    @classmethod
    def fit(
        cls,
        reference: Reference,
        *,
        ratio: float | None = None,
        gamma: float | None = None,
        features: int | None = None,
        seed: int = 0,
    ) -> Self:
        """Find the principal components of the Fourier features of the training images.

        Parameters
        ----------
        reference
            The training images.
        ratio
            Share of the variance that the principal components explain.
        gamma
            Parameter of the Gaussian kernel.
        features
            Number of random Fourier features.
        seed
            Seed of the random features.
        """
        published = (0.5, 3.0, 4096) if _many(reference) else (0.8, 2.0, 2048)
        ratio = published[0] if ratio is None else _ratio("corp", ratio)
        gamma = published[1] if gamma is None else positive("corp:gamma", gamma)
        weight = reference.head.weight
        if features is None:
            features = min(published[2], _PER_DIRECTION * weight.shape[1])
        at_least("corp:features", features, 2)
        drawn = FourierFeatures.draw(weight.shape[1], features, gamma, seed, weight)
        everything, spectrum = reference.once(
            ("fourier features", gamma, features, seed), lambda: _fourier(reference, drawn)
        )
        count = _explaining("corp", spectrum, ratio)
        space = _space(everything, spectrum, count, weight.dtype)
        return cls(drawn, space, ratio, gamma, features, seed, count)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative reconstruction error, ``(n,)``."""
        return -self.space.errors(self.map.of(feature_rows(batch, normalised=True)))


def _fourier(reference: Reference, drawn: FourierFeatures) -> tuple[Moments, Spectrum]:
    def blocks() -> Iterator[Tensor]:
        for chunk in reference.train.chunks():
            for block in chunk.features.split(1024):
                yield from wide_blocks(drawn.of(directions(block)))

    everything = moments_of(blocks(), len(drawn.phases), drawn.phases.device)
    return everything, Spectrum.of(everything.covariance)


@dataclass(frozen=True, slots=True)
class PCAFusion:
    """Negative free energy, lowered by the share of the feature that PCA does not reconstruct.

    ``(1 - r) log Σ_c exp(z_c)`` with ``r = ‖(I - U Uᵀ)(f - μ)‖₂ / ‖f‖₂``, where ``μ`` is the mean
    of the training features and ``U`` are their first ``dim`` principal components.

    Parameters
    ----------
    space
        The principal space.
    dim
        Number of principal components.

    References
    ----------
    Guan, Liu, Zheng, Zhou, Wang. "Revisit PCA-based Technique for Out-of-Distribution Detection".
    ICCV 2023; code: SYSU-MIA-GROUP/pca-based-out-of-distribution-detection (``detection.py``).

    Notes
    -----
    ``dim`` is 256 for features of width 2,048 in the published code; by default it is that share of
    other widths, an eighth. The grid is ours. The published code clips features at 1 before the
    energy (ReAct), and those of OOD images, but not of ID images, before the reconstruction;
    neither is done here. A feature of length zero has ``r = 1``. Covariance and eigenvectors are in
    float64.
    """

    space: PrincipalSpace
    dim: int

    @classmethod
    def fit(cls, reference: Reference, *, dim: int | None = None) -> Self:
        """Find the principal components of the training features.

        Parameters
        ----------
        reference
            The training images.
        dim
            Number of principal components.

        Raises
        ------
        UndefinedMethodError
            If there are as many components as directions.
        """
        width = reference.head.weight.shape[1]
        dim = max(1, width // 8) if dim is None else at_least("pca-fusion:dim", dim, 1)
        if dim >= width:
            raise UndefinedMethodError(
                f"pca-fusion is not defined for dim {dim}: features of width {width} are "
                f"reconstructed entirely then; choose less, as in pca-fusion:dim={width // 8 or 1}"
            )
        everything = moments(reference)
        spectrum = reference.once("feature spectrum", lambda: Spectrum.of(everything.covariance))
        return cls(_space(everything, spectrum, dim, reference.head.weight.dtype), dim)

    def score(self, batch: Activations) -> Tensor:
        """Return the lowered energy, ``(n,)``."""
        lengths = batch.features.norm(dim=1)
        is_zero = lengths == 0
        error = self.space.errors(batch.features) / torch.where(is_zero, 1.0, lengths)
        error = torch.where(is_zero, 1.0, error)
        return (1 - error) * batch.logits.logsumexp(dim=1)
