"""Igeood: Fisher-Rao distances by hand, and centroids next to plain gradient descent."""

from math import acos, e, sqrt

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import igeood
from oodcli.methods.igeood import Igeood


def batch_of(logits: Tensor) -> Activations:
    """Return activations of logits."""
    return Activations(logits, logits, logits[:, :1], logits.argmax(dim=1))


def reference_of(logits: Tensor, labels: Tensor) -> Reference:
    """Return a reference of training logits."""
    classes = logits.shape[1]
    return Reference(
        Head(torch.eye(classes), torch.zeros(classes)),
        load_train=lambda: ActivationSet.of(batch_of(logits)),
        load_labels=lambda: labels,
    )


def drawn(n: int, classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw logits whose largest is mostly that of their label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return torch.randn(n, classes, generator=generator) + 3 * torch.eye(classes)[labels], labels


def test_two_classes_by_hand() -> None:
    # A class without images keeps its unit vector; of two classes p is 1 / (1 + e) and e / (1 + e).
    reference = reference_of(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    found = Igeood.fit(reference)
    p = e / (1 + e)
    near = 2 * acos(sqrt(0.5 * p) + sqrt(0.5 * (1 - p)))
    across = 2 * acos(2 * sqrt(p * (1 - p)))
    scores = found.score(batch_of(torch.tensor([[0.0, 0.0], [1.0, 0.0]])))
    assert scores.tolist() == pytest.approx([2 * near, across], abs=1e-7)
    least = Igeood.fit(reference, over="min").score(batch_of(torch.tensor([[0.0, 0.0]])))
    assert least.tolist() == pytest.approx([-near], abs=1e-7)


def distance(logits: Tensor, centroid: Tensor) -> Tensor:
    """Return the Fisher-Rao distance of rows of logits to one."""
    inner = (logits.softmax(dim=1) * centroid.softmax(dim=0)).sqrt().sum(dim=1)
    return 2 * torch.clamp(inner, -1 + 1e-6, 1 - 1e-6).acos()


@pytest.mark.parametrize("group", [2**20, 1])
def test_it_is_what_automatic_gradients_reach(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second implementation: steps of autograd, class by class, in float64."""
    monkeypatch.setattr(igeood, "_GROUP", group)
    logits, labels = drawn(40, 4)
    labels[labels == 2] = 1
    wide = logits.double()
    centroids = torch.eye(4, dtype=torch.float64)
    for c in (0, 1, 3):
        moving = centroids[c].clone()
        for _ in range(100):
            moving.requires_grad_()
            (slope,) = torch.autograd.grad(distance(wide[labels == c], moving).mean(), moving)
            moving = (moving - 0.01 * slope).detach()
        centroids[c] = moving
    queries, _ = drawn(20, 4, seed=1)
    for temperature in (1.0, 3.0):
        expected = sum(
            distance(queries.double() / temperature, each / temperature) for each in centroids
        )
        found = Igeood.fit(reference_of(logits, labels), temperature=temperature)
        torch.testing.assert_close(found.score(batch_of(queries)), expected, rtol=1e-5, atol=1e-5)


def test_of_many_images_some_are_taken_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(40, 4)
    monkeypatch.setattr(igeood, "MAX_VALUES", 10 * 4)
    some = Igeood.fit(reference_of(logits, labels))
    assert torch.equal(some.roots, Igeood.fit(reference_of(logits[::4], labels[::4])).roots)


def test_confident_images_do_not_tie() -> None:
    reference = reference_of(*drawn(40, 4))
    logits = torch.tensor([[30.0, 0, 0, 0], [40.0, 0, 0, 0], [60.0, 0, 0, 0]])
    scores = Igeood.fit(reference).score(batch_of(logits))
    assert scores[0] < scores[1] < scores[2]


def test_a_temperature_must_be_positive() -> None:
    with pytest.raises(InvalidInputError, match="igeood:temperature must be a positive number"):
        Igeood.fit(reference_of(*drawn(8, 2)), temperature=0)
