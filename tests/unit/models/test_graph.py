"""The forward pass as a module gives the activations that extraction gives."""

import numpy as np
import pytest
import torch
from torch import nn

from oodcli.models import (
    Network,
    network_of,
    parse_architecture,
    standardised_features,
    unit_features,
)
from oodcli.models.extraction import extract
from oodcli.models.graph import ActivationsOf

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def built(arch: str, classes: int = 4) -> Network:
    spec = parse_architecture(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network_of(spec, spec.build(classes))


def check(network: Network, size: int) -> None:
    """Compare the module with extraction on noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, size, size), dtype=np.uint8)
    wanted = next(extract(network, [pixels], mean=MEAN, std=STD))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = (torch.from_numpy(pixels).float() / 255 - mean) / std
    with torch.no_grad():
        logits, features, norms, predictions = ActivationsOf(network)(images)
    torch.testing.assert_close(logits, wanted.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, wanted.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms, wanted.block_norms, rtol=1e-4, atol=1e-5)
    assert predictions.tolist() == wanted.predictions.tolist()


@pytest.mark.parametrize("arch", ["resnet18:width=2", "wrn-40-2", "vgg11", "resnet20"])
def test_networks_of_the_package(arch: str) -> None:
    check(built(arch), 32)


def test_a_last_layer_of_unit_features_predicts_by_itself() -> None:
    network = built("resnet18:width=2")
    unit_features(network.module, network.head_path, tau=0.05, scoring_tau=2.0)
    with torch.no_grad():
        network.module.get_submodule(network.head_path).bias.copy_(torch.tensor([9.0, 1, 2, 3]))
    check(network, 32)


def test_a_last_layer_of_standardised_features_predicts_by_itself() -> None:
    network = built("resnet18:width=2")
    standardised_features(network.module, network.head_path, sigma=0.5)
    with torch.no_grad():
        network.module.get_submodule(network.head_path).bias.copy_(torch.tensor([0.5, 0, 0.3, 0]))
    check(network, 32)


def test_a_transformer_of_another_package() -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    network = built("timm:test_vit")
    check(network, 160)


def test_a_transformer_can_be_recorded_for_any_number_of_images() -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    module = ActivationsOf(built("timm:test_vit")).eval()
    program = torch.onnx.export(
        module, (torch.zeros(2, 3, 160, 160),), dynamo=True, input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for n in (1, 3):
        images = torch.rand(n, 3, 160, 160, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            wanted = module(images)
        for got, values in zip(session.run(None, {"images": images.numpy()}), wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), values, rtol=1e-4, atol=1e-4)


def test_the_network_itself_is_left_as_it_is() -> None:
    network = built("vgg11")
    relu = next(each for each in network.module.modules() if isinstance(each, nn.ReLU))
    relu.inplace = True
    before = {name: values.clone() for name, values in network.module.state_dict().items()}
    ActivationsOf(network)(torch.rand(2, 3, 32, 32))
    assert relu.inplace
    for name, values in network.module.state_dict().items():
        assert torch.equal(values, before[name])
    assert not any(each._forward_hooks for each in network.module.modules())
