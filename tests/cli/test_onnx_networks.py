"""A network that exists only as an ONNX file: imported, scored, used and exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.cli import Ood, flat, tree
from tests.support.graphs import tiny, write

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    return tree(tmp_path / "colours"), flat(tmp_path / "odd")


def test_it_is_scored_as_the_same_network_in_torch(
    ood: Ood, tmp_path: Path, images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And needs neither its file nor the data beside it afterwards."""
    data, odd = images
    torch.save(tiny().state_dict(), tmp_path / "net.pt")
    model = onnx.load(write(tiny(), tmp_path / "net.onnx"))
    onnx.save(
        model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data",
        size_threshold=0,
    )  # fmt: skip
    (tmp_path / "mine.py").write_text(
        "from tests.support.graphs import Tiny\n\n"
        "def net(num_classes):\n    return Tiny(num_classes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    argv = ("--data", data, "--image-size", 16, "--mean", 0.4, "--std", 0.3)
    code, out, err = ood("import", tmp_path / "net.pt", "--arch", "mine:net", *argv, "--name", "t")
    assert code == 0, err
    code, out, err = ood("import", tmp_path / "net.onnx", *argv)
    assert (code, out) == (0, "net\n"), err
    assert "net.onnx: 4 blocks (unit) from layers.0 to layers.3; last layer 6 to 2" in err
    for name in ("net.onnx", "net.data"):
        (tmp_path / name).unlink()
    record, other = (json.loads(ood("runs", "show", run)[1]) for run in ("net", "t"))
    assert record["arch"] == "onnx"
    assert record["blocks"] == other["blocks"]
    assert record["imported"]["source"] == str(tmp_path / "net.onnx")
    rows = {}
    for run in ("t", "net"):
        code, out, err = ood(
            "score", "--run", run, "--method", "featurenorm", "--method", "energy", "--method",
            "knn:k=3", "--method", "react+energy", "--ood", odd, "--format", "json",
        )  # fmt: skip
        assert code == 0, err
        rows[run] = {row["method"]: row["auroc"] for row in json.loads(out)["rows"]}
    assert rows["net"] == pytest.approx(rows["t"], abs=1e-6)
    code, out, err = ood("score", "--run", "net", "--method", "odin", "--ood", odd)
    assert (code, out) == (1, "")
    assert "odin cannot be scored: methods that need gradients" in err.splitlines()[-1]
    verdicts = {}
    for run in ("t", "net"):
        code, out, err = ood(
            "predict", odd, "--run", run, "--method", "knn:k=3", "--format", "jsonl"
        )
        assert code == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        verdicts[run] = [(row["class"], row["verdict"]) for row in lines if "path" in row]
    assert verdicts["net"] == verdicts["t"]
    assert len(verdicts["net"]) == 7


@pytest.mark.parametrize(
    ("batch", "dtype"),
    [
        (3, torch.float32),
        pytest.param(None, torch.float32, marks=pytest.mark.slow),
        pytest.param(None, torch.float16, marks=pytest.mark.slow),
    ],
)
def test_its_own_graph_is_exported_with_the_detector(
    ood: Ood, tmp_path: Path, images: tuple[Path, Path], batch: int | None, dtype: torch.dtype
) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    data, _ = images
    write(tiny().to(dtype), tmp_path / "net.onnx", batch=batch, opset=11, dtype=dtype)
    code, _, err = ood("import", tmp_path / "net.onnx", "--data", data, "--image-size", 16)
    assert code == 0, err
    out = tmp_path / "out"
    code, text, err = ood(
        "export", "--method", "featurenorm:block=1", "--output", out, "--input-size", "20x24",
        "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    about = json.loads(text)
    rows = batch or "batch"
    assert about["inputs"][0]["shape"] == [rows, 3, 20, 24]
    assert about["outputs"][0]["shape"] == [rows, 2]
    accepted = 1e-4 if dtype == torch.float32 else 1e-2
    assert about["verification"]["tolerance"] == accepted
    assert about["verification"]["score"]["relative"] <= accepted
    model = onnx.load(out / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert sum(node.name.startswith("network/") for node in model.graph.node) >= 9
    session = onnxruntime.InferenceSession(
        str(out / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    pixels = np.zeros((batch or 5, 3, 20, 24), dtype=np.uint8)
    (score,) = session.run(["score"], {"images": pixels})
    assert score.shape == (batch or 5,)


@pytest.mark.parametrize(
    "case",
    [
        ("net.onnx", ("--arch", "resnet18"), "is an ONNX graph, which contains no state dict;"),
        ("net.onnx", ("--key", "model"), "--key and --keys say how weights are read, and"),
        ("net.onnx", ("--output", "other"), "net.onnx has no output 'other'; it has: "),
        ("net.onnx", ("--image-size", "8"), "net.onnx takes images of 16 x 16 pixels, not 8 x 8"),
        ("three.onnx", (), "three.onnx has 3 classes and colours has 2"),
        ("net.pt", (), "net.pt does not say how its network computes (it is no ONNX file"),
        ("net.onnx.part", (), "is no ONNX file, or only a part of one; get it again"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    ood: Ood, tmp_path: Path, case: tuple[str, tuple[str, ...], str]
) -> None:
    name, more, told = case
    data = tree(tmp_path / "colours")
    if name == "net.pt":
        torch.save(tiny().state_dict(), tmp_path / name)
    else:
        write(tiny(classes=3 if name == "three.onnx" else 2), tmp_path / name)
    if name.endswith("part"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:900])
    code, out, err = ood("import", tmp_path / name, "--data", data, *more)
    assert (code, out) == (1, "")
    assert told in err.splitlines()[-1]
    assert not (tmp_path / "store" / "runs").exists() or not list(
        (tmp_path / "store" / "runs").iterdir()
    )


def test_a_file_of_many_classes_is_imported_for_some(
    ood: Ood, tmp_path: Path, images: tuple[Path, Path]
) -> None:
    write(tiny(classes=4), tmp_path / "net.onnx")
    (tmp_path / "names.txt").write_text("green\nred\nblue\nblack\n")
    code, _, err = ood(
        "import", tmp_path / "net.onnx", "--data", images[0], "--classes", tmp_path / "names.txt"
    )
    assert code == 0, err
    record = json.loads(ood("runs", "show", "net")[1])
    assert record["imported"]["logits"] == {"kept": "data", "classes": 2, "outputs": 4}
    code, _, err = ood("import", "--data", images[0])
    assert code == 2
    assert "Missing option '--arch': give it, or a file that holds a whole network" in err
    code, _, err = ood("train", "--data", images[0], "--arch", "onnx")
    assert "onnx is the architecture of a network in a file, which runs outside of torch" in err
    code, _, err = ood("train", "--data", images[0], "--init", "net")
    assert code == 1
    assert "(ood import model.onnx --data DATA, without --arch), but not trained" in err
