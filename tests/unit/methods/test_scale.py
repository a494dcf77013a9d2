"""SCALE by hand."""

from math import exp, log

import pytest
import torch

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.base import score_many
from oodcli.methods.scale import Scale

HEAD = Head(torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, -1.0, 3.0, 1.0]]), torch.tensor([0.5, -0.5]))


def activations(features: list[list[float]]) -> Activations:
    """Make activations with these features."""
    f = torch.tensor(features)
    logits = HEAD(f)
    return Activations(logits, f, torch.zeros(len(f), 1), logits.argmax(dim=1))


def test_the_whole_feature_is_multiplied() -> None:
    # Of (4, 1, 3, 0): S = 8, S_2 = 7, and W f = (6, 8).
    got = Scale(HEAD, 50.0).logits(activations([[4.0, 1.0, 3.0, 0.0]]))[0].tolist()
    factor = exp(8 / 7)
    assert got == pytest.approx([6 * factor + 0.5, 8 * factor - 0.5])


def test_percentile_zero_multiplies_by_e() -> None:
    got = Scale(HEAD, 0.0).logits(activations([[4.0, 1.0, 3.0, 0.0]]))[0].tolist()
    assert got == pytest.approx([6 * exp(1) + 0.5, 8 * exp(1) - 0.5])


def test_a_feature_of_nothing_gives_the_bias() -> None:
    assert Scale(HEAD).logits(activations([[0.0] * 4])).tolist() == [[0.5, -0.5]]


def test_logits_are_float64_above_the_95th_percentile_and_finite() -> None:
    head = Head(torch.ones(2, 4096), torch.zeros(2))
    f = torch.ones(1, 4096)
    of = Activations(head(f), f, torch.zeros(1, 1), torch.zeros(1).long())
    assert Scale(head, 95.0).logits(of).dtype == torch.float32
    for percentile in (96.0, 99.0, 99.97):
        got = Scale(head, percentile).logits(of)
        assert got.dtype == torch.float64
        assert got.isfinite().all()
    # 99 %: r = 4096 / 41, beyond what exp can be in float32.
    assert Scale(head, 99.0).logits(of)[0, 0].log().item() == pytest.approx(4096 / 41 + log(4096))


def test_percentiles_scored_together_score_as_alone() -> None:
    of = activations(torch.rand(7, 4, generator=torch.Generator().manual_seed(0)).tolist())
    names = ["scale:percentile=65", "scale", "scale:percentile=95", "scale:percentile=99"]
    fitted = [parse_method(name).fit(Reference(HEAD)).detector for name in names]
    alone = torch.stack([each.score(of).double() for each in fitted], dim=1)
    torch.testing.assert_close(score_many(fitted, of), alone)


def test_features_below_zero_are_refused_unless_clamped() -> None:
    signed = activations([[4.0, -1.0, 3.0, 1.0]])
    with pytest.raises(UndefinedMethodError, match="scale is not defined for features below 0"):
        parse_method("scale").fit(Reference(HEAD)).detector.score(signed)
    # S = 8 and S_2 = 7 without the -1, which W still sees: W f = (3, 11).
    fitted = parse_method("scale:percentile=50,signed=clamp+maxlogit").fit(Reference(HEAD))
    assert fitted.params == {"scale.percentile": 50.0, "scale.signed": "clamp"}
    assert fitted.detector.score(signed).tolist() == pytest.approx([11 * exp(8 / 7) - 0.5])


def test_a_percentile_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="scale:percentile must be at least 0 and less"):
        parse_method("scale:percentile=100").fit(Reference(HEAD))
