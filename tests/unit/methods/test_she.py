"""SHE."""

import math

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods.she import SHE, Metric


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


HEAD = Head(torch.eye(3, 2), torch.tensor([0.0, 0.0, -100.0]))
# The second image of class 0 is predicted 1, so it is in no pattern.
POINTS = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 3.0]])
LABELS = [0, 0, 1]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("inner_product", 8.0), ("euclidean", -math.hypot(2, 3)), ("cosine", 0.8)],
)
def test_the_feature_is_compared_with_the_mean_of_hits(metric: Metric, expected: float) -> None:
    found = SHE.fit(reference_of(POINTS, LABELS, HEAD), metric=metric)
    assert found.patterns.tolist() == [[2, 0], [0, 3], [0, 0]]
    assert float(found.score(batch_of(torch.tensor([[4.0, 3.0]]), HEAD))) == pytest.approx(expected)


def test_a_class_without_hits_gives_way_to_another() -> None:
    found = SHE.fit(reference_of(POINTS, LABELS, HEAD))
    logits = torch.tensor([[1.0, 2.0, 9.0]])
    batch = Activations(logits, torch.tensor([[1.0, 2.0]]), logits[:, :1], torch.tensor([2]))
    assert found.score(batch).tolist() == [6.0]
