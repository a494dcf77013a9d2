"""ReAct by hand."""

from math import exp, log

import numpy as np
import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.gen import GEN
from oodcli.methods.react import ReAct

HEAD = Head(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.5, 0.0]))


def activations(features: list[list[float]]) -> Activations:
    """Make activations with these features."""
    f = torch.tensor(features)
    logits = HEAD(f)
    return Activations(logits, f, torch.zeros(len(f), 1), logits.argmax(dim=1))


@pytest.fixture
def reference() -> Reference:
    """Return a reference whose ten calibration features are 1 to 10."""
    calibration = activations([[1.0, 10.0], [3.0, 4.0], [9.0, 6.0], [7.0, 8.0], [5.0, 2.0]])
    return Reference(HEAD, load_calibration=lambda: ActivationSet.of(calibration))


def test_features_are_clipped_at_the_threshold() -> None:
    # min(f, 2) = (1, 2), so z' = (1.5, 4).
    assert ReAct(HEAD, 2.0).logits(activations([[1.0, 9.0]])).tolist() == [[1.5, 4.0]]


def test_the_threshold_is_a_percentile_of_all_calibration_features(reference: Reference) -> None:
    assert ReAct.fit(reference).threshold == pytest.approx(np.percentile(range(1, 11), 90))
    assert ReAct.fit(reference, percentile=50).threshold == pytest.approx(5.5)


def test_alone_it_is_followed_by_energy(reference: Reference) -> None:
    # min(f, 5.5) = (1, 5.5), so z' = (1.5, 11).
    got = (
        parse_method("react:percentile=50").fit(reference).detector.score(activations([[1.0, 9.0]]))
    )
    assert got.tolist() == pytest.approx([log(exp(1.5) + exp(11))])


def test_both_halves_of_a_combination_have_parameters(reference: Reference) -> None:
    fitted = parse_method("react:percentile=95+gen:gamma=0.5").fit(reference)
    assert fitted.canonical == "react:percentile=95+gen:gamma=0.5"
    assert fitted.params == {
        "react.percentile": 95.0,
        "react.threshold": pytest.approx(9.55),
        "gen.gamma": 0.5,
        "gen.m": 100,
        "gen.scale": "log",
    }
    of = activations([[1.0, 20.0], [9.7, 0.0]])
    clipped = HEAD(of.features.clamp(max=9.55))
    torch.testing.assert_close(fitted.detector.score(of), GEN(gamma=0.5).score_logits(clipped))


@pytest.mark.parametrize("value", ["100", "-1", "nan"])
def test_a_percentile_that_is_none_is_refused(reference: Reference, value: str) -> None:
    with pytest.raises(InvalidInputError, match="react:percentile must be at least 0 and less"):
        parse_method(f"react:percentile={value}").fit(reference)
