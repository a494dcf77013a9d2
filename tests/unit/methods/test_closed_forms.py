"""Scores of logits, features and the last layer: by hand, and from the paper's formula in NumPy."""

from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method

GENERATOR = torch.Generator().manual_seed(0)
HEAD = Head(torch.randn(5, 8, generator=GENERATOR), torch.randn(5, generator=GENERATOR))
TRAIN = torch.randn(60, 8, generator=GENERATOR).clamp(min=-0.3) + 1
QUERIES = torch.randn(12, 8, generator=GENERATOR) * 2


def batch_of(features: Tensor, head: Head = HEAD) -> Activations:
    """Return activations of features."""
    logits = head(features)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def scores(method: str, features: Tensor, head: Head = HEAD) -> list[float]:
    """Fit on the training features, and score."""
    reference = Reference(head, load_train=lambda: ActivationSet.of(batch_of(TRAIN, head)))
    return parse_method(method).fit(reference).detector.score(batch_of(features, head)).tolist()


EYE = Head(torch.eye(3), torch.zeros(3))


def test_logitgap_by_hand() -> None:
    assert scores("logitgap", torch.tensor([[1.0, 5.0, 2.0]]), EYE) == [3.5]
    assert scores("logitgap:n=1", torch.tensor([[1.0, 5.0, 2.0]]), EYE) == [3.0]


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_logitgap_is_the_mean_gap_of_sorted_logits(n: int) -> None:
    ordered = np.sort(HEAD(QUERIES).double().numpy(), axis=1)
    expected = ordered[:, -1] - ordered[:, max(0, 4 - n) : -1].mean(axis=1)
    assert scores(f"logitgap:n={n}", QUERIES) == pytest.approx(expected)


def test_logitgap_counts_no_more_classes_than_there_are() -> None:
    reference = Reference(HEAD)
    assert parse_method("logitgap:n=88").fit(reference).params == {"n": 4}
    with pytest.raises(InvalidInputError, match="logitgap:n must be at least 1, not 0"):
        parse_method("logitgap:n=0").fit(reference)


def test_dml_by_hand() -> None:
    # Feature (3, 4, 0) of length 5: cosines 0.6, 0.8 and 0 with unit weights.
    assert scores("dml:lmbda=0.1", torch.tensor([[3.0, 4.0, 0.0]]), EYE) == pytest.approx([1.3])
    assert scores("dml", torch.zeros(1, 3), Head(torch.eye(3), torch.ones(3))) == [0.0]


def test_dml_is_the_cosine_without_the_bias() -> None:
    f, w = QUERIES.double().numpy(), HEAD.weight.double().numpy()
    lengths = np.linalg.norm(f, axis=1)
    cosines = f @ w.T / lengths[:, None] / np.linalg.norm(w, axis=1)
    expected = cosines.max(axis=1) + 0.002 * lengths
    assert scores("dml", QUERIES) == pytest.approx(expected, rel=1e-5)


def test_objectosphere_by_hand() -> None:
    # Logits (log 3, 0): probability 3/4; feature (log 3, 2, 0) of length sqrt(log(3)² + 4).
    head = Head(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), torch.zeros(2))
    feature = torch.tensor([[log(3.0), 2.0, 0.0]])
    wanted = 0.75 * (log(3.0) ** 2 + 4) ** 0.5
    assert scores("objectosphere", feature, head) == pytest.approx([wanted])


def test_a_weight_of_length_zero_has_cosine_zero() -> None:
    head = Head(torch.tensor([[0.0, 0.0], [-1.0, 0.0]]), torch.tensor([9.0, 0.0]))
    found = parse_method("dml:lmbda=0").fit(Reference(head)).detector
    assert found.score(batch_of(torch.tensor([[2.0, 0.0]]), head)).tolist() == [0.0]


def test_graduncertainty_by_hand() -> None:
    head = Head(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2))
    found = parse_method("graduncertainty").fit(Reference(head)).detector
    score = found.score(batch_of(torch.tensor([[log(3.0), 2.0]]), head))
    # p = (3/4, 1/4), so that 2 p - 1 = (1/2, -1/2)
    assert score.tolist() == pytest.approx([0.5 * (log(3.0) ** 2 + 4 + 1)])


def test_graduncertainty_is_the_squared_gradient_of_every_image() -> None:
    weight, bias = HEAD.weight.double().requires_grad_(), HEAD.bias.double().requires_grad_()
    expected = []
    for feature in QUERIES.double():
        loss = -(weight @ feature + bias).log_softmax(dim=0).sum()
        of_weight, of_bias = torch.autograd.grad(loss, [weight, bias])
        expected.append(float(of_weight.square().sum() + of_bias.square().sum()))
    assert scores("graduncertainty", QUERIES) == pytest.approx(expected, rel=1e-5)


def test_graduncertainty_is_that_of_pytorch_ood() -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    layer = torch.nn.Linear(8, 5)
    layer.load_state_dict({"weight": HEAD.weight, "bias": HEAD.bias})
    theirs = -detectors.GradUncertainty(layer).predict(QUERIES)
    assert scores("graduncertainty", QUERIES) == pytest.approx(theirs.tolist(), rel=1e-3)


def test_the_negative_aware_norm_by_hand() -> None:
    features = torch.tensor([[3.0, 0.0, 1.0], [3.0, -2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 0, 0]])
    assert scores("nan-norm", features, EYE) == [2.0, 3.0, 0.0, 0.0]


def test_the_negative_aware_norm_is_that_of_the_equations() -> None:
    f = QUERIES.double().numpy()
    expected = np.abs(f).sum(axis=1) / (8 - (f <= 0).sum(axis=1))
    assert scores("nan-norm", QUERIES) == pytest.approx(expected)


def test_bats_by_hand() -> None:
    # Features 0 and 2 have mean 1 and standard deviation 1: the range is -0.5 to 2.5.
    train = batch_of(
        torch.tensor([[0.0, 7.0], [2.0, 9.0]]), head := Head(torch.eye(2), torch.zeros(2))
    )
    reference = Reference(head, load_train=lambda: ActivationSet.of(train))
    found = parse_method("bats:lmbda=1.5+maxlogit").fit(reference).detector
    queries = torch.tensor([[9.0, 0.0], [-9.0, 8.0], [1.0, 20.0]])
    assert found.score(batch_of(queries, head)).tolist() == [6.5, 8.0, 9.5]


def test_bats_clips_every_feature_to_its_own_range() -> None:
    train, f = TRAIN.double().numpy(), QUERIES.double().numpy()
    mean, spread = train.mean(axis=0), 1.05 * train.std(axis=0)
    clipped = np.clip(f, mean - spread, mean + spread)
    z = clipped @ HEAD.weight.double().numpy().T + HEAD.bias.double().numpy()
    expected = np.log(np.exp(z).sum(axis=1))
    assert scores("bats", QUERIES) == pytest.approx(expected, rel=1e-5)


def test_a_range_has_a_width() -> None:
    reference = Reference(HEAD, load_train=lambda: ActivationSet.of(batch_of(TRAIN)))
    with pytest.raises(InvalidInputError, match="bats:lmbda must be a positive number"):
        parse_method("bats:lmbda=0").fit(reference)


def test_what_is_confident_does_not_tie() -> None:
    head = Head(torch.eye(2), torch.zeros(2))
    found = parse_method("graduncertainty").fit(Reference(head)).detector
    first, second = found.score(batch_of(torch.tensor([[20.0, 0.0], [20.1, 0.0]]), head)).tolist()
    assert first < second
    assert second == pytest.approx(2 * (20.1**2 + 1) * (1 - 4 * exp(-20.1)), rel=1e-6)
    assert sqrt(first) > 28
