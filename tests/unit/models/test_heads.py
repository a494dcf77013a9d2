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
    network_of,
    parse_architecture,
    read_state,
    save_weights,
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


def test_an_impossible_temperature_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="divide features by 0, which is not a positive"):
        network(scoring_tau=0.0).head()
