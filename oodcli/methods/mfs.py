"""MFS: distances in the dimensions of the feature that differ most between images and jigsaws.

Our own form of marginal feature selection: the jigsaw puzzles that NormRatio makes of the training
images stand for images of other data.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods._bank import Bank, unit_features
from oodcli.methods._class_means import directions, feature_rows
from oodcli.methods._needs import Arguments, Need
from oodcli.methods.base import at_least
from oodcli.methods.mahalanobis import Gaussians, of_classes
from oodcli.specs import format_value

# Training images, and their jigsaws, whose features are compared; drawn if there are more.
_MOST_IMAGES = 100_000
_SEED = 0
# Dimensions that are sorted at a time.
_COLUMNS = 128


def wasserstein_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return the Wasserstein-1 distance of every column of two samples, float64 ``(d,)``.

    Parameters
    ----------
    first, second
        ``(n, d)``, as many rows in both.
    """
    columns = zip(first.split(_COLUMNS, dim=1), second.split(_COLUMNS, dim=1), strict=True)
    return torch.cat(
        [
            (a.sort(dim=0).values - b.sort(dim=0).values).abs().double().mean(dim=0)
            for a, b in columns
        ]
    )


def selected_dimensions(reference: Reference, keep: float, *, normalised: bool) -> Tensor:
    """Return the dimensions in which training images and their jigsaws differ most, ascending.

    Parameters
    ----------
    reference
        The training images and their jigsaws.
    keep
        Share of the dimensions to keep, rounded down, at least one.
    normalised
        Whether features are divided by their lengths first.

    Returns
    -------
    Tensor
        int64, ``(m,)``; of dimensions that differ equally, the first ones.

    Raises
    ------
    InvalidInputError
        If the share is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        raise InvalidInputError(
            f"keep must be above 0 and at most 1, a share of dimensions, not {format_value(keep)}"
        )
    distances = reference.once(
        ("mfs distances", normalised), lambda: _distances(reference, normalised=normalised)
    )
    # The sum of a share such as 0.29 of 100 must not lose one to rounding.
    count = max(int(keep * len(distances) + 1e-9), 1)
    order = distances.argsort(descending=True, stable=True)
    return order[:count].sort().values


def _distances(reference: Reference, *, normalised: bool) -> Tensor:
    size = len(reference.train)
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(_SEED))[:_MOST_IMAGES]
    rows = drawn.sort().values
    return wasserstein_distances(
        *(_rows(each, rows, normalised=normalised)
          for each in (reference.train, reference.jigsaw_features))
    )  # fmt: skip


def _rows(images: ActivationSet, rows: Tensor, *, normalised: bool) -> Tensor:
    """Return the features of some images, ``(m, d)``, read in chunks."""
    parts, first = [], 0
    for chunk in images.chunks():
        here = rows[(rows >= first) & (rows < first + len(chunk))] - first
        first += len(chunk)
        features = chunk.features[here.to(chunk.features.device)]
        parts.append(directions(features) if normalised else features)
    return torch.cat(parts)


def _selected(batch: Activations, dimensions: Tensor, *, normalised: bool) -> Activations:
    """Return activations with some dimensions of the features, of their directions on request."""
    features = feature_rows(batch, normalised=normalised)[:, dimensions]
    return Activations(batch.logits, features, batch.block_norms, batch.predictions)


def selected_reference(reference: Reference, dimensions: Tensor, *, normalised: bool) -> Reference:
    """Return a reference with some dimensions of the training features, made once."""

    def make() -> Reference:
        head = reference.head
        return Reference(
            head=Head(head.weight[:, dimensions], head.bias),
            load_train=lambda: ActivationSet.joined(
                [reference.train],
                lambda parts: _selected(parts[0], dimensions.cpu(), normalised=normalised),
            ),
            load_labels=lambda: reference.labels,
        )

    return reference.once(("mfs", normalised, tuple(dimensions.tolist())), make)


def in_selected_dimensions(need: Need, *, normalised: bool) -> Need:
    """Return a need of features as a need of their selected dimensions."""

    def lacking(reference: Reference, arguments: Arguments) -> str | None:
        keep = arguments["keep"]
        assert isinstance(keep, (int, float))  # the type of the parameter is
        dimensions = selected_dimensions(reference, keep, normalised=normalised)
        chosen = selected_reference(reference, dimensions, normalised=normalised)
        return need.check(chosen, arguments)

    return replace(need, check=lacking)


@dataclass(frozen=True, slots=True)
class MFSMahalanobis:
    """MDS in the dimensions of the feature that differ most between images and their jigsaws.

    A dimension ``j`` is kept if the Wasserstein-1 distance between ``f_j`` over training images and
    over their jigsaws, ``mean_i |a_(i) - b_(i)|`` of the sorted values, is among the largest. The
    score is that of MDS for the kept dimensions alone.

    Parameters
    ----------
    dimensions
        The dimensions that are kept, ``(m,)``.
    classes
        The Gaussians of the classes in these.

    References
    ----------
    OpenMIBOOD (Gutbrod, Rauber, Nunes, Palm), ``mds_mfs_postprocessor.py``, 2026: selection by the
    Wasserstein distance to ID images mixed with those of a proxy set. MDS: Lee et al., NeurIPS
    2018, arXiv:1807.03888. NormRatio: Yu et al., CVPR 2023, arXiv:2212.02295.

    Notes
    -----
    Our own form of it: no proxy set is mixed in (¼, ½ or ¾ of it there); the jigsaws by which
    NormRatio chooses a block stand in its place, so that no other data is needed. Jigsaws of sizes
    that do not divide by three have a black border, which counts for the distance as it does for
    NormRatio. As there, of more than 100,000 training images that many are compared. As in
    published code the share is tuned (0.01, 0.1, …, 1); the default of one half is our own.
    """

    dimensions: Tensor
    classes: Gaussians

    @classmethod
    def fit(cls, reference: Reference, *, keep: float = 0.5) -> Self:
        """Choose dimensions, and take means and covariance in these.

        Parameters
        ----------
        reference
            The training images and their jigsaws.
        keep
            Share of the dimensions to keep.
        """
        return cls(*_gaussians(reference, keep, normalised=False))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative least squared distance, float64 ``(n,)``."""
        return -self.classes.nearest_of(batch.features[:, self.dimensions])


@dataclass(frozen=True, slots=True)
class MFSMahalanobisPlusPlus:
    """Mahalanobis++ in the dimensions that differ most between images and their jigsaws.

    As ``mfs-mds``, of features divided by their lengths before dimensions are selected. What is
    selected is not divided by its length again.

    Parameters
    ----------
    dimensions
        The dimensions that are kept, ``(m,)``.
    classes
        The Gaussians of the classes in these.

    References
    ----------
    OpenMIBOOD (Gutbrod, Rauber, Nunes, Palm), ``mdspp_mfs_postprocessor.py``, 2026. Mahalanobis++:
    Mueller, Hein. ICML 2025, arXiv:2505.18032. NormRatio: Yu et al., CVPR 2023, arXiv:2212.02295.

    Notes
    -----
    Our own form of it; see ``mfs-mds``.
    """

    dimensions: Tensor
    classes: Gaussians

    @classmethod
    def fit(cls, reference: Reference, *, keep: float = 0.5) -> Self:
        """Choose dimensions, and take means and covariance in these.

        Parameters
        ----------
        reference
            The training images and their jigsaws.
        keep
            Share of the dimensions to keep.
        """
        return cls(*_gaussians(reference, keep, normalised=True))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative least squared distance, float64 ``(n,)``."""
        return -self.classes.nearest_of(feature_rows(batch, normalised=True)[:, self.dimensions])


def _gaussians(reference: Reference, keep: float, *, normalised: bool) -> tuple[Tensor, Gaussians]:
    dimensions = selected_dimensions(reference, keep, normalised=normalised)
    chosen = selected_reference(reference, dimensions, normalised=normalised)
    return dimensions, of_classes(chosen, normalised=False)


@dataclass(frozen=True, slots=True)
class MFSKNN:
    """KNN in the dimensions that differ most between images and their jigsaws.

    ``-‖v - v_(k)‖²``, where ``v`` are the dimensions of the feature that are kept, divided by their
    length, and ``v_(k)`` is the k-th nearest of the training images. Dimensions are selected as for
    ``mfs-mds``, of features divided by their lengths.

    Parameters
    ----------
    dimensions
        The dimensions that are kept, ``(m,)``.
    bank
        Those of the training features, divided by their lengths.
    k
        Which neighbour counts; with fewer training images the farthest of them.

    References
    ----------
    OpenMIBOOD (Gutbrod, Rauber, Nunes, Palm), ``knn_mfs_postprocessor.py``, 2026. KNN: Sun, Ming,
    Zhu, Li. ICML 2022, arXiv:2204.06507. NormRatio: Yu et al., CVPR 2023, arXiv:2212.02295.

    Notes
    -----
    Our own form of it; see ``mfs-mds``. What is selected is divided by its length once more, where
    published code compares it as it is: neighbours are found among unit vectors.
    """

    dimensions: Tensor
    bank: Bank
    k: int

    @classmethod
    def fit(cls, reference: Reference, *, keep: float = 0.5, k: int = 50) -> Self:
        """Choose dimensions, and take those of all training features.

        Parameters
        ----------
        reference
            The training images and their jigsaws.
        keep
            Share of the dimensions to keep.
        k
            Which neighbour counts.
        """
        at_least("mfs-knn:k", k, 1)
        dimensions = selected_dimensions(reference, keep, normalised=True)
        bank = unit_features(selected_reference(reference, dimensions, normalised=True))
        return cls(dimensions, bank, min(k, bank.size))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative squared distance, ``(n,)``."""
        units = directions(feature_rows(batch, normalised=True)[:, self.dimensions])
        return -self.bank.nearest(units, self.k)[:, self.k - 1]
