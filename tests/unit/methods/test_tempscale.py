"""Temperature scaling: the minimum that it looks for."""

from math import log

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import parse_method, tempscale
from oodcli.methods.tempscale import TempScale, best_temperature


def test_two_classes_by_hand() -> None:
    """Three of four are right: the best probability is 3/4, so T = gap / log 3."""
    logits = torch.tensor([[2.0, 0.0]] * 4)
    labels = torch.tensor([0, 0, 0, 1])
    assert best_temperature(logits, labels) == pytest.approx(2 / log(3), rel=1e-6)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 8.0, 500.0])
def test_no_other_temperature_has_a_smaller_loss(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (300,), generator=generator)
    logits = torch.randn(300, 6, generator=generator)
    logits[torch.arange(300), labels] += 1.0
    logits *= scale
    found = best_temperature(logits, labels)
    losses = [
        cross_entropy(logits.double() / (found * factor), labels).item()
        for factor in (0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0)
    ]
    assert np.argmin(losses) == 3


def refusal(logits: Tensor, labels: Tensor) -> str:
    """Return why temperature scaling is refused."""
    with pytest.raises(UndefinedMethodError) as raised:
        parse_method("tempscale").fit(reference_of(logits, labels))
    return str(raised.value)


def reference_of(logits: Tensor, labels: Tensor) -> Reference:
    """Return a reference with these calibration images."""
    n, k = logits.shape
    images = Activations(logits, torch.zeros(n, 1), torch.zeros(n, 1), logits.argmax(dim=1))
    return Reference(
        Head(torch.zeros(k, 1), torch.zeros(k)),
        load_calibration=lambda: ActivationSet.of(images),
        load_calibration_labels=lambda: labels,
    )


def test_calibration_images_that_are_all_right_are_refused() -> None:
    """The likelihood rises as long as T falls."""
    assert refusal(torch.eye(4).repeat(5, 1) * 3, torch.arange(20) % 4) == (
        "tempscale is not defined here: it needs calibration images that are classified wrongly, "
        "and others better than at random, but 0 of 20 calibration images are wrong: the "
        "likelihood rises as long as T falls; calibrate on more images that the network was not "
        "trained on (--val-fraction 0.1)"
    )


def test_calibration_images_that_are_all_wrong_are_refused() -> None:
    """The likelihood rises as long as T does."""
    said = refusal(torch.eye(4).repeat(5, 1) * 1e6, (torch.arange(20) + 1) % 4)
    assert "but 20 of 20 calibration images are wrong, at random or worse: the likel" in said


def test_constant_logits_are_refused() -> None:
    assert "0 of 8 calibration images are wrong" in refusal(torch.ones(8, 3), torch.arange(8) % 3)


def test_a_single_wrong_image_has_an_optimum_and_it_stands_in_the_parameters() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 4)
    fitted = parse_method("tempscale").fit(reference_of(logits, torch.tensor([0, 0, 0, 1])))
    temperature = pytest.approx(2 / log(3), rel=1e-6)
    assert fitted.params == {"temperature": temperature, "scale": "log-odds"}


def test_the_search_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempscale, "STEPS", 1)
    logits = torch.tensor([[2.0, 0.0]] * 4)
    found = best_temperature(logits, torch.tensor([0, 0, 0, 1]))
    # One Newton step from 1.5 comes near 2 / log 3 = 1.82, not there.
    assert found == pytest.approx(2 / log(3), rel=0.05)
    assert found != pytest.approx(2 / log(3), rel=0.01)


def test_scores_are_the_odds_of_the_largest_probability_at_that_temperature() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 4)
    reference = reference_of(logits, torch.tensor([0, 0, 0, 1]))
    fitted = TempScale.fit(reference)
    (calibration,) = reference.calibration.chunks()
    assert fitted.score(calibration).tolist() == pytest.approx([log(3)] * 4, rel=1e-5)
    published = TempScale.fit(reference, scale="probability").score(calibration)
    assert published.dtype == torch.float32
    assert published.tolist() == pytest.approx([0.75] * 4, rel=1e-5)
