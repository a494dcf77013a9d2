"""DICE by hand."""

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.dice import DICE

HEAD = Head(torch.tensor([[1.0, -1.0], [3.0, 2.0]]), torch.tensor([0.5, 0.0]), tau=0.1)


def activations(features: list[list[float]]) -> Activations:
    """Make activations with these features."""
    f = torch.tensor(features)
    logits = HEAD(f)
    return Activations(logits, f, torch.zeros(len(f), 1), logits.argmax(dim=1))


@pytest.fixture
def reference() -> Reference:
    """Return a reference whose mean training feature is (2, 4)."""
    train = activations([[1.0, 4.0], [3.0, 4.0]])
    return Reference(HEAD, load_train=lambda: ActivationSet.of(train))


def test_weights_of_small_contribution_are_dropped(reference: Reference) -> None:
    # Contributions (2, -4) and (6, 8): the median is 4.
    fitted = DICE.fit(reference, p=50)
    assert fitted.head.weight.tolist() == [[0.0, 0.0], [3.0, 2.0]]
    assert fitted.head.tau == 0.1
    assert fitted.logits(activations([[1.0, 1.0]])).tolist() == [[0.5, 5.0]]


def test_a_contribution_at_the_percentile_is_dropped(reference: Reference) -> None:
    # The lowest contribution is the percentile itself.
    assert DICE.fit(reference, p=0).head.weight.tolist() == [[1.0, 0.0], [3.0, 2.0]]


def test_by_default_a_tenth_is_kept(reference: Reference) -> None:
    fitted = parse_method("dice+maxlogit").fit(reference)
    assert fitted.params == {"dice.p": 90.0}
    assert fitted.detector.score(activations([[1.0, 3.0]])).tolist() == [6.0]


def test_a_percentile_that_is_none_is_refused(reference: Reference) -> None:
    with pytest.raises(InvalidInputError, match="dice:p must be at least 0 and less than 100"):
        parse_method("dice:p=100").fit(reference)
