"""LTS by hand."""

import pytest
import torch

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.lts import LTS


def activations(features: list[list[float]]) -> Activations:
    """Make activations of images whose logits are (3, -1)."""
    f = torch.tensor(features)
    logits = torch.tensor([[3.0, -1.0]]).repeat(len(f), 1)
    return Activations(logits, f, torch.zeros(len(f), 1), logits.argmax(dim=1))


@pytest.fixture
def bare() -> Reference:
    """Return a reference with nothing to learn from."""
    return Reference(Head(torch.zeros(2, 4), torch.zeros(2)))


def test_logits_bias_and_all_are_multiplied_by_the_squared_ratio() -> None:
    # Of (4, 1, 3, 0): S = 8 and S_2 = 7.
    got = LTS(p=0.5).logits(activations([[4.0, 1.0, 3.0, 0.0]]))[0].tolist()
    assert got == pytest.approx([3 * (8 / 7) ** 2, -((8 / 7) ** 2)])


def test_at_least_one_feature_counts_as_large() -> None:
    # 5 % of four features is none, so one: r = 8 / 4.
    assert LTS().logits(activations([[4.0, 1.0, 3.0, 0.0]])).tolist() == [[12.0, -4.0]]


def test_all_features_leave_the_logits_alone() -> None:
    assert LTS(p=1.0).logits(activations([[4.0, 1.0, 3.0, 0.0]])).tolist() == [[3.0, -1.0]]


def test_a_feature_of_nothing_leaves_the_logits_alone() -> None:
    assert LTS().logits(activations([[0.0] * 4])).tolist() == [[3.0, -1.0]]


def test_features_below_zero_are_clamped_unless_refused(bare: Reference) -> None:
    signed = activations([[4.0, -1.0, 3.0, 1.0]])
    with pytest.raises(UndefinedMethodError, match="or lts:signed=clamp"):
        parse_method("lts:signed=refuse").fit(bare).detector.score(signed)
    got = parse_method("lts+maxlogit").fit(bare).detector.score(signed)
    assert got.tolist() == [12.0]


@pytest.mark.parametrize("value", ["0", "1.5", "nan"])
def test_a_share_that_is_none_is_refused(bare: Reference, value: str) -> None:
    message = f"lts:p must be more than 0 and at most 1, not {value}"
    with pytest.raises(InvalidInputError, match=message):
        parse_method(f"lts:p={value}").fit(bare)
