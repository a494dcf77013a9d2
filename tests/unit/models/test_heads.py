"""Networks whose last layer sees unit features: saved, loaded, predicted and scored."""

from pathlib import Path

import pytest
import torch

from oodcli.errors import InvalidInputError
from oodcli.models import (
    Network,
    load_head,
    load_into,
    load_run_network,
    load_with_remarks,
    network_of,
    parse_architecture,
    read_state,
    save_weights,
    standardised_features,
    unit_features,
)
from oodcli.models.extraction import extract

SPEC = parse_architecture("resnet20")


def network(*, tau: float = 0.1, scoring_tau: float = 0.1) -> Network:
    """Return a random network with a last layer of unit features and a bias that matters."""
    torch.manual_seed(0)
    module = SPEC.build(5)
    unit_features(module, "fc", tau=tau, scoring_tau=scoring_tau)
    with torch.no_grad():
        module.get_parameter("fc.bias").normal_(std=30)
    return network_of(SPEC, module)


@pytest.mark.parametrize("scoring_tau", [0.1, 1.0])
def test_images_are_scored_at_their_own_length(scoring_tau: float) -> None:
    of = network(scoring_tau=scoring_tau)
    head, layer = of.head(), of.module.get_submodule("fc")
    features = torch.rand(6, 64)
    assert head.tau == pytest.approx(scoring_tau)
    wanted = features @ layer.weight.T / scoring_tau + layer.bias
    torch.testing.assert_close(head(features), wanted.detach())


def test_predictions_are_those_of_the_normalised_forward_pass() -> None:
    of = network()
    pixels = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8).numpy()
    (found,) = extract(of, [pixels], mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.no_grad():
        own = of.module((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5)
    assert torch.equal(found.predictions, own.argmax(dim=1))
    torch.testing.assert_close(found.logits, of.head()(found.features))
    assert not torch.equal(found.predictions, found.logits.argmax(dim=1))


def test_temperatures_survive_being_stored(tmp_path: Path) -> None:
    of = network(tau=0.05, scoring_tau=1.0)
    path = tmp_path / "weights.safetensors"
    save_weights(of, path)
    loaded = load_run_network(path, "resnet20", 5)
    assert loaded.digest == of.digest
    assert float(loaded.module.get_buffer("fc.tau")) == pytest.approx(0.05)
    head = load_head(path, "resnet20")
    assert head.tau == 1.0
    assert torch.equal(head.weight, of.head().weight)
    other = network(tau=0.2, scoring_tau=1.0)
    assert other.digest != of.digest


def test_a_foreign_checkpoint_with_one_temperature_is_read(tmp_path: Path) -> None:
    state = network(tau=0.2).module.state_dict()
    del state["fc.scoring_tau"]
    renamed = {f"module.{k.replace('fc.', 'linear.')}": v for k, v in state.items()}
    torch.save(renamed, tmp_path / "x.pth")
    loaded = load_into(SPEC, read_state(tmp_path / "x.pth"))
    assert loaded.head().tau == pytest.approx(0.2)


def standardised(*, sigma: float = 0.5) -> Network:
    """Return a random network with a last layer of standardised features."""
    torch.manual_seed(0)
    module = SPEC.build(5)
    standardised_features(module, "fc", sigma=sigma)
    return network_of(SPEC, module)


def test_z_scores_by_hand() -> None:
    """(1, 3, 5) has the z-scores (-1, 0, 1), of 2 degrees of freedom; sigma halves them."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    standardised_features(module, "0", sigma=0.5)
    layer = module[0]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 7, 4], [1, -9, 0]]))
        layer.bias.copy_(torch.tensor([0.25, 0]))
    features = torch.tensor([[1.0, 3, 5], [10, 30, 50], [-4, -2, 0]])
    torch.testing.assert_close(layer(features), torch.tensor([[1.25, -0.5]]).expand(3, -1))
    assert torch.equal(layer(torch.ones(1, 3)), layer.bias[None])  # no spread: z-scores of zero
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(features).dtype == torch.float32


def test_the_gradient_through_z_scores_is_that_of_differences() -> None:
    layer = standardised().module.get_submodule("fc")
    features = torch.rand(3, 64, requires_grad=True)
    step = torch.randn(3, 64) * 1e-2
    layer(features).square().sum().backward()
    with torch.no_grad():
        ends = [float(layer(features + sign * step).square().sum()) for sign in (1, -1)]
    assert float((features.grad * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2, rel=2e-2)
    constant = torch.ones(1, 64, requires_grad=True)
    layer(constant).sum().backward()
    assert constant.grad.isfinite().all()


def test_standardised_features_predict_by_z_scores_and_score_as_they_are(tmp_path: Path) -> None:
    of = standardised()
    path = tmp_path / "weights.safetensors"
    save_weights(of, path)
    loaded = load_run_network(path, "resnet20", 5)
    assert loaded.digest == of.digest != standardised(sigma=1.0).digest
    assert float(loaded.module.get_buffer("fc.sigma")) == 0.5
    layer = of.module.get_submodule("fc")
    pixels = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8).numpy()
    (found,) = extract(loaded, [pixels], mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.no_grad():
        own = of.module((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5)
    assert torch.equal(found.predictions, own.argmax(dim=1))
    plain = found.features @ layer.weight.detach().T + layer.bias.detach()
    torch.testing.assert_close(found.logits, plain)
    assert not torch.equal(found.predictions, found.logits.argmax(dim=1))
    head = load_head(path, "resnet20")
    assert torch.equal(head.weight, layer.weight)
    assert head.tau == 1


@pytest.mark.parametrize("name", ["sigma", "tau"])
def test_a_wrapper_of_openood_keeps_its_buffer_beside_the_network(name: str) -> None:
    of = standardised() if name == "sigma" else network(tau=0.2, scoring_tau=0.2)
    state = of.module.state_dict()
    wrapped = {f"backbone.{k}": v for k, v in state.items() if not k.endswith(("sigma", "tau"))}
    wrapped[name] = state[f"fc.{name}"]
    loaded, remarks = load_with_remarks(SPEC, wrapped)
    assert loaded.digest == of.digest
    assert not any("ignored" in line for line in remarks)


def test_an_impossible_temperature_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="divide features by 0, which is not a positive"):
        network(scoring_tau=0.0).head()
