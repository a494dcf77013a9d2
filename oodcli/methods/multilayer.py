"""Distances in several layers, from the pooled maps of every block: Mahalanobis and neighbours."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._bank import Bank, unit_features
from oodcli.methods._blocks import (
    BLOCK_MEANS,
    Combination,
    LayerScales,
    block_bounds,
    fit_scales,
    layer_of,
    layer_reference,
)
from oodcli.methods._class_means import feature_rows
from oodcli.methods.base import at_least
from oodcli.methods.mahalanobis import Gaussians, of_classes
from oodcli.probes import Probe

Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class MultiMahalanobis:
    """Mahalanobis distances to the nearest class mean in every block, joined to one score.

    The score of block ``l`` is that of MDS, ``s_l = -min_c (f_l - μ_lc)ᵀ Σ_l⁺ (f_l - μ_lc)``, with
    ``f_l`` the output of the block averaged over positions, and means and covariance of the same.
    With ``m_l`` and ``d_l`` mean and standard deviation of ``s_l`` over calibration images, the
    score is ``mean_l (s_l - m_l) / d_l``, the least of these, or ``Σ_l log p_l`` with ``p_l`` the
    share of calibration images whose ``s_l`` is less (Fisher's combination).

    Parameters
    ----------
    layers
        The Gaussians of every block.
    bounds
        Columns of every block in the array of the probe.
    scales
        What is known of the scores of calibration images.
    by
        ``mean``, ``minimum`` or ``fisher``.
    probes
        Gives the pooled maps.

    References
    ----------
    Lee, Lee, Lee, Shin. "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks". NeurIPS 2018, arXiv:1807.03888, section 2.2 and algorithm 1. Fisher's
    combination of layers: Haroush, Frostig, Heller, Soudry. "A Statistical Framework for Efficient
    Out of Distribution Detection in Deep Neural Networks". ICLR 2022, arXiv:2102.12967.

    Notes
    -----
    The paper weights the layers by a logistic regression on OOD images, and moves each input along
    the gradient of the distance first; neither is done here. pytorch-ood adds the distances of the
    layers with equal weights, so that those with the largest distances decide; here a layer counts
    by how its distances spread over ID images, as the aggregators of oodeel do. The output of the
    last block is not the feature where the network has a norm or a ReLU behind it, as DenseNet has.
    As for MDS, all is in float64, and ``Σ⁺`` a pseudo-inverse. The values that ``--tune`` tries are
    our own.
    """

    layers: tuple[Gaussians, ...]
    bounds: Bounds
    scales: LayerScales
    by: Combination
    probes: tuple[Probe, ...] = (BLOCK_MEANS,)

    @classmethod
    def fit(cls, reference: Reference, *, by: Combination = "fisher", last: int = 0) -> Self:
        """Take means and covariance of the pooled maps of every block.

        Parameters
        ----------
        reference
            The training images, and calibration images.
        by
            How the scores of layers are joined.
        last
            Number of blocks that are used, counted from the last one; all if 0.
        """
        bounds = block_bounds(reference, last)
        layers = reference.once(
            ("multi-mahalanobis", bounds),
            lambda: tuple(
                of_classes(layer_reference(reference, each), normalised=False) for each in bounds
            ),
        )

        def scores(batch: Activations) -> Tensor:
            return _mahalanobis_scores(layers, bounds, batch)

        scales = fit_scales(reference, ("multi-mahalanobis", bounds), scores)
        return cls(layers, bounds, scales, by)

    def layer_scores(self, batch: Activations) -> Tensor:
        """Return the score of MDS in every block, float64 ``(n, l)``, computed once."""
        return _mahalanobis_scores(self.layers, self.bounds, batch)

    def score(self, batch: Activations) -> Tensor:
        """Return the joined score, float64 ``(n,)``."""
        return self.scales.joined(self.layer_scores(batch), self.by)


def _mahalanobis_scores(layers: Sequence[Gaussians], bounds: Bounds, batch: Activations) -> Tensor:
    pairs = zip(layers, bounds, strict=True)
    return torch.stack([-layer.nearest(layer_of(batch, each)) for layer, each in pairs], dim=1)


@dataclass(frozen=True, slots=True)
class MultiKNN:
    """Distances to the k-th nearest training image in every block, joined to one score.

    The score of block ``l`` is that of KNN, ``s_l = -‖u_l - u_l(k)‖²``, with ``u_l`` the output of
    the block averaged over positions and divided by its length, and ``u_l(k)`` the k-th nearest of
    those of the training images. They are joined as in ``multi-mahalanobis``.

    Parameters
    ----------
    layers
        Pooled maps of the training images divided by their lengths, a bank for every block.
    bounds
        Columns of every block in the array of the probe.
    scales
        What is known of the scores of calibration images.
    k
        Which neighbour counts; with fewer training images the farthest of them.
    by
        ``mean``, ``minimum`` or ``fisher``.
    probes
        Gives the pooled maps.

    References
    ----------
    KNN: Sun, Ming, Zhu, Li. ICML 2022, arXiv:2204.06507. Layers joined by Fisher's combination:
    Haroush, Frostig, Heller, Soudry. "A Statistical Framework for Efficient Out of Distribution
    Detection in Deep Neural Networks". ICLR 2022, arXiv:2102.12967.

    Notes
    -----
    The scores of layers are those of ``knn``; that they are joined so is our own form, for which
    there is no published table. Without validation images, calibration images are training images,
    each of which is its own first neighbour; scores are then a little low. The values that
    ``--tune`` tries are those of KNN for ``k``, and all ways to join.
    """

    layers: tuple[Bank, ...]
    bounds: Bounds
    scales: LayerScales
    k: int
    by: Combination
    probes: tuple[Probe, ...] = (BLOCK_MEANS,)

    @classmethod
    def fit(
        cls, reference: Reference, *, k: int = 50, by: Combination = "fisher", last: int = 0
    ) -> Self:
        """Take the pooled maps of all training images.

        Parameters
        ----------
        reference
            The training images, and calibration images.
        k
            Which neighbour counts.
        by
            How the scores of layers are joined.
        last
            Number of blocks that are used, counted from the last one; all if 0.
        """
        at_least("multi-knn:k", k, 1)
        bounds = block_bounds(reference, last)
        layers = reference.once(
            ("multi-knn", bounds),
            lambda: tuple(unit_features(layer_reference(reference, each)) for each in bounds),
        )
        used = min(k, layers[0].size)

        def scores(batch: Activations) -> Tensor:
            return _neighbour_scores(layers, bounds, used, batch)

        scales = fit_scales(reference, ("multi-knn", used, bounds), scores)
        return cls(layers, bounds, scales, used, by)

    def layer_scores(self, batch: Activations) -> Tensor:
        """Return the score of KNN in every block, ``(n, l)``, computed once."""
        return _neighbour_scores(self.layers, self.bounds, self.k, batch)

    def score(self, batch: Activations) -> Tensor:
        """Return the joined score, float64 ``(n,)``."""
        return self.scales.joined(self.layer_scores(batch), self.by)

    @staticmethod
    def score_all(detectors: Sequence["MultiKNN"], batch: Activations) -> list[Tensor]:
        """Return the scores of each, ``(n,)``, from one search per block for the largest ``k``."""
        wanted: dict[Bank, set[int]] = {}
        bounds: dict[Bank, tuple[int, int]] = {}
        for each in detectors:
            bounds |= zip(each.layers, each.bounds, strict=True)
            for bank in each.layers:
                wanted.setdefault(bank, set()).add(each.k)
        found = {
            (bank, k): column
            for bank, ks in wanted.items()
            for k, column in _neighbour_columns(bank, bounds[bank], ks, batch).items()
        }
        return [
            each.scales.joined(torch.stack([found[b, each.k] for b in each.layers], dim=1), each.by)
            for each in detectors
        ]


def _neighbour_scores(layers: Sequence[Bank], bounds: Bounds, k: int, batch: Activations) -> Tensor:
    pairs = zip(layers, bounds, strict=True)
    columns = [_neighbour_columns(bank, each, {k}, batch)[k] for bank, each in pairs]
    return torch.stack(columns, dim=1)


def _neighbour_columns(
    bank: Bank, bounds: tuple[int, int], ks: Collection[int], batch: Activations
) -> dict[int, Tensor]:
    """Return the score of KNN in one block for several ``k``, ``(n,)`` each, from one search."""

    def search() -> Tensor:
        return bank.nearest(feature_rows(layer_of(batch, bounds), normalised=True), max(ks))

    distances = batch.once(("multi-knn", bank, max(ks)), search)
    return {k: -distances[:, k - 1] for k in ks}
