"""VOS against its formulas, worked out by hand or by plain loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.objectives.vos import VOS, VirtualOutliers, longest, weighted_logsumexp

NONE = torch.empty(0)


def built(*, share: float = 0.5, size: int = 6) -> VirtualOutliers:
    """Return the state for 3 classes and 4 features in an epoch after the start."""
    torch.manual_seed(0)
    state = VirtualOutliers(4, 3, size)
    state.begin(share, 7)
    return state


def output(logits: Tensor, features: Tensor, state: nn.Module, last: nn.Module) -> StepOutput:
    """Return what VOS sees of a batch."""
    return StepOutput(logits, NONE, NONE, (features,), None, state, last)


def batch(m: int = 9) -> tuple[Tensor, Tensor]:
    """Return features ``(m, 4)`` and labels ``(m,)`` of three classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(m, 4, generator=generator), torch.arange(m) * 2 % 3


def test_vos_by_hand() -> None:
    """Logits 0 and weights 3 and -1: E = log 3, so that q is 3/4 and 1/4."""
    state = VirtualOutliers(4, 2, 5)
    state.begin(0.4, 0)
    with torch.no_grad():
        state.weights.copy_(torch.tensor([3.0, -1.0]))
        state.logistic.weight.copy_(torch.tensor([[0.0], [1.0]]))
        state.logistic.bias.zero_()
    last = nn.Linear(4, 2)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    of = output(torch.zeros(2, 2), torch.eye(2, 4), state, last)
    found = VOS().loss(of, torch.tensor([0, 1])).item()
    assert found == pytest.approx(math.log(2) + 0.1 * (math.log(4 / 3) + math.log(4)) / 2)
    # In a new state only class 1 has a feature, and an outlier: two images, one outlier.
    state.queue.zero_()
    state.seen.zero_()
    found = VOS(weight=3).loss(of, torch.tensor([1, 1])).item()
    assert found == pytest.approx(math.log(2) + 2 * math.log(4 / 3) + math.log(4))


def test_the_gradient_of_vos_is_that_of_its_formula() -> None:
    """It reaches the logits of images, the last layer, the weights and the regression."""
    features, labels = batch()
    last = nn.Linear(4, 3)
    inputs = features.clone().requires_grad_()
    state = built()
    logits = last(inputs)
    of = output(logits, features, state, last)
    found = VOS(weight=0.7, select=2).loss(of, labels)
    state.begin(0.5, 7)
    outliers, _ = state.drawn(sampled=10000, select=2)
    assert not outliers.requires_grad
    wanted = functional.cross_entropy(logits, labels)
    total = torch.zeros(())
    for vector, kind in [*((z, 1) for z in logits), *((last(v), 0) for v in outliers)]:
        energy = (state.weights.clamp(min=0) * vector.exp()).sum().log()
        q = (state.logistic.weight[:, 0] * energy + state.logistic.bias).softmax(dim=0)
        total = total - q[kind].log() / (len(logits) + len(outliers))
    wanted = wanted + 0.7 * total
    torch.testing.assert_close(found, wanted)
    towards = [inputs, *last.parameters(), *state.parameters()]
    gradients = torch.autograd.grad(found, towards, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, towards, retain_graph=True))
    (plain,) = torch.autograd.grad(functional.cross_entropy(logits, labels), inputs)
    assert not torch.allclose(gradients[0], plain, rtol=0.01)


def test_before_its_start_vos_is_cross_entropy_and_fills_its_queues() -> None:
    features, labels = batch()
    state, last = built(share=0.39), nn.Linear(4, 3)
    logits = last(features)
    loss = VOS().loss(output(logits, features, state, last), labels)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels))
    loss.backward()
    assert all(not parameter.grad.any() for parameter in state.parameters())
    assert state.seen.tolist() == [3, 3, 3]
    state.begin(40 / 100, 0)
    assert VOS().loss(output(logits, features, state, last), labels).item() > loss.item()


@pytest.mark.parametrize("size", [2, 5, 40])
def test_queues_hold_the_newest_features_and_give_the_shared_covariance(size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    state = built(size=size)
    kept: list[list[Tensor]] = [[], [], []]
    for m in (5, 1, 17):
        features = torch.randn(m, 4, generator=generator)
        labels = torch.randint(0, 3, (m,), generator=generator)
        state.store(features, labels)
        for vector, label in zip(features, labels.tolist(), strict=True):
            kept[label] = [*kept[label], vector][-size:]
    sets = [torch.stack(vectors).double().numpy() for vectors in kept]
    for label, vectors in enumerate(sets):
        held = state.queue[label][: len(vectors)].double().numpy()
        assert sorted(map(tuple, held)) == sorted(map(tuple, vectors))
    means, covariance = state.gaussians()
    np.testing.assert_allclose(means, [vectors.mean(axis=0) for vectors in sets])
    centred = np.concatenate([vectors - vectors.mean(axis=0) for vectors in sets])
    wanted = centred.T @ centred / len(centred) + 1e-4 * np.eye(4)
    np.testing.assert_allclose(covariance, wanted, atol=1e-15)


def test_the_longest_vectors_are_distributed_as_those_of_draws() -> None:
    """Means of the three longest of 50, of 4000 sets; and one of one is any of them."""
    draws = np.random.default_rng(0)
    lengths = np.sort(np.linalg.norm(draws.standard_normal((4000, 50, 3)), axis=2), axis=1)
    found = longest(draws, 4000, 3, sampled=50, select=3)
    assert found.shape == (4000, 3)
    assert (np.diff(found, axis=1) < 0).all()
    wanted = lengths[:, :-4:-1]
    for function in (np.mean, np.std):
        np.testing.assert_allclose(function(found, axis=0), function(wanted, axis=0), rtol=0.05)
    np.testing.assert_allclose(found.mean(axis=0), wanted.mean(axis=0), rtol=0.01)
    one = longest(draws, 4000, 3, sampled=1, select=1)
    assert one.mean() == pytest.approx(lengths.mean(), rel=0.02)


def test_virtual_outliers_have_the_drawn_distances_from_their_means() -> None:
    state = built(size=40)
    state.store(*batch(60))
    state.begin(0.5, 3)
    outliers, exists = state.drawn(sampled=100, select=5)
    assert exists.all()
    means, covariance = state.gaussians()
    from_mean = outliers.double().view(3, 5, 4) - means[:, None]
    distances = torch.einsum("csi,ij,csj->cs", from_mean, covariance.inverse(), from_mean).sqrt()
    wanted = longest(np.random.default_rng(3), 3, 4, sampled=100, select=5)
    np.testing.assert_allclose(distances, wanted, rtol=1e-4)


def test_a_sum_of_no_weights_has_a_finite_energy_and_gradient() -> None:
    logits = torch.tensor([[1.0, 2.0]], requires_grad=True)
    energy = weighted_logsumexp(logits, torch.tensor([-1.0, 0.0]))
    energy.sum().backward()
    assert energy.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vos:start=1", "vos:start must be at least 0 and less than 1, not 1: the share of"),
        ("vos:weight=0", "vos:weight must be a positive number, not 0"),
        ("vos:queue=0", "vos:queue must be at least 1, not 0"),
        ("vos:sampled=3,select=4", "vos:select must be at most vos:sampled (3), not 4"),
    ],
)
def test_impossible_parameters_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        parse_objective(text)
    assert str(raised.value).startswith(message)
