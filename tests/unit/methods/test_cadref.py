"""CARef and CADRef."""

import math

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods.cadref import CADRef, CARef


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


HEAD = Head(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [-9.0, -9.0]]), torch.zeros(3))
# Both of class 0 by prediction, whatever their labels; mean (3, 1).
POINTS = torch.tensor([[2.0, 1.0], [4.0, 1.0]])
QUERY = torch.tensor([[5.0, 2.0]])  # logits 3, -3 and -63; error (2, 1), length 7


def energy(*logits: float) -> float:
    return math.log(sum(math.exp(z) for z in logits))


def test_the_error_is_relative_to_the_mean_of_the_predicted_class() -> None:
    found = CARef.fit(reference_of(POINTS, [1, 2], HEAD))
    assert float(found.score(batch_of(QUERY, HEAD))) == pytest.approx(-3 / 7)


def test_the_half_along_the_weight_is_scaled_by_the_energy() -> None:
    found = CADRef.fit(reference_of(POINTS, [1, 2], HEAD))
    mean = (energy(1, -1, -27) + energy(3, -3, -45)) / 2
    assert found.energy == pytest.approx(mean, rel=1e-6)
    # Signs (1, -1): 2 along the weight, 1 against it.
    expected = -(2 / energy(3, -3, -63) + 1 / mean) / 7
    assert float(found.score(batch_of(QUERY, HEAD))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [CARef, CADRef])
def test_a_class_never_predicted_gives_way_to_another(method: type[CARef]) -> None:
    found = method.fit(reference_of(POINTS, [0, 0], HEAD))
    batch = batch_of(QUERY, HEAD)
    other = Activations(batch.logits, QUERY, batch.block_norms, torch.tensor([1]))
    assert torch.equal(found.score(other), found.score(batch))


@pytest.mark.parametrize("method", [CARef, CADRef])
def test_no_feature_at_all_is_far_away(method: type[CARef]) -> None:
    found = method.fit(reference_of(POINTS, [0, 0], HEAD))
    score = found.score(batch_of(torch.zeros(1, 2), HEAD))
    assert score.isfinite().all()
    assert float(score) < -1e9


def test_a_negative_energy_does_not_turn_the_sign() -> None:
    head = Head(HEAD.weight, torch.full((3,), -50.0))
    found = CADRef.fit(reference_of(POINTS, [0, 0], head))
    assert float(found.score(batch_of(QUERY, head))) < -1e8
