"""Networks whose last layer, outputs or images are other than usual."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.models import (
    Network,
    load_head,
    load_run_network,
    load_with_remarks,
    parse_architecture,
    save_weights,
    with_output,
)
from oodcli.models.extraction import extract
from oodcli.models.outputs import leaves

SOURCE = '''
import warnings
import torch
import torch.nn.functional as F
from collections import namedtuple
from dataclasses import dataclass
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

@dataclass
class Answer:
    logits: torch.Tensor
    hidden: object = None

class Body(nn.Module):
    """Two convolutions; `fc` and `end` are what differs."""

    def __init__(self, fc, end=None, channels=3):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1, stride=2), nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        )
        self.fc = fc
        self.end = end

    def maps(self, x):
        return self.convs(x)

    def forward(self, x):
        return self.fc(self.maps(x).mean(dim=(2, 3)))

class Cosine(nn.Module):
    def __init__(self, d, k, columns=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d, k) if columns else torch.randn(k, d))
        self.scale = nn.Parameter(torch.tensor(12.0))
        self.columns = columns

    def forward(self, x):
        w = self.weight.T if self.columns else self.weight
        return self.scale * F.linear(F.normalize(x), F.normalize(w))

def cosine(num_classes):
    return Body(Cosine(6, num_classes))

def arcface(num_classes):
    return Body(Cosine(6, num_classes, columns=True))

class Inline(Body):
    def forward(self, x):
        return 20.0 * self.fc(F.normalize(self.maps(x).mean(dim=(2, 3))))

def cosine_inline(num_classes):
    return Inline(parametrizations.weight_norm(nn.Linear(6, num_classes, bias=False)))

class Scaled(Body):
    def __init__(self, *args):
        super().__init__(*args)
        self.logit_scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return super().forward(x) * self.logit_scale.exp()

def scaled(num_classes):
    return Scaled(nn.Linear(6, num_classes))

def parametrised(num_classes):
    return Body(parametrizations.weight_norm(nn.Linear(6, num_classes)))

def old_weight_norm(num_classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Body(weight_norm(nn.Linear(6, num_classes)))

class Spatial(Body):
    def forward(self, x):
        return self.fc(self.maps(x)).mean(dim=(2, 3))

def conv_then_pool(num_classes):
    return Spatial(nn.Conv2d(6, num_classes, 1))

class PoolFirst(Body):
    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.maps(x), 1)).flatten(1)

def pool_then_conv(num_classes):
    return PoolFirst(nn.Conv2d(6, num_classes, 1, bias=False))

def head_of_parts(num_classes):
    return PoolFirst(nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(6, num_classes)))

def mlp(num_classes):
    return Body(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, num_classes)))

class Ending(Body):
    def forward(self, x):
        return self.end(super().forward(x))

class One(Body):
    def forward(self, x):
        return super().forward(x).squeeze(1)

class OneSigmoid(Body):
    def forward(self, x):
        return super().forward(x).squeeze(1).sigmoid()

def one_logit():
    return One(nn.Linear(6, 1))

def one_sigmoid():
    return OneSigmoid(nn.Linear(6, 1))

def sigmoid_of_any(num_classes):
    return OneSigmoid(nn.Linear(6, num_classes))

def plain(num_classes):
    return Body(nn.Linear(6, num_classes))

class Tied(Body):
    def __init__(self, fc):
        super().__init__(fc)
        self.prototypes = nn.Linear(6, 5)
        self.prototypes.weight = self.fc.weight

    def forward(self, x):
        return super().forward(x)

def tied(num_classes):
    net = Tied(nn.Linear(6, num_classes))
    return net

def first_of_two(num_classes):
    return Ending(nn.Linear(6, num_classes), lambda z: (z, z.softmax(1)))

def features_first(num_classes):
    class Two(Body):
        def forward(self, x):
            h = self.maps(x).mean(dim=(2, 3))
            return h, self.fc(h)
    return Two(nn.Linear(6, num_classes))

def listed(num_classes):
    return Ending(nn.Linear(6, num_classes), lambda z: [z])

def in_dict(num_classes):
    return Ending(nn.Linear(6, num_classes), lambda z: {"loss": None, "out": z})

def in_dataclass(num_classes):
    return Ending(nn.Linear(6, num_classes), lambda z: Answer(z, (z.exp(),)))

def in_namedtuple(num_classes):
    made = namedtuple("made", ["loss", "logits"])
    return Ending(nn.Linear(6, num_classes), lambda z: made(None, z))

class Heads(Body):
    def forward(self, x):
        h = self.maps(x).mean(dim=(2, 3))
        return {"coarse": self.end(h), "fine": self.fc(h)}

def two_heads(num_classes):
    return Heads(nn.Linear(6, num_classes), nn.Linear(6, num_classes))

def grey(num_classes):
    return Body(nn.Linear(6, num_classes), channels=1)

def two_channels(num_classes):
    return Body(nn.Linear(6, num_classes), channels=2)

class Folding(Body):
    """As CIFAR code has it: at 64 pixels it makes four rows of an image."""

    def forward(self, x):
        return self.fc(F.avg_pool2d(self.maps(x), 16).view(-1, 6))

def folding(num_classes):
    return Folding(nn.Linear(6, num_classes))

class FoldingClasses(Body):
    def forward(self, x):
        return F.avg_pool2d(self.fc(self.maps(x)), 16).view(len(x), -1)

def folding_classes(num_classes):
    return FoldingClasses(nn.Conv2d(6, num_classes, 1))

class Written(Body):
    """Its last layer is a function of parameters of its own."""

    def __init__(self, num_classes, function, **more):
        super().__init__(None)
        self.weight = nn.Parameter(torch.randn(num_classes, 6))
        self.offset = nn.Parameter(torch.randn(num_classes))
        self.function = function

    def forward(self, x):
        return self.function(self, self.maps(x).mean(dim=(2, 3)))

def functional(num_classes):
    return Written(num_classes, lambda m, h: F.linear(h, m.weight, m.offset))

def built_of_zeros(num_classes):
    net = functional(num_classes)
    nn.init.zeros_(net.weight)
    return net

def with_at_sign(num_classes):
    return Written(num_classes, lambda m, h: 3 * (h @ m.weight.T) + m.offset)

def with_addmm(num_classes):
    return Written(num_classes, lambda m, h: torch.addmm(m.offset, h, m.weight.t()))

def with_einsum(num_classes):
    return Written(num_classes, lambda m, h: torch.einsum("nd,kd->nk", h, m.weight))

def cosine_by_hand(num_classes):
    return Written(num_classes, lambda m, h: 9 * F.linear(F.normalize(h), F.normalize(m.weight)))

def cosine_similarity(num_classes):
    return Written(
        num_classes, lambda m, h: 9 * F.cosine_similarity(h[:, None], m.weight[None], dim=2)
    )

def parametrised_by_hand(num_classes):
    net = functional(num_classes)
    parametrizations.weight_norm(net, "weight")
    return net

class Codes(Body):
    """The weights of its last layer are those of an embedding."""

    def forward(self, x):
        return F.linear(self.maps(x).mean(dim=(2, 3)), self.fc.weight)

def tied_by_hand(num_classes):
    return Codes(nn.Embedding(num_classes, 6))

class Outer(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.convs = net.convs

    def forward(self, x):
        return {"logits": self.net(x)}

def nested_by_hand(num_classes):
    return Outer(functional(num_classes))

def of_distances(num_classes):
    return Written(num_classes, lambda m, h: -torch.cdist(h, m.weight))

def one_by_hand(num_classes):
    return Written(1, lambda m, h: F.linear(h, m.weight, m.offset).squeeze(1))

class Encoder(Body):
    def forward(self, x):
        return self.maps(x).mean(dim=(2, 3))

def encoder():
    return Encoder(None)

class Projected(Body):
    def forward(self, x):
        h = self.maps(x).mean(dim=(2, 3))
        return h, F.normalize(self.fc(h))

def projected():
    return Projected(nn.Linear(6, 4))

class Named(Body):
    @classmethod
    def from_name(cls, model_name, *, factor=1.0, deep=False, tag: str = "", num_classes=5):
        assert model_name == "small-b0", f"model_name should be small-b0, not {model_name!r}"
        assert isinstance(factor, float) and deep is True and tag == "7"
        return cls(nn.Linear(6, num_classes))
'''


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the networks above into the present folder; return the name of their module."""
    name = f"ends_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return name


def built(nets: str, function: str, *args: int) -> nn.Module:
    """Return the network as its own code builds it, with weights unlike fresh ones."""
    import importlib
    import sys

    sys.path.append(str(Path.cwd()))
    try:
        module = getattr(importlib.import_module(nets), function)(*args)
    finally:
        sys.path.pop()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()  # type: ignore[no-any-return]


def pixels(side: int = 32) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (4, 3, side, side), dtype=np.uint8)


def normalised(images: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    return (torch.from_numpy(images).float() / 255 - 0.5) / 0.5


def scored(network: Network, images: np.ndarray):  # type: ignore[type-arg, no-untyped-def]
    (found,) = extract(network, [images], mean=(0.5,) * 3, std=(0.5,) * 3)
    return found


def mean_of_maps(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return module.convs(images).mean(dim=(2, 3))  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    ("function", "head", "said"),
    [
        ("cosine", "fc.read_as", "Cosine, a cosine classifier, whose features are unit"),
        ("arcface", "fc.read_as", "a cosine classifier"),
        ("cosine_inline", "fc.read_as", "with a factor after it"),
        ("scaled", "fc.read_as", "Linear, with a factor after it"),
        ("parametrised", "fc.read_as", "converted to a linear layer: ParametrizedLinear"),
        ("old_weight_norm", "fc.read_as", "converted to a linear layer: Linear"),
        ("conv_then_pool", "fc.read_as", "Conv2d, of the mean over positions"),
        ("pool_then_conv", "fc.read_as", "Conv2d, of one pixel"),
        ("head_of_parts", "fc.2", "last layer fc.2"),
        ("tied", "fc", "last layer fc"),
        ("first_of_two", "fc", "output 0 of the tuple that it returns"),
        ("features_first", "fc", "output 1 of the tuple"),
        ("listed", "fc", "output 0 of the list"),
        ("in_dict", "fc", "output out of the dict"),
        ("in_dataclass", "fc", "output logits of the Answer"),
        ("in_namedtuple", "fc", "output logits of the made"),
    ],
)
def test_logits_and_features_are_those_of_the_networks_own_forward_pass(
    nets: str, tmp_path: Path, function: str, head: str, said: str
) -> None:
    module = built(nets, function, 5)
    spec = parse_architecture(f"{nets}:{function}", side=32)
    network, _ = load_with_remarks(spec, module.state_dict())
    assert said in spec.architecture.text
    assert (network.num_classes, network.head_path) == (5, head)
    assert list(network.blocks) == ["convs.1", "convs.3"]
    images = pixels()
    found = scored(network, images)
    features = mean_of_maps(module, normalised(images))
    with torch.no_grad():
        own = list(leaves(module(normalised(images))).values())
    if function == "features_first":
        own = own[1:]
    if function in ("cosine", "arcface", "cosine_inline"):
        features = F.normalize(features)
    torch.testing.assert_close(found.logits, own[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
    # The run that is stored gives the same network again.
    save_weights(network, tmp_path / "weights.safetensors")
    again = load_run_network(
        tmp_path / "weights.safetensors", str(spec), 5, size=(32, 32), blocks=("convs.1", "convs.3")
    )
    assert again.digest == network.digest
    torch.testing.assert_close(scored(again, images).logits, found.logits)
    stored = load_head(tmp_path / "weights.safetensors", str(spec))
    torch.testing.assert_close(stored(found.features), own[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("functional", "last layer weight (read as a linear layer: product with weight)"),
        ("built_of_zeros", "product with weight"),
        ("with_at_sign", "product with weight, with a factor or bias after it"),
        ("with_addmm", "product with weight"),
        ("with_einsum", "product with weight"),
        ("cosine_by_hand", "with a factor or bias after it"),
        ("cosine_similarity", "cosine similarity with weight, with a factor or bias after it"),
        ("parametrised_by_hand", "product with parametrizations.weight.original1"),
        ("tied_by_hand", "product with fc.weight"),
        ("nested_by_hand", "product with net.weight); output logits of the dict"),
    ],
)
def test_a_last_layer_may_be_a_function(
    nets: str, tmp_path: Path, function: str, said: str
) -> None:
    module = built(nets, function, 5)
    spec = parse_architecture(f"{nets}:{function}", side=32)
    assert said in spec.architecture.text
    network, _ = load_with_remarks(spec, module.state_dict())
    assert (network.num_classes, network.head_path) == (5, "read_as")
    images = pixels()
    found = scored(network, images)
    features = mean_of_maps(module, normalised(images))
    with torch.no_grad():
        (own,) = leaves(module(normalised(images))).values()
    unit = function.startswith("cosine")
    torch.testing.assert_close(
        found.features, F.normalize(features) if unit else features, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found.logits, own, rtol=1e-4, atol=1e-5)
    # A run that is stored, whole or with some of the classes, gives the same network again.
    for rows in ([0, 1, 2, 3, 4], [3, 1]):
        kept = network.restricted(rows)
        save_weights(kept, tmp_path / "weights.safetensors")
        again = load_run_network(
            tmp_path / "weights.safetensors", str(spec), kept.num_classes, size=(32, 32)
        )
        assert again.digest == kept.digest
        torch.testing.assert_close(scored(again, images).logits, own[:, rows], rtol=1e-4, atol=1e-5)


def test_one_logit_of_a_function_becomes_two(nets: str) -> None:
    module = built(nets, "one_by_hand", 1)
    network, _ = load_with_remarks(
        parse_architecture(f"{nets}:one_by_hand", side=32), module.state_dict()
    )
    with torch.no_grad():
        own = module(normalised(pixels())).sigmoid()
    found = scored(network, pixels()).logits.softmax(dim=1)[:, 1]
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


def test_says_what_was_looked_for_where_logits_are_not_linear(nets: str) -> None:
    with pytest.raises(InvalidInputError, match="a matrix product or cosine similarity with"):
        parse_architecture(f"{nets}:of_distances", side=32)


@pytest.mark.parametrize(
    ("function", "output", "said"),
    [
        ("encoder", "", "no classifier: its features are its output, 6 numbers"),
        ("projected", "", "output 0 of the tuple that it returns, 6 numbers; other features: "),
        ("projected", "1", "output 1 of the tuple that it returns, 4 numbers"),
    ],
)
def test_what_an_encoder_returns_are_its_features(
    nets: str, tmp_path: Path, function: str, output: str, said: str
) -> None:
    module = built(nets, function)
    arch = f"{nets}:{function}" if not output else with_output(f"{nets}:{function}", output)
    spec = parse_architecture(arch, side=32)
    assert said in spec.architecture.text
    network, _ = load_with_remarks(spec, module.state_dict(), classifier="if there")
    assert network.num_classes == 0
    save_weights(network, tmp_path / "weights.safetensors")
    again = load_run_network(tmp_path / "weights.safetensors", str(spec), 0, size=(32, 32))
    assert again.digest == network.digest
    found = scored(again, pixels())
    with torch.no_grad():
        own = module(normalised(pixels()))
    own = own if function == "encoder" else own[int(output or 0)]
    width = own.shape[1]
    assert (width, found.logits.shape) == (4 if output else 6, (4, 0))
    torch.testing.assert_close(found.features, own, rtol=1e-4, atol=1e-5)
    assert found.predictions.tolist() == [-1] * 4
    # A probe is an ordinary last layer of it.
    probed = again.with_last_layer(torch.ones(3, width), torch.zeros(3))
    torch.testing.assert_close(scored(probed, pixels()).logits[:, 0], own.sum(1))


def test_of_an_mlp_the_last_layer_counts(nets: str) -> None:
    module = built(nets, "mlp", 5)
    network, _ = load_with_remarks(parse_architecture(f"{nets}:mlp", side=32), module.state_dict())
    images = pixels()
    found = scored(network, images)
    assert network.head_path == "fc.3"
    assert found.features.shape == (4, 9)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, module(normalised(images)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "args", "sigmoid"),
    [
        ("one_logit", (), False),
        ("one_sigmoid", (), True),
        ("sigmoid_of_any", (1,), True),
    ],
)
def test_one_logit_becomes_two_whose_softmax_is_its_sigmoid(
    nets: str, function: str, args: tuple[int, ...], sigmoid: bool
) -> None:
    module = built(nets, function, *args)
    spec = parse_architecture(f"{nets}:{function}", side=32)
    network, _ = load_with_remarks(spec, module.state_dict())
    assert "one logit z" in spec.architecture.text
    assert "converted to two, -z/2 and z/2" in spec.architecture.text
    assert network.num_classes == 2
    images = pixels()
    found = scored(network, images)
    with torch.no_grad():
        own = module(normalised(images))
    own = own if sigmoid else own.sigmoid()
    torch.testing.assert_close(found.logits.softmax(dim=1)[:, 1], own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits[:, 0], -found.logits[:, 1])
    assert found.predictions.tolist() == (own > 0.5).long().tolist()


@pytest.mark.parametrize("arch", ["resnet18:width=2", "{nets}:plain"])
def test_a_file_with_one_logit_is_read_as_two_classes(nets: str, arch: str) -> None:
    spec = parse_architecture(arch.replace("{nets}", nets), side=32)
    torch.manual_seed(0)
    module = spec.build(1).eval()
    network, remarks = load_with_remarks(spec, module.state_dict())
    assert network.num_classes == 2
    assert "one logit z of fc converted to two, -z/2 and z/2" in remarks
    with torch.no_grad():
        own = module(normalised(pixels())).sigmoid()[:, 0]
    found = scored(network, pixels()).logits.softmax(dim=1)[:, 1]
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


def test_one_name_of_a_tied_weight_is_enough(nets: str) -> None:
    """Safetensors writes a shared tensor once."""
    module = built(nets, "tied", 5)
    state = module.state_dict()
    del state["prototypes.weight"]
    network, _ = load_with_remarks(parse_architecture(f"{nets}:tied", side=32), state)
    assert torch.equal(network.module.get_parameter("fc.weight"), state["fc.weight"])


@pytest.mark.parametrize("name", ["coarse", "fine"])
def test_of_several_heads_one_is_named(nets: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        parse_architecture(f"{nets}:two_heads", side=32)
    assert str(error.value) == (
        f"{nets}:two_heads has several heads (coarse, fine); choose one: --output NAME"
    )
    module = built(nets, "two_heads", 5)
    spec = parse_architecture(with_output(f"{nets}:two_heads", name), side=32)
    assert str(spec) == f"{nets}:two_heads:@output={name}"
    network, _ = load_with_remarks(spec, module.state_dict())
    images = normalised(pixels())
    with torch.no_grad():
        own = module(images)[name]
        torch.testing.assert_close(network.module(images), own)
    torch.testing.assert_close(scored(network, pixels()).logits, own, rtol=1e-4, atol=1e-5)
    save_weights(network, tmp_path / "weights.safetensors")
    again = load_run_network(tmp_path / "weights.safetensors", str(spec), 5, size=(32, 32))
    assert again.head_path == {"coarse": "end", "fine": "fc"}[name]


def test_refuses_an_output_that_there_is_not(nets: str) -> None:
    with pytest.raises(InvalidInputError, match="has no output 'other'; it has: coarse, fine"):
        parse_architecture(with_output(f"{nets}:two_heads", "other"), side=32)
    with pytest.raises(InvalidInputError, match="resnet18 has only one output; omit --output"):
        with_output("resnet18", "logits")


def test_a_network_of_one_channel_takes_grey_images_as_they_are(nets: str) -> None:
    module = built(nets, "grey", 5)
    spec = parse_architecture(f"{nets}:grey", side=32)
    assert spec.architecture.channels == 1
    assert spec.architecture.text.endswith("one input channel, the luma of the images")
    network, _ = load_with_remarks(spec, module.state_dict())
    grey = np.repeat(pixels()[:, :1], 3, axis=1)
    with torch.no_grad():
        own = module(normalised(grey)[:, :1])
    torch.testing.assert_close(scored(network, grey).logits, own, rtol=1e-4, atol=1e-5)


def test_a_network_of_one_channel_sees_the_luma_of_colours(nets: str) -> None:
    from PIL import Image

    module = built(nets, "grey", 5)
    network, _ = load_with_remarks(parse_architecture(f"{nets}:grey", side=32), module.state_dict())
    colours = pixels()
    luma = np.stack([Image.fromarray(each.transpose(1, 2, 0)).convert("L") for each in colours])
    with torch.no_grad():
        own = module(normalised(luma[:, None]))
    # Pillow rounds luma to whole numbers.
    torch.testing.assert_close(scored(network, colours).logits, own, rtol=0, atol=0.01)


def test_refuses_a_network_of_two_channels(nets: str) -> None:
    with pytest.raises(
        InvalidInputError, match=r"does not accept images of 32 x 32 pixels \(.*channels"
    ):
        parse_architecture(f"{nets}:two_channels", side=32)


@pytest.mark.parametrize("function", ["folding", "folding_classes"])
def test_a_network_that_folds_positions_is_found_at_its_own_size(nets: str, function: str) -> None:
    module = built(nets, function, 5)
    spec = parse_architecture(f"{nets}:{function}")
    assert spec.architecture.traced_side == 32
    network, _ = load_with_remarks(spec, module.state_dict())
    with torch.no_grad():
        own = module(normalised(pixels()))
    torch.testing.assert_close(scored(network, pixels()).logits, own, rtol=1e-4, atol=1e-5)


def test_rows_folded_at_another_size_are_refused(nets: str) -> None:
    network, _ = load_with_remarks(
        parse_architecture(f"{nets}:folding", side=32), built(nets, "folding", 5).state_dict()
    )
    with pytest.raises(InvalidInputError, match=r"64 x 64 pixels \(features of \(4, 6"):
        network.check_image_size(64, 64)
    with pytest.raises(InvalidInputError, match=r"64 x 64 pixels \(returns \(8, 7\) for 2 images"):
        parse_architecture(f"{nets}:folding", side=64)


def test_every_size_that_was_tried_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halves.py").write_text(
        "from torch import nn\n"
        "class Halves(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, 4)\n"
        "    def forward(self, x):\n"
        "        if x.shape[2] == 224:\n"
        "            raise ValueError('no photographs')\n"
        "        return self.fc(x.permute(0, 2, 3, 1).reshape(-1, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError) as error:
        parse_architecture("halves:Halves")
    said = str(error.value)
    assert "64 x 64: returns (8192, 4) for 2 images, not logits (n, k)" in said
    assert "224 x 224: no photographs" in said
    assert "28 x 28: returns (1568, 4)" in said
    assert "512 x 512" in said


@pytest.mark.parametrize("function", ["cosine", "conv_then_pool", "one_logit"])
def test_a_network_that_was_read_is_not_trained(nets: str, function: str) -> None:
    spec = parse_architecture(f"{nets}:{function}", side=32)
    with pytest.raises(InvalidInputError, match="its last layer fc is not a plain linear layer"):
        spec.architecture.check_trainable()


def test_a_class_method_takes_text_numbers_and_truth(nets: str) -> None:
    arch = f"{nets}:Named.from_name:deep=true,factor=0.5,model_name=small-b0,tag=7"
    spec = parse_architecture(arch, side=32)
    assert str(spec) == arch
    network, _ = load_with_remarks(spec, spec.build(5).state_dict())
    assert network.num_classes == 5


def test_what_a_class_method_raises_is_one_line(nets: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        parse_architecture(f"{nets}:Named.from_name:model_name=small-b9", side=32)
    assert "AssertionError: model_name should be small-b0, not 'small-b9'" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UnknownNameError, match="did you mean 'from_name'"):
        parse_architecture(f"{nets}:Named.from_nam:model_name=small-b0", side=32)
