"""All commands in order on the embedded digits, as a new user would type them."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.program import start_program

Ood = Callable[..., tuple[int, str, str]]
SMALL = ("--image-size", 16, "--resize", "exact")  # a quarter of the work of the usual 32 x 32
TRAIN = ("train", "--data", "digits", "--arch", "resnet18:width=4", "--epochs", 3, *SMALL)


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small network on digits for seeds 0 and 1; return the store, to be copied."""
    from oodcli.cli.app import main

    root = tmp_path_factory.mktemp("digits") / "store"
    for seed in (0, 1):
        line = (*TRAIN, "--store", root, "--name", f"d{seed}", "--seed", seed)
        with pytest.raises(SystemExit) as end:
            main([str(each) for each in line])
        assert not end.value.code
    return root


@pytest.fixture
def seeds(ood: Ood, digits_store: Path, tmp_path: Path) -> Ood:
    """Copy the store with the runs ``d0`` and ``d1`` for this test."""
    shutil.copytree(digits_store, tmp_path / "store")
    return ood


@pytest.fixture
def trained(seeds: Ood) -> Ood:
    """Leave the run ``d`` alone in the store of this test."""
    seeds("runs", "remove", "d1")
    assert seeds("runs", "rename", "d0", "d")[0] == 0
    return seeds


def test_the_whole_job_in_one_command(ood: Ood) -> None:
    code, out, err = ood("run", "--epochs", 4, "--arch", "resnet18:width=8", "--format", "json")
    assert code == 0, err
    result = json.loads(out)
    assert result["benchmark"] == "digits"
    assert result["runs"][0]["id_accuracy"] > 0.9
    groups = {(row["dataset"], row["group"]) for row in result["rows"]}
    assert groups == {
        ("digits-6-9", "near"),
        ("average", "near"),
        ("photographs-grey", "far"),
        ("gaussian-noise", "far"),
        ("uniform-noise", "far"),
        ("average", "far"),
        ("average", "all"),
    }
    chosen = result["normratio"]["selected"]
    assert {row["params"]["block"] for row in result["rows"] if row["method"] == "featurenorm"} == {
        chosen
    }
    assert list(result["seconds"]) == ["train", "normratio", "score", "report"]
    code, again, err = ood("run", "--epochs", 4, "--arch", "resnet18:width=8", "--format", "json")
    assert code == 0
    assert "is already finished" in err
    assert json.loads(again)["rows"] == result["rows"]


def test_the_table_does_not_depend_on_the_number_of_threads(ood: Ood, tmp_path: Path) -> None:
    import torch

    for threads in (2, 1):  # the last one is what all tests have
        torch.set_num_threads(threads)
        assert ood(*TRAIN, "--epochs", 1, "--name", "d", "--store", tmp_path / str(threads))[0] == 0
    assert weights(tmp_path / "1", "d") == weights(tmp_path / "2", "d")


def test_the_commands_one_by_one(trained: Ood, tmp_path: Path) -> None:
    ood = trained
    code, out, err = ood("normratio")
    assert code == 0
    assert err.startswith("run: d\n")
    assert "selected" in out
    assert out.count("4.") >= 2

    export = tmp_path / "scores.npz"
    code, out, err = ood("score", "--method", "featurenorm", "--method", "msp", "--export", export)
    assert code == 0
    assert "NormRatio selected block" in err
    with np.load(export) as stored:
        names = set(stored.files)
        sizes = {name: len(stored[name]) for name in names}
        accuracy = np.mean(stored["@labels/digits"] == stored["@predictions/digits"])
    sets = {"digits": 217, "digits-6-9": 714, "photographs-grey": 520}
    sets |= {"gaussian-noise": 1000, "uniform-noise": 1000}
    assert names == {f"{m}/{s}" for m in ("featurenorm", "msp") for s in sets} | {
        "@labels/digits",
        "@predictions/digits",
    }
    assert all(sizes[f"msp/{s}"] == n for s, n in sets.items())

    code, again, err = ood("score", "--method", "featurenorm", "--method", "msp")
    assert again == out
    assert "no forward pass: all" in err

    code, out, err = ood("report", "--format", "json")
    report = json.loads(out)
    assert report["schema"] == 1
    assert report["convention"] == "neutral"
    assert len(report["rows"]) == 2 * (4 + 3)
    assert report["rows"][0]["id_accuracy"] == pytest.approx(accuracy)
    assert {row["n_id"] for row in report["rows"]} == {217}

    for how in ("table", "markdown", "csv"):
        code, out, err = ood("report", "--format", how)
        assert code == 0
        assert "digits-6-9" in out
        assert "\x1b" not in out
    target = tmp_path / "report.md"
    assert ood("report", "--format", "markdown", "--output", target)[1] == ""
    assert target.read_text() == ood("report", "--format", "markdown")[1]


def test_conventions_move_fpr_and_leave_auroc(trained: Ood) -> None:
    trained("score", "--method", "msp")
    reports = {
        name: json.loads(trained("report", "--format", "json", "--convention", name)[1])["rows"]
        for name in ("neutral", "openood", "knn", "featurenorm")
    }
    for name, rows in reports.items():
        assert {row["convention"] for row in rows} == {name}
        for row, base in zip(rows, reports["neutral"], strict=True):
            assert row["auroc"] == pytest.approx(base["auroc"])
    assert reports["openood"][0]["fpr95"] != reports["neutral"][0]["fpr95"]


def test_a_quick_look_says_that_it_is_one(trained: Ood) -> None:
    code, out, _ = trained("score", "--limit", 50)
    assert code == 0
    assert "a quick look: 50 images of each set, evenly spaced" in out
    assert "(50 test images" in out
    assert "50 images of each set" in trained("report")[1]
    trained("score", "--method", "msp")
    assert "quick look" not in trained("report")[1]
    assert "50 images of each set" in trained("report", "--limit", 50)[1]


def test_a_dry_run_computes_nothing(trained: Ood, tmp_path: Path) -> None:
    # Training has classified the test images at its end.
    before = set((tmp_path / "store").rglob("*.safetensors"))
    code, out, _ = trained("score", "--dry-run", "--format", "json")
    assert code == 0
    plan = json.loads(out)
    assert plan["images_per_s"] > 0
    assert sum(p["missing"] for p in plan["passes"]) == 714 + 520 + 2000 + 2 * 758 + 108
    assert set((tmp_path / "store").rglob("*.safetensors")) == before
    trained("score")
    plan = json.loads(trained("score", "--dry-run", "--format", "json")[1])
    assert sum(p["missing"] for p in plan["passes"]) == 0
    assert "0.0 s" in trained("score", "--dry-run")[1]


def test_normratio_variants_stand_side_by_side(trained: Ood) -> None:
    full = json.loads(trained("normratio", "--format", "json")[1])
    raw = json.loads(trained("normratio", "--no-normalise", "--format", "json")[1])
    some = json.loads(trained("normratio", "--max-images", 100, "--format", "json")[1])
    assert (full["n_images"], raw["n_images"], some["n_images"]) == (758, 758, 100)
    assert (full["normalised"], raw["normalised"]) == (True, False)
    assert [b["ratio"] for b in full["blocks"]] != [b["ratio"] for b in raw["blocks"]]
    assert some["blocks"][0]["stderr"] > full["blocks"][0]["stderr"]
    assert [b["name"] for b in full["blocks"]] == [f"{s}.{i}" for s in (1, 2, 3, 4) for i in (1, 2)]
    assert full["blocks"][6]["shape"] == [32, 2, 2]
    assert set(full["blocks"][0]) == {"index", "name", "shape", "ratio", "stderr", "excluded"}
    shown = json.loads(trained("runs", "show", "d")[1])
    assert set(shown["normratio"]) == {"normalised-all", "unnormalised-all", "normalised-100"}


def test_seeds_are_averaged(seeds: Ood) -> None:
    ood = seeds
    for name in ("d0", "d1"):
        ood("score", "--method", "msp", "--run", name)
    code, out, _ = ood("report", "--run", "d0", "--run", "d1", "--format", "json")
    assert code == 0
    rows = json.loads(out)["rows"]
    singles = [
        json.loads(ood("report", "--run", f"d{s}", "--format", "json")[1])["rows"] for s in (0, 1)
    ]
    for row, a, b in zip(rows, *singles, strict=True):
        assert row["n_runs"] == 2
        assert row["auroc"] == pytest.approx((a["auroc"] + b["auroc"]) / 2)
        assert row["std"]["auroc"] == pytest.approx(abs(a["auroc"] - b["auroc"]) / 2)
    assert " ± " in ood("report", "--run", "d0", "--run", "d1")[1]


def test_what_cannot_be_averaged_is_not(ood: Ood) -> None:
    """Seeds scored on different sets are averaged over those they share; equal seeds not at all."""
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        ood(*TRAIN, "--epochs", 1, "--name", name, "--seed", seed)
        ood("score", "--method", "msp", "--run", name)
    ood("score", "--method", "energy", "--ood", "digits-6-9", "--run", "a")
    _, out, _ = ood("report", "--run", "a", "--run", "b", "--format", "json")
    report = json.loads(out)
    assert {row["method"] for row in report["rows"]} == {"msp"}
    assert (
        "averages over runs include only methods and sets scored in all of them" in report["notes"]
    )
    _, out, _ = ood("report", "--run", "b", "--run", "c", "--format", "json")
    assert {row["run"] for row in json.loads(out)["rows"]} == {"b", "c"}
    ood(*TRAIN, "--epochs", 1, "--name", "d", "--seed", 2)
    ood("score", "--method", "msp", "--run", "d", "--limit", 9)
    code, _, err = ood("report", "--run", "a", "--run", "d")
    assert code == 1
    assert "were scored on different numbers of images (all and 9 of each set)" in err


def test_a_damaged_run_is_in_nobodys_way(trained: Ood, tmp_path: Path) -> None:
    (tmp_path / "store" / "runs" / "d" / "run.json").write_text("{")
    assert "damaged" in trained("runs", "list")[1]
    code, out, _ = trained("train", *TRAIN[1:], "--epochs", 1, "--resume")
    assert code == 0
    assert out != "d\n"
    assert trained("runs", "remove", "d")[0] == 0


def weights(store: Path, name: str) -> bytes:
    """Return the weights of a run."""
    return (store / "runs" / name / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_training_that_is_interrupted_resumes_and_ends_with_the_same_weights(
    ood: Ood, tmp_path: Path, sent: signal.Signals
) -> None:
    long = (*TRAIN, "--epochs", 6)  # enough to be cut off in
    ood(*long, "--name", "whole")
    store = tmp_path / "store"
    program = start_program(*long, "--name", "cut")
    program.wait_until((store / "runs" / "cut" / "state.json").is_file)
    program.send_signal(sent)
    code, _, err = program.ended()
    if sent is signal.SIGINT:
        assert code == 130
        assert err.splitlines()[-1].startswith(
            "error: interrupted; resume with: ood train --resume"
        )
        assert "Traceback" not in err
    assert not (store / "runs" / "cut" / "run.json").exists()
    assert "unfinished" in ood("runs", "list")[1]
    code, out, err = ood("train", "--resume", "--run", "cut")
    assert (code, out) == (0, "cut\n")
    assert "resuming after epoch" in err
    assert weights(store, "cut") == weights(store, "whole")
    assert not list((store / "runs" / "cut").glob("state*"))


def test_extraction_that_is_interrupted_resumes(trained: Ood, tmp_path: Path) -> None:
    trained("score", "--method", "msp")
    shards = sorted((tmp_path / "store" / "activations").rglob("*.safetensors"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"!")
    code, _, err = trained("score", "--method", "msp")
    assert code == 0
    assert "forward pass:" in err
    assert "is damaged: recomputing it" in err
    assert "no forward pass" in trained("score", "--method", "msp")[2]


def test_runs_are_renamed_and_removed(trained: Ood, tmp_path: Path) -> None:
    trained("score", "--method", "msp")
    assert trained("runs", "rename", "d", "best")[:2] == (0, "best\n")
    assert trained("report", "--run", "best")[0] == 0
    code, _, err = trained("runs", "remove", "best")
    assert code == 0
    assert err.startswith("removed best: ")
    listed = json.loads(trained("runs", "list", "--format", "json")[1])
    assert listed["runs"] == []
    assert listed["usage"]["activations"] == 0
    assert list((tmp_path / "store" / "runs").iterdir()) == []


def test_a_store_may_be_a_folder_that_holds_other_things(ood: Ood, tmp_path: Path) -> None:
    store = tmp_path / "home"
    (store / "runs" / "tensorboard").mkdir(parents=True)
    (store / "runs" / "tensorboard" / "events").write_text("mine")
    (store / "thesis.tex").write_text("mine")
    code, out, _ = ood(*TRAIN, "--store", store)
    assert code == 0
    assert ood("runs", "remove", out.strip(), "--store", store)[0] == 0
    assert (store / "thesis.tex").read_text() == "mine"
    assert (store / "runs" / "tensorboard" / "events").read_text() == "mine"


def test_two_processes_on_one_store_run_the_network_once(trained: Ood, tmp_path: Path) -> None:
    both = [start_program("score", "--method", "featurenorm", "--format", "json") for _ in range(2)]
    outputs = [program.ended() for program in both]
    assert [code for code, *_ in outputs] == [0, 0], outputs
    results = [json.loads(out) for _, out, _ in outputs]
    assert results[0]["rows"] == results[1]["rows"]
    computed = sum(each["computed"] for result in results for each in result["passes"])
    # Training has classified the 217 test images at its end.
    assert computed == 714 + 520 + 2000 + 2 * 758
