"""Clusters of constructed features."""

import numpy as np
import pytest
from numpy.typing import NDArray

from oodcli.screening.clustering import clustered, unit_rows


def bundles(*sizes: int, spread: float = 0.05) -> NDArray[np.float32]:
    """Return unit vectors near as many axes as there are sizes, bundle after bundle."""
    rng = np.random.default_rng(0)
    axes = np.repeat(np.eye(8)[: len(sizes)], sizes, axis=0)
    return unit_rows(axes + spread * rng.standard_normal(axes.shape))


def test_the_number_of_bundles_is_found_and_the_largest_comes_first() -> None:
    found = clustered(bundles(20, 40, 30), None, seed=0)
    assert found.numbers.tolist() == [3] * 20 + [1] * 40 + [2] * 30
    assert found.silhouette is not None
    assert found.silhouette > 0.8


def test_of_clusters_of_one_size_that_of_the_first_image_comes_first() -> None:
    assert clustered(bundles(9, 9, 9), 3, seed=4).numbers.tolist() == [1] * 9 + [2] * 9 + [3] * 9


def test_distances_are_squared_and_to_the_mean_of_the_cluster() -> None:
    units = bundles(12, 6)
    found = clustered(units, 2, seed=0)
    for number, rows in ((1, slice(0, 12)), (2, slice(12, 18))):
        assert set(found.numbers[rows].tolist()) == {number}
        expected = np.square(units[rows] - units[rows].mean(axis=0)).sum(axis=1)
        np.testing.assert_allclose(found.distances[rows], expected, rtol=1e-4, atol=1e-6)


def test_the_seed_alone_decides() -> None:
    units = bundles(30, spread=1.0)
    one, other = (clustered(units, 5, seed=3) for _ in range(2))
    assert one.numbers.tolist() == other.numbers.tolist()
    assert one.silhouette == other.silhouette


@pytest.mark.parametrize("k", [None, 1, 5])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_or_equal_images_make_as_many_clusters_as_they_can(n: int, k: int | None) -> None:
    equal = clustered(np.tile(np.float32([[0.6, 0.8]]), (n, 1)), k, seed=0)
    assert equal.numbers.tolist() == [1] * n
    assert equal.silhouette is None
    different = clustered(bundles(*[1] * n), k, seed=0)
    assert len(set(different.numbers.tolist())) == {None: 2 if n == 3 else 1, 1: 1, 5: n}[k]


def test_a_feature_of_length_zero_stays_zero() -> None:
    assert unit_rows(np.float32([[0, 0], [3, 4]])).tolist() == [[0, 0], pytest.approx([0.6, 0.8])]
