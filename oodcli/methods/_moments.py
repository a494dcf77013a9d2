"""Second moments of the training features in float64, read in one pass and computed once.

Mahalanobis distances, principal and residual subspaces and pNML's regret all start from these.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from oodcli.activations import Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import class_means, wide_blocks

# Columns of the second moment that are made at a time; only those on and right of the diagonal.
_BLOCK_COLUMNS = 128


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and covariance of the training features.

    Parameters
    ----------
    count
        Number of training images, ``N``.
    mean
        float64, ``(d,)``.
    covariance
        float64, ``(d, d)``: about the mean, divided by ``N``.
    """

    count: int
    mean: Tensor
    covariance: Tensor

    def about(self, origin: Tensor) -> Tensor:
        """Return the mean of ``(f - origin)(f - origin)ᵀ``, ``(d, d)``.

        Parameters
        ----------
        origin
            float64, ``(d,)``.
        """
        return self.covariance + torch.outer(self.mean - origin, self.mean - origin)

    @property
    def power(self) -> float:
        """Largest mean square of a feature."""
        return float((self.covariance.diagonal() + self.mean.square()).max())


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvectors of a symmetric matrix, the largest eigenvalue first.

    Parameters
    ----------
    values
        float64, ``(d,)``.
    vectors
        float64, ``(d, d)``, one in each column.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Spectrum":
        """Decompose a float64 symmetric matrix."""
        values, vectors = torch.linalg.eigh(matrix)
        return cls(values.flip(0), vectors.flip(1))

    def rank(self, power: float) -> int:
        """Return how many eigenvalues stand for more than rounding.

        Parameters
        ----------
        power
            Largest mean square of what the matrix was made of; an eigenvalue not above
            ``d · 1.4e-14`` times the larger of this and the largest eigenvalue counts as zero: a
            standard deviation of ``√d · 1.2e-7``, which is rounding of float32 features.
        """
        largest = max(float(self.values[0]), power)
        cutoff = len(self.values) * torch.finfo(torch.float32).eps ** 2 * largest
        return int((self.values > cutoff).sum())

    def whitening(self, power: float) -> Tensor:
        """Return ``V`` with ``V Vᵀ`` the (pseudo-)inverse of the matrix, ``(d, rank)``.

        Parameters
        ----------
        power
            As for :meth:`rank`.
        """
        rank = self.rank(power)
        return self.vectors[:, :rank] / self.values[:rank].sqrt()


def moments(reference: Reference, *, normalised: bool = False) -> Moments:
    """Return mean and covariance of the training features.

    Parameters
    ----------
    reference
        The training images.
    normalised
        Whether features are divided by their lengths first.

    Raises
    ------
    UndefinedMethodError
        If there is no training image.
    """
    return reference.once(
        ("moments", normalised), lambda: _moments(reference, normalised=normalised)
    )


def within_classes(reference: Reference, *, normalised: bool = False) -> Tensor:
    """Return the covariance of the training features about their class means, ``(d, d)``.

    Parameters
    ----------
    reference
        The training images and their labels.
    normalised
        Whether features are divided by their lengths first.
    """
    everything = moments(reference, normalised=normalised)
    by_class = class_means(reference, normalised=normalised)
    shares = by_class.counts.double() / everything.count
    apart = (by_class.means - everything.mean) * shares.sqrt()[:, None]  # (k, d)
    return everything.covariance - apart.T @ apart


def within_spectrum(reference: Reference, *, normalised: bool = False) -> Spectrum:
    """Return the eigenvectors of :func:`within_classes`, computed once."""
    return reference.once(
        ("within classes", normalised),
        lambda: Spectrum.of(within_classes(reference, normalised=normalised)),
    )


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return the squared distance of every point to every centre, ``(n, c)``, by a matrix product.

    Parameters
    ----------
    points
        float64, ``(n, r)``; near the origin, or the expanded form loses digits.
    centres
        float64, ``(c, r)``.
    """
    lengths = points.square().sum(dim=1, keepdim=True)
    products = torch.addmm(centres.square().sum(dim=1), points, centres.T, alpha=-2)
    return (products + lengths).clamp(min=0)


def _moments(reference: Reference, *, normalised: bool) -> Moments:
    weight = reference.head.weight
    chunks = (chunk.features for chunk in reference.train.chunks())
    blocks = (b for features in chunks for b in wide_blocks(features, normalised=normalised))
    return moments_of(blocks, weight.shape[1], weight.device)


def moments_of(blocks: Iterable[Tensor], width: int, device: torch.device) -> Moments:
    """Return mean and covariance of rows that come in blocks.

    Parameters
    ----------
    blocks
        float64, ``(m, width)`` each; overwritten.
    width
        Number of columns.
    device
        Device of the blocks.

    Raises
    ------
    UndefinedMethodError
        If there is no row.
    """
    count = 0
    origin = torch.zeros(width, dtype=torch.float64, device=device)
    total = torch.zeros(width, dtype=torch.float64, device=device)
    product = torch.zeros(width, width, dtype=torch.float64, device=device)
    for block in blocks:
        if count == 0:
            # Any point amid the rows will do: without it, rows far from zero would leave few
            # digits for their covariance.
            origin = block.mean(dim=0)
        count += len(block)
        rows = block.sub_(origin)
        total += rows.sum(dim=0)
        for start in range(0, width, _BLOCK_COLUMNS):
            right = rows[:, start:]
            product[start : start + _BLOCK_COLUMNS, start:].addmm_(
                right[:, :_BLOCK_COLUMNS].T, right
            )
    if count == 0:
        raise UndefinedMethodError("no training image is left for the covariance")
    product = product.triu() + product.triu(1).T
    shift = total / count
    return Moments(count, origin + shift, product / count - torch.outer(shift, shift))
