"""``--jpeg-draft``: a run decodes JPEG files at a reduced size, and always does."""

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import oodcli
from oodcli.data import prepare
from oodcli.data.opening import open_dataset
from oodcli.store.store import Store
from tests.support.photographs import folder_of, photograph

Ood = Callable[..., tuple[int, str, str]]
SIDE = 16
TRAIN = ("train", "--arch", "resnet18:width=2", "--image-size", SIDE, "--resize", "shorter-crop",
         "--epochs", 1, "--batch-size", 8, "--data-workers", 0)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write JPEG files of two classes and some OOD ones, and train a run with drafts."""
    from typer.testing import CliRunner

    from oodcli.cli.app import app

    root = tmp_path_factory.mktemp("drafts")
    files = {
        f"{part}/{kind}/{at}.jpg": photograph(150, 110, seed=100 * len(kind + part) + at)
        for part, count in (("train", 5), ("test", 4))
        for kind in ("cat", "horse")
        for at in range(count)
    }
    folder_of(root / "data", files)
    folder_of(root / "far", {f"{at}.jpg": photograph(140, 210, seed=at) for at in range(3)})
    line = (*TRAIN, "--data", root / "data", "--name", "drafts", "--jpeg-draft", "--set",
            "augmentation=resized-crop", "--store", root / "store")  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, line)))
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def images(made: Path, tmp_path: Path) -> Path:
    """Copy the store with the run for this test; return the folder of its images."""
    shutil.copytree(made / "store", tmp_path / "store")
    return made


def verdicts(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(text.splitlines()))
    return [{name: row[name] for name in ("score", "class", "verdict", "p_value")} for row in rows]


def test_a_run_keeps_its_drafts_in_every_command(ood: Ood, images: Path, tmp_path: Path) -> None:
    code, out, err = ood("runs", "show", "drafts")
    assert code == 0, err
    assert json.loads(out)["preprocess"]["resize"] == "shorter-crop:draft"

    # Gathered in the epoch with random crops: what decoding gives that stores nothing else.
    store, fresh = Store(tmp_path / "store"), Store(tmp_path / "fresh")
    part = open_dataset(str(images / "data"), fresh).parts["train"]
    wanted, whole = (
        prepare(part, fresh, name="x", size=(SIDE, SIDE), resize=resize).pixels()
        for resize in ("shorter-crop:draft", "shorter-crop")
    )
    with Image.open(images / "data" / "train" / "cat" / "0.jpg") as image:
        image.draft(None, (42, 32))
        assert image.size == (75, 55)
        own = image.resize((21, 16), Image.Resampling.BILINEAR).crop((2, 0, 18, 16))
    np.testing.assert_array_equal(wanted[0].transpose(1, 2, 0), np.asarray(own))
    assert not np.array_equal(wanted, whole)
    stored = [np.load(path) for path in store.images.glob("*/00000.npy")]
    assert any(np.array_equal(each, wanted) for each in stored)
    assert not any(np.array_equal(each, whole) for each in stored)

    score = ["score", "--ood", images / "far", "--method", "msp"]
    assert ood(*score)[0] == 0
    assert ood(*score, "--jpeg-draft")[0] == 0
    far = prepare(open_dataset(str(images / "far"), fresh, role="ood").ood_part, fresh, name="x",
                  size=(SIDE, SIDE), resize="shorter-crop:draft").pixels()  # fmt: skip
    scored = [np.load(path) for path in store.images.glob("*/00000.npy")]
    assert any(np.array_equal(each, far) for each in scored)

    file = tmp_path / "verdicts.csv"
    predict = ("predict", "--method", "energy", "--format", "csv", "--threshold", 0)
    code, _, err = ood(*predict, images / "far", "--output", file)
    assert code == 0, err
    assert json.loads(Path(f"{file}.ood.json").read_text())["jpeg_draft"] is True
    rows = verdicts(file.read_text())
    with zipfile.ZipFile(tmp_path / "far.zip", "w") as archive:
        for at in range(3):
            archive.write(images / "far" / f"{at}.jpg", f"{at}.jpg")
    np.save(tmp_path / "far.npy", far.transpose(0, 2, 3, 1))
    for path in (tmp_path / "far.zip", tmp_path / "far.npy"):
        assert verdicts(ood(*predict, path)[1]) == rows


@pytest.mark.slow
def test_onnx_runtime_gets_the_same_images(ood: Ood, images: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    predict = ("predict", images / "far", "--method", "energy", "--format", "csv")
    scores = []
    for engine in ("torch", "onnx"):
        code, out, err = ood(*predict, "--engine", engine)
        assert code == 0, err
        scores.append([float(row["score"]) for row in verdicts(out)])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)


def test_packed_detectors_and_exports_have_the_drafts(
    ood: Ood, images: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "d.safetensors"
    code, _, err = ood("detector", "pack", "--method", "energy", "--output", packed)
    assert code == 0, err
    shown = json.loads(ood("detector", "show", packed, "--format", "json")[1])
    assert shown["about"]["preprocess"]["resize"] == "shorter-crop:draft"
    detector = oodcli.load_detector(packed)
    found = detector.predict([images / "far" / f"{at}.jpg" for at in range(3)]).score
    predict = ("predict", images / "far", "--method", "energy", "--format", "csv")
    rows = verdicts(ood(*predict)[1])
    np.testing.assert_allclose([float(row["score"]) for row in rows], found, rtol=1e-6)
    code, _, err = ood("export", "--method", "energy", "--output", tmp_path / "x",
                       "--input-size", "150x110")  # fmt: skip
    assert code == 1
    assert "the run decodes JPEG files at a reduced size (--jpeg-draft)" in err


@pytest.mark.parametrize(
    "command", [("score", "--method", "msp", "--ood"), ("predict",), ("explain",)]
)
def test_a_run_without_drafts_refuses_them(
    ood: Ood, tiny: Path, made: Path, command: tuple[str, ...]
) -> None:
    code, out, err = ood(*command, made / "far", "--jpeg-draft")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: run tiny decodes JPEG files at their whole size, which also made the images of its "
        "network; omit --jpeg-draft, or train or import the network with --jpeg-draft"
    )


def test_an_imported_network_can_be_imported_again_with_drafts(ood: Ood, images: Path) -> None:
    weights = images / "store" / "runs" / "drafts" / "weights.safetensors"
    for name, more in (("whole", ()), ("small", ("--jpeg-draft",))):
        code, _, err = ood(
            "import", weights, "--arch", "resnet18:width=2", "--data", images / "data", "--name",
            name, "--image-size", SIDE, "--resize", "shorter-crop:20:bicubic",
            "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", *more,
        )  # fmt: skip
        assert code == 0, err
        assert ("large JPEG files are decoded at 1/2, 1/4 or 1/8" in err) == bool(more)
        record = json.loads(ood("runs", "show", name)[1])["preprocess"]
        assert record["resize"] == "shorter-crop:20:bicubic" + (":draft" if more else "")
        assert record["filter"] == "bicubic"
    scores = [
        verdicts(ood("predict", images / "far", "--run", name, "--format", "csv")[1])
        for name in ("whole", "small")
    ]
    assert scores[0] != scores[1]
