"""Largest cosine."""

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods.maxcosine import MaxCosine


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


HEAD = Head(torch.eye(3, 2), torch.zeros(3))


def test_the_nearest_direction_of_a_mean_counts() -> None:
    points = torch.tensor([[2.0, 0.0], [4.0, 0.0], [3.0, 3.0]])
    found = MaxCosine.fit(reference_of(points, [0, 0, 2], HEAD))
    assert found.prototypes.shape == (2, 2)
    scores = found.score(batch_of(torch.tensor([[7.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), HEAD))
    assert scores.tolist() == pytest.approx([1.0, 0.5**0.5, 0.0])


def test_a_class_without_images_does_not_lift_a_negative_cosine() -> None:
    found = MaxCosine.fit(reference_of(torch.tensor([[2.0, 0.0]]), [1], HEAD))
    assert found.score(batch_of(torch.tensor([[-3.0, 0.0]]), HEAD)).tolist() == [-1.0]
