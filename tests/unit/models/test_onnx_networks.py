"""Networks that exist only as ONNX graphs give what the same networks give in torch."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from oodcli.activations import Activations
from oodcli.errors import CorruptArtifactError, InvalidInputError, UndefinedMethodError
from oodcli.methods.gram import layers
from oodcli.methods.odin import PerturbedLogits
from oodcli.methods.rankfeat import RankFeat
from oodcli.models import Network, load_run_network, read_program, save_weights
from oodcli.models.architecture import Architecture
from oodcli.models.discovery import find_structure
from oodcli.models.extraction import ReadyNetwork, extract
from oodcli.models.network import network_of
from oodcli.models.onnx_network import OnnxForm, OnnxNetwork, placement
from oodcli.models.outputs import convert_input_to_grey
from oodcli.sniffing import program_kind
from tests.support.graphs import tiny, write

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def pixels(n: int = 6, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def in_torch(module: nn.Module, side: int = 16) -> Network:
    """Return a network as if it had been imported from its weights."""
    found = find_structure(module, "net", side=side)
    if found.channels == 1:
        convert_input_to_grey(module)
    architecture = Architecture(
        "net",
        lambda _classes: module,
        lambda _module: found.blocks,
        head=found.last.path,
        layouts=found.layouts,
        channels=found.channels,
        any_image=False,
        traced_side=side,
    )
    return network_of(architecture.spec({}), module)


def in_onnx(path: Path, side: int = 16) -> Network:
    kind = program_kind(path)
    assert kind == "onnx"
    return read_program(path, kind).network(side)[0]


def activations(network: Network, images: np.ndarray) -> Activations:
    return next(extract(network, [images], **HALF))


def same(ours: Network, theirs: Network, *, side: int = 16, close: float = 1e-4) -> None:
    got, wanted = (activations(each, pixels(side=side)) for each in (ours, theirs))
    for name in ("logits", "features", "block_norms"):
        one, other = getattr(got, name), getattr(wanted, name)
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=close * scale, msg=name)
    assert (got.predictions == wanted.predictions).all()


@pytest.mark.parametrize(
    "new", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torchscript", "torch.export"]
)
def test_a_network_is_the_same_in_onnx(tmp_path: Path, new: bool) -> None:
    if new:
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
    module = tiny()
    ours = in_onnx(write(module, tmp_path / "net.onnx", new=new))
    theirs = in_torch(module)
    assert list(ours.blocks) == list(theirs.blocks) == [f"layers.{k}" for k in range(4)]
    same(ours, theirs)


def test_a_transformer_is_the_same_in_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=3).eval()
    module.heads[0].weight.data.normal_()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        ours = in_onnx(write(module, tmp_path / "vit", side=32, opset=14), side=32)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    theirs = in_torch(module, side=32)
    assert list(ours.blocks) == list(theirs.blocks)
    assert ours.layout(next(iter(ours.blocks))).prefix == 1
    same(ours, theirs, side=32)


def test_a_graph_that_takes_four_images_gets_four_at_a_time(tmp_path: Path) -> None:
    module = tiny()
    ours = in_onnx(write(module, tmp_path / "net.onnx", batch=4))
    assert "it takes 4 at a time" in ours.remarks()[0]
    same(ours, in_torch(module))


def test_a_graph_that_says_any_number_and_holds_one_gets_one(tmp_path: Path) -> None:
    """As exporters write it that fix a shape in the middle."""
    module = tiny()
    path = write(module, tmp_path / "net.onnx", batch=1)
    model = onnx.load(path)
    for each in (*model.graph.input, *model.graph.output):
        each.type.tensor_type.shape.dim[0].dim_param = "n"
    gemm = model.graph.node[-1]
    shape = onnx.numpy_helper.from_array(np.array([1, 6]), "one")
    model.graph.initializer.append(shape)
    model.graph.node.insert(
        len(model.graph.node) - 1,
        onnx.helper.make_node("Reshape", [gemm.input[0], "one"], ["row"]),
    )
    model.graph.node[-1].input[0] = "row"
    onnx.save(model, path)
    ours = in_onnx(path)
    assert "it takes 1 at a time" in ours.remarks()[0]
    same(ours, in_torch(module))


def test_blocks_are_found_by_the_form_of_a_graph_that_names_no_modules(tmp_path: Path) -> None:
    module = tiny()
    path = write(module, tmp_path / "net.onnx")
    model = onnx.load(path)
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    onnx.save(model, path)
    ours, theirs = in_onnx(path), in_torch(module)
    assert list(ours.blocks) == ["unit1", "unit2", "unit3", "unit4"]
    assert "found by the form of the graph" in ours.remarks()[0]
    same(ours, theirs)


def test_modules_are_read_as_the_exporter_of_torch_export_writes_them(tmp_path: Path) -> None:
    """Its names are in the metadata of nodes, with classes; the operation comes last."""
    module = tiny()
    path = write(module, tmp_path / "net.onnx")
    model = onnx.load(path)
    for number, node in enumerate(model.graph.node):
        parts = node.name.split("/")[1:-1]
        paths = ["", *(f"layers.{p}" if p.startswith("conv") else p for p in parts), "op"]
        if parts[-1:] == ["conv1"] and len(parts) > 1:
            paths[-2] = f"{paths[-3]}.bn1"  # with which a convolution is one operation
        kinds = ["Net", *("Sequential" if p == "layers" else "a.Part" for p in paths[1:-1]), "op"]
        names = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")
        for key, value in zip(names, (paths, kinds), strict=True):
            node.metadata_props.add(key=key, value=str(value))
        node.name = f"node_{number}"
    onnx.save(model, path)
    ours = in_onnx(path)
    assert list(ours.blocks) == [f"layers.{k}" for k in range(4)]
    assert "4 blocks (Part) from layers.0" in ours.remarks()[0]
    same(ours, in_torch(module))


def test_networks_of_one_channel_get_the_luma_of_colours(tmp_path: Path) -> None:
    module = tiny(channels=1)
    ours = in_onnx(write(module, tmp_path / "net.onnx", channels=1))
    assert ours.spec.architecture.channels == 1
    same(ours, in_torch(copy.deepcopy(module)))


def test_float16_and_channels_last_are_taken_as_the_graph_has_them(tmp_path: Path) -> None:
    module = tiny()
    halved = copy.deepcopy(module).half()
    ours = in_onnx(write(halved, tmp_path / "half.onnx", dtype=torch.float16))
    assert "it computes in float16" in ours.remarks()[0]
    same(ours, in_torch(module), close=2e-2)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.permute(0, 3, 1, 2))

    turned = write(Turned(), tmp_path / "turned.onnx", channels_last=True)
    same(in_onnx(turned), in_torch(module))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    """Return an imported network, and its weights as a run has them."""
    folder = tmp_path_factory.mktemp("stored")
    network = in_onnx(write(tiny(classes=3), folder / "net.onnx"))
    save_weights(network, folder / "weights.safetensors")
    return network, folder / "weights.safetensors"


def test_a_run_holds_the_graph_and_needs_no_file(stored: tuple[Network, Path]) -> None:
    network, weights = stored
    again = load_run_network(weights, "onnx", 3, size=(16, 16), blocks=list(network.blocks))
    assert again.digest == network.digest
    one, other = (activations(each, pixels()) for each in (again, network))
    assert torch.equal(one.block_norms, other.block_norms)
    assert torch.equal(one.logits, other.logits)


def test_fewer_logits_are_other_weights(stored: tuple[Network, Path], tmp_path: Path) -> None:
    _, weights = stored
    whole = load_run_network(weights, "onnx", 3)
    wanted = activations(whole, pixels()).logits[:, [2, 0]]
    digest = whole.digest
    part = whole.restricted([2, 0])
    assert part.digest != digest
    save_weights(part, tmp_path / "part.safetensors")
    again = load_run_network(tmp_path / "part.safetensors", "onnx", 2)
    torch.testing.assert_close(activations(again, pixels()).logits, wanted)


def test_copies_share_the_graph_and_what_runs_it(stored: tuple[Network, Path]) -> None:
    network, _ = stored
    module = network.module
    assert isinstance(module, OnnxNetwork)
    copied = copy.deepcopy(module)
    assert copied.graph is module.graph
    assert copied.head.weight is not module.head.weight
    copied.double()
    assert copied.graph is module.graph
    assert copied.graph.dtype == torch.uint8


def test_gradients_and_layers_inside_are_refused(stored: tuple[Network, Path]) -> None:
    network, _ = stored
    wanted = r"not defined for a network that runs outside of torch \(onnx\); omit them"
    for probe in (PerturbedLogits(1.0, 0.01), RankFeat.fit(None).probes[0]):  # type: ignore[arg-type]
        with pytest.raises(UndefinedMethodError, match=wanted):
            list(extract(network, [pixels()], **HALF, probes=[probe]))

    class Gram:
        key, passes = "gram", 0.0
        maps = staticmethod(layers)

    with pytest.raises(UndefinedMethodError, match=wanted):
        list(extract(network, [pixels()], **HALF, probes=[Gram()]))  # type: ignore[list-item]


def test_other_precisions_sizes_and_training_are_refused(stored: tuple[Network, Path]) -> None:
    network, _ = stored
    with pytest.raises(InvalidInputError, match="computes in the precision of its graph"):
        ReadyNetwork(network, precision="bfloat16")
    with pytest.raises(
        InvalidInputError, match=r"onnx does not accept images of 12 x 12 pixels \(ONNX R"
    ):
        network.check_image_size(12, 12)
    network.check_image_size(16, 16)
    with pytest.raises(InvalidInputError, match="cannot be trained here"):
        network.spec.architecture.check_trainable()


def test_where_no_such_runtime_is_installed_the_network_runs_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    assert placement(torch.device("cpu")) == ()
    (line,) = placement(torch.device("mps"))
    assert "the network runs on the CPU, and methods on mps" in line
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    (line,) = placement(torch.device("cuda:1"))
    assert line.endswith("for a GPU of NVIDIA: pip install onnxruntime-gpu")


def test_a_damaged_description_is_one_line(stored: tuple[Network, Path]) -> None:
    module = stored[0].module
    assert isinstance(module, OnnxNetwork)
    text = module.form.to_json()
    assert OnnxForm.from_json(text) == module.form
    for wrong in ("", "[]", "{}", text.replace('"side"', '"sid"')):
        with pytest.raises(CorruptArtifactError, match="remove the run and import it again"):
            OnnxForm.from_json(wrong)
