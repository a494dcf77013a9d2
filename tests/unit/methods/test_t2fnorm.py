"""T2FNorm's score by hand."""

from math import exp

import pytest
import torch

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method

WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
BIAS = torch.tensor([0.5, 0.0])


def score(method: str, head: Head) -> tuple[float, object]:
    """Score the feature (0.3, 0.4) by the lead of one logit, and return the temperature."""
    features = torch.tensor([[0.3, 0.4]])
    logits = head(features)
    batch = Activations(logits, features, torch.zeros(1, 1), logits.argmax(dim=1))
    fitted = parse_method(method).fit(Reference(head))
    return fitted.detector.score(batch).item(), fitted.params["temperature"]


def test_a_plain_classifier_gets_the_published_temperature() -> None:
    # W f / 0.1 + b = (3.5, 8)
    got, temperature = score("t2fnorm", Head(WEIGHT, BIAS))
    assert got == pytest.approx(4.5)
    assert temperature == 0.1


def test_a_classifier_trained_with_a_temperature_keeps_it() -> None:
    # W f / 0.2 + b = (2, 4)
    got, temperature = score("t2fnorm", Head(WEIGHT / 0.2, BIAS, tau=0.2))
    assert got == pytest.approx(2.0)
    assert temperature == 0.2


@pytest.mark.parametrize("tau", [1.0, 0.2, 0.1])
def test_a_temperature_that_is_given_replaces_the_one_of_training(tau: float) -> None:
    # W f / 0.5 + b = (1.1, 1.6)
    got, _ = score("t2fnorm:temperature=0.5", Head(WEIGHT / tau, BIAS, tau=tau))
    assert got == pytest.approx(0.5, rel=1e-5)


def test_temperature_one_leaves_it_out() -> None:
    # W f + b = (0.8, 0.8)
    assert score("t2fnorm:temperature=1", Head(WEIGHT, BIAS))[0] == pytest.approx(0.0, abs=1e-6)


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="t2fnorm:temperature must be a positive number"):
        parse_method("t2fnorm:temperature=0").fit(Reference(Head(WEIGHT, BIAS)))


def test_the_published_scale_is_a_probability() -> None:
    got, _ = score("t2fnorm:scale=probability", Head(WEIGHT, BIAS))
    assert got == pytest.approx(1 / (1 + exp(-4.5)))
