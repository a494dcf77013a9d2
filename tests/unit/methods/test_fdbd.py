"""fDBD."""

import math

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import fdbd
from oodcli.methods.fdbd import FDBD


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


HEAD = Head(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), torch.zeros(3))
POINTS = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # mean (1, 0)


def test_distances_to_boundaries_add_up() -> None:
    batch = batch_of(torch.tensor([[4.0, 1.0]]), HEAD)  # logits 12, 4 and 0
    boundaries = (12 - 4) / 5 + 12 / 3
    reference = reference_of(POINTS, [0, 1], HEAD)
    found = FDBD.fit(reference)
    assert float(found.score(batch)) == pytest.approx(boundaries / math.hypot(3, 1))
    plain = FDBD.fit(reference, distance_as_normalizer=False)
    assert float(plain.score(batch)) == pytest.approx(boundaries / math.hypot(4, 1))


def test_the_length_of_features_alone_needs_no_training_images() -> None:
    batch = batch_of(torch.tensor([[4.0, 1.0]]), HEAD)
    assert FDBD.fit(Reference(HEAD), distance_as_normalizer=False).score(batch) > 0


def test_classes_with_the_same_weights_have_no_boundary() -> None:
    head = Head(torch.tensor([[0.1, 0.2], [0.1, 0.2], [0.0, 0.0]]), torch.tensor([0.0, 5.0, 0.0]))
    found = FDBD.fit(reference_of(POINTS, [0, 1], head))
    batch = batch_of(torch.tensor([[1.0, 2.0]]), head)
    assert float(found.score(batch)) == pytest.approx(5.5 / math.hypot(0.1, 0.2) / 2)


def test_many_classes_are_measured_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    whole = fdbd._nearness(weight)
    monkeypatch.setattr(fdbd, "_BLOCK_CLASSES", 3)
    torch.testing.assert_close(fdbd._nearness(weight), whole)
    torch.testing.assert_close(whole[2, 5], 1 / (weight[2] - weight[5]).norm())
    assert whole.diagonal().tolist() == [0.0] * 7


def test_the_mean_itself_has_a_finite_score() -> None:
    found = FDBD.fit(reference_of(POINTS, [0, 1], HEAD))
    assert found.score(batch_of(torch.tensor([[1.0, 0.0]]), HEAD)).isfinite().all()
