"""Density of a mixture of Gaussians over the training features."""

import math
import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import wide_blocks
from oodcli.methods._moments import Spectrum, moments, squared_distances
from oodcli.methods.base import at_least

# Training images that the mixture is fitted on, at most.
_FITTED_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class GMM:
    """Log-density of a mixture of Gaussians over the first principal components of the features.

    ``log Σ_j π_j N(Pᵀ(f - μ); m_j, Σ)``, where ``μ`` is the mean training feature and the columns
    of ``P`` are the first ``dim`` principal components. One covariance ``Σ`` serves all Gaussians.
    The mixture is fitted by expectation maximisation, without labels.

    Parameters
    ----------
    mean
        float64 ``μ``, ``(n,)``.
    whitening
        float64 map to coordinates in which ``Σ`` is the identity, ``(n, dim)``.
    centres
        float64 ``m_j`` in these coordinates, ``(components, dim)``.
    offsets
        float64 log-density at each centre, times its share ``π_j``, ``(components,)``.
    components
        Number of Gaussians.
    dim
        Number of principal components.

    References
    ----------
    Yang et al. "OpenOOD: Benchmarking Generalized Out-of-Distribution Detection". NeurIPS 2022,
    arXiv:2210.07242, has this baseline; no paper introduced it.

    Notes
    -----
    As in OpenOOD the Gaussians share one covariance, and scikit-learn's ``GaussianMixture`` fits
    them, with ``random_state=0``; unlike there the normalising constant, the same for all images,
    is kept. (pytorch-ood's GMM is another: one Gaussian for every class, each with a covariance of
    its own.) By default there are as many Gaussians as classes, but no more than 100 and than one
    for every 10 training images, and 50 principal components. Training images are sorted by their
    first principal component first, so that their order does not matter; of more than 50,000 every
    ``⌈N / 50,000⌉``-th in that order is used.
    """

    mean: Tensor
    whitening: Tensor
    centres: Tensor
    offsets: Tensor
    components: int
    dim: int

    @classmethod
    def fit(
        cls, reference: Reference, *, components: int | None = None, dim: int | None = None
    ) -> Self:
        """Fit the mixture to the training features.

        Raises
        ------
        InvalidInputError
            If a parameter is less than 1.
        UndefinedMethodError
            If the training features do not vary in so many directions, or are too few for a
            covariance in them.
        """
        everything = moments(reference)
        spectrum = reference.once(
            "principal components", lambda: Spectrum.of(everything.covariance)
        )
        rank = spectrum.rank(everything.power)
        if dim is None:
            dim = max(1, min(50, rank))
        if at_least("gmm:dim", dim, 1) > rank:
            raise UndefinedMethodError(
                f"gmm is not defined for dim {dim}: the training features vary in {rank} directions"
                + (f"; choose no more, as in gmm:dim={rank}" if rank else "; use more images")
            )
        if components is None:
            components = max(1, min(reference.classes, 100, everything.count // 10))
        if at_least("gmm:components", components, 1) > everything.count:
            raise UndefinedMethodError(
                f"gmm is not defined for {components} components on {everything.count} training "
                f"images; choose no more, as in gmm:components={everything.count}"
            )
        if everything.count - components <= dim:
            raise UndefinedMethodError(
                f"gmm is not defined here: a covariance in {dim} dimensions needs more training "
                f"images, less one for each of {components} components, and there are "
                f"{everything.count:,}; choose less, as in gmm:dim={max(1, everything.count // 10)}"
            )
        # In units of the largest standard deviation, as scikit-learn adds a constant to variances.
        basis = _signed(spectrum.vectors[:, :dim]) / spectrum.values[0].sqrt()
        points = _points(reference, everything.mean, basis)
        centres, weights, whitening = _mixture(points, components)
        device = everything.mean.device
        to_identity = torch.from_numpy(whitening).to(device)
        log_scale = (
            float(np.log(np.abs(np.linalg.det(whitening))))
            - dim / 2 * math.log(2 * math.pi)
            - dim / 2 * math.log(float(spectrum.values[0]))
        )
        offsets = torch.from_numpy(np.log(weights)).to(device) + log_scale
        return cls(
            everything.mean,
            basis @ to_identity,
            torch.from_numpy(centres).to(device) @ to_identity,
            offsets,
            components,
            dim,
        )

    def score(self, batch: Activations) -> Tensor:
        """Return the log-density, float64, ``(n,)``."""
        densities = []
        for block in wide_blocks(batch.features):
            distances = squared_distances(block.sub_(self.mean) @ self.whitening, self.centres)
            densities.append((self.offsets - distances / 2).logsumexp(dim=1))
        return torch.cat(densities)


def _signed(vectors: Tensor) -> Tensor:
    """Return eigenvectors with the arbitrary sign chosen that makes the largest entry positive."""
    return vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()


def _points(reference: Reference, mean: Tensor, basis: Tensor) -> np.ndarray:
    parts = [
        (block.sub_(mean) @ basis).cpu()
        for chunk in reference.train.chunks()
        for block in wide_blocks(chunk.features)
    ]
    points = torch.cat(parts)
    order = points[:, 0].argsort(stable=True)
    return points[order[:: math.ceil(len(order) / _FITTED_ROWS)]].numpy()


def _mixture(points: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means, shares, and the root of the precision of a mixture."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    second_moment = points.T @ points / len(points)

    class Tied(GaussianMixture):  # type: ignore[misc]
        """The same, with one product of matrices where scikit-learn takes one per Gaussian.

        The squared length of a row, in coordinates in which the covariance is the identity, adds
        the same to the density of every Gaussian, so that its mean over the rows does as well: it
        changes neither shares nor the likelihood of all.
        """

        def _estimate_log_prob(self, rows: np.ndarray, **_: object) -> np.ndarray:
            root = self.precisions_cholesky_
            centres = self.means_ @ root
            lengths = np.sum(centres**2, axis=1) + np.trace(root.T @ second_moment @ root)
            constant = np.log(np.diag(root)).sum() - len(root) / 2 * math.log(2 * math.pi)
            return rows @ (root @ centres.T) + (constant - lengths / 2)

    mixture = Tied(components, covariance_type="tied", random_state=0)
    with warnings.catch_warnings():
        # A mixture that still moves after 100 steps scores all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(points)
    return mixture.means_, mixture.weights_, mixture.precisions_cholesky_
