"""Features in two dimensions, and the images that a map shows."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from oodcli.reporting.projections import (
    Points,
    neighbour_map,
    principal_plane,
    sampled_rows,
)


def clusters(each: int, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return features of three separate groups, and the group of each."""
    random = np.random.default_rng(1)
    centres = 20 * np.eye(3, width)
    groups = np.repeat(np.arange(3), each)
    return centres[groups] + random.standard_normal((3 * each, width)), groups


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_the_plane_is_that_of_principal_components(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).standard_normal(shape)
    plane, known = principal_plane(features), PCA(2).fit(features)
    expected = known.transform(features)
    signs = np.sign((expected * plane.points).sum(axis=0))
    np.testing.assert_allclose(plane.points, expected * signs, atol=1e-5)
    np.testing.assert_allclose(plane.shares, known.explained_variance_ratio_, rtol=1e-9)


@pytest.mark.parametrize(
    ("features", "shares"),
    [(np.array([[1.0], [3.0]]), (1.0, 0.0)), (np.ones((5, 4)), (0.0, 0.0))],
)
def test_a_plane_of_less_than_two_directions_is_flat(
    features: np.ndarray, shares: tuple[float, float]
) -> None:
    plane = principal_plane(features)
    assert plane.shares == pytest.approx(shares)
    assert plane.points.shape == (len(features), 2)
    assert not plane.points[:, 1].any()


@pytest.fixture(scope="module")
def map_of_clusters() -> tuple[Points, np.ndarray]:
    features, groups = clusters(12)
    found = neighbour_map(features)
    assert found is not None
    return found, groups


def test_the_nearest_image_on_a_map_is_of_the_same_group(
    map_of_clusters: tuple[Points, np.ndarray],
) -> None:
    points, groups = map_of_clusters
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(groups[distances.argmin(axis=1)], groups)


def test_a_map_repeats_by_its_seed(map_of_clusters: tuple[Points, np.ndarray]) -> None:
    np.testing.assert_array_equal(neighbour_map(clusters(12)[0]), map_of_clusters[0])


def test_a_few_or_equal_images_have_a_map_or_none() -> None:
    assert neighbour_map(np.eye(3)) is None
    equal = neighbour_map(np.ones((6, 3)))
    assert equal is not None
    assert not equal.any()
    pairs = neighbour_map(np.repeat(np.eye(4), 2, axis=0))
    assert pairs is not None
    assert np.isfinite(pairs).all()


def test_groups_and_classes_are_sampled_alike() -> None:
    classes = np.repeat(np.arange(4), [100, 100, 3, 0 + 100])
    chosen, few = sampled_rows([classes, np.zeros(10, np.int64)], 49)
    assert len(few) == 10
    assert np.bincount(classes[chosen]).tolist() == [12, 12, 3, 12]
    assert np.all(np.diff(chosen) > 0)
    again = sampled_rows([classes, np.zeros(10, np.int64)], 49)[0]
    np.testing.assert_array_equal(again, chosen)
    other = sampled_rows([classes, np.zeros(10, np.int64)], 49, seed=1)[0]
    assert not np.array_equal(other, chosen)
    whole, _ = sampled_rows([classes, np.zeros(10, np.int64)], 1000)
    assert len(whole) == 303
