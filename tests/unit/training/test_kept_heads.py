"""Objectives that keep heads in the weights: values by hand, gradients, and what is stored."""

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from oodcli.activations import CONFIDENCE, DIVISOR, ROTATION
from oodcli.errors import InvalidInputError
from oodcli.models import load_head, load_into, network_of, parse_architecture, save_weights
from oodcli.training.loop import Trainer
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.conf_branch import ConfBranch
from oodcli.training.objectives.godin import GODIN
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.objectives.rotpred import RotPred
from oodcli.training.recipes import Recipe

NONE = torch.empty(0)
ARCH = "resnet18:width=2"


def test_rotpred_by_hand() -> None:
    """The class has chance 1/4, and the rotations 1/2, 1/4, 1/4 and 1/8 of their copies."""
    logits = torch.tensor([[0.0, math.log(3.0)], [9.0, 0.0], [0.0, 9.0], [5.0, 5.0]])
    p = torch.tensor([[4, 2, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2], [4, 2, 1, 1]]) / 8
    loss = RotPred().loss(StepOutput(logits, NONE, NONE, (p.log(),)), torch.tensor([0]).repeat(4))
    assert float(loss) == pytest.approx(math.log(4) + math.log(2) * (1 + 2 + 2 + 3) / 4)


def test_rotpred_turns_every_view_and_keeps_the_upright_first() -> None:
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(1, 3, 2, 2)
    other = image + 10
    turned = torch.cat(RotPred().derived([image, other]))[:, 0].tolist()
    first = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert turned[::2] == first
    assert turned[1::2] == (torch.tensor(first) + 10).tolist()


def test_the_gradient_of_rotpred_is_that_of_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, turns = (torch.randn(8, k, generator=generator).double() for k in (3, 4))
    labels = torch.tensor([2, 0]).repeat(4)

    def loss(z: Tensor, q: Tensor) -> Tensor:
        # The class loss is computed in float32.
        return RotPred().loss(StepOutput(z, NONE, NONE, (q,)), labels)

    turns.requires_grad_()
    torch.autograd.gradcheck(lambda q: loss(logits, q), turns)
    z = logits.float().requires_grad_()
    loss(z, turns).backward()
    wanted = (z.detach().softmax(dim=1) - functional.one_hot(labels, 3)) / 2
    wanted[2:] = 0  # the rotated copies have no class loss
    torch.testing.assert_close(z.grad, wanted)


def test_images_that_are_not_square_are_refused_before_training() -> None:
    RotPred().check((32, 32))
    with pytest.raises(InvalidInputError) as raised:
        RotPred().check((32, 48))
    assert str(raised.value) == (
        "rotpred turns images by 90 degrees, so they must be square, not 32 x 48 pixels; resize "
        "them: --image-size 32"
    )


def confident(
    objective: ConfBranch, c: list[float], draws: list[float]
) -> tuple[Tensor, nn.Module]:
    """Return the loss of images with class probabilities 1/4 and 3/4, and the state."""
    state = objective.extras(4, 4, 2)
    logits = torch.tensor([[0.0, math.log(3.0)]]).repeat(len(c), 1).requires_grad_()
    odds = torch.tensor(c).logit()[:, None]
    output = StepOutput(logits, NONE, NONE, (odds,), torch.tensor(draws)[:, None], state)
    return objective.loss(output, torch.zeros(len(c), dtype=torch.int64)).detach(), state


def test_conf_branch_by_hand() -> None:
    """A draw below one half gives the hint: p' = c p + 1 - c; without it, p' = p."""
    loss, _ = confident(ConfBranch(), [0.5, 0.8], [0.1, 0.9])
    hinted = -math.log(0.5 / 4 + 0.5)
    asked = -(math.log(0.5) + math.log(0.8)) / 2
    assert float(loss) == pytest.approx((hinted + math.log(4)) / 2 + 0.1 * asked, rel=1e-5)


@pytest.mark.parametrize(("c", "factor"), [(0.9, 1 / 1.01), (0.5, 1 / 0.99)])
def test_the_weight_of_conf_branch_follows_its_budget(c: float, factor: float) -> None:
    """-log 0.9 is below the budget of 0.3, -log 0.5 above it."""
    _, state = confident(ConfBranch(), [c], [0.9])
    assert float(state.value) == pytest.approx(0.1 * factor)


def test_the_gradient_of_conf_branch_is_that_of_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    odds = torch.randn(6, 1, generator=generator).double()
    draws = torch.rand(6, 1, generator=generator)
    labels = torch.arange(6) % 3
    objective = ConfBranch()

    def loss(z: Tensor, o: Tensor) -> Tensor:
        state = objective.extras(4, 4, 3)  # a fresh weight each time
        return objective.loss(StepOutput(z, NONE, NONE, (o,), draws, state), labels)

    torch.autograd.gradcheck(lambda o: loss(logits.double(), o), odds.requires_grad_())
    z = logits.clone().requires_grad_()
    loss(z, odds).backward()
    p, c = logits.softmax(dim=1), odds.detach().float().sigmoid()
    hint = torch.where(draws < 0.5, c, 1.0)
    right = p.gather(1, labels[:, None])
    # d(-log(h p + 1 - h)) / dz = -h p (onehot - softmax) / (h p + 1 - h)
    factor = hint * right / (hint * right + 1 - hint)
    wanted = factor * (p - functional.one_hot(labels, 3)) / 6
    torch.testing.assert_close(z.grad, wanted)


class Tail(nn.Module):
    """A last layer alone."""

    def __init__(self, features: int = 3, classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(x)


def test_g_odin_by_hand() -> None:
    """Cosines 0.6 and 0.8 over sigmoid(log 3) = 3/4."""
    network = Tail(2)
    GODIN().attach(network, "fc")
    last: nn.Module = network.fc
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[7.0, 0.0], [0.0, 2.0]]))
        linear, norm = last.kept[DIVISOR]
        linear.weight.zero_()
        linear.bias.fill_(5.0)
        norm.running_mean.fill_(4.0)
        norm.bias.fill_(math.log(3) - 1)
        norm.running_var.fill_(1 - norm.eps)
    logits = network.eval()(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(logits, torch.tensor([[0.8, 0.8 / 0.75]]), rtol=1e-4, atol=0)
    loss = GODIN().loss(StepOutput(logits, NONE, NONE), torch.tensor([0])).detach()
    assert float(loss) == pytest.approx(math.log(1 + math.exp(0.2 / 0.75)), rel=1e-4)


def test_g_odin_starts_from_the_directions_of_the_last_layer() -> None:
    network = Tail()
    before = functional.normalize(network.fc.weight.detach().clone(), dim=1)
    GODIN().attach(network, "fc")
    torch.testing.assert_close(network.fc.weight.detach(), math.sqrt(2) * before)


def test_the_gradient_of_g_odin_is_that_of_differences() -> None:
    network = Tail()
    GODIN().attach(network, "fc")
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0, 1])
    GODIN().loss(StepOutput(network(features), NONE, NONE), labels).backward()
    assert features.grad is not None
    step = 1e-2 * torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        up, down = (
            GODIN().loss(StepOutput(network(features + sign * step), NONE, NONE), labels)
            for sign in (1, -1)
        )
    assert float((features.grad * step).sum()) == pytest.approx(float(up - down) / 2, rel=2e-2)
    assert network.fc.bias.grad is None
    assert network.fc.weight.grad is not None


@pytest.mark.parametrize(
    ("objective", "name", "outputs"),
    [("rotpred", ROTATION, 4), ("conf-branch", CONFIDENCE, 1), ("g-odin", DIVISOR, 1)],
)
def test_kept_heads_are_found_again(
    objective: str, name: str, outputs: int, tmp_path: Path
) -> None:
    spec = parse_architecture(ARCH)
    torch.manual_seed(1)
    module = spec.build(3)
    parse_objective(objective).objective.attach(module, "fc")
    with torch.no_grad():
        for buffer in module.fc.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.5)
    network = network_of(spec, module)
    path = tmp_path / "weights.safetensors"
    save_weights(network, path)
    content = path.read_bytes()
    assert network.kept_outputs == {name: outputs}
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"head": "fc", "kept_heads": f"{name}:{outputs}"}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for prefix in ("", "module."):  # also as other programs wrap it
        again = load_into(spec, {f"{prefix}{key}": value for key, value in state.items()})
        assert again.digest == network.digest
        assert type(again.module.fc) is type(module.fc)
        save_weights(again, path)
        assert path.read_bytes() == content  # whatever the order in which metadata are written
    features = torch.rand(4, module.fc.in_features)
    for head in (network.head(), load_head(path, ARCH)):
        weight, bias = head.kept[name]
        with torch.no_grad():
            wanted = module.fc.kept[name](features)
        torch.testing.assert_close(features @ weight.T + bias, wanted)
    with torch.no_grad():
        logits = module.fc(features)
    assert torch.equal(network.head()(features).argmax(dim=1), logits.argmax(dim=1))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"fc.kept.other.weight": torch.zeros(1, 8)}, "unexpected: fc.kept.other.weight"),
        ({"fc.kept.keys.weight": torch.zeros(1, 8)}, "unexpected: fc.kept.keys.weight"),
        ({"fc.kept.rotation.weight": torch.zeros(4, 8)}, "missing: fc.kept.rotation.bias"),
        ({"fc.kept.rotation.weight": torch.zeros(())}, "unexpected: fc.kept.rotation.weight"),
        ({"fc.kept.divisor.0.weight": torch.zeros(1, 8)}, "missing: fc.kept.divisor.0.bias"),
    ],
)
def test_kept_heads_that_do_not_fit_are_refused(extra: dict[str, Tensor], message: str) -> None:
    spec = parse_architecture(ARCH)
    with pytest.raises(InvalidInputError, match=message):
        load_into(spec, spec.build(3).state_dict() | extra)


def test_weight_decay_spares_the_last_layer_of_g_odin_alone() -> None:
    """The layer of g decays, and h too if the recipe has a decay of its own for it."""
    for own, wanted in ((None, 0.0), (0.25, 0.25)):
        module = nn.Sequential(nn.Flatten(), Tail(12))
        GODIN().attach(module, "1.fc")
        recipe = Recipe("test", "here", epochs=1, weight_decay=0.5, head_weight_decay=own)
        trainer = Trainer(
            module,
            recipe,
            seed=0,
            device=torch.device("cpu"),
            amp=False,
            objective=GODIN(),
            head="1.fc",
        )
        groups = trainer._optimiser.param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        named = dict(module.named_parameters())
        found = {name: decays.get(id(parameter)) for name, parameter in named.items()}
        assert found.pop("1.fc.weight") == wanted
        assert found.pop("1.fc.bias") is None  # not trained
        assert set(found.values()) == {0.5}
