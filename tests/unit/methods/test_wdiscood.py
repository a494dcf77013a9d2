"""WDiscOOD: by hand, and next to NumPy after the published code."""

import numpy as np
import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.wdiscood import WDiscOOD


def batch_of(features: Tensor, classes: int) -> Activations:
    """Return activations of features."""
    logits = torch.zeros(len(features), classes)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def reference_of(features: Tensor, labels: Tensor) -> Reference:
    """Return a reference of training features."""
    classes = int(labels.max()) + 1
    return Reference(
        Head(torch.zeros(classes, features.shape[1]), torch.zeros(classes)),
        load_train=lambda: ActivationSet.of(batch_of(features, classes)),
        load_labels=lambda: labels,
    )


def drawn(classes: int, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw training features about class means, their labels, and others."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, width, generator=generator) * 3
    labels = torch.arange(40 * classes) % classes
    mix = torch.randn(width, width, generator=generator)
    train = means[labels] + torch.randn(len(labels), width, generator=generator) @ mix
    return train, labels, torch.randn(15, width, generator=generator) * 4


def test_two_classes_by_hand() -> None:
    # Means (±2, 0), variance 1 within classes in both directions: whitening changes nothing.
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    centre = torch.tensor([2.0, 0.0])
    train = torch.cat([corners + centre, corners - centre])
    reference = reference_of(train, torch.tensor([0] * 4 + [1] * 4))
    found = WDiscOOD.fit(reference, alpha=2.0)
    assert found.dim == 1
    direction = found.classes.whitening @ found.basis
    assert direction.abs().flatten().tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    scores = found.score(batch_of(torch.tensor([[2.0, 0.0], [5.0, 0.0], [-2.0, 3.0]]), 2))
    assert scores.tolist() == pytest.approx([0.0, -3.0, -6.0], abs=1e-7)


@pytest.mark.parametrize(("dim", "normalised"), [(None, False), (2, False), (None, True)])
def test_it_is_that_of_the_published_code(dim: int | None, normalised: bool) -> None:
    """Whitening by the root of the precision, discriminants by an eigenproblem, as published."""
    train, labels, queries = drawn(4, 7)
    x, q = train.double().numpy(), queries.double().numpy()
    if normalised:
        x, q = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, q))
    y = labels.numpy()
    means = np.stack([x[y == c].mean(axis=0) for c in range(4)])
    values, vectors = np.linalg.eigh((x - means[y]).T @ (x - means[y]) / len(x))
    white = vectors @ np.diag(values**-0.5) @ vectors.T
    x, q = x @ white, q @ white
    means, centre = np.stack([x[y == c].mean(axis=0) for c in range(4)]), x.mean(axis=0)
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    between = (means - centre).T @ (means - centre) / 4
    ratios, discs = np.linalg.eig(np.linalg.inv(within + 1e-5 * np.eye(7)) @ between)
    g = np.real(discs).T[np.argsort(-np.real(ratios))][: dim or 3]
    _, _, basis = np.linalg.svd(g, full_matrices=False)
    h = np.eye(7) - basis.T @ basis
    inside = np.linalg.norm((q @ g.T)[:, None] - (means @ g.T)[None], axis=2).min(axis=1)
    expected = -inside - 5 * np.linalg.norm((q - centre) @ h.T, axis=1)
    found = WDiscOOD.fit(reference_of(train, labels), dim=dim, normalised=normalised)
    assert found.score(batch_of(queries, 4)).tolist() == pytest.approx(expected, rel=1e-5)


def test_many_classes_leave_a_third_of_the_directions() -> None:
    train, labels, _ = drawn(20, 9)
    assert WDiscOOD.fit(reference_of(train, labels)).dim == 6
    assert WDiscOOD.fit(reference_of(train, labels), dim=8).dim == 8
    with pytest.raises(UndefinedMethodError, match="wdiscood is not defined for dim 9: the feat"):
        WDiscOOD.fit(reference_of(train, labels), dim=9)


def test_what_cannot_be_fitted_is_refused() -> None:
    train, labels, _ = drawn(3, 8)
    few = reference_of(train[:9], labels[:9])
    with pytest.raises(UndefinedMethodError, match="9 images of 3 classes vary in 6 of 8 within"):
        parse_method("wdiscood").fit(few)
    with pytest.raises(UndefinedMethodError, match="9 images of 3 classes vary in 6 of 8 within"):
        parse_method("wdiscood:normalised=true").fit(few)
    one = reference_of(train, torch.zeros(len(train), dtype=torch.int64))
    with pytest.raises(UndefinedMethodError, match="training images of at least 2 classes"):
        parse_method("wdiscood").fit(one)
    with pytest.raises(InvalidInputError, match="wdiscood:alpha must be a number of at least 0"):
        parse_method("wdiscood:alpha=-1").fit(reference_of(train, labels))
