"""The three forms of ASH by hand."""

from math import exp

import pytest
import torch

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.base import Combined

HEAD = Head(torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, -1.0, 3.0, 1.0]]), torch.tensor([0.5, -0.5]))


def activations(features: list[list[float]]) -> Activations:
    """Make activations with these features."""
    f = torch.tensor(features)
    logits = HEAD(f)
    return Activations(logits, f, torch.zeros(len(f), 1), logits.argmax(dim=1))


def shaped(method: str, of: Activations) -> torch.Tensor:
    """Return the logits that a shaper makes."""
    detector = parse_method(method).fit(Reference(HEAD)).detector
    assert isinstance(detector, Combined)
    return detector.shaper.logits(of)


# Of (4, 1, 3, 0) the largest two are 4 and 3; S = 8 and S_k = 7.
FEATURES = [[4.0, 1.0, 3.0, 0.0]]


def test_ash_p_keeps_the_largest() -> None:
    assert shaped("ash-p:percentile=50", activations(FEATURES)).tolist() == [[4.5, 8.5]]


def test_ash_b_sets_the_largest_to_one_value() -> None:
    # S / k = 4, so (4, 0, 4, 0).
    assert shaped("ash-b:percentile=50", activations(FEATURES)).tolist() == [[4.5, 11.5]]


def test_ash_s_sharpens_the_largest() -> None:
    got = shaped("ash-s:percentile=50", activations(FEATURES))[0].tolist()
    factor = exp(8 / 7)
    assert got == pytest.approx([4 * factor + 0.5, 9 * factor - 0.5])


@pytest.mark.parametrize("method", ["ash-p", "ash-b", "ash-s"])
def test_a_feature_of_nothing_gives_the_bias(method: str) -> None:
    assert shaped(method, activations([[0.0] * 4])).tolist() == [[0.5, -0.5]]


def test_where_too_few_features_are_above_zero_the_first_zeros_are_levelled_too() -> None:
    # One feature of 8; of the zeros, the first takes part: (4, 0, 4, 0).
    assert shaped("ash-b:percentile=50", activations([[0.0, 0.0, 8.0, 0.0]])).tolist() == [
        [4.5, 11.5]
    ]


@pytest.mark.parametrize("method", ["ash-p", "ash-b", "ash-s"])
def test_at_least_one_feature_is_kept(method: str) -> None:
    assert shaped(f"{method}:percentile=99", activations(FEATURES)).isfinite().all()
    assert shaped(f"{method}:percentile=99", activations(FEATURES))[0, 1].item() == -0.5


def test_ash_s_of_flat_features_stays_finite_above_the_95th_percentile() -> None:
    head = Head(torch.ones(2, 4096), torch.zeros(2))
    f = torch.ones(1, 4096)
    of = Activations(head(f), f, torch.zeros(1, 1), torch.zeros(1).long())
    got = parse_method("ash-s:percentile=99.97").fit(Reference(head)).detector.score(of)
    assert got.dtype == torch.float64
    assert got.isfinite().all()


@pytest.mark.parametrize("method", ["ash-p", "ash-b", "ash-s"])
def test_features_below_zero_are_refused(method: str) -> None:
    with pytest.raises(UndefinedMethodError, match=rf"{method} is not defined for .*: -2\)"):
        shaped(method, activations([[1.0, -2.0, 0.0, 0.0]]))


@pytest.mark.parametrize("method", ["ash-p", "ash-b", "ash-s"])
def test_a_percentile_that_is_none_is_refused(method: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{method}:percentile must be at least 0 and less"):
        parse_method(f"{method}:percentile=100").fit(Reference(HEAD))
