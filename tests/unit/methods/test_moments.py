"""Moments and spectra of the training features."""

import numpy as np
import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._moments import Spectrum, moments, squared_distances, within_classes


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


HEAD = Head(torch.eye(3, 200), torch.zeros(3))


def features(n: int, *, width: int = 200, offset: float = 0.0) -> torch.Tensor:
    """Return random features that vary together."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(n, width, generator=generator) @ mixing + offset


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_mean_and_covariance_are_those_of_numpy(offset: float) -> None:
    drawn = features(700, offset=offset)
    found = moments(reference_of(drawn, [0] * 700, HEAD))
    wide = drawn.double().numpy()
    assert found.count == 700
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-9, atol=1e-9)
    expected = np.cov(wide.T, bias=True)
    np.testing.assert_allclose(found.covariance, expected, atol=1e-10 * expected.max())


def test_moments_of_directions_are_those_of_features_of_length_1() -> None:
    drawn = features(50)
    long, short = (
        moments(reference_of(scale * drawn, [0] * 50, HEAD), normalised=True)
        for scale in (1.0, 0.001)
    )
    assert float(long.about(torch.zeros(200).double()).trace()) == pytest.approx(1)
    torch.testing.assert_close(long.covariance, short.covariance, rtol=0, atol=1e-8)


def test_the_second_moment_can_be_taken_about_any_point() -> None:
    found = moments(reference_of(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), [0, 0], head_of(2)))
    about = found.about(torch.tensor([1.0, 0.0]).double())
    assert about.tolist() == [[2.0, 2.0], [2.0, 4.0]]
    assert found.power == 5.0


def head_of(width: int) -> Head:
    return Head(torch.eye(2, width), torch.zeros(2))


def test_the_covariance_within_classes_forgets_where_classes_lie() -> None:
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [100.0, 1.0], [100.0, 3.0]])
    within = within_classes(reference_of(points, [0, 0, 1, 1], head_of(2)))
    torch.testing.assert_close(within, torch.tensor([[0.5, 0.0], [0.0, 0.5]]).double())


def test_they_are_made_once() -> None:
    reference = reference_of(features(20), [0] * 20, HEAD)
    assert moments(reference) is moments(reference)


def test_no_training_image_has_no_moments() -> None:
    with pytest.raises(UndefinedMethodError, match=r"^no training image is left for the cova"):
        moments(reference_of(torch.zeros(0, 200), [], HEAD))


def test_a_whitening_gives_the_pseudo_inverse() -> None:
    root = features(5, width=8).double()
    matrix = root.T @ root  # rank 5 of 8
    whitening = Spectrum.of(matrix).whitening(0.0)
    assert whitening.shape == (8, 5)
    torch.testing.assert_close(
        whitening @ whitening.T, torch.linalg.pinv(matrix, hermitian=True), rtol=1e-6, atol=1e-9
    )


def test_what_is_rounding_next_to_the_features_has_no_rank() -> None:
    spectrum = Spectrum.of(torch.diag(torch.tensor([1e-20, 1.0], dtype=torch.float64)))
    assert spectrum.rank(0.0) == 1
    assert spectrum.values.tolist() == [1.0, 1e-20]
    assert spectrum.rank(1e16) == 0


def test_squared_distances_are_those_of_a_loop() -> None:
    points, centres = features(6, width=4).double(), features(3, width=4).double() + 1
    expected = [[float((p - c).square().sum()) for c in centres] for p in points]
    np.testing.assert_allclose(squared_distances(points, centres), expected, rtol=1e-10)
    assert squared_distances(centres, centres).diagonal().min() >= 0


@pytest.mark.parametrize(("width", "rank"), [(3, 2), (64, 40), (200, 150)])
def test_features_that_depend_on_each_other_but_for_float32_have_the_rank_before_rounding(
    width: int, rank: int
) -> None:
    """A direction that exists by rounding alone would give distances of any size."""
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(900, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, width, generator=generator, dtype=torch.float64
    )
    reference = reference_of(exact.float(), [0] * 900, Head(torch.eye(3, width), torch.zeros(3)))
    for normalised in (False, True):
        found = moments(reference, normalised=normalised)
        spectrum = Spectrum.of(found.covariance)
        assert spectrum.rank(found.power) == rank
        assert spectrum.whitening(found.power).shape == (width, rank)
