"""``ood export``: one file that screens images as ood does, or one line that says why not."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.resizing import Resize
from oodcli.store.runs import RunFolder
from oodcli.store.store import read_json

pytest.importorskip("onnxscript", reason="needs the extra onnx")
onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

Ood = Callable[..., tuple[int, str, str]]


NETWORK = """
from torch import nn

def block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

def small(num_classes):
    return nn.Sequential(
        block(3, 8), block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, num_classes))
"""


@pytest.fixture(scope="module")
def small_store(
    trained_store: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Train a network of two blocks, whose graph is soon written; return its store and module."""
    from oodcli.store.store import Store
    from oodcli.workflows.train import TrainRequest, train

    root = tmp_path_factory.mktemp("small")
    (root / "exportednet.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        request = TrainRequest(
            data=str(trained_store[1]), arch="exportednet:small", name="tiny", epochs=2,
            batch_size=8,
        )  # fmt: skip
        train(Store(root / "store"), request)
    return root / "store", root


@pytest.fixture
def small(
    small_store: tuple[Path, Path],
    trained_store: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Copy the store of the small network for this test; return the folder of its images."""
    store, module = small_store
    shutil.copytree(store, tmp_path / "store")
    monkeypatch.syspath_prepend(module)
    return trained_store[1]


def images_of(folder: Path) -> np.ndarray:
    """Return the test images of the tiny run at their own size, ``(n, 3, h, w)``."""
    from PIL import Image

    files = sorted(folder.glob("test/*/*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in files]).transpose(0, 3, 1, 2)


def session_of(folder: Path) -> Any:
    return onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )


def resize_by(tmp_path: Path, resize: str) -> None:
    """Let the run resize its images in another way, as an imported one may."""
    folder = RunFolder(tmp_path / "store" / "runs" / "tiny")
    record = folder.read()
    folder.write(record.with_preprocess(replace(record.preprocess, resize=resize)))


@pytest.mark.parametrize(
    ("run", "resize", "rule"),
    [
        ("tiny", "exact", ("--tpr", "0.8")),
        ("small", "shorter-crop:40:bicubic", ("--tpr", "0.8")),
        ("small", "exact:lanczos", ("--false-alarms", "0.2")),
    ],
)
def test_the_file_screens_images_as_predict_does(
    ood: Ood,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    *,
    run: str,
    resize: str,
    rule: tuple[str, str],
) -> None:
    """Images of another size than the network's, a ResNet-18 or a small one, resized inside."""
    images: Path = request.getfixturevalue(run)
    resize_by(tmp_path, resize)
    out = tmp_path / "out"
    code, text, err = ood(
        "export", "--method", "knn:k=3", "--output", out, "--input-size", "20x24", *rule,
        "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    about = read_json(out / "model.json")
    assert json.loads(text) == {**about, "folder": str(out)}
    assert (about["schema"], about["kind"], about["method"]) == (1, "ood-export", "knn:k=3")
    assert about["inputs"][0]["shape"] == ["batch", 3, 20, 24]
    assert about["classes"] == ["blue", "red"]
    assert about["preprocess"]["resize"] == resize
    assert about["preprocess"]["filter"] == Resize.of(resize).used
    assert about["verification"]["score"]["relative"] <= 1e-4
    assert about["file"]["bytes"] == (out / "model.onnx").stat().st_size

    code, text, err = ood(
        "predict", images / "test", "--method", "knn:k=3", *rule, "--format", "jsonl"
    )
    assert code == 0, err
    wanted = [json.loads(line) for line in text.splitlines()]
    wanted = [row for row in wanted if "path" in row]
    names = ["logits", "class", "probability", "score", "verdict"]
    session = session_of(out)
    assert [each.name for each in session.get_outputs()] == names
    values = dict(zip(names, session.run(names, {"images": images_of(images)}), strict=True))
    assert len(wanted) == len(values["score"]) == 24
    scores = np.array([row["score"] for row in wanted])
    spread = scores.std()
    np.testing.assert_allclose(values["score"], scores, atol=1e-4 * spread)
    assert [about["classes"][i] for i in values["class"]] == [row["class"] for row in wanted]
    np.testing.assert_allclose(
        values["probability"], [row["probability"] for row in wanted], atol=1e-5
    )
    assert {row["threshold"] for row in wanted} == {about["threshold"]["value"]}
    assert about["threshold"]["false_alarms"] == (0.2 if rule[0] == "--false-alarms" else None)
    clear = np.abs(scores - about["threshold"]["value"]) > 1e-4 * spread
    verdicts = np.array([row["verdict"] == "ood" for row in wanted])
    assert (values["verdict"][clear] == verdicts[clear]).all()
    assert 0 < verdicts.sum() < len(verdicts)
    alone = session.run(["score"], {"images": images_of(images)[:1]})[0]
    np.testing.assert_allclose(alone, scores[:1], atol=1e-4 * spread)


def test_a_filter_that_a_graph_cannot_have_is_refused(
    ood: Ood, small: Path, tmp_path: Path
) -> None:
    resize_by(tmp_path, "exact:bicubic-torchvision")
    argv = ("export", "--method", "msp", "--output", tmp_path / "out")
    code, out, err = ood(*argv, "--input-size", "20x24")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: a graph cannot resize by bicubic-torchvision: it would add in another order, so "
        "some pixels would differ by one level; omit --input-size, and resize images before"
    )
    assert not (tmp_path / "out").exists()
    code, _, err = ood(*argv)
    assert code == 0, err


def test_the_file_says_what_it_is_and_takes_floats(ood: Ood, small: Path, tmp_path: Path) -> None:
    code, text, err = ood(
        "export", "--run", "tiny", "--method", "react+energy", "--output", tmp_path / "out",
        "--input", "float32", "--threshold", "0.5",
    )  # fmt: skip
    assert code == 0, err
    assert "threshold 0.5, accepts " in text
    assert "verdict" in text
    assert "run tiny, react+energy" in text
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    told = {each.key: each.value for each in model.metadata_props}
    assert told["ood.run"] == "tiny"
    assert told["ood.method"] == "react+energy"
    assert json.loads(told["ood.classes"]) == ["blue", "red"]
    assert json.loads(told["ood.threshold"])["value"] == 0.5
    session = session_of(tmp_path / "out")
    (given,) = session.get_inputs()
    assert (given.type, given.shape[1:]) == ("tensor(float)", [3, 32, 32])
    noise = np.random.default_rng(0).random((5, 3, 32, 32), dtype=np.float32)
    scores, verdicts = session.run(["score", "verdict"], {"images": noise})
    np.testing.assert_array_equal(verdicts, scores < 0.5)
    assert verdicts.dtype == np.int64


def test_an_export_is_replaced_and_other_files_are_not(
    ood: Ood, small: Path, tmp_path: Path
) -> None:
    from oodcli.workflows.export import _check_output

    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"mine")
    argv = ("export", "--method", "msp", "--output", out)
    code, _, err = ood(*argv)
    assert code == 1
    assert f"{out / 'model.onnx'} was not exported by ood; choose another folder" in err
    assert (out / "model.onnx").read_bytes() == b"mine"
    code, _, err = ood(*argv, "--overwrite")
    assert code == 0, err
    _check_output(out, overwrite=False)  # its own files it replaces unasked
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.onnx"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--method", "odin"), "odin cannot be exported as an ONNX file; these can: ash-b,"),
        (("--method", "enrgy"), "did you mean 'energy'?"),
        (("--method", "msp", "--tpr", "1.5"), "--tpr must be above 0 and at most 1, not 1.5"),
        (("--method", "msp", "--tpr", "0.9", "--threshold", "1"), "both set the threshold"),
        (("--method", "msp", "--false-alarms", "1"), "--false-alarms must be above 0 and below 1"),
        (("--method", "msp", "--threshold", "nan"), "--threshold must be a finite number"),
        (("--method", "msp", "--input-size", "ten"), "such as 480x640, not 'ten'"),
        (("--method", "msp", "--input-size", "0"), "must be 1 to 16384 pixels, not 0x0"),
        (("--method", "msp", "--run", "tinny"), "did you mean 'tiny'?"),
    ],
)
def test_what_cannot_be_exported_is_a_line(
    ood: Ood, small: Path, tmp_path: Path, argv: tuple[str, ...], told: str
) -> None:
    code, out, err = ood("export", "--output", tmp_path / "out", *argv)
    assert (code, out) == (1, "")
    assert told in err
    assert err.count("\n") == 1 + ("run: " in err)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_is_a_line(ood: Ood, small: Path, tmp_path: Path) -> None:
    code, _, err = ood("export", "--method", "msp", "--output", tmp_path / "no" / "out")
    assert (code, err) == (1, f"error: there is no folder {tmp_path / 'no'}; create it first\n")
    (tmp_path / "file").write_text("")
    code, _, err = ood("export", "--method", "msp", "--output", tmp_path / "file")
    assert code == 1
    assert "is not a folder; name one" in err


def test_method_and_output_are_needed(ood: Ood) -> None:
    assert ood("export", "--output", "out")[0] == 2
    assert ood("export", "--method", "msp")[0] == 2
    assert ood("export", "--method", "msp", "--output", "out", "--input", "int8")[0] == 2


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_there_is_one_line(
    ood: Ood, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = ood("export", "--method", "msp", "--output", tmp_path / "out")
    assert code == 1
    assert err == (
        f'error: ood export needs {missing}, which is not installed; pip install "oodcli[onnx]"\n'
    )


def test_a_bank_that_is_too_large_is_refused(
    ood: Ood, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oodcli.workflows.export.MAX_BANK_BYTES", 1000)
    code, _, err = ood("export", "--method", "knn", "--output", tmp_path / "out")
    assert code == 1
    assert "use a method without a bank of features, such as mds or vim" in err
    assert not (tmp_path / "out").exists()


def test_a_file_that_differs_is_not_written(
    ood: Ood, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.screening.onnx_verification import run_model

    def off(*args: Any, **more: Any) -> dict[str, np.ndarray]:
        values = run_model(*args, **more)
        values["score"] = values["score"] * np.float32(1.01)
        return values

    monkeypatch.setattr("oodcli.screening.onnx_verification.run_model", off)
    code, out, err = ood("export", "--method", "maxlogit", "--output", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "gives different results from ood: score differ by up to" in err
    assert "nothing was written" in err
    assert not (tmp_path / "out").exists()


def test_a_wrong_verdict_is_noticed(
    ood: Ood, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.screening.onnx_verification import run_model

    monkeypatch.setattr(
        "oodcli.screening.onnx_verification.run_model",
        lambda *args, **more: {**(got := run_model(*args, **more)), "verdict": 1 - got["verdict"]},
    )
    code, _, err = ood("export", "--method", "maxlogit", "--output", tmp_path / "out")
    assert code == 1
    assert "the verdict of " in err


@pytest.mark.parametrize("objective", ["t2fnorm", "ascood"])
def test_a_layer_that_normalises_features_is_exported(
    ood: Ood, small: Path, tmp_path: Path, objective: str
) -> None:
    """Its classes are not those of the scored logits."""
    code, _, err = ood(
        "train", "--data", small, "--arch", "exportednet:small", "--name", "unit", "--epochs", "1",
        "--objective", objective, "--set", "batch_size=8",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = ood(
        "export", "--run", "unit", "--method", "t2fnorm", "--output", tmp_path / "out",
        "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["verification"]["logits"]["relative"] < 1e-4


def test_sizes_are_checked_without_the_command_line_too(small: Path, tmp_path: Path) -> None:
    from oodcli.store.store import Store
    from oodcli.workflows.export import ExportRequest, export

    with pytest.raises(InvalidInputError, match="--input-size"):
        export(
            Store(tmp_path / "store"),
            ExportRequest("msp", tmp_path / "out", input_size=(20000, 5)),
        )


def test_the_recommended_method_or_an_ensemble_is_exported(
    ood: Ood, small: Path, tmp_path: Path
) -> None:
    wanted = "ensemble:knn:k=2+energy+featurenorm:block=1"
    code, _, err = ood("export", "--method", wanted, "--output", tmp_path / "a")
    assert code == 0, err
    assert json.loads((tmp_path / "a" / "model.json").read_text())["method"] == wanted
    code, _, err = ood("export", "--method", "auto", "--output", tmp_path / "b")
    if code == 0:
        chosen = json.loads((tmp_path / "b" / "model.json").read_text())["method"]
        assert f"method: {chosen}, recommended for run" in err
    else:
        assert "cannot be exported as an ONNX file; these can:" in err


def test_a_rounding_of_outputs_that_hardly_vary_is_accepted() -> None:
    from oodcli.screening.onnx_verification import ROUNDINGS, TOLERANCE, difference_of

    same = np.full(8, 3.0, dtype=np.float32)
    same[0] += np.spacing(same[0])
    rounded = np.nextafter(same, np.float32(9))
    assert 0 < difference_of(rounded, same.astype(np.float64)).relative <= TOLERANCE
    allowed = ROUNDINGS * np.finfo(np.float32).eps * 3
    assert difference_of(same + np.float32(1.1 * allowed), same).relative > TOLERANCE
    # Where outputs vary, their own spread counts.
    spread = np.linspace(-3, 3, 100)
    assert difference_of(spread + 1e-3, spread).relative == pytest.approx(1e-3 / spread.std())
