"""Mahalanobis distances to the class means: MDS and its relative and normalised forms."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._class_means import class_means, wide_blocks
from oodcli.methods._moments import Spectrum, moments, squared_distances, within_spectrum

# What all methods of a batch share distances by, together with the Gaussians.
NEAREST = "mahalanobis"


@dataclass(frozen=True, slots=True, eq=False)
class Gaussians:
    """Gaussians of one covariance, in coordinates in which it is the identity.

    Parameters
    ----------
    origin
        float64 feature that becomes zero, ``(d,)``.
    whitening
        float64 map to the coordinates, ``(d, r)``.
    centres
        float64 means in the coordinates, ``(c, r)``.
    normalised
        Whether features are divided by their lengths first.
    """

    origin: Tensor
    whitening: Tensor
    centres: Tensor
    normalised: bool

    def nearest(self, batch: Activations) -> Tensor:
        """Return the least squared Mahalanobis distance to a mean, ``(n,)``, computed once."""
        return batch.once((NEAREST, self), lambda: self.nearest_of(batch.features))

    def nearest_of(self, features: Tensor) -> Tensor:
        """Return the least squared distance of features ``(n, d)`` to a mean, ``(n,)``."""
        blocks = wide_blocks(features, normalised=self.normalised)
        return torch.cat([self._least(block.sub_(self.origin)) for block in blocks])

    def least(self, wide: Tensor) -> Tensor:
        """Return the least distance for float64 features ``(n, d)``, all at once, ``(n,)``."""
        if self.normalised:
            wide = wide / wide.norm(dim=1, keepdim=True).clamp(min=1e-10)
        return self._least(wide - self.origin)

    def _least(self, shifted: Tensor) -> Tensor:
        return squared_distances(shifted @ self.whitening, self.centres).amin(dim=1)


def of_classes(reference: Reference, *, normalised: bool) -> Gaussians:
    """Return a Gaussian for every class that has training images, with one covariance for all.

    The covariance is that of the features about their class means, divided by their number; where
    it is singular, its pseudo-inverse stands for the inverse.
    """

    def fit() -> Gaussians:
        everything = moments(reference, normalised=normalised)
        by_class = class_means(reference, normalised=normalised)
        spectrum = within_spectrum(reference, normalised=normalised)
        whitening = spectrum.whitening(everything.power)
        present = by_class.means[by_class.present]
        centres = (present - everything.mean) @ whitening
        return Gaussians(everything.mean, whitening, centres, normalised)

    return reference.once(("class gaussians", normalised), fit)


def of_everything(reference: Reference, *, normalised: bool) -> Gaussians:
    """Return the one Gaussian of all training features."""

    def fit() -> Gaussians:
        everything = moments(reference, normalised=normalised)
        whitening = Spectrum.of(everything.covariance).whitening(everything.power)
        centre = whitening.new_zeros(1, whitening.shape[1])
        return Gaussians(everything.mean, whitening, centre, normalised)

    return reference.once(("background gaussian", normalised), fit)


@dataclass(frozen=True, slots=True)
class MDS:
    """Mahalanobis distance to the nearest class mean.

    ``-min_c (f - μ_c)ᵀ Σ⁺ (f - μ_c)``, where ``Σ`` is the covariance of the training features about
    the means of their classes, divided by their number.

    Parameters
    ----------
    classes
        The Gaussians of the classes.

    References
    ----------
    Lee, Lee, Lee, Shin. "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks". NeurIPS 2018, arXiv:1807.03888, section 2.1.

    Notes
    -----
    Of the paper this is the confidence score of the penultimate feature alone: neither the scores
    of other layers, nor their weighting on OOD images, nor input preprocessing. Means and
    covariance are in float64. ``Σ⁺`` excludes eigenvalues that are not above ``d · 1.4e-14`` times
    the largest (or times the largest mean square of a feature, if that is more), which is rounding
    of float32 features: directions in which no training feature moves do not count. A class without
    training images is excluded.
    """

    classes: Gaussians

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Take means and covariance of the training features."""
        return cls(of_classes(reference, normalised=False))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative least squared distance, float64, ``(n,)``."""
        return -self.classes.nearest(batch)


@dataclass(frozen=True, slots=True)
class MDSPlusPlus:
    """Mahalanobis distance to the nearest class mean, of features divided by their lengths.

    The score of MDS for ``f / ‖f‖₂``, with means and covariance of the same.

    Parameters
    ----------
    classes
        The Gaussians of the classes.

    References
    ----------
    Mueller, Hein. "Mahalanobis++: Improving OOD Detection via Feature Normalization". ICML 2025,
    arXiv:2505.18032.

    Notes
    -----
    As for MDS: float64, pseudo-inverse where the covariance is singular, classes without training
    images excluded. A feature of length zero stays zero.
    """

    classes: Gaussians

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Take means and covariance of the normalised training features."""
        return cls(of_classes(reference, normalised=True))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative least squared distance, float64, ``(n,)``."""
        return -self.classes.nearest(batch)


@dataclass(frozen=True, slots=True)
class RMDS:
    """Mahalanobis distance to the nearest class mean, relative to that to all training images.

    ``-min_c d_c(f) + d_0(f)``, where ``d_c`` is the distance of MDS and ``d_0`` that under one
    Gaussian with mean and covariance of all training features.

    Parameters
    ----------
    classes
        The Gaussians of the classes.
    background
        The Gaussian of all training features.

    References
    ----------
    Ren, Fort, Liu, Roy, Padhy, Lakshminarayanan. "A Simple Fix to Mahalanobis Distance for
    Improving Near-OOD Detection". ICML 2021 workshop on uncertainty, arXiv:2106.09022, section 3.

    Notes
    -----
    As for MDS: float64, pseudo-inverse where a covariance is singular, classes without training
    images excluded. Both covariances are divided by the number of training images; code that sums
    instead gives the same scores times a constant.
    """

    classes: Gaussians
    background: Gaussians

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Take means and covariances of the training features."""
        return cls(
            of_classes(reference, normalised=False), of_everything(reference, normalised=False)
        )

    def score(self, batch: Activations) -> Tensor:
        """Return the distance to all less that to the nearest class, float64, ``(n,)``."""
        return self.background.nearest(batch) - self.classes.nearest(batch)


@dataclass(frozen=True, slots=True)
class RMDSPlusPlus:
    """Relative Mahalanobis distance of features divided by their lengths.

    The score of RMDS for ``f / ‖f‖₂``, with means and covariances of the same.

    Parameters
    ----------
    classes
        The Gaussians of the classes.
    background
        The Gaussian of all training features.

    References
    ----------
    Mueller, Hein. "Mahalanobis++: Improving OOD Detection via Feature Normalization". ICML 2025,
    arXiv:2505.18032.

    Notes
    -----
    As for RMDS. A feature of length zero stays zero.
    """

    classes: Gaussians
    background: Gaussians

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Take means and covariances of the normalised training features."""
        return cls(
            of_classes(reference, normalised=True), of_everything(reference, normalised=True)
        )

    def score(self, batch: Activations) -> Tensor:
        """Return the distance to all less that to the nearest class, float64, ``(n,)``."""
        return self.background.nearest(batch) - self.classes.nearest(batch)
