"""Methods that read heads which training has left in the weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oodcli.activations import (
    BACKGROUND,
    CONFIDENCE,
    DIVISOR,
    ROTATION,
    Activations,
    Head,
    Reference,
)
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import METHODS, parse_method, parse_methods
from oodcli.methods.rotpred import RotationProbabilities
from oodcli.models import network_of, parse_architecture
from oodcli.models.extraction import extract
from oodcli.models.network import Network
from oodcli.probes import Output
from oodcli.training.objectives.registry import parse_objective

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def batch(features: Tensor, head: Head, **extra: Tensor) -> Activations:
    """Return activations of features."""
    logits = head(features)
    norms = torch.zeros(len(features), 1)
    return Activations(logits, features, norms, logits.argmax(dim=1), extra=extra)


def test_rotpred_by_hand() -> None:
    """KL(U || (1/4, 3/4)) is 1 - log2(3)/2, in bits; the rotations cost 1, 2, 2 and 3 bits."""
    head = Head(
        torch.tensor([[0.0], [math.log(3.0)]]), torch.zeros(2), kept={ROTATION: (NONE, NONE)}
    )
    detector = parse_method("rotpred").fit(Reference(head)).detector
    q = torch.tensor([[1 / 2, 1 / 4, 1 / 4, 1 / 8]]).log()
    found = detector.score(batch(torch.ones(1, 1), head, rotpred=q))
    assert float(found) == pytest.approx(1 - math.log2(3) / 2 - (1 + 2 + 2 + 3) / 4, rel=1e-5)


NONE = torch.empty(0)


def test_conf_branch_is_the_log_odds_of_the_confidence() -> None:
    weight, bias = torch.tensor([[1.0, -2.0]]), torch.tensor([0.5])
    head = Head(torch.eye(2), torch.zeros(2), kept={CONFIDENCE: (weight, bias)})
    detector = parse_method("conf-branch").fit(Reference(head)).detector
    assert detector.score(batch(torch.tensor([[3.0, 1.0]]), head)).tolist() == [1.5]


@pytest.mark.parametrize(
    ("by", "wanted"),
    # Logits (log 3, 0) of the classes, log 2 of the background: probabilities 3, 1 and 2 sixths.
    [("class", 0.0), ("background", math.log(2))],
)
def test_background_by_hand(by: str, wanted: float) -> None:
    kept = {BACKGROUND: (torch.tensor([[0.0, 1.0]]), torch.tensor([0.0]))}
    head = Head(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2), kept=kept)
    detector = parse_method(f"background:by={by}").fit(Reference(head)).detector
    found = detector.score(batch(torch.tensor([[math.log(3.0), math.log(2.0)]]), head))
    assert float(found) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("by", "wanted"),
    [("h", 0.8), ("softmax", 0.2), ("g", 3 * 1 + 4 * 2 - 1)],
)
def test_g_odin_without_a_step_by_hand(by: str, wanted: float) -> None:
    """The cosines are 0.6 and 0.8."""
    kept = {DIVISOR: (torch.tensor([[1.0, 2.0]]), torch.tensor([-1.0]))}
    head = Head(torch.eye(2), torch.zeros(2), kept=kept)
    detector = parse_method(f"g-odin:by={by},epsilon=0").fit(Reference(head)).detector
    found = detector.score(batch(torch.tensor([[3.0, 4.0]]), head))
    assert float(found) == pytest.approx(wanted, rel=1e-3)


def trained(objective: str) -> Network:
    """Return a tiny network with the kept heads of an objective and smooth activations."""
    spec = parse_architecture("resnet18:width=2")
    torch.manual_seed(4)
    module = spec.build(3)
    parse_objective(objective).objective.attach(module, "fc")
    return network_of(spec, module)


def pixels() -> Tensor:
    """Return four random images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)


def extracted(network: Network, images: Tensor, name: str) -> tuple[Activations, Tensor]:
    """Return the activations of images with the probes of a method, and its scores."""
    fitted = parse_method(name).fit(Reference(network.head()))
    (found,) = extract(network, [images.numpy()], mean=MEAN, std=STD, probes=fitted.probes)
    return found, fitted.detector.score(found)


def features_of(network: Network, images: Tensor) -> Tensor:
    """Return the input of the last layer for normalised images."""
    seen: list[Tensor] = []
    handle = network.module.fc.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.module(images)
    handle.remove()
    return seen[0]


def normalised(images: Tensor) -> Tensor:
    """Return images as the network gets them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def test_rotpred_runs_the_network_on_three_rotated_copies() -> None:
    network, images = trained("rotpred"), pixels()
    found, _ = extracted(network, images, "rotpred")
    with torch.no_grad():
        wanted = [
            network.module.fc.kept[ROTATION](features_of(network, copy)).log_softmax(dim=1)[:, k]
            for k, copy in enumerate(normalised(images).rot90(turns, (2, 3)) for turns in range(4))
        ]
    torch.testing.assert_close(
        found.extra["rotpred"], torch.stack(wanted, dim=1), rtol=1e-4, atol=1e-5
    )


def test_rotpred_refuses_images_that_are_not_square() -> None:
    with pytest.raises(UndefinedMethodError, match="not defined for images of 4 x 6 pixels"):
        RotationProbabilities().observe(None, torch.zeros(1, 3, 4, 6), Output(NONE, NONE))


@pytest.mark.parametrize("by", ["h", "g"])
def test_the_step_of_g_odin_raises_what_it_aims_at(by: str) -> None:
    """By about the step times the sum of the sizes of the gradient."""
    network, images = trained("g-odin"), pixels()
    epsilon = 1e-5
    _, still = extracted(network, images, f"g-odin:by={by},epsilon=0")
    _, moved = extracted(network, images, f"g-odin:by={by},epsilon={epsilon}")
    leaves = normalised(images).requires_grad_()
    features = features_of(network, leaves)
    last: nn.Module = network.module.fc
    if by == "h":
        cosines = nn.functional.normalize(features) @ nn.functional.normalize(last.weight).T
        target = cosines.amax(dim=1)
    else:
        target = last.kept[DIVISOR](features)[:, 0]
    torch.testing.assert_close(still, target.detach(), rtol=1e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(target.sum(), leaves)
    std = torch.tensor(STD).view(3, 1, 1)
    wanted = (gradient.abs() * epsilon / std).sum(dim=(1, 2, 3))
    torch.testing.assert_close(moved - still, wanted, rtol=0.2, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "head", "objective"),
    [
        ("rotpred", "rotation", "rotpred"),
        ("conf-branch", "confidence", "conf-branch"),
        ("g-odin", "divisor", "g-odin"),
    ],
)
def test_other_networks_are_refused_in_one_line(name: str, head: str, objective: str) -> None:
    with pytest.raises(UndefinedMethodError) as raised:
        parse_method(name).fit(Reference(Head(torch.eye(2), torch.zeros(2))))
    assert str(raised.value) == (
        f"{name} is not defined here: it needs the {head} head of networks that were trained with "
        f"{objective}, but the weights have none; train one: ood train --objective {objective}"
    )


def test_groups_have_the_methods_of_the_kept_heads_of_the_network() -> None:
    needy = {name: method.kept_head for name, method in METHODS.items() if method.kept_head}
    assert needy == {
        "rotpred": ROTATION, "conf-branch": CONFIDENCE, "background": BACKGROUND, "g-odin": DIVISOR
    }  # fmt: skip

    def named(text: str, *kept: str) -> set[str]:
        return {spec.parts[0].name for spec in parse_methods([text], kept=kept)} & needy.keys()

    assert named("all") == named("") == set()
    assert named("all", ROTATION) == {"rotpred"}
    assert named("", ROTATION) == set()  # it needs further passes
    assert named("", CONFIDENCE) == {"conf-branch"}
    assert named("", BACKGROUND) == {"background"}
    assert named("all", DIVISOR) == {"g-odin"}


@pytest.mark.parametrize("epsilon", ["-1", "inf"])
def test_an_impossible_step_is_refused(epsilon: str) -> None:
    kept = {DIVISOR: (torch.ones(1, 2), torch.zeros(1))}
    head = Head(torch.eye(2), torch.zeros(2), kept=kept)
    with pytest.raises(InvalidInputError, match="g-odin:epsilon must be"):
        parse_method(f"g-odin:epsilon={epsilon}").fit(Reference(head))


def test_a_head_moves_with_its_kept_heads() -> None:
    head = Head(torch.eye(2), torch.zeros(2), kept={CONFIDENCE: (torch.ones(1, 2), torch.ones(1))})
    moved = head.to("meta").kept[CONFIDENCE]
    assert [each.device.type for each in moved] == ["meta", "meta"]
    assert replace(head, kept={}).to("cpu").kept == {}
