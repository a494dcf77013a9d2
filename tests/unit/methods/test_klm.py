"""KL matching by hand."""

from math import log

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods.klm import KLMatching


def activations(probabilities: list[list[float]]) -> Activations:
    """Make activations of images with these class probabilities."""
    logits = torch.tensor(probabilities).log()
    n = len(logits)
    return Activations(logits, torch.zeros(n, 1), torch.zeros(n, 1), logits.argmax(dim=1))


def reference(calibration: Activations) -> Reference:
    """Make a reference that has nothing but calibration images."""
    head = Head(torch.zeros(3, 1), torch.zeros(3))
    return Reference(head, load_calibration=lambda: ActivationSet.of(calibration))


def test_the_nearest_mean_prediction_counts() -> None:
    seen = activations([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    fitted = KLMatching.fit(reference(seen))
    # The typical predictions are (0.7, 0.2, 0.1) and (0.1, 0.8, 0.1); of class 2 there is none.
    got = fitted.score(activations([[0.5, 0.25, 0.25], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    first = 0.5 * log(0.5 / 0.7) + 0.25 * log(0.25 / 0.2) + 0.25 * log(0.25 / 0.1)
    third = 0.1 * log(0.1 / 0.7) + 0.1 * log(0.1 / 0.2) + 0.8 * log(0.8 / 0.1)
    assert got.tolist() == pytest.approx([-first, 0.0, -third], abs=1e-6)


def test_a_certain_prediction_among_calibration_images_leaves_distances_finite() -> None:
    certain = Activations(
        torch.tensor([[2000.0, 0.0, 0.0]]), torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0])
    )
    fitted = KLMatching.fit(reference(certain))
    far, near = fitted.score(activations([[0.1, 0.8, 0.1], [0.98, 0.01, 0.01]])).tolist()
    assert -1000 < far < near < 0
    assert fitted.score(certain).tolist() == [0.0]
