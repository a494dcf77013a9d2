"""Probes and learners inside the forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oodcli.activations import Activations
from oodcli.models import Network
from oodcli.models.extraction import ReadyNetwork, extract
from oodcli.probes import Output, Probe, ProbedNetwork
from tests.unit.models.test_extraction import HALF, MakeNetwork, Pixels, normalised


@dataclass(frozen=True)
class LastMap:
    """Averages the last map over space."""

    key: str = "last map"
    passes: float = 0.0

    def maps(self, network: ProbedNetwork) -> Sequence[str]:
        """Return the path of the last block."""
        return [list(network.blocks.values())[-1]]

    def observe(self, _network: ProbedNetwork, _images: Tensor, output: Output) -> Tensor:
        """Return channel means."""
        (maps,) = output.maps.values()
        return maps.float().mean(dim=(2, 3))


@dataclass(frozen=True)
class Slope:
    """Sums the gradient of the largest logit with respect to the image."""

    key: str = "slope"
    passes: float = 3.0

    def maps(self, _network: ProbedNetwork) -> Sequence[str]:
        """Want no map."""
        return []

    def observe(self, network: ProbedNetwork, images: Tensor, _output: Output) -> Tensor:
        """Return one sum per channel."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            best = network.run(images).logits.max(dim=1).values
            (gradient,) = torch.autograd.grad(best.sum(), images)
        return gradient.sum(dim=(2, 3))


@dataclass(frozen=True)
class Silenced:
    """Returns the logits of a network whose last map is zero."""

    key: str = "silenced"
    passes: float = 1.0

    def maps(self, _network: ProbedNetwork) -> Sequence[str]:
        """Want no map."""
        return []

    def observe(self, network: ProbedNetwork, images: Tensor, _output: Output) -> Tensor:
        """Return the logits of nothing."""
        last = list(network.blocks.values())[-1]
        output = network.run(images, keep=[last], edit={last: torch.zeros_like})
        assert not output.maps[last].any()
        return output.logits


@dataclass(frozen=True)
class Largest:
    """Learns the largest feature of every predicted class."""

    key: str = "largest"
    passes: float = 0.0

    def maps(self, _network: ProbedNetwork) -> Sequence[str]:
        """Want no map."""
        return []

    def update(
        self, state: Mapping[str, Tensor], _network: ProbedNetwork, _images: Tensor, output: Output
    ) -> Mapping[str, Tensor]:
        """Take in a batch."""
        largest = output.features.amax(dim=0)
        return {"largest": torch.maximum(state.get("largest", largest), largest)}


PROBES: tuple[Probe, ...] = (LastMap(), Slope(), Silenced())


@pytest.fixture
def network(make_network: MakeNetwork) -> Network:
    """Return a small trained-looking network."""
    return make_network("resnet18:width=4", num_classes=3)


@pytest.fixture
def pixels() -> Pixels:
    """Return random images."""
    return np.random.default_rng(3).integers(0, 256, (11, 3, 32, 32), dtype=np.uint8)


def probed(network: Network, pixels: Pixels, **options: object) -> Activations:
    return next(iter(extract(network, [pixels], **{**HALF, "probes": PROBES, **options})))  # type: ignore[arg-type]


def test_probes_leave_the_ordinary_activations_alone(network: Network, pixels: Pixels) -> None:
    plain = next(iter(extract(network, [pixels], **HALF)))
    with_probes = probed(network, pixels)
    for name, values in plain.arrays().items():
        assert torch.equal(with_probes.arrays()[name], values), name


def test_a_probe_sees_maps_of_the_pass_and_may_run_the_network_again(
    network: Network, pixels: Pixels
) -> None:
    extra = probed(network, pixels).extra
    images = normalised(pixels).requires_grad_()
    logits = network.module(images)
    (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), images)
    torch.testing.assert_close(extra["slope"], gradient.sum(dim=(2, 3)), rtol=1e-3, atol=1e-3)
    assert torch.equal(extra["silenced"], network.head().bias.expand(11, 3))
    # The features of this network are the averages of its last map.
    torch.testing.assert_close(extra["last map"], probed(network, pixels).features)


def test_what_probes_leave_does_not_depend_on_the_batch_size(
    network: Network, pixels: Pixels
) -> None:
    whole, parts = probed(network, pixels), probed(network, pixels, batch_size=3)
    for probe in PROBES:
        torch.testing.assert_close(
            parts.extra[probe.key], whole.extra[probe.key], rtol=1e-3, atol=1e-4
        )


def test_probes_work_in_bfloat16(network: Network, pixels: Pixels) -> None:
    extra = probed(network, pixels, precision="bfloat16").extra
    assert all(values.dtype == torch.float32 for values in extra.values())
    assert extra["slope"].abs().sum() > 0


def test_the_callers_network_is_left_alone(network: Network, pixels: Pixels) -> None:
    before = [(m.inplace if isinstance(m, nn.ReLU) else None) for m in network.module.modules()]
    probed(network, pixels)
    after = [(m.inplace if isinstance(m, nn.ReLU) else None) for m in network.module.modules()]
    assert before == after
    assert all(p.grad is None for p in network.module.parameters())
    assert not any(m._forward_hooks for m in network.module.modules())


def test_a_learner_takes_in_every_batch(network: Network, pixels: Pixels) -> None:
    seen = []
    shards = [pixels[:6], pixels[6:]]
    state = ReadyNetwork(network).learn(
        shards, Largest(), **HALF, batch_size=4, advance=seen.append
    )  # type: ignore[arg-type]
    features = next(iter(extract(network, [pixels], **HALF))).features
    torch.testing.assert_close(state["largest"], features.amax(dim=0))
    assert seen == [4, 2, 4, 1]


def test_an_error_in_a_probe_leaves_no_setting_behind(network: Network, pixels: Pixels) -> None:
    @dataclass(frozen=True)
    class Broken(LastMap):
        def observe(self, _network: ProbedNetwork, _images: Tensor, _output: Output) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        probed(network, pixels, probes=(Broken(),), precision="bfloat16")
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


def test_what_is_learned_does_not_depend_on_how_shards_are_cut(
    network: Network, pixels: Pixels
) -> None:
    ready = ReadyNetwork(network)
    whole = ready.learn([pixels[:5], pixels[5:]], Batches(), batch_size=2, **HALF)  # type: ignore[arg-type]
    parts = ready.learn(
        np.split(pixels, [1, 4, 5, 10]), Batches(), batch_size=2, rows=[5, 6], **HALF
    )  # type: ignore[arg-type]
    assert whole["sizes"].tolist() == [2, 2, 1, 2, 2, 2]
    assert torch.equal(parts["sizes"], whole["sizes"])
    assert torch.equal(parts["sums"], whole["sums"])


@dataclass(frozen=True)
class Batches:
    """Learns the number of images of every batch, and the sum of their features."""

    key: str = "batches"
    passes: float = 0.0

    def maps(self, _network: ProbedNetwork) -> Sequence[str]:
        """Want no map."""
        return []

    def update(
        self, state: Mapping[str, Tensor], _network: ProbedNetwork, images: Tensor, output: Output
    ) -> Mapping[str, Tensor]:
        """Take in a batch."""
        size, total = torch.tensor([len(images)]), output.features.sum(dim=0, keepdim=True)
        if not state:
            return {"sizes": size, "sums": total}
        return {
            "sizes": torch.cat([state["sizes"], size]),
            "sums": torch.cat([state["sums"], total]),
        }
