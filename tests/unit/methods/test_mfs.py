"""Selection of dimensions by hand, and against SciPy, scikit-learn and the published formulas."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.contract import Problem
from oodcli.methods.mahalanobis import MDS
from oodcli.methods.mfs import (
    MFSKNN,
    MFSMahalanobis,
    MFSMahalanobisPlusPlus,
    selected_dimensions,
    wasserstein_distances,
)


def reference_of(train: Tensor, puzzles: Tensor, labels: Tensor) -> Reference:
    def of(features: Tensor) -> ActivationSet:
        rest = torch.zeros(len(features), 2)
        return ActivationSet.of(
            Activations(rest, features, rest, torch.zeros(len(features)).long())
        )

    return Reference(
        Head(torch.zeros(2, train.shape[1]), torch.zeros(2)),
        load_train=lambda: of(train),
        load_labels=lambda: labels,
        load_jigsaw_features=lambda: of(puzzles),
    )


def features_of(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features of training images, of jigsaws and of scored images."""
    reference = problem.reference
    return reference.train.features, reference.jigsaw_features.features, problem.ood_batch.features


def test_distances_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 40, 300, generator=generator)
    found = wasserstein_distances(first, 1.5 * second)
    expected = [wasserstein_distance(first[:, j], 1.5 * second[:, j]) for j in range(300)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_dimensions_that_differ_most_are_kept() -> None:
    # Sorted differences: (0, 0) → 0, (1, 3) → 2, (5, 1) → 3, (1, 1) → 1.
    train = torch.tensor([[1.0, 0.0, 5.0, 2.0], [2.0, 1.0, 9.0, 4.0]])
    puzzles = torch.tensor([[2.0, 4.0, 8.0, 3.0], [1.0, 1.0, 0.0, 5.0]])
    reference = reference_of(train, puzzles, torch.tensor([0, 1]))
    for keep, kept in ((1.0, [0, 1, 2, 3]), (0.75, [1, 2, 3]), (0.5, [1, 2]), (0.01, [2])):
        assert selected_dimensions(reference, keep, normalised=False).tolist() == kept


def test_all_dimensions_give_mds(problem: Problem) -> None:
    whole = MFSMahalanobis.fit(problem.reference, keep=1.0).score(problem.ood_batch)
    torch.testing.assert_close(whole, MDS.fit(problem.reference).score(problem.ood_batch))


@pytest.mark.parametrize("normalised", [False, True])
def test_distances_are_those_of_the_published_formulas(
    problem: Problem, *, normalised: bool
) -> None:
    train, puzzles, scored = (
        each.double().numpy()
        / (each.double().norm(dim=1, keepdim=True).numpy() if normalised else 1)
        for each in features_of(problem)
    )
    shifts = np.abs(np.sort(train, axis=0) - np.sort(puzzles, axis=0)).mean(axis=0)
    kept = np.sort(np.argsort(shifts)[::-1][: int(0.3 * train.shape[1])])
    labels = problem.reference.labels.numpy()
    means = np.stack([train[labels == c][:, kept].mean(axis=0) for c in range(4)])
    precision = (
        EmpiricalCovariance(assume_centered=True).fit(train[:, kept] - means[labels]).precision_
    )
    apart = scored[:, kept][:, None] - means
    expected = -np.einsum("ncd,de,nce->nc", apart, precision, apart).min(axis=1)
    method = MFSMahalanobisPlusPlus if normalised else MFSMahalanobis
    fitted = method.fit(problem.reference, keep=0.3)
    assert fitted.dimensions.tolist() == kept.tolist()
    np.testing.assert_allclose(fitted.score(problem.ood_batch), expected, rtol=1e-4)


def test_neighbours_are_those_of_scikit_learn(problem: Problem) -> None:
    fitted = MFSKNN.fit(problem.reference, keep=0.25, k=9)
    train, _, scored = features_of(problem)

    def chosen(features: Tensor) -> np.ndarray:
        rows = (features / features.norm(dim=1, keepdim=True))[:, fitted.dimensions]
        return (rows / rows.norm(dim=1, keepdim=True)).numpy()

    assert len(fitted.dimensions) == train.shape[1] // 4
    distances, _ = NearestNeighbors(n_neighbors=9).fit(chosen(train)).kneighbors(chosen(scored))
    np.testing.assert_allclose(
        -fitted.score(problem.ood_batch), distances[:, 8] ** 2, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("keep", ["0", "1.5", "-0.5"])
def test_a_share_out_of_range_is_refused(problem: Problem, keep: str) -> None:
    with pytest.raises(InvalidInputError, match="keep must be above 0 and at most 1"):
        parse_method(f"mfs-knn:keep={keep}").fit(problem.reference)
