"""A mixture of Gaussians."""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import gmm
from oodcli.methods.gmm import GMM


def batch_of(features: torch.Tensor, head: Head) -> Activations:
    """Return activations of features."""
    logits = head(features)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def reference_of(features: torch.Tensor, labels: list[int], head: Head) -> Reference:
    """Return a reference of training features."""
    train = batch_of(features, head)
    return Reference(
        head,
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: torch.tensor(labels, dtype=torch.int64),
    )


HEAD = Head(torch.eye(2, 3), torch.zeros(2))


def clusters(n: int) -> torch.Tensor:
    """Return two clusters, 20 apart."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(n, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5])
    drawn[::2, 0] += 20
    return drawn


def test_one_gaussian_has_its_density() -> None:
    # But for the 1e-6 that scikit-learn adds to variances.
    points = clusters(80)
    found = GMM.fit(reference_of(points, [0] * 80, HEAD), components=1, dim=3)
    covariance = torch.cov(points.double().T, correction=0)
    normal = torch.distributions.MultivariateNormal(points.double().mean(dim=0), covariance)
    queries = clusters(6) + 1
    torch.testing.assert_close(
        found.score(batch_of(queries, HEAD)),
        normal.log_prob(queries.double()),
        rtol=1e-3,
        atol=1e-3,
    )


def test_it_is_the_mixture_of_scikit_learn() -> None:
    points = clusters(80)
    found = GMM.fit(reference_of(points, [0] * 80, HEAD))
    assert (found.components, found.dim) == (2, 3)
    mixture = GaussianMixture(2, covariance_type="tied", random_state=0, reg_covar=0.0)
    mixture.fit(points.double().numpy())
    queries = clusters(6) + 1
    np.testing.assert_allclose(
        found.score(batch_of(queries, HEAD)),
        mixture.score_samples(queries.double().numpy()),
        rtol=1e-3,
    )


def test_what_lies_between_clusters_is_unlikely() -> None:
    found = GMM.fit(reference_of(clusters(80), [0] * 80, HEAD))
    middle, inside = found.score(batch_of(torch.tensor([[10.0, 0, 0], [20.0, 0, 0]]), HEAD))
    assert middle < inside - 10


def test_of_many_images_every_nth_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    points = clusters(200)
    whole = GMM.fit(reference_of(points, [0] * 200, HEAD))
    monkeypatch.setattr(gmm, "_FITTED_ROWS", 50)
    part = GMM.fit(reference_of(points, [0] * 200, HEAD))
    assert not torch.equal(whole.centres, part.centres)
    queries = batch_of(clusters(6), HEAD)
    np.testing.assert_allclose(whole.score(queries), part.score(queries), atol=5)


def test_the_number_of_gaussians_follows_classes_and_images() -> None:
    head = Head(torch.ones(300, 3), torch.zeros(300))
    assert GMM.fit(reference_of(clusters(45), [0] * 45, head)).components == 4
    assert GMM.fit(reference_of(clusters(5), [0] * 5, head)).components == 1


def test_what_the_images_cannot_carry_is_refused() -> None:
    reference = reference_of(clusters(8), [0] * 8, HEAD)
    with pytest.raises(
        UndefinedMethodError, match=r"dim 4: the training features vary in 3 dir.*=3$"
    ):
        GMM.fit(reference, dim=4)
    with pytest.raises(UndefinedMethodError, match=r"for 9 components on 8 training images.*=8$"):
        GMM.fit(reference, components=9)
    with pytest.raises(InvalidInputError, match=r"^gmm:dim must be at least 1, not 0$"):
        GMM.fit(reference, dim=0)
    with pytest.raises(InvalidInputError, match=r"^gmm:components must be at least 1, not 0$"):
        GMM.fit(reference, components=0)
    with pytest.raises(UndefinedMethodError, match=r"vary in 0 directions; use more images$"):
        GMM.fit(reference_of(torch.ones(8, 3), [0] * 8, HEAD))


def test_the_unit_of_features_only_moves_the_density() -> None:
    points, queries = clusters(80), clusters(6)
    large, small = (
        GMM.fit(reference_of(points * unit, [0] * 80, HEAD)).score(batch_of(queries * unit, HEAD))
        for unit in (1.0, 1e-4)
    )
    torch.testing.assert_close(large, small + 3 * math.log(1e-4), rtol=1e-4, atol=1e-3)


def test_a_step_costs_one_product_however_many_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn maps all points once for every Gaussian: hours for 100 of them on 50,000."""
    points = np.random.default_rng(0).normal(size=(400, 6)) + 9 * np.arange(400)[:, None] % 7
    plain = GaussianMixture(20, covariance_type="tied", random_state=0).fit(points)
    inner = "sklearn.mixture._gaussian_mixture._estimate_log_gaussian_prob"
    monkeypatch.setattr(inner, lambda *_: pytest.fail("all points are mapped for every Gaussian"))
    means, weights, root = gmm._mixture(points, 20)
    np.testing.assert_allclose(means, plain.means_, rtol=1e-6)
    np.testing.assert_allclose(weights, plain.weights_, rtol=1e-6)
    np.testing.assert_allclose(root, plain.precisions_cholesky_, rtol=1e-6, atol=1e-9)
