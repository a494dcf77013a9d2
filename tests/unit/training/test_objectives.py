"""Every objective against its formula, worked out by hand or by another way."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.ish import ISH, kept_entries, shaped
from oodcli.training.objectives.registry import OBJECTIVES, parse_objective
from oodcli.training.objectives.t2fnorm import T2FNorm

NONE = torch.empty(0)


def plain(logits: Tensor) -> StepOutput:
    """Return what an objective sees that looks at the logits alone."""
    return StepOutput(logits, NONE, NONE)


class Tiny(nn.Module):
    """A network of one hidden layer."""

    def __init__(self, features: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Linear(5, features)
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).relu())


def tiny(seed: int = 0) -> Tiny:
    """Return the same network every time."""
    torch.manual_seed(seed)
    return Tiny()


def batch() -> tuple[Tensor, Tensor]:
    """Return inputs of the tiny network and their classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 5, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0])


def gradients(objective: str, network: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of every parameter after one backward pass."""
    inputs, labels = batch()
    parse_objective(objective).objective.loss(plain(network(inputs)), labels).backward()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    loss = parse_objective("cross-entropy").objective.loss(plain(logits), torch.tensor([1]))
    assert float(loss) == pytest.approx(math.log(4 / 3))


def test_logitnorm_by_hand() -> None:
    """Logits (3, 4) have length 5; divided by 5 tau with tau = 0.2 they are (3, 4)."""
    objective = parse_objective("logitnorm:tau=0.2").objective
    loss = objective.loss(plain(torch.tensor([[3.0, 4.0]])), torch.tensor([0]))
    assert float(loss) == pytest.approx(math.log(1 + math.e), rel=1e-5)
    assert parse_objective("logitnorm").objective == parse_objective("logitnorm:tau=0.04").objective


def test_logitnorm_does_not_see_the_length_of_logits() -> None:
    objective = parse_objective("logitnorm").objective
    logits = torch.tensor([[3.0, 4.0, -1.0]], requires_grad=True)
    objective.loss(plain(logits), torch.tensor([0])).backward()
    assert logits.grad is not None
    assert float((logits.grad * logits.detach()).sum()) == pytest.approx(0, abs=1e-5)
    longer = objective.loss(plain(7 * logits.detach()), torch.tensor([0]))
    assert float(longer) == pytest.approx(
        float(objective.loss(plain(logits.detach()), torch.tensor([0])))
    )


def test_logitnorm_of_zeros_is_chance() -> None:
    loss = parse_objective("logitnorm").objective.loss(
        plain(torch.zeros(2, 4)), torch.tensor([0, 3])
    )
    assert float(loss) == pytest.approx(math.log(4))


def test_t2fnorm_by_hand() -> None:
    """W = ((1, 0), (0, 1)), b = (0, 1), f = (3, 4), tau = 0.1: logits (6, 8 + 1)."""
    network = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
        network[1].bias.copy_(torch.tensor([0.0, 1.0]))
    objective = T2FNorm()
    objective.attach(network, "1")
    logits = network(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert logits.tolist()[0] == pytest.approx([6, 9])
    assert logits.tolist()[1] == [0, 1]  # a zero feature leaves the bias
    loss = objective.loss(plain(logits), torch.tensor([1, 1]))
    wanted = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1))) / 2
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)


def test_t2fnorm_does_not_see_the_length_of_features() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Identity(), nn.Linear(6, 3))
    T2FNorm().attach(network, "1")
    features = torch.randn(4, 6, requires_grad=True)
    logits = network(features)
    torch.testing.assert_close(network(11 * features), logits)
    functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    assert features.grad is not None
    torch.testing.assert_close(
        (features.grad * features).sum(dim=1), torch.zeros(4), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("scoring", "scoring_tau"), [("tau", 0.05), ("omitted", 1.0)])
def test_t2fnorm_keeps_its_temperatures_with_the_weights(scoring: str, scoring_tau: float) -> None:
    network = tiny()
    parse_objective(f"t2fnorm:tau=0.05,scoring={scoring}").objective.attach(network, "fc")
    state = network.state_dict()
    assert float(state["fc.tau"]) == pytest.approx(0.05)
    assert float(state["fc.scoring_tau"]) == pytest.approx(scoring_tau)
    assert "fc.tau" not in dict(network.named_parameters())


def test_t2fnorm_computes_lengths_in_float32_under_autocast() -> None:
    network = tiny()
    T2FNorm().attach(network, "fc")
    inputs, _ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        features = network.body(inputs).relu()
        logits = network.fc(features)
    assert features.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    unit = functional.normalize(features.float(), dim=1)
    torch.testing.assert_close(
        logits, functional.linear(unit / 0.1, network.fc.weight, network.fc.bias)
    )


def test_ish_changes_the_weight_gradient_of_the_last_layer_and_nothing_else() -> None:
    ordinary = gradients("cross-entropy", tiny())
    network = tiny()
    ISH().attach(network, "fc")
    other = gradients("ish", network)
    assert other.keys() == ordinary.keys()
    for name, gradient in ordinary.items():
        if name == "fc.weight":
            assert not torch.allclose(other[name], gradient)
        else:
            torch.testing.assert_close(other[name], gradient, msg=name)


def test_the_weight_gradient_of_ish_is_that_of_the_formula() -> None:
    network = tiny()
    inputs, labels = batch()
    features = network.body(inputs).relu().detach().double()
    logits = functional.linear(features, network.fc.weight.double(), network.fc.bias.double())
    logits = logits.detach().requires_grad_()
    functional.cross_entropy(logits, labels).backward()
    assert logits.grad is not None
    wanted = torch.zeros(3, 12, dtype=torch.float64)
    for a, g in zip(features, logits.grad, strict=True):
        order = sorted(range(12), key=lambda j: -abs(float(a[j])))[: math.floor(12 * (1 - 0.85))]
        mass = sum(abs(float(a[j])) for j in order)
        r = float(a.sum()) / mass
        for j in order:
            wanted[:, j] += g * math.exp(r) * abs(float(a[j]))
    ISH().attach(network, "fc")
    torch.testing.assert_close(gradients("ish", network)["fc.weight"], wanted.float())


def test_ish_without_pruning_by_hand() -> None:
    """With p = 0 every entry stays and r = 1: e times the magnitude."""
    torch.testing.assert_close(
        shaped(torch.tensor([[1.0, 2.0, 0.0]]), 3), math.e * torch.tensor([[1.0, 2.0, 0.0]])
    )


def test_ish_of_signed_features_by_hand() -> None:
    """The entries sum to -2.5, and the two that stay have a mass of 5."""
    found = shaped(torch.tensor([[-4.0, 1.0, 0.5]]), 2)
    r = -2.5 / 5
    torch.testing.assert_close(found, math.exp(r) * torch.tensor([[4.0, 1.0, 0.0]]))


def test_ish_counts_as_floating_point_does() -> None:
    assert kept_entries(640, 0.9) == 63
    assert kept_entries(512, 0.85) == 76
    with pytest.raises(InvalidInputError, match="keeps none of 12 features"):
        ISH(p=0.99).attach(tiny(), "fc")


def test_ish_leaves_images_without_activation_alone() -> None:
    assert shaped(torch.zeros(1, 8), 2).tolist() == [[0.0] * 8]


def test_ish_is_the_ordinary_layer_outside_training() -> None:
    network, inputs = tiny(), batch()[0]
    before = network(inputs)
    ISH().attach(network, "fc")
    torch.testing.assert_close(network(inputs), before)
    assert torch.equal(network.eval()(inputs), before)
    assert network.state_dict().keys() == tiny().state_dict().keys()


def test_ish_computes_in_float32_under_autocast() -> None:
    network, (inputs, labels) = tiny(), batch()
    ISH().attach(network, "fc")
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(inputs)
    assert logits.dtype == torch.float32
    ISH().loss(plain(logits), labels).backward()
    assert network.fc.weight.grad is not None
    assert network.fc.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_names_are_canonical(name: str) -> None:
    spec = parse_objective(name)
    assert spec.canonical == name
    assert isinstance(spec.objective, OBJECTIVES[name].type)


def test_parameters_are_written_in_one_way() -> None:
    assert (
        parse_objective("t2fnorm:scoring=omitted,tau=0.10").canonical == "t2fnorm:scoring=omitted"
    )
    assert parse_objective("t2fnorm:tau=0.050").canonical == "t2fnorm:tau=0.05"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t2fnorm:tau=0", "t2fnorm:tau must be a positive number, not 0"),
        ("t2fnorm:tau=x", "t2fnorm:tau must be a number, not 'x'"),
        ("t2fnorm:tau", "'tau' in objective 't2fnorm:tau' is not KEY=VALUE"),
        ("t2fnorm:tau=1,tau=2", "parameter 'tau' appears twice in objective 't2fnorm:tau=1,tau=2'"),
        ("t2fnorm:scoring=no", "t2fnorm:scoring must be tau or omitted, not 'no'"),
        ("ish:p=1", "ish:p must be at least 0 and less than 1, not 1"),
        ("cross-entropy:x=1", "objective 'cross-entropy' has no parameters, so not 'x' either"),
    ],
)
def test_impossible_objectives_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        parse_objective(text)
    assert str(raised.value) == message


def test_unknown_objectives_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 't2fnorm'"):
        parse_objective("t2norm")
