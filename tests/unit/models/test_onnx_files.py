"""ONNX files from elsewhere: read whole, or refused in a line; nothing outside is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.models.onnx_files import read_onnx
from oodcli.sniffing import program_kind
from tests.support.graphs import tiny, write

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

NODE = onnx.helper.make_node


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny(), tmp_path_factory.mktemp("onnx") / "net.onnx")


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInputError) as refused:
        read_onnx(path)
    text = str(refused.value)
    assert "\n" not in text
    return text


def changed(file: Path, path: Path, change: Callable[[Any], object]) -> Path:
    model = onnx.load(file)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def outside(location: str, **more: str) -> Callable[[Any], None]:
    """Return what lets the weights of a model lie in another file."""

    def change(model: Any) -> None:
        tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)

    return change


@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net"])
def test_a_file_is_told_by_its_content(file: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(file.read_bytes())
    assert program_kind(tmp_path / name) == "onnx"
    assert len(read_onnx(tmp_path / name).graph.node) == len(onnx.load(file).graph.node)


def test_data_beside_the_file_come_into_the_model(file: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    model = onnx.load(file)
    for location in ("net.onnx.data", "deep/net.data"):
        onnx.save(
            model, tmp_path / "net.onnx", save_as_external_data=True, location=location,
            size_threshold=0,
        )  # fmt: skip
        read = read_onnx(tmp_path / "net.onnx")
        for one, other in zip(
            read.graph.initializer, onnx.load(file).graph.initializer, strict=True
        ):
            assert one.data_location == onnx.TensorProto.DEFAULT
            array, wanted = (onnx.numpy_helper.to_array(each) for each in (one, other))
            np.testing.assert_array_equal(array, wanted)
        model = onnx.load(file)


@pytest.mark.parametrize(
    "location",
    ["../secret", "deep/../../secret", "{outside}/secret", "..\\secret", "C:\\x", "", "a\0b"],
)
def test_data_outside_of_the_folder_are_not_read(file: Path, tmp_path: Path, location: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    path = changed(file, folder / "net.onnx", outside(location.format(outside=tmp_path)))
    assert "names data outside of its folder" in refusal(path)


def test_data_behind_a_link_that_leads_outside_are_not_read(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    (folder / "data").symlink_to(tmp_path / "secret")
    path = changed(file, folder / "net.onnx", outside("data"))
    assert "names data outside of its folder ('data')" in refusal(path)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "there is no file"),
        ({"offset": "90", "length": "60"}, "has 100 bytes, fewer than net.onnx wants of it"),
        ({"offset": "-1"}, "fewer than net.onnx wants"),
        ({"length": "9" * 30}, "fewer than net.onnx wants"),
    ],
)
def test_data_that_are_not_there_are_missed(
    file: Path, tmp_path: Path, more: dict[str, str], told: str
) -> None:
    path = changed(file, tmp_path / "net.onnx", outside("data", **more))
    if more:
        (tmp_path / "data").write_bytes(b"\0" * 100)
    assert told in refusal(path)


def turn_into_a_cycle(model: Any) -> None:
    first = model.graph.node[0]
    first.input[0] = model.graph.node[-1].output[0]


def hang(model: Any) -> None:
    model.graph.node[0].input[0] = "nothing"


def write_twice(model: Any) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def custom(model: Any) -> None:
    model.graph.node[1].op_type, model.graph.node[1].domain = "Evil", "my.ops"
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))


def unknown(model: Any) -> None:
    model.graph.node[1].op_type = "NoSuchOperator"


def loop(model: Any) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(NODE("Loop", ["", ""], ["z"], body=body))


def old(model: Any) -> None:
    model.opset_import[0].version = 7


def empty(model: Any) -> None:
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (turn_into_a_cycle, "is made of itself (a cycle)"),
        (hang, "in its graph 'nothing' is never made"),
        (write_twice, "is made twice"),
        (custom, "needs operators that ONNX Runtime does not have: my.ops.Evil; export it with"),
        (unknown, "is damaged: "),
        (loop, "has a loop (Loop)"),
        (old, "uses version 7 of ONNX's operators, and 9 is the oldest"),
        (empty, "has a graph without nodes"),
    ],
)
def test_a_graph_that_cannot_be_followed_is_refused(
    file: Path, tmp_path: Path, change: Callable[[Any], None], told: str
) -> None:
    assert told in refusal(changed(file, tmp_path / "net.onnx", change))


def test_a_part_of_a_file_is_no_file(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for length in (4, len(content) // 2, len(content) - 1):
        (tmp_path / "net.onnx").write_bytes(content[:length])
        told = refusal(tmp_path / "net.onnx")
        assert "is no ONNX file, or only a part of one" in told or "without nodes" in told
    assert "it is a folder" in refusal(tmp_path)


def test_functions_are_written_out(file: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        opsets = [onnx.helper.make_opsetid("", 13)]
        function = onnx.helper.make_function(
            "local", "Same", ["a"], ["b"], [NODE("Identity", ["a"], ["b"])], opsets
        )
        model.functions.append(function)
        model.opset_import.append(onnx.helper.make_opsetid("local", 1))
        model.ir_version = 8
        last = model.graph.node[-1]
        model.graph.node.insert(
            len(model.graph.node) - 1, NODE("Same", [last.input[0]], ["same"], domain="local")
        )
        model.graph.node[-1].input[0] = "same"

    read = read_onnx(changed(file, tmp_path / "net.onnx", change))
    assert not read.functions
    assert read.graph.node[-2].op_type == "Identity"
