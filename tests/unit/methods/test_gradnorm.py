"""GradNorm."""

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods.gradnorm import GradNorm


def batch_of(features: torch.Tensor, head: Head) -> Activations:
    """Return activations of features."""
    logits = head(features)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def reference_of(features: torch.Tensor, labels: list[int], head: Head) -> Reference:
    """Return a reference of training features."""
    train = batch_of(features, head)
    return Reference(
        head,
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: torch.tensor(labels, dtype=torch.int64),
    )


def test_a_case_by_hand() -> None:
    head = Head(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2))
    batch = batch_of(torch.tensor([[3.0, -4.0]]), head)
    p = float(torch.sigmoid(torch.tensor(3.0)))
    assert float(GradNorm().score(batch)) == pytest.approx(7 * 2 * (2 * p - 1), rel=1e-5)


def test_it_is_the_norm_of_the_gradient_of_every_image() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=generator, requires_grad=True)
    bias = torch.randn(5, generator=generator)
    features = torch.randn(6, 8, generator=generator)
    expected = []
    for feature in features:
        loss = -(weight @ feature + bias).log_softmax(dim=0).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        expected.append(float(gradient.abs().sum()))
    head = Head(weight.detach(), bias)
    found = GradNorm.fit(reference_of(features, [0] * 6, head)).score(batch_of(features, head))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
