"""Temperature scaling: the minimum that it looks for."""

from math import log

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import tempscale
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


def test_calibration_images_that_are_all_right_leave_a_finite_temperature() -> None:
    logits = torch.eye(4).repeat(5, 1) * 3
    found = best_temperature(logits, torch.arange(20) % 4)
    assert 0.01 < found < 1.0


def test_calibration_images_that_are_all_wrong_leave_a_finite_temperature() -> None:
    logits = torch.eye(4).repeat(5, 1) * 1e6
    found = best_temperature(logits, (torch.arange(20) + 1) % 4)
    assert np.isfinite(found)
    assert found > 1e6


def test_the_search_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempscale, "STEPS", 1)
    logits = torch.tensor([[2.0, 0.0]] * 4)
    found = best_temperature(logits, torch.tensor([0, 0, 0, 1]))
    # One Newton step from 1.5 comes near 2 / log 3 = 1.82, not there.
    assert found == pytest.approx(2 / log(3), rel=0.05)
    assert found != pytest.approx(2 / log(3), rel=0.01)


def test_constant_logits_leave_the_temperature_where_it_began() -> None:
    assert best_temperature(torch.ones(8, 3), torch.arange(8) % 3) == pytest.approx(1.5)


def test_scores_are_the_largest_probability_at_that_temperature() -> None:
    calibration = Activations(
        torch.tensor([[2.0, 0.0]] * 4), torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4).long()
    )
    reference = Reference(
        Head(torch.zeros(2, 1), torch.zeros(2)),
        load_calibration=lambda: ActivationSet.of(calibration),
        load_calibration_labels=lambda: torch.tensor([0, 0, 0, 1]),
    )
    fitted = TempScale.fit(reference)
    assert fitted.score(calibration).tolist() == pytest.approx([0.75] * 4, rel=1e-5)
