"""Programs of torch.export and TorchScript: read without running code that a file may hold."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oodcli.errors import InvalidInputError
from oodcli.models import read_program
from oodcli.models.exported_files import _looked_through, read_exported, script_graph
from oodcli.models.extraction import extract
from oodcli.sniffing import program_kind
from tests.support.graphs import tiny

pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a program that takes any number of images."""
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    rows = ({0: torch.export.Dim("rows")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(tiny(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=rows)
        torch.export.save(exported, path)
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(tiny(), torch.zeros(2, 3, 16, 16)), path)
    return path


def logits_and_features(path: Path) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    kind = program_kind(path)
    assert kind is not None
    network, lines = read_program(path, kind).network(16)
    assert any("written as an ONNX graph" in line for line in lines)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    found = next(extract(network, [images], **HALF))
    ready = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        wanted = tiny()((ready - 0.5) / 0.25)
    torch.testing.assert_close(found.logits, wanted, rtol=0, atol=1e-5)
    assert found.block_norms.shape == (5, 4)
    return list(network.blocks), found.logits, found.features


@pytest.mark.slow
def test_a_program_is_the_network_it_was_made_of(program: Path) -> None:
    assert program_kind(program) == "pt2"
    blocks, _, features = logits_and_features(program)
    assert blocks == [f"layers.{k}" for k in range(4)]
    assert features.shape == (5, 6)


def test_torchscript_is_the_network_it_was_made_of(script: Path) -> None:
    assert program_kind(script) == "torchscript"
    blocks, _, features = logits_and_features(script)
    assert blocks == [f"layers.{k}" for k in range(4)]
    assert features.shape == (5, 6)


def test_torchscript_with_a_loop_is_refused(tmp_path: Path) -> None:
    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.jit.trace(tiny(), torch.zeros(2, 3, 16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(int(x.shape[1])):
                x = x * 1.0
            return self.net(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Looping()), tmp_path / "net.pt")
    with pytest.raises(InvalidInputError, match=r"net\.pt has a loop \(Loop\), through which"):
        script_graph(tmp_path / "net.pt", 16)


def test_torchscript_that_opens_files_is_not_run(tmp_path: Path) -> None:
    class Writing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, "stolen")
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Writing()), tmp_path / "net.pt")
    with pytest.raises(InvalidInputError, match=r"is not run: it calls torch\.save, which opens"):
        read_program(tmp_path / "net.pt", "torchscript")


def test_other_sizes_and_parts_of_files_are_one_line(script: Path, tmp_path: Path) -> None:
    (tmp_path / "part.pt").write_bytes(script.read_bytes()[:-900])
    with pytest.raises(InvalidInputError, match="is damaged"):
        script_graph(tmp_path / "part.pt", 16)
    with pytest.raises(InvalidInputError, match="takes no images of 1 x 1 pixels"):
        script_graph(_wanting_size(tmp_path), 1)


def _wanting_size(folder: Path) -> Path:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 9, 9)), folder / "sized.pt")
    return folder / "sized.pt"


Change = Callable[[dict[str, bytes]], None]


def members_of(size: dict[str, Any]) -> dict[str, bytes]:
    """Return the members of a program with one operation, as torch.export writes them."""
    node = {
        "target": "torch.ops.aten.relu.default",
        "name": "relu",
        "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}],
        "outputs": [{"as_tensor": {"name": "relu"}}],
        "metadata": {"stack_trace": "File 'net.py'", "nn_module_stack": "L__self__,,net.Net"},
    }
    model = {
        "graph_module": {"graph": {"nodes": [node], "tensor_values": {"x": {"sizes": [size]}}}},
        "guards_code": [],
        "torch_version": "2.14.1+cu130",
    }
    sample = io.BytesIO()
    torch.save(((torch.zeros(1),), {}), sample)
    weight = {"path_name": "weight_0", "use_pickle": False}
    return {
        "models/model.json": json.dumps(model).encode(),
        "data/weights/model_weights_config.json": json.dumps({"config": {"fc": weight}}).encode(),
        "data/weights/weight_0": b"\0" * 8,
        "data/sample_inputs/model.pt": sample.getvalue(),
        "archive_format": b"pt2",
    }


def rewritten(path: Path, change: Change) -> Path:
    """Write such a program with other members, whose names are without that of the archive."""
    members = members_of({"as_expr": {"expr_str": "Symbol('s77', positive=True, integer=True)"}})
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return path


def in_model(change: Callable[[dict[str, Any]], object]) -> Change:
    def within(members: dict[str, bytes]) -> None:
        content = json.loads(members["models/model.json"])
        change(content)
        members["models/model.json"] = json.dumps(content).encode()

    return within


CODE = "__import__('pathlib').Path('stolen').touch()"


def first_node(content: dict[str, Any]) -> dict[str, Any]:
    return content["graph_module"]["graph"]["nodes"][0]


def sized_by_code(content: dict[str, Any]) -> None:
    values = content["graph_module"]["graph"]["tensor_values"]
    size = {"as_expr": {"expr_str": CODE, "hint": None}}
    next(iter(values.values()))["sizes"][0] = size


def sized_by_words(content: dict[str, Any]) -> None:
    sized_by_code(content)
    values = content["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0]["as_expr"]["expr_str"] = "exit(1)"


def pickled(members: dict[str, bytes]) -> None:
    config = json.loads(members["data/weights/model_weights_config.json"])
    next(iter(config["config"].values()))["use_pickle"] = True
    members["data/weights/model_weights_config.json"] = json.dumps(config).encode()


def compiled(members: dict[str, bytes]) -> None:
    members["data/aotinductor/model/a.so"] = b"\x7fELF"


def sampled(members: dict[str, bytes]) -> None:
    stream = io.BytesIO()
    torch.save(warnings.WarningMessage, stream)
    members["data/sample_inputs/model.pt"] = stream.getvalue()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (in_model(sized_by_code), "the size"),
        (in_model(sized_by_words), "the size 'exit(1)'"),
        (in_model(lambda c: first_node(c).update(target="torch.hub.load")), "holds torch.hub.load"),
        (in_model(lambda c: first_node(c).update(name=f"x={CODE}")), "holds x=__import__"),
        (pickled, "as a pickled object"),
        (compiled, "holds net/data/aotinductor/model/a.so"),
        (sampled, "is damaged"),
        (lambda m: m.update({"models/model.json": b"{"}), "is damaged"),
        (lambda m: m.update(serialized_exported_program=b""), "holds net/serialized_exported"),
        (
            lambda m: m.update({"serialized_exported_program.json": b""}),
            "was saved before torch 2.8, with pickled weights",
        ),
    ],
)
def test_nothing_but_a_graph_and_its_weights_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    told: str,
) -> None:
    """SymPy would evaluate a size as Python, and torch.load run a pickle."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError) as refused:
        read_exported(rewritten(tmp_path / "net.pt2", change))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "stolen").exists()


def test_guards_and_what_is_for_people_are_left_out(tmp_path: Path) -> None:
    def guard(content: dict[str, Any]) -> None:
        content["guards_code"] = [CODE]
        first_node(content)["metadata"]["custom"] = CODE

    path = rewritten(tmp_path / "net.pt2", in_model(guard))
    with zipfile.ZipFile(io.BytesIO(_looked_through(path))) as archive:
        read = json.loads(archive.read("net/models/model.json"))
    assert read["guards_code"] == []
    assert first_node(read)["metadata"] == {"nn_module_stack": "L__self__,,net.Net"}
