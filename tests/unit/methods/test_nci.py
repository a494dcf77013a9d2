"""NCI."""

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods.nci import NCI


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


HEAD = Head(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0.0, 1.0]))
POINTS = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # mean (1, 0)


def test_nearness_and_length_add_up() -> None:
    found = NCI.fit(reference_of(POINTS, [0, 1], HEAD), alpha=0.1)
    batch = batch_of(torch.tensor([[4.0, 4.0]]), HEAD)  # logits 12 and 9; from the mean (3, 4)
    assert float(found.score(batch)) == pytest.approx(3 * 3 / 5 + 0.1 * 8)


def test_the_mean_itself_is_near_to_no_weight() -> None:
    found = NCI.fit(reference_of(POINTS, [0, 1], HEAD), alpha=0.0)
    assert found.score(batch_of(torch.tensor([[1.0, 0.0]]), HEAD)).tolist() == [0.0]


@pytest.mark.parametrize("alpha", [-0.1, float("inf"), float("nan")])
def test_the_weight_of_the_length_cannot_be_negative(alpha: float) -> None:
    with pytest.raises(InvalidInputError, match=r"^nci:alpha must be a number of at least 0, not"):
        NCI.fit(reference_of(POINTS, [0, 1], HEAD), alpha=alpha)
