"""How architectures are written, and what they are made of."""

from typing import Annotated

import pytest
import torch
from torch import nn

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.models import ARCHITECTURES, network_of, parse_architecture
from oodcli.models.architecture import Architecture, Within

RESNET = ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2", "4.1", "4.2"]
WRN = [f"{group}.{position}" for group in (1, 2, 3) for position in (1, 2, 3, 4)]
SHAPES = {
    "resnet18": dict(
        zip(
            RESNET,
            [(64, 32, 32)] * 2 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 2 + [(512, 4, 4)] * 2,
            strict=True,
        )
    ),
    "resnet18:stem_padding=2": dict(
        zip(
            RESNET,
            [(64, 34, 34)] * 2 + [(128, 17, 17)] * 2 + [(256, 9, 9)] * 2 + [(512, 5, 5)] * 2,
            strict=True,
        )
    ),
    "wrn-28-10": dict(
        zip(WRN, [(160, 32, 32)] * 4 + [(320, 16, 16)] * 4 + [(640, 8, 8)] * 4, strict=True)
    ),
    "vgg11": {
        "conv1": (64, 32, 32),
        "conv2": (128, 16, 16),
        "conv3": (256, 8, 8),
        "conv4": (256, 4, 4),
        "conv5": (512, 4, 4),
        "conv6": (512, 4, 4),
        "conv7": (512, 2, 2),
        "conv8": (512, 2, 2),
    },
}


@pytest.mark.parametrize("arch", SHAPES)
def test_blocks_have_the_published_names_and_shapes_in_order(arch: str) -> None:
    spec = parse_architecture(arch)
    with torch.device("meta"):
        network = network_of(spec, spec.build(10))
    assert list(network.block_shapes((32, 32)).items()) == list(SHAPES[arch].items())


@pytest.mark.parametrize(
    ("arch", "blocks", "last"),
    [
        ("resnet34", 16, (512, 4, 4)),
        ("wrn-40-2", 18, (128, 8, 8)),
        ("resnet20", 9, (64, 8, 8)),
        ("resnet32", 15, (64, 8, 8)),
        ("resnet44", 21, (64, 8, 8)),
        ("resnet56", 27, (64, 8, 8)),
        ("densenet100", 48, (342, 8, 8)),
        ("vgg16-bn", 13, (512, 2, 2)),
        ("vgg16-bn-mlp", 13, (512, 2, 2)),
    ],
)
def test_every_residual_block_is_a_block(
    arch: str, blocks: int, last: tuple[int, int, int]
) -> None:
    spec = parse_architecture(arch)
    with torch.device("meta"):
        shapes = network_of(spec, spec.build(10)).block_shapes((32, 32))
    assert (len(shapes), list(shapes.values())[-1]) == (blocks, last)


@pytest.mark.parametrize(
    ("arch", "millions"),
    [
        ("resnet18", 11.174),
        ("wrn-28-10", 36.479),
        ("resnet20", 0.270),
        ("resnet56", 0.853),
        ("densenet100", 0.769),
        ("vgg16-bn", 14.728),
    ],
)
def test_networks_have_the_known_number_of_weights(arch: str, millions: float) -> None:
    """As commonly stated for ten classes; He et al., table 6; Huang et al., table 2 (0.8 M)."""
    with torch.device("meta"):
        count = sum(p.numel() for p in parse_architecture(arch).build(10).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if "vgg" not in name])
def test_any_image_size_gives_logits(arch: str) -> None:
    with torch.device("meta"):
        logits = parse_architecture(arch).build(7).eval()(torch.empty(2, 3, 8, 40))
    assert logits.shape == (2, 7)


def test_state_dict_names_are_those_in_circulation() -> None:
    with torch.device("meta"):
        states = {name: set(a.build(10).state_dict()) for name, a in ARCHITECTURES.items()}
    shortcut = "layer2.0.shortcut"
    assert {"conv1.weight", "layer4.1.bn2.weight", f"{shortcut}.0.weight"} < states["resnet18"]
    assert f"{shortcut}.1.running_var" in states["resnet34"]
    assert not any("shortcut" in key for key in states["resnet56"])
    assert {"block1.layer.0.convShortcut.weight", "bn1.weight", "fc.bias"} < states["wrn-28-10"]
    assert "block3.layer.3.conv2.weight" in states["wrn-28-10"]
    assert {"features.0.bias", "features.18.weight", "classifier.6.bias"} < states["vgg11"]
    assert {"features.1.running_var", "classifier.weight"} < states["vgg16-bn"]
    assert {"features.40.bias", "features.41.weight"} < states["vgg16-bn-mlp"]
    assert {"trans1.conv1.weight", "block3.layer.15.conv2.weight"} < states["densenet100"]


def test_convolutions_start_as_published() -> None:
    """Standard deviation sqrt(2 / (k^2 C_out)) in all three families, and zero biases."""
    torch.manual_seed(0)
    vgg, wrn = (parse_architecture(name).build(10) for name in ("vgg11", "wrn-40-2"))
    resnet = parse_architecture("resnet18").build(10)
    layers = {
        vgg.get_submodule("features.8"): 256,
        wrn.get_submodule("block3.layer.1.conv1"): 128,
        resnet.get_submodule("layer3.0.conv1"): 256,
    }
    for layer, out_channels in layers.items():
        assert layer.weight.std().item() == pytest.approx((2 / (9 * out_channels)) ** 0.5, rel=0.02)
    assert not vgg.get_submodule("features.8").bias.any()
    assert not wrn.get_submodule("fc").bias.any()


def test_a_wide_block_that_changes_width_shortcuts_its_rectified_input() -> None:
    block = parse_architecture("wrn-40-2").build(2).eval().get_submodule("block1.layer.0")
    nn.init.zeros_(block.conv2.weight)
    maps = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = block.convShortcut(block.bn1(maps).relu())
        assert torch.equal(block(maps), expected)


def test_a_wide_block_that_keeps_its_width_shortcuts_its_raw_input() -> None:
    block = parse_architecture("wrn-40-2").build(2).eval().get_submodule("block1.layer.1")
    nn.init.zeros_(block.conv2.weight)
    maps = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(block(maps), maps)


def test_option_a_takes_every_second_position_and_pads_channels_on_both_sides() -> None:
    shortcut = parse_architecture("resnet20").build(2).get_submodule("layer2.0.shortcut")
    maps = torch.arange(16 * 16.0).reshape(1, 16, 4, 4)
    padded = shortcut(maps)
    assert torch.equal(padded[:, 8:24], maps[:, :, ::2, ::2])
    assert padded.shape == (1, 32, 2, 2)
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("resnet18", "resnet18"),
        ("resnet18:width=64,stem_padding=1", "resnet18"),
        ("resnet18:width=16,stem_padding=2", "resnet18:stem_padding=2,width=16"),
        ("wrn-40-2", "wrn-40-2"),
    ],
)
def test_there_is_one_way_to_write_an_architecture(written: str, canonical: str) -> None:
    spec = parse_architecture(written)
    assert spec.canonical == canonical
    assert parse_architecture(canonical) == spec


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("resnet18:width=0", "width must be an integer from 1 to 1024, not '0'"),
        ("resnet18:width=1_6", "width must be an integer from 1 to 1024, not '1_6'"),
        ("resnet18:width=1.5", "width must be an integer from 1 to 1024, not '1.5'"),
        ("resnet18:width=", "'width=' in architecture 'resnet18:width=' is not KEY=VALUE"),
        ("resnet18:stem_padding=3", "stem_padding must be 1 or 2, not '3'"),
        ("resnet18:depth=3", "no parameter of resnet18 'depth'; did you mean 'width'?"),
        ("vgg11:width=3", "architecture 'vgg11' has no parameters, so not 'width' either"),
        ("resnet18:", "'' in architecture 'resnet18:' is not KEY=VALUE"),
        (
            "resnet18:width=2,width=3",
            "parameter 'width' appears twice in architecture 'resnet18:width=2,width=3'",
        ),
    ],
)
def test_refuses_parameters_that_cannot_be(written: str, message: str) -> None:
    with pytest.raises((InvalidInputError, UnknownNameError)) as error:
        parse_architecture(written)
    assert str(error.value) == message


def test_suggests_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="'resnet19'; did you mean 'resnet18'"):
        parse_architecture("resnet19")


def test_a_build_function_has_to_say_what_its_parameters_may_be() -> None:
    def without_default(num_classes: int, *, width: Annotated[int, Within(1, 2)]) -> nn.Module:
        return pytest.fail("nothing is built")

    def without_range(num_classes: int, *, width: int = 3) -> nn.Module:
        return pytest.fail("nothing is built")

    for build, message in ((without_default, "no default"), (without_range, "neither a Literal")):
        with pytest.raises(TypeError, match=message):
            Architecture("x", build, lambda module: {}, head="fc").spec({})
