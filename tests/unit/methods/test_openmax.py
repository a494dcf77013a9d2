"""OpenMax."""

import math

import pytest
import torch
from scipy.stats import weibull_min

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods.openmax import OpenMax, Weibull


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


HEAD = Head(torch.eye(2), torch.zeros(2))
GENERATOR = torch.Generator().manual_seed(0)


def test_the_distributions_are_those_of_scipy() -> None:
    tails = torch.rand(3, 12, generator=GENERATOR, dtype=torch.float64) * 5 + 1
    tails[1, 7:] = torch.nan
    found = Weibull.of(tails)
    for c in range(3):
        given = tails[c][~tails[c].isnan()]
        moved = (given - given.min() + 10_000).numpy()
        shape, _, scale = weibull_min.fit(moved, floc=0)
        distance = given.max() + 1
        expected = weibull_min.cdf(float(distance - given.min()) + 10_000, shape, scale=scale)
        cdf = found.cdf(distance[None], torch.tensor([c]))
        assert float(cdf) == pytest.approx(expected, rel=1e-3)
        assert float(found.least[c]) == float(given.min())


def test_a_tail_of_one_distance_is_a_step() -> None:
    found = Weibull.of(torch.tensor([[2.0, math.nan]]).double())
    cdf = found.cdf(torch.tensor([1.9, 2.1]).double(), torch.tensor([0, 0]))
    assert cdf.tolist() == pytest.approx([0.0, 1.0])


def cross(centre: float) -> list[list[float]]:
    return [[centre - 1, 0.0], [centre + 1, 0.0], [centre, 1.0], [centre, -2.0]]


POINTS = torch.tensor(cross(10.0) + [[y, x] for x, y in cross(8.0)])
LABELS = [0] * 4 + [1] * 4


def test_shares_of_the_largest_logits_go_to_the_unknown() -> None:
    found = OpenMax.fit(reference_of(POINTS, LABELS, HEAD), tail=3, alpha=5)
    assert found.means.tolist() == [[10.0, -0.25], [-0.25, 8.0]]
    logits = torch.tensor([9.0, 2.0]).double()
    distances = (logits - found.means).norm(dim=1)
    w = found.tails.cdf(distances, torch.tensor([0, 1])).tolist()
    assert 0 < w[0] < 1
    # More ranks than classes: the weights are those of two ranks.
    first, second = 9 * (1 - w[0] * 2 / 2), 2 * (1 - w[1] * 1 / 2)
    unknown = 9 + 2 - first - second
    total = math.exp(first) + math.exp(second) + math.exp(unknown)
    expected = (math.exp(max(first, second)) - math.exp(unknown)) / total
    score = found.score(batch_of(torch.tensor([[9.0, 2.0]]), HEAD))
    assert float(score) == pytest.approx(expected, abs=1e-9)


def test_images_that_are_classified_wrongly_are_in_no_mean() -> None:
    points = torch.cat([POINTS, torch.tensor([[0.0, 50.0]])])
    right = OpenMax.fit(reference_of(POINTS, LABELS, HEAD))
    found = OpenMax.fit(reference_of(points, [*LABELS, 0], HEAD))
    assert torch.equal(found.means, right.means)
    assert torch.equal(found.tails.scale, right.tails.scale)


def test_more_classes_than_features_are_measured_in_fewer_coordinates() -> None:
    weight = torch.randn(5, 2, generator=GENERATOR)
    head = Head(weight, torch.randn(5, generator=GENERATOR))
    points = torch.randn(60, 2, generator=GENERATOR) * 3
    labels = head(points).argmax(dim=1).tolist()
    found = OpenMax.fit(reference_of(points, labels, head))
    assert found.means.shape == (5, 2)
    batch = batch_of(points, head)
    hits = [batch.logits[[i for i, y in enumerate(labels) if y == c]] for c in set(labels)]
    means = torch.stack([z.mean(dim=0) for z in hits])
    assert found.basis is not None
    for c, mean in zip(sorted(set(labels)), means, strict=True):
        plain = (batch.logits - mean).norm(dim=1).double()
        fewer = (batch.logits.double() @ found.basis - found.means[c]).norm(dim=1)
        torch.testing.assert_close(fewer, plain, rtol=1e-5, atol=1e-5)


def test_a_class_without_images_is_wholly_unknown() -> None:
    found = OpenMax.fit(reference_of(POINTS[:4], LABELS[:4], HEAD), alpha=1)
    assert float(found.score(batch_of(torch.tensor([[0.0, 9.0]]), HEAD))) < -0.9


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(
        UndefinedMethodError, match=r"^openmax is not defined where no training imag"
    ):
        OpenMax.fit(reference_of(POINTS[:4], [1] * 4, HEAD))
    reference = reference_of(POINTS, LABELS, HEAD)
    with pytest.raises(InvalidInputError, match=r"^openmax:tail must be at least 1, not 0$"):
        OpenMax.fit(reference, tail=0)
    with pytest.raises(InvalidInputError, match=r"^openmax:alpha must be at least 1, not 0$"):
        OpenMax.fit(reference, alpha=0)
