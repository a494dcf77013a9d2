"""Networks of torchvision, of timm, and of the user's own."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.models import (
    Network,
    load_head,
    load_into,
    load_run_network,
    network_of,
    parse_architecture,
    save_weights,
)
from oodcli.models.extraction import extract

OWN = """
from torch import nn

class Two(nn.Module):
    def __init__(self, width=8, classes=3, bias=True):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        )
        self.last = nn.Linear(width, classes, bias=bias)

    def forward(self, x):
        return self.last(self.convs(x).mean(dim=(2, 3)))

def keyword(*, width=8, num_classes):
    return Two(width, num_classes)

def positional(k):
    return Two(8, k)

def fixed():
    return Two()

def unbiased(num_classes):
    return Two(8, num_classes, bias=False)

def wrong():
    return [Two()]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module of networks into the present folder; return its name."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


def seeded(arch: str, num_classes: int = 6) -> Network:
    torch.manual_seed(0)
    spec = parse_architecture(arch)
    return network_of(spec, spec.build(num_classes))


def activations(network: Network, pixels: np.ndarray):  # type: ignore[type-arg]
    (found,) = extract(network, [pixels], mean=(0.5,) * 3, std=(0.5,) * 3)
    return found


def images(side: int, n: int = 3) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def normalised(pixels: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    return (torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5


# Published inventories: FeatureNorm's table of ImageNet networks.


@pytest.mark.parametrize(
    ("arch", "count", "index", "block", "shape"),
    [
        ("torchvision:resnet50", 16, 14, "4.2", (2048, 7, 7)),
        ("torchvision:vgg16", 13, 12, "conv13", (512, 14, 14)),
        ("torchvision:mobilenet_v3_large", 17, 16, "last", (960, 7, 7)),
    ],
)
def test_imagenet_networks_have_the_published_blocks(
    arch: str, count: int, index: int, block: str, shape: tuple[int, int, int]
) -> None:
    spec = parse_architecture(arch)
    with torch.device("meta"):
        shapes = network_of(spec, spec.build(10)).block_shapes((224, 224))
    assert len(shapes) == count
    assert list(shapes)[index] == block == spec.architecture.selected_block
    assert shapes[block] == shape
    assert spec.canonical == arch


def test_a_network_tells_of_the_block_that_was_published() -> None:
    assert seeded("torchvision:mobilenet_v3_large").remarks() == (
        "torchvision:mobilenet_v3_large: the authors of FeatureNorm use block last, "
        "which is featurenorm:block=16",
    )


def test_vgg_maps_are_taken_before_every_pooling_and_after_relu() -> None:
    network = seeded("torchvision:vgg11")
    pixels = images(32)
    found = activations(network, pixels).block_norms
    maps = normalised(pixels)
    expected = []
    with torch.no_grad():
        for layer in network.module.get_submodule("features").children():
            maps = layer(maps)
            if isinstance(layer, nn.ReLU):
                expected.append(maps.clone().square().sum(dim=(2, 3)).sqrt().mean(dim=1))
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small"])
def test_norms_features_and_logits_are_those_of_plain_hooks(arch: str) -> None:
    network = seeded(f"torchvision:{arch}")
    torch.manual_seed(0)
    module = models.get_model(arch, weights=None, num_classes=6).eval()
    pixels = images(64)
    found = activations(network, pixels)
    norms: list[Tensor] = []
    features: list[Tensor] = []

    def keep_norm(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        norms.append(output.clamp(min=0).square().sum(dim=(2, 3)).sqrt().mean(dim=1))

    for path in network.blocks.values():
        module.get_submodule(path).register_forward_hook(keep_norm)
    module.get_submodule(network.head_path).register_forward_pre_hook(
        lambda _module, inputs: features.append(inputs[0])
    )
    with torch.no_grad():
        logits = module(normalised(pixels))
    torch.testing.assert_close(found.block_norms, torch.stack(norms, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.features, features[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, network.head()(found.features))


def test_encoder_layers_count_without_their_class_token() -> None:
    network = seeded("torchvision:vit_b_32:image_size=64")
    pixels = images(64)
    norms: list[Tensor] = []

    def keep_norm(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        patches = output[:, 1:]  # (n, t, c)
        norms.append(patches.clamp(min=0).square().sum(dim=1).sqrt().mean(dim=1))

    handles = [
        layer.register_forward_hook(keep_norm)
        for layer in network.module.get_submodule("encoder.layers").children()
    ]
    with torch.no_grad():
        network.module(normalised(pixels))
    for handle in handles:
        handle.remove()
    found = activations(network, pixels)
    torch.testing.assert_close(found.block_norms, torch.stack(norms, dim=1), rtol=1e-4, atol=1e-5)
    assert network.block_shapes((64, 64))["encoder.layers.encoder_layer_0"] == (768, 2, 2)
    with pytest.raises(
        InvalidInputError, match=r"does not accept images of 32 x 32 pixels \(.*size N"
    ):
        network.check_image_size(32, 32)


def test_windows_of_a_swin_lie_channels_last() -> None:
    network = seeded("torchvision:swin_t")
    shapes = network.block_shapes((64, 64))
    assert len(shapes) == 12
    assert next(iter(shapes.values())) == (96, 16, 16)
    assert list(shapes.values())[-1] == (768, 2, 2)


@pytest.mark.parametrize(
    ("arch", "count", "head"),
    [
        ("alexnet", 5, "classifier.6"),
        ("densenet121", 4, "classifier"),
        ("efficientnet_b0", 18, "classifier.1"),
        ("googlenet", 9, "fc"),
        ("shufflenet_v2_x0_5", 18, "fc"),
        ("regnet_x_400mf", 22, "fc"),
        ("convnext_tiny", 18, "classifier.2"),
    ],
)
def test_networks_of_torchvision_are_understood(arch: str, count: int, head: str) -> None:
    spec = parse_architecture(f"torchvision:{arch}")
    assert len(spec.architecture.blocks(nn.Identity())) == count
    assert spec.architecture.head == head
    assert f": {count} blocks (" in spec.architecture.text


def test_a_squeezenet_has_no_linear_head_and_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="squeezenet1_0 are not the output of a linear"):
        parse_architecture("torchvision:squeezenet1_0")


def test_a_published_inventory_is_what_the_search_finds() -> None:
    from oodcli.models.discovery import find_structure

    for arch in ("resnet18", "vgg11_bn"):
        spec = parse_architecture(f"torchvision:{arch}")
        module = spec.build(5)
        found = find_structure(module, arch)
        known = spec.architecture.blocks(module)
        assert list(known.values()) == list(found.blocks.values())
        assert spec.architecture.head == found.last.path


def test_finding_out_draws_nothing_from_the_random_generator() -> None:
    before = torch.get_rng_state()
    parse_architecture("torchvision:efficientnet_b1")
    assert torch.equal(torch.get_rng_state(), before)


# Weights


@pytest.mark.parametrize("arch", ["torchvision:resnet18", "torchvision:swin_t"])
def test_weights_make_the_same_network_again(arch: str, tmp_path: Path) -> None:
    """Swin's are in part indices, which are integers."""
    network = seeded(arch)
    path = tmp_path / "weights.safetensors"
    save_weights(network, path)
    assert load_run_network(path, arch, 6).digest == network.digest
    assert torch.equal(load_head(path, arch).weight, network.head().weight)


def test_the_old_spelling_of_densenets_is_read() -> None:
    network = seeded("torchvision:densenet121")
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for name, tensor in network.module.state_dict().items()
    }
    assert any("norm.1." in name for name in old)
    assert load_into(network.spec, old).digest == network.digest


# The user's own


@pytest.mark.parametrize("function", ["keyword", "positional", "fixed"])
def test_an_own_network_gets_the_classes_that_are_wanted(own: str, function: str) -> None:
    spec = parse_architecture(f"{own}:{function}")
    for num_classes in (3, 4):
        network = network_of(spec, spec.build(num_classes))
        assert network.num_classes == num_classes
        assert activations(network, images(32)).logits.shape == (3, num_classes)
    assert list(network.blocks) == ["convs.1", "convs.3"]
    assert str(Path.cwd()) not in sys.path


def test_an_own_network_takes_integers(own: str) -> None:
    spec = parse_architecture(f"{own}:keyword:width=5")
    assert spec.build(2).get_submodule("last").in_features == 5
    assert parse_architecture(spec.canonical) == spec


def test_a_last_layer_without_bias_gets_one_of_zero_that_stays(own: str, tmp_path: Path) -> None:
    spec = parse_architecture(f"{own}:unbiased")
    network = network_of(spec, spec.build(4))
    assert network.head().bias.tolist() == [0.0] * 4
    bias = network.module.get_parameter("last.bias")
    assert not bias.requires_grad
    state = {k: v for k, v in network.module.state_dict().items() if k != "last.bias"}
    assert load_into(spec, state).digest == network.digest
    save_weights(network, tmp_path / "weights.safetensors")
    assert load_head(tmp_path / "weights.safetensors", str(spec)).bias.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("arch", "error", "message"),
    [
        ("torchvision:resnet5", UnknownNameError, "did you mean 'resnet50'?"),
        ("torchvision:resnet18:size=3", InvalidInputError, "unexpected keyword argument 'size'"),
        ("torchvision:vit_b_16:image_size=x", InvalidInputError, "must be an integer, not 'x'"),
        (
            "torchvision:vit_b_16:64",
            InvalidInputError,
            "'64' in architecture 'torchvision:vit_b_16:64' is not KEY=VALUE",
        ),
        ("no_such_module.nets:f", UnknownNameError, "there is no module 'no_such_module'"),
        ("{own}:keywor", UnknownNameError, "did you mean 'keyword'?"),
        ("{own}:wrong", InvalidInputError, "returns a list, not a torch.nn.Module"),
        ("torchvision:", UnknownNameError, "no architecture 'torchvision'"),
    ],
)
def test_refuses_what_cannot_be_built(
    own: str, arch: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        parse_architecture(arch.replace("{own}", own))
    assert message in str(raised.value)


def test_an_error_of_the_users_own_code_is_one_line_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nets_that_fail.py"
    file.write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        parse_architecture("nets_that_fail:build")
    assert str(caught.value) == (
        "module nets_that_fail cannot be imported: ModuleNotFoundError: No module named "
        f"'no_such_thing' ({file}, line 1); correct it"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("raises", "said"),
    [
        ("assert isinstance(k, list), 'should be a list'", "AssertionError: should be a list"),
        ("{}['key']", "KeyError 'key'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("k.shape", "AttributeError: 'int' object has no attribute 'shape'"),
    ],
)
def test_a_constructor_that_raises_is_one_line_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: str, said: str
) -> None:
    file = tmp_path / f"nets{abs(hash(raises))}.py"
    file.write_text(f"def build(k):\n    {raises}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        parse_architecture(f"{file.stem}:build").build(5)
    assert str(caught.value) == (
        f"{file.stem}:build cannot be built: {said} ({file}, line 2); specify a "
        "builder of the network, which is called with num_classes or without arguments"
    )


def test_a_network_that_raises_on_images_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_on_images.py").write_text(
        f"{OWN}\nclass Bad(Two):\n    def forward(self, x):\n        return {{}}[x.shape]\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InvalidInputError, match="does not accept images of the sizes that were tried"
    ):
        parse_architecture("nets_on_images:Bad").build(5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_encoder_is_read_where_images_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_first: bool
) -> None:
    source = f"""
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first={batch_first})
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, k)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, 8), x], dim=1)
        if {batch_first}:
            return self.head(self.encoder(x)[:, 0])
        return self.head(self.encoder(x.transpose(0, 1))[0])
"""
    name = f"encoders_{batch_first}".lower()
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    if not batch_first:
        with pytest.raises(InvalidInputError, match="has no chain of at least two units"):
            parse_architecture(f"{name}:Encoder")
        return
    network = seeded(f"{name}:Encoder")
    assert list(network.blocks) == [f"encoder.layers.{i}" for i in range(3)]
    assert network.block_shapes((32, 32))["encoder.layers.2"] == (8, 4, 4)
    assert activations(network, images(32)).block_norms.shape == (3, 3)


# timm


@pytest.mark.parametrize(
    ("arch", "count", "kind", "prefix"),
    [
        ("timm:test_vit", 6, "tokens", 1),
        ("timm:vit_tiny_patch16_224:img_size=64", 12, "tokens", 1),
        ("timm:resnet18", 8, "nchw", 0),
        ("timm:test_mambaout", 6, "nhwc", 0),
        ("timm:test_efficientnet", 7, "nchw", 0),
    ],
)
def test_networks_of_timm_are_understood(arch: str, count: int, kind: str, prefix: int) -> None:
    pytest.importorskip("timm")
    network = seeded(arch)
    layouts = {network.layout(block) for block in network.blocks}
    assert len(network.blocks) == count
    assert {(layout.kind, layout.prefix) for layout in layouts} == {(kind, prefix)}


@pytest.mark.parametrize(
    ("arch", "count", "last"),
    [
        ("timm:tf_efficientnet_lite0", 18, "bn2"),
        # As many as torchvision's of the same design, whose inventory is published.
        ("timm:mobilenetv3_large_100", 17, "blocks.6.0"),
    ],
)
def test_stem_first_stage_and_last_convolution_of_timm_are_blocks(
    tmp_path: Path, arch: str, count: int, last: str
) -> None:
    pytest.importorskip("timm")
    spec = parse_architecture(arch, side=64)
    network = network_of(spec, spec.build(4))
    names = list(network.blocks)
    assert (len(names), names[0], names[1], names[-1]) == (count, "bn1", "blocks.0.0", last)
    assert f"{count} blocks" in spec.architecture.text
    # A run that was made when the search alone found blocks keeps those.
    earlier = spec.architecture.searched
    assert len(earlier) == 15
    save_weights(network, tmp_path / "weights.safetensors")
    path = tmp_path / "weights.safetensors"
    old = load_run_network(path, arch, 4, size=(64, 64), blocks=earlier)
    assert tuple(old.blocks) == earlier
    assert old.digest != network.digest
    again = load_run_network(path, arch, 4, size=(64, 64), blocks=names)
    assert again.digest == network.digest
    found, before = activations(again, images(64)), activations(old, images(64))
    kept = [names.index(name) for name in earlier if name in names]
    common = [at for at, name in enumerate(earlier) if name in names]
    torch.testing.assert_close(found.block_norms[:, kept], before.block_norms[:, common])
    norms = []
    with torch.no_grad():
        maps = again.module.get_submodule("bn1")(
            again.module.get_submodule("conv_stem")(normalised(images(64)))
        )
        norms.append(maps.clamp(min=0).square().sum(dim=(2, 3)).sqrt().mean(dim=1))
    torch.testing.assert_close(found.block_norms[:, 0], norms[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "counts", "stem", "last"),
    [
        # As many as the same designs of timm have.
        ("mobilenet_v2", (19, 17), "features.0", "features.18"),
        ("mnasnet0_5", (19, 16), "layers.2", "layers.16"),
        ("shufflenet_v2_x0_5", (18, 16), "conv1", "conv5"),
        ("mobilenet_v3_small:dropout=0.1", (13, 11), "features.0", "features.12"),
    ],
)
def test_stem_and_last_convolution_of_torchvision_are_blocks(
    tmp_path: Path, function: str, counts: tuple[int, int], stem: str, last: str
) -> None:
    arch = f"torchvision:{function}"
    spec = parse_architecture(arch, side=64)
    network = network_of(spec, spec.build(4))
    names, before = list(network.blocks), spec.architecture.searched
    assert (len(names), names[0], names[-1], len(before)) == (counts[0], stem, last, counts[1])
    # Their maps follow the normalisation and the activation.
    seen = activations(network, images(64)).block_norms
    assert seen[:, names.index(stem)].min() > 0
    # A run that was made when the search alone found blocks keeps those.
    path = tmp_path / "weights.safetensors"
    save_weights(network, path)
    old = load_run_network(path, arch, 4, size=(64, 64), blocks=before)
    assert (tuple(old.blocks), old.digest == network.digest) == (before, False)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("timm:deit_tiny_distilled_patch16_224", "several heads (head, head_dist)"),
        ("timm:pit_ti_224", "changes the number of its tokens"),
        ("timm:no_such", "no timm network 'no_such'"),
    ],
)
def test_networks_of_timm_that_cannot_be_read_are_refused(arch: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises((InvalidInputError, UnknownNameError)) as error:
        parse_architecture(arch)
    assert message in str(error.value)


def test_says_how_to_get_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidInputError, match=r'pip install "oodcli\[timm\]"'):
        parse_architecture("timm:never_asked_for_before")


def test_a_network_that_views_its_maps_runs_in_the_ordinary_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = OWN.replace(
        "self.last(self.convs(x).mean(dim=(2, 3)))",
        "self.last(nn.functional.avg_pool2d(self.convs(x), 16).view(len(x), -1))",
    ).replace("nn.Linear(width,", "nn.Linear(4 * width,")
    (tmp_path / "nets_that_view.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    spec = parse_architecture("nets_that_view:keyword")
    assert not spec.architecture.channels_last
    network = network_of(spec, spec.build(4))
    assert activations(network, images(32)).logits.shape == (3, 4)
