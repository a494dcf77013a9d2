"""pNML."""

import math

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.pnml import PNML


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
# Three directions (1, 0) and one (0, 1): the second moments are 3 and 1.
POINTS = torch.tensor([[5.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 7.0]])


@pytest.mark.parametrize(("feature", "q"), [((9.0, 0.0), 1 / 3), ((0.0, 4.0), 1.0)])
def test_the_regret_is_that_of_the_formula(feature: tuple[float, float], q: float) -> None:
    found = PNML.fit(reference_of(POINTS, [0] * 4, HEAD))
    kappa = q / (1 + q)
    p = [math.e / (math.e + 1), 1 / (math.e + 1)]  # logits of the direction: 1 and 0
    regret = math.log(sum(x / (x + (1 - x) * x**kappa) for x in p)) / math.log(2)
    score = found.score(batch_of(torch.tensor([feature]), HEAD))
    assert float(score) == pytest.approx(-regret, rel=1e-6)


def test_certainty_has_no_regret() -> None:
    head = Head(torch.eye(2) * 1000, torch.zeros(2))
    found = PNML.fit(reference_of(POINTS, [0] * 4, head))
    assert found.score(batch_of(torch.tensor([[1.0, 0.0]]), head)).tolist() == [0.0]


def test_what_no_training_image_has_does_not_count() -> None:
    found = PNML.fit(reference_of(POINTS[:3], [0] * 3, HEAD))
    assert found.whitening.shape == (2, 1)
    assert found.score(batch_of(torch.tensor([[0.0, 4.0]]), HEAD)).isfinite().all()


def test_a_single_class_is_refused() -> None:
    head = Head(torch.ones(1, 2), torch.zeros(1))
    with pytest.raises(
        UndefinedMethodError,
        match=r"^pnml is not defined here: it needs at least 2 classes, but the network has 1; ",
    ):
        parse_method("pnml").fit(reference_of(POINTS, [0] * 4, head))
