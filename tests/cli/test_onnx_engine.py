"""``ood predict --engine onnx`` and ``ood detector``: the verdicts of torch, without torch."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oodcli
from oodcli.errors import InvalidInputError, OodError
from oodcli.store.runs import RunFolder
from oodcli.store.store import Store, read_json, write_json
from oodcli.workflows.engines import DetectorRequest
from oodcli.workflows.predict import PredictRequest, predict
from tests.support.cli import tree

pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

Ood = Callable[..., tuple[int, str, str]]
METHOD = "energy"
NETWORK = """
from torch import nn

def block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

def small(num_classes):
    return nn.Sequential(
        block(3, 4), block(4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


@dataclass(frozen=True)
class Made:
    """A store with a run of a small network in own code, and what was made of it."""

    store: Path
    images: Path
    code: Path
    packed: Path
    exported: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Train, predict once in ONNX Runtime, pack and export, each once for all tests."""
    from typer.testing import CliRunner

    from oodcli.cli.app import app
    from oodcli.workflows.train import TrainRequest, train

    root = tmp_path_factory.mktemp("engine")
    found = Made(root / "store", tree(root / "colours"), root / "code", root / "d", root / "e")
    found.code.mkdir()
    (found.code / "enginenet.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(found.code)
        train(
            Store(found.store),
            TrainRequest(
                data=str(found.images), arch="enginenet:small", name="own", epochs=2, batch_size=8
            ),
        )
        pack = ["detector", "pack", "--method", METHOD, "--engine", "both"]
        for argv in (
            ["predict", str(found.images / "test"), "--engine", "onnx", "--method", METHOD],
            [*pack, "--output", str(found.packed)],
        ):
            result = CliRunner().invoke(app, [*argv, "--store", str(found.store)])
            assert result.exit_code == 0, result.output
    # The graph of a run is stored as ood export writes it; exporting again would take long.
    folder = RunFolder(found.store / "runs" / "own").detector(METHOD, "float32")
    found.exported.mkdir()
    for name in ("model.onnx", "model.json"):
        shutil.copy(folder / name, found.exported / name)
    return found


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def compare(got: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> int:
    """Check that verdicts are those of torch, and scores within the tolerance of an export.

    Returns
    -------
    int
        Number of scores that tie with the threshold, whose verdicts can differ.
    """
    for name in ("path", "class", "threshold", "error"):
        assert [each[name] for each in got] == [each[name] for each in wanted]
    read = [(a, b) for a, b in zip(got, wanted, strict=True) if a["error"] is None]
    scores = np.array([each["score"] for _, each in read])
    margin = 1e-4 * scores.std()
    np.testing.assert_allclose([each["score"] for each, _ in read], scores, atol=margin)
    clear = [abs(b["score"] - b["threshold"]) > margin for _, b in read]
    verdicts = [[each["verdict"] for each in pair] for pair in read]
    assert all(a == b for (a, b), one in zip(verdicts, clear, strict=True) if one)
    return clear.count(False)


def test_a_rate_in_a_file_binds_as_one_on_the_command_line(
    ood: Ood, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.compute.processes import Processes  # imports torch

    monkeypatch.syspath_prepend(made.code)
    found, images = tmp_path / "found", made.images / "test"
    pack = ("detector", "pack", "--store", made.store, "--method", METHOD, "--engine", "onnx")
    code, _, err = ood(*pack, "--fdr", "0.2", "--output", tmp_path / "fdr")
    assert code == 0, err
    fdr = ("predict", images, "--detector", tmp_path / "fdr")
    for options, message in (
        (("--format", "jsonl"), "rows cannot be written as a stream; name a file"),
        (("--copy-ood", found, "--output", tmp_path / "v.csv"), "--copy-ood cannot copy on the"),
    ):
        code, out, err = ood(*fdr, *options)
        assert (code, out) == (1, "")
        assert message in err
    assert not found.exists()
    assert not (tmp_path / "v.csv").exists()
    request = PredictRequest([str(images)], detector=DetectorRequest(file=tmp_path / "fdr"))
    with pytest.raises(InvalidInputError, match="each process of torchrun judges a part of them"):
        predict(Store(tmp_path), request, processes=Processes(0, 1))
    # Classes with too few ID images are named, wherever the threshold comes from.
    named = "a threshold by class needs 19 ID images of each predicted class; 2 classes with fewer"
    rate = ("--false-alarms", "0.05", "--per-class")
    by_class = (*pack, *rate, "--output", tmp_path / "by-class")
    for command in (
        by_class,
        ("predict", images, "--detector", tmp_path / "by-class"),
        ("predict", images, "--detector", made.exported, *rate),
        ("predict", images, "--store", made.store, "--method", METHOD, "--engine", "onnx", *rate),
    ):
        code, out, err = ood(*command)
        assert code == 0, err
        assert err.count(named) == 1
    assert "OOD for each predicted class (1 threshold): p_value of at most 0.05" in out


def test_drift_is_against_the_id_images_of_the_file(ood: Ood, made: Made, tmp_path: Path) -> None:
    verdicts = tmp_path / "v.csv"
    assert ood("predict", made.images, "--detector", made.exported, "--output", verdicts)[0] == 0
    found = [
        ood("drift", verdicts, "--reference", reference, "--format", "json")[:2]
        for reference in (made.exported, made.exported / "model.onnx", made.packed)
    ]
    code, out, err = ood("drift", verdicts, "--store", made.store, "--format", "json")
    assert code == 0, err
    assert found == [(0, out)] * 3


def test_every_source_gives_the_verdicts_of_torch(
    ood: Ood, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(made.code)
    images = Path(shutil.copytree(made.images / "test", tmp_path / "in"))
    (images / "zz.png").write_bytes(b"no image")
    how = ("--format", "jsonl")
    of_run = ("--store", made.store, "--method", METHOD)
    wanted = rows(ood("predict", images, *of_run, *how)[1])
    assert {each["verdict"] for each in wanted} == {"id", "ood", None}
    for source in (
        (*of_run, "--engine", "onnx"),
        ("--detector", made.packed, "--engine", "onnx"),
        ("--detector", made.exported),
        ("--detector", made.exported / "model.onnx", "--engine", "onnx"),
    ):
        code, out, err = ood("predict", images, *source, *how, "--score-batch-size", "5")
        assert code == 0, err
        ties = compare(rows(out), wanted)
        # The threshold is the score of one of these images.
        assert ties == 1
        assert re.search(r"1 score within [0-9.e-]+ of the threshold, the accepted diff", err)
    code, out, err = ood("predict", images, "--detector", made.packed, "--allow-code", *how)
    assert (code, rows(out)) == (0, wanted), err
    assert not (tmp_path / "store").exists()  # the default one; a file needs none


def test_the_first_verdict_needs_no_torch(made: Made, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(torch=None, torchvision=None, scipy=None, sklearn=None); "
        "from oodcli.cli.app import main; main(sys.argv[1:])"
    )
    image = next(made.images.glob("test/*/*.png"))
    argv = ["predict", str(image), "--engine", "onnx", "--method", METHOD, "--format", "csv"]
    done = subprocess.run(
        [sys.executable, "-c", program, *argv, "--store", str(made.store)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(f"{image},")


def _predict(detector: Any, images: Any, answers: Any) -> None:
    found = detector.predict(images)
    answers.put((found.score, found.ood, found.classes, "torch" in sys.modules))


def test_a_detector_travels_to_a_spawned_process(made: Made) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    detector = oodcli.load_detector(made.packed, engine="onnx", tpr=0.7)
    wanted = detector.predict(images)
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_predict, args=(detector, images, answers))
    process.start()
    score, is_ood, classes, has_torch = answers.get()
    process.join()
    np.testing.assert_array_equal(score, wanted.score)
    np.testing.assert_array_equal(is_ood, wanted.ood)
    assert classes == wanted.classes
    assert not has_torch
    for source in (made.packed, made.exported):
        one = oodcli.load_detector(source, engine="onnx")
        two, three = (pickle.loads(pickle.dumps(one)) for _ in range(2))
        assert two.session is three.session is one.session
        np.testing.assert_array_equal(two.score(images), one.score(images))


def test_a_graph_is_written_once_and_again_for_a_new_fit(
    ood: Ood, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(made.code)
    store = Path(shutil.copytree(made.store, tmp_path / "own"))
    images = made.images / "test"
    argv = ("predict", images, "--store", store, "--engine", "onnx", "--format", "csv")
    folder = RunFolder(store / "runs" / "own").detector(METHOD, "float32")
    before = read_json(folder / "model.json")
    code, out, err = ood(*argv, "--method", METHOD)
    assert (code, "writing the graph" in err) == (0, False)
    # The same method written in another way, the second time without torch.
    code, again, err = ood(*argv, "--method", "energy:temperature=1.0")
    assert (code, again) == (0, out), err
    assert "writing the graph" not in err
    assert len(list(folder.parent.glob("*.json"))) == 1
    record = read_json(folder / "detector.json")
    record["origin"]["created"] = "2000-01-01"
    write_json(folder / "detector.json", record)
    code, again, err = ood(*argv, "--method", METHOD)
    assert (code, again) == (0, out), err
    assert read_json(folder / "model.json")["created"] > before["created"]


def test_verdicts_of_two_engines_are_not_mixed(
    ood: Ood, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(made.code)
    argv = ("predict", made.images / "test", "--detector", made.packed, "--output", "v.csv")
    monkeypatch.chdir(tmp_path)
    assert ood(*argv, "--engine", "onnx")[0] == 0
    assert read_json(tmp_path / "v.csv.ood.json")["engine"] == "onnx"
    assert ood(*argv, "--engine", "onnx")[0] == 0
    code, _, err = ood(*argv, "--allow-code")
    assert code == 1
    assert "v.csv was written with another engine (onnx, now torch)" in err
    # A file of an earlier version has no engine: it was torch.
    settings = read_json(tmp_path / "v.csv.ood.json")
    write_json(tmp_path / "v.csv.ood.json", {k: v for k, v in settings.items() if k != "engine"})
    assert ood(*argv, "--allow-code")[0] == 0
    code, _, err = ood(*argv, "--engine", "onnx")
    assert "written with another engine (torch, now onnx)" in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--detector", "{d}", "--run", "own"), "has its run and method; omit --run"),
        (("--detector", "{d}", "--method", "msp"), "has its run and method; omit --method"),
        (("--detector", "{d}"), "needs the Python code enginenet:small of its network"),
        (("--detector", "no"), "there is no file "),
        (("--detector", "{e}", "--engine", "torch"), "is an ONNX graph; use --engine onnx"),
        (("--detector", "{e}", "--device", "tpu"), "--engine onnx has no device 'tpu'"),
        (("--detector", "{e}", "--device", "cuda:0"), "does not compute on CUDA GPUs"),
        (("--detector", "{image}"), "is not a packed detector; make one: ood detector pack"),
        (("--engine", "onnx", "--amp"), "--amp is for --engine torch; omit it"),
        (
            ("--engine", "onnx", "--method", "odin"),
            "odin cannot be exported as an ONNX",
        ),
        (("--engine", "onnx", "--method", "enrgy"), "did you mean 'energy'?"),
        (("--allow-code",), "--allow-code is for packed detectors"),
    ],
)
def test_wrong_usage_is_one_line(ood: Ood, made: Made, argv: tuple[str, ...], told: str) -> None:
    image = next(made.images.glob("test/*/*.png"))
    places = {"d": made.packed, "e": made.exported, "image": image}
    code, out, err = ood(
        "predict", image, "--store", made.store, *(each.format(**places) for each in argv)
    )
    assert (code, out) == (1, "")
    assert told in err
    assert err.count("error: ") == 1
    assert len(err.splitlines()) == 1 + ("run: " in err)


def test_a_packed_file_is_shown_and_replaced(
    ood: Ood, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(made.code)
    code, out, err = ood("detector", "show", made.packed, "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    assert found["engines"] == ["torch", "onnx"]
    assert found["code"] == "enginenet:small"
    assert found["about"]["classes"] == ["blue", "red"]
    assert found["id_images"] == found["threshold"]["n"] == 24
    assert found["bytes"] == made.packed.stat().st_size > sum(found["sizes"].values()) > 0
    text = ood("detector", "show", made.packed)[1]
    assert "your own code enginenet:small (--allow-code)" in text
    pack = ("detector", "pack", "--store", made.store, "--method", METHOD)
    target = tmp_path / "mine"
    target.write_text("mine")
    code, _, err = ood(*pack, "--output", target)
    assert (code, target.read_text()) == (1, "mine")
    assert "exists and is not a packed detector; choose another file, or replace it" in err
    code, _, err = ood(*pack, "--output", target, "--overwrite")
    assert code == 0, err
    assert "the code of enginenet:small is not in the file" in err
    assert ood(*pack, "--output", target)[0] == 0  # its own file it replaces unasked
    code, _, err = ood("predict", made.images, "--detector", target, "--engine", "onnx")
    assert "was packed for --engine torch alone; pack the detector again for both" in err
    assert ood("detector", "pack", "--output", target)[0] == 1  # no store
    assert ood("detector", "pack", "--method", "msp")[0] == 2
    assert ood("detector", "show", tmp_path / "none")[0] == 1
    code, _, err = ood(*pack[:-1], "odin", "--engine", "onnx", "--output", target)
    assert (code, "odin cannot be exported" in err) == (1, True)


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("model.onnx", _flip, "model.onnx is damaged: its digest is not that in model.json"),
        ("model.onnx", Path.unlink, "there is no file "),
        ("model.json", _flip, "is damaged"),
        ("model.json", Path.unlink, "name a folder written by ood export, or a packed detector"),
    ],
)
def test_a_damaged_export_is_one_line(
    made: Made, tmp_path: Path, name: str, damage: Callable[[Path], object], told: str
) -> None:
    folder = Path(shutil.copytree(made.exported, tmp_path / "e"))
    damage(folder / name)
    with pytest.raises(OodError) as caught:
        oodcli.load_detector(folder).predict(next(made.images.glob("test/*/*.png")))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": None}, "is damaged"),
        ({"schema": 2}, "another version; export it again"),
        ({"preprocess": {"size": [1, 2], "resize": "exact", "mean": [0] * 3, "std": [1] * 3}},
         "takes images of 32 x 32 pixels and resizes them itself; export it again without"),
        ({"outputs": [{"name": "score"}, {"name": "no"}]}, "ONNX Runtime cannot compute 1 image"),
        ({"threshold": {"value": float("nan"), "tpr": 1, "n": 1, "below": 0}}, "is damaged"),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_is_one_line(
    made: Made, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    folder = Path(shutil.copytree(made.exported, tmp_path / "e"))
    content = {**read_json(folder / "model.json"), **change}
    if "threshold" in change:
        content["threshold"] = {**change["threshold"], "value": "x"}
    write_json(folder / "model.json", content)
    with pytest.raises(OodError) as caught:
        oodcli.load_detector(folder).predict(next(made.images.glob("test/*/*.png")))
    assert told in str(caught.value)


def test_a_graph_alone_is_packed(
    ood: Ood, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own code travels as a graph: nothing has to be allowed where it is used."""
    monkeypatch.syspath_prepend(made.code)
    target = tmp_path / "graph"
    code, _, err = ood(
        "detector", "pack", "--store", made.store, "--method", METHOD, "--engine", "onnx",
        "--output", target,
    )  # fmt: skip
    assert code == 0, err
    image = next(made.images.glob("test/*/*.png"))
    wanted = oodcli.load_detector(made.packed, engine="onnx").score(image)
    np.testing.assert_array_equal(oodcli.load_detector(target).score(image), wanted)
    with pytest.raises(InvalidInputError, match="was packed for engine onnx alone"):
        oodcli.load_detector(target, engine="torch")
