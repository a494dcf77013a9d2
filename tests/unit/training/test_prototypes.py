"""CIDER, PALM and ReweightOOD against their formulas, worked out by hand or by plain loops."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.cider import CIDER, dispersion
from oodcli.training.objectives.palm import PALM, contrast, sinkhorn
from oodcli.training.objectives.prototypes import ClassMeanPrototypes, Prototypes, moved
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.objectives.reweightood import ReweightOOD

NONE = torch.empty(0)


def units(m: int, *, seed: int = 0, e: int = 5) -> Tensor:
    """Return random unit vectors, float64 ``(m, e)``."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(m, e, generator=generator).double(), dim=1)


def output(unit: Tensor, state: nn.Module | None = None) -> StepOutput:
    """Return what a contrastive objective sees of projected unit vectors."""
    return StepOutput(NONE, NONE, NONE, (unit,), None, state)


def with_values(state: Prototypes, values: Tensor) -> Prototypes:
    """Return a state with other prototypes."""
    state.values = values.clone()
    return state


def test_cider_by_hand() -> None:
    """The prototype of class 0 moves half way to (0, 1), where that of class 1 is."""
    objective = CIDER(tau=0.5, momentum=0.5)
    state = with_values(ClassMeanPrototypes(4, 2), torch.eye(2))
    loss = objective.loss(output(torch.tensor([[0.0, 1.0]]), state), torch.tensor([0]))
    half = math.sqrt(0.5)
    compact = math.log(1 + math.exp((1 - half) / 0.5))
    assert float(loss) == pytest.approx(2 * 0.5 / 0.07 * compact + half / 0.5, rel=1e-5)
    torch.testing.assert_close(state.values, torch.tensor([[half, half], [0.0, 1.0]]))


def test_prototypes_move_one_feature_after_the_other() -> None:
    prototypes, unit = units(3, seed=1), units(9)
    labels = torch.tensor([2, 0, 2, 2, 0, 2, 2, 0, 2])
    wanted = prototypes.clone()
    for vector, label in zip(unit, labels.tolist(), strict=True):
        wanted[label] = functional.normalize(0.7 * wanted[label] + 0.3 * vector, dim=0)
    torch.testing.assert_close(moved(prototypes, unit, labels, momentum=0.7), wanted)
    assert torch.equal(wanted[1], prototypes[1])


def test_the_gradient_of_cider_is_that_of_its_parts() -> None:
    prototypes, unit = units(3, seed=1), units(6).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 1, 1])
    objective = CIDER(momentum=0.6)

    def dispersed(u: Tensor) -> Tensor:
        return dispersion(moved(prototypes, u, labels, momentum=0.6), tau=0.1)

    torch.autograd.gradcheck(dispersed, unit)
    (of_dispersion,) = torch.autograd.grad(dispersed(unit), unit)
    state = with_values(ClassMeanPrototypes(4, 3), prototypes)
    (found,) = torch.autograd.grad(objective.loss(output(unit, state), labels), unit)
    p = (unit.detach() @ state.values.T / 0.1).softmax(dim=1) - functional.one_hot(labels, 3)
    wanted = 2 * 0.1 / 0.07 * p @ state.values / 0.1 / 6 + of_dispersion
    torch.testing.assert_close(found, wanted)


def test_cider_starts_from_class_means() -> None:
    state = ClassMeanPrototypes(4, 3)
    before = state.values.clone()
    features = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 0, 2, 2])
    with torch.no_grad():
        state.start(features, labels)
        (unit,) = state(features, NONE)
    for label in (0, 2):
        mean = functional.normalize(unit[labels == label].mean(dim=0), dim=0)
        torch.testing.assert_close(state.values[label], mean)
    assert torch.equal(state.values[1], before[1])  # a class without images


def test_palm_by_hand() -> None:
    """Vectors on their prototypes: log(1 + e^-2), and prototypes at right angles: log 1."""
    state = with_values(Prototypes(4, 2, 1), torch.eye(2))
    loss = PALM(tau=0.5, prototypes=1).loss(output(torch.eye(2), state), torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    torch.testing.assert_close(state.values, torch.eye(2))


def assigned(unit: Tensor, prototypes: Tensor) -> Tensor:
    """Return Sinkhorn's assignment by its definition."""
    q = (unit @ prototypes.T / 0.05).exp()
    q = q / q.sum()
    m, p = q.shape
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True) / p
        q = q / q.sum(dim=1, keepdim=True) / m
    return q * m


def test_sinkhorn_is_that_of_its_definition_and_balances_the_columns() -> None:
    unit, prototypes = units(7), units(4, seed=1)
    similar = unit @ prototypes.T
    found = sinkhorn(similar, epsilon=0.05, rounds=3)
    torch.testing.assert_close(found, assigned(unit, prototypes))
    many = sinkhorn(similar, epsilon=0.5, rounds=100)
    torch.testing.assert_close(many.sum(dim=0), torch.full((4,), 7 / 4).double())
    torch.testing.assert_close(many.sum(dim=1), torch.ones(7).double())
    assert sinkhorn(similar * 1e4, epsilon=0.05, rounds=3).isfinite().all()


def palm_by_loops(
    unit: Tensor, labels: list[int], prototypes: Tensor, *, classes: int, top: int, m: float
) -> tuple[Tensor, Tensor]:
    """Return the loss of PALM and the new prototypes, image by image."""
    q = assigned(unit.detach(), prototypes)
    rows = []
    for i, label in enumerate(labels):
        own = [k for k in range(len(prototypes)) if k % classes == label]
        rows.append(sorted(own, key=lambda k: -float(q[i, k]))[:top])
    weights = torch.zeros_like(q)
    for i, chosen in enumerate(rows):
        for k in chosen:
            weights[i, k] = q[i, k] / sum(q[i, j] for j in chosen)
    new = []
    for k, prototype in enumerate(prototypes):
        total = weights[:, k].sum()
        mean = (weights[:, k, None] * unit).sum(dim=0) / total if total > 0 else 0 * prototype
        new.append(functional.normalize(m * prototype + (1 - m) * mean, dim=0))
    moved_to = torch.stack(new)
    fixed = moved_to.detach()
    q = assigned(unit.detach(), fixed)
    loss = torch.zeros(()).double()
    for i, chosen in enumerate(rows):
        weight = sum(q[i, j] for j in chosen)
        near = sum(q[i, k] / weight * (unit[i] @ fixed[k]) / 0.1 for k in chosen)
        loss = loss - (near - (unit[i] @ fixed.T / 0.1).logsumexp(dim=0)) / len(labels)
    for k in range(len(fixed)):
        others = [j for j in range(len(fixed)) if j != k]
        mates = [j for j in others if j % classes == k % classes]
        similar = moved_to[k] @ moved_to.T / 0.5
        pull = sum(similar[j] for j in mates) / len(mates)
        loss = loss + (similar[others].logsumexp(dim=0) - pull) / len(fixed)
    return loss, fixed


def test_palm_and_its_gradient_are_those_of_plain_loops() -> None:
    unit, prototypes = units(8).requires_grad_(), units(6, seed=1)
    labels = [0, 1, 1, 0, 1, 0, 0, 0]
    wanted, after = palm_by_loops(unit, labels, prototypes, classes=2, top=2, m=0.9)
    (gradient,) = torch.autograd.grad(wanted, unit)
    state = with_values(Prototypes(4, 2, 3), prototypes)
    objective = PALM(prototypes=3, top=2, momentum=0.9)
    found = objective.loss(output(unit, state), torch.tensor(labels))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, unit)[0], gradient)
    torch.testing.assert_close(state.values, after)


def test_the_gradient_of_the_contrast_of_prototypes_is_that_of_differences() -> None:
    torch.autograd.gradcheck(
        lambda p: contrast(p, torch.tensor([0, 1, 0, 1])), units(4).requires_grad_()
    )


def test_reweightood_by_hand() -> None:
    """Cosine 1 within the class, with weight sigma(-1); two cosines 0 between classes."""
    unit = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = ReweightOOD().loss(output(unit), torch.tensor([0, 0, 1]))
    total = -10 / (1 + math.e) + math.log(2)
    assert float(loss) == pytest.approx(math.exp(total) - 1, rel=1e-5)


def test_the_gradient_of_reweightood_treats_weights_as_constant() -> None:
    unit, labels = units(6).requires_grad_(), [0, 1, 2, 0, 1, 2]
    same, other = [], []
    for i in range(6):
        for j in range(i + 1, 6):
            s = unit[i] @ unit[j]
            if labels[i] == labels[j]:
                same.append(-torch.sigmoid(1 - 2 * s.detach()) * s / 0.1)
            else:
                other.append(torch.sigmoid(5 * s.detach() - 4) * s / 0.1)
    wanted = functional.elu(torch.stack(same).exp().sum().log() + torch.stack(other).logsumexp(0))
    found = ReweightOOD().loss(output(unit), torch.tensor(labels))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, unit)[0], torch.autograd.grad(wanted, unit)[0]
    )


def test_a_batch_of_one_class_has_a_finite_loss_and_gradient() -> None:
    unit = units(4).requires_grad_()
    labels = torch.zeros(4, dtype=torch.int64)
    loss = ReweightOOD().loss(output(unit), labels)
    (gradient,) = torch.autograd.grad(loss, unit)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cider:momentum=1", "cider:momentum must be at least 0 and less than 1, not 1"),
        ("cider:weight=0", "cider:weight must be a positive number, not 0"),
        ("palm:prototypes=0", "palm:prototypes must be at least 1, not 0"),
        ("palm:momentum=-1", "palm:momentum must be at least 0 and less than 1, not -1"),
        ("palm:weight=-1", "palm:weight must be a number from 0, not -1"),
        ("reweightood:tau=0", "reweightood:tau must be a positive number, not 0"),
        ("conf-branch:budget=-1", "conf-branch:budget must be a positive number, not -1"),
        ("rotpred:turns=2", "objective 'rotpred' has no parameters, so not 'turns' either"),
    ],
)
def test_impossible_parameters_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        parse_objective(text)
    assert str(raised.value) == message


def test_cider_refuses_a_single_class() -> None:
    with pytest.raises(InvalidInputError, match="cider needs at least 2 classes"):
        CIDER().extras(4, 4, 1)
