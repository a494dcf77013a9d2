"""Images and checkpoints of the user's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from oodcli.methods import parse_methods
from tests.support.cli import Ood, flat, tree


def rows(out: str) -> list[dict[str, object]]:
    """Return the rows of a JSON result."""
    return json.loads(out)["rows"]


def test_own_images_are_scored_against_photographs_and_noise(ood: Ood, tiny: Path) -> None:
    code, out, err = ood("score", "--format", "json")
    assert code == 0, err
    found = {(row["dataset"], row["group"]) for row in rows(out) if row["dataset"] != "average"}
    assert found == {("photographs", "ood"), ("gaussian-noise", "ood"), ("uniform-noise", "ood")}
    scored = {row["method"] for row in rows(out)} | set(json.loads(out)["left_out"])
    assert scored == {spec.canonical for spec in parse_methods([])}
    assert "NormRatio selected block" in err


def test_grey_images_get_grey_photographs(ood: Ood, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 16, 16), dtype=np.uint8)
    images[::2, :8] //= 4
    labels = np.arange(24) % 2
    path = tmp_path / "grey.npz"
    np.savez(
        path, train_images=images, train_labels=labels, test_images=images, test_labels=labels,
        class_names=np.array(["dark", "light"]), remark=np.array("ignored"),
    )  # fmt: skip
    assert ood("train", "--data", path, "--arch", "resnet18:width=2", "--epochs", 1)[0] == 0
    code, out, _ = ood("score", "--method", "msp", "--format", "json")
    assert code == 0
    assert "photographs-grey" in {row["dataset"] for row in rows(out)}


def test_the_same_images_as_folder_and_as_arrays_go_through_the_network_once(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    from PIL import Image

    folder = flat(tmp_path / "odd")
    arrays = np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())])
    np.savez(tmp_path / "same.npz", images=arrays)
    _, out, err = ood("score", "--method", "msp", "--ood", folder, "--format", "json")
    first = rows(out)[0]
    _, out, err = ood(
        "score", "--method", "msp", "--ood", tmp_path / "same.npz", "--format", "json"
    )
    assert "no forward pass" in err
    assert {**rows(out)[0], "dataset": ""} == {**first, "dataset": ""}


def test_a_whole_data_set_used_as_ood_gives_its_test_part(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    other = tree(tmp_path / "other", n=5)
    code, out, _ = ood(
        "score", "--method", "msp", "--ood", other, "--ood", "digits", "--format", "json"
    )
    assert code == 0
    sizes = {row["dataset"]: row["n_ood"] for row in rows(out)}
    assert sizes["other"] == 10
    assert sizes["digits"] == 217


def test_own_groups_and_shifted_sets_are_tabulated_as_those_of_benchmarks(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    shifted = tmp_path / "shifted"
    shutil.copytree(tiny / "test", shifted)
    sets = ("--near", flat(tmp_path / "close"), "--far", "digits", "--shifted-id", shifted)
    code, out, err = ood("score", "--method", "msp", *sets, "--format", "json")
    assert code == 0, err
    found = {(row["dataset"], row["group"]): row for row in rows(out)}
    assert {("close", "near"), ("digits", "far")} <= found.keys()
    average = found["average", "fs-near"]
    assert average["n_id"] == 2 * found["close", "near"]["n_id"]
    # The shifted set has the same images, so that its accuracy and all scores are the same.
    assert average["id_accuracy"] == found["close", "near"]["id_accuracy"]
    assert average["auroc"] == found["close", "near"]["auroc"]
    assert any(note.startswith("fs (full spectrum)") for note in json.loads(out)["notes"])


def test_a_shifted_set_needs_labels_of_the_network(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.npz"
    np.savez(bare, images=np.zeros((3, 8, 8, 3), np.uint8))
    code, _, err = ood("score", "--method", "msp", "--shifted-id", bare)
    assert (code, "labels" in err.splitlines()[-1]) == (1, True)
    code, _, err = ood("score", "--method", "msp", "--shifted-id", "digits")
    assert code == 1
    assert "digits has classes that the network does not have" in err


def test_a_changed_image_is_seen(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = flat(tmp_path / "odd")
    ood("score", "--method", "energy", "--ood", folder)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "0.png")
    _, _, err = ood("score", "--method", "energy", "--ood", folder)
    assert "forward pass:" in err
    assert "no forward pass" not in err


def test_images_without_a_validation_part_can_hold_some_out(ood: Ood, tmp_path: Path) -> None:
    root = tree(tmp_path / "data")
    code, name, _ = ood(
        "train", "--data", root, "--arch", "resnet18:width=2", "--epochs", 1, "--val-fraction", 0.25
    )
    assert code == 0
    record = json.loads(ood("runs", "show", name.strip())[1])
    assert record["parts"] == {"train": 18, "val": 6, "test": 24}
    assert record["training"]["val_accuracy"] is not None
    assert ood("score", "--method", "featurenorm")[0] == 0


@pytest.mark.parametrize("ending", ["pt", "pth", "th", "ckpt", "safetensors"])
@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict", "model"])
def test_a_checkpoint_comes_in_as_it_went_out(
    ood: Ood, tiny: Path, tmp_path: Path, ending: str, nest: str | None
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "store" / "runs" / "tiny" / "weights.safetensors")
    path = tmp_path / f"mine.{ending}"
    if ending == "safetensors":
        save_file(state, path)
    else:
        state = {f"module.{key}": value for key, value in state.items()}
        torch.save({nest: state, "epoch": 3} if nest else state, path)
    code, out, err = ood("import", path, "--arch", "resnet18:width=2", "--data", tiny)
    assert (code, out) == (0, "mine\n"), err
    record = json.loads(ood("runs", "show", "mine")[1])
    original = json.loads(ood("runs", "show", "tiny")[1])
    assert record["network"] == original["network"]
    assert record["origin"] == "imported"
    assert record["preprocess"]["mean"] == [0.5, 0.5, 0.5]


def test_normalisation_of_an_import_changes_its_scores(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "store" / "runs" / "tiny" / "weights.safetensors"
    results = []
    for name, mean in (("a", "0.5"), ("b", "0.485,0.456,0.406")):
        argv = ["import", weights, "--arch", "resnet18:width=2", "--data", tiny, "--name", name]
        assert ood(*argv, "--mean", mean)[0] == 0
        _, out, _ = ood("score", "--run", name, "--method", "energy", "--format", "json")
        results.append(rows(out))
    assert [r["auroc"] for r in results[0]] != [r["auroc"] for r in results[1]]
    code, out, _ = ood("report", "--run", "a", "--run", "b", "--format", "json")
    assert code == 0
    assert {row["run"] for row in rows(out)} == {"a", "b"}
    merged = rows(ood("report", "--run", "a", "--run", "b", "--average", "--format", "json")[1])
    assert merged[0]["n_runs"] == 2


def test_a_limit_takes_images_of_every_class_and_what_is_stored_of_all(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    odd = flat(tmp_path / "odd", n=20)
    command = ("score", "--method", "msp", "--method", "featurenorm", "--ood", odd)
    few = (*command, "--limit", 4, "--export", tmp_path / "few.npz", "--format", "json")
    code, out, err = ood(*few)
    assert code == 0, err
    scores = np.load(tmp_path / "few.npz")
    assert scores["@labels/colours"].tolist() == [0, 0, 1, 1]  # 12 images of each class, in order
    computed = {each["dataset"]: each["computed"] for each in json.loads(out)["passes"]}
    # Training has classified all test images; jigsaws of 4 training images are computed too.
    assert computed == {"colours": 0, "odd": 4, "colours train": 8}
    # Nothing but what is taken was decoded.
    images = (json.loads(path.read_text()) for path in tmp_path.rglob("images/*/manifest.json"))
    assert {(each["name"], each["rows"]) for each in images} >= {("colours", 4), ("odd", 4)}

    ood(*command, "--export", tmp_path / "all.npz")
    for folder in (tmp_path / "store" / "activations").iterdir():
        for path in folder.rglob("*.safetensors"):
            path.unlink()
    _, _, err = ood(*command, "--export", tmp_path / "all.npz")
    assert "forward pass: " in err
    # From here on the network is not needed for a part of what it has seen.
    _, out, err = ood(*few)
    assert "no forward pass: all " in err
    every, scores = np.load(tmp_path / "all.npz"), np.load(tmp_path / "few.npz")
    np.testing.assert_array_equal(scores["msp/odd"], every["msp/odd"][[0, 5, 10, 15]])
    np.testing.assert_array_equal(scores["msp/colours"], every["msp/colours"][[0, 6, 12, 18]])


def test_a_folder_of_classes_is_divided_and_the_run_remembers_how(ood: Ood, tmp_path: Path) -> None:
    whole = tree(tmp_path / "made", parts=("all",), n=20) / "all"
    argv = ("train", "--data", whole, "--arch", "resnet18:width=2", "--epochs", 1)
    code, name, err = ood(*argv, "--val-fraction", 0.25, "--per-class")
    assert code == 0, err
    assert (
        "all has no test images: 8 of 40, the same share of every class, are held out of "
        "training for testing (--test-fraction 0.2)\n" in err
    )
    record = json.loads(ood("runs", "show", name.strip())[1])
    assert record["parts"] == {"train": 24, "val": 8, "test": 8}
    assert record["test_fraction"] == 0.2
    tested = record["training"]["test"]
    assert (tested["n"], [n for n, _ in tested["by_class"]]) == (8, [4, 4])
    shares = [share for _, share in tested["by_class"]]
    assert tested["accuracy"] == pytest.approx(np.mean(shares))
    assert f"accuracy on 8 test images of all: {100 * tested['accuracy']:.2f} %\n" in err
    for class_name, share in zip(("blue", "red"), shares, strict=True):
        assert f" {class_name}" in err
        assert f"{100 * share:.2f}" in err
    # What training has classified is not computed again.
    code, out, err = ood("score", "--method", "msp", "--ood", "uniform-noise", "--format", "json")
    assert code == 0, err
    passes = {each["dataset"]: each["computed"] for each in json.loads(out)["passes"]}
    assert passes == {"all": 0, "uniform-noise": 1000}
    assert json.loads(out)["runs"][0]["id_accuracy"] == tested["accuracy"]
    # Another image in the folder would move others between the parts.
    (whole / "red" / "19.png").rename(whole / "red" / "00-first.png")
    code, _, err = ood("score", "--method", "msp", "--ood", "uniform-noise")
    assert code == 1
    assert f"all at {whole} has different images than when run {name.strip()} was made" in err


def test_a_share_to_test_on_is_taken_or_said_to_change_nothing(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "store" / "runs" / "tiny" / "weights.safetensors"
    whole = tree(tmp_path / "made", parts=("all",), n=10) / "all"
    argv = ("import", weights, "--arch", "resnet18:width=2", "--data")
    code, _, err = ood(*argv, whole, "--name", "whole")
    assert code == 0, err
    assert "all 20 images of all are test images; methods that learn need training images" in err
    assert json.loads(ood("runs", "show", "whole")[1])["parts"] == {"test": 20}
    assert ood(*argv, whole, "--name", "parted", "--test-fraction", 0.3)[0] == 0
    record = json.loads(ood("runs", "show", "parted")[1])
    assert (record["parts"], record["test_fraction"]) == ({"train": 14, "test": 6}, 0.3)
    _, _, err = ood(*argv, tiny, "--name", "other", "--test-fraction", 0.3)
    assert "colours has test images, so --test-fraction has no effect\n" in err
    assert json.loads(ood("runs", "show", "other")[1])["test_fraction"] == 0


@pytest.mark.parametrize("how", ["train", "import"])
def test_validation_images_are_held_out_where_the_val_folder_is_tested_on(
    ood: Ood, tiny: Path, tmp_path: Path, how: str
) -> None:
    root = tree(tmp_path / "data", parts=("train", "val"))
    argv = ("train", "--epochs", 1)
    if how == "import":
        argv = ("import", tmp_path / "store" / "runs" / "tiny" / "weights.safetensors")
    code, _, err = ood(
        *argv, "--data", root, "--arch", "resnet18:width=2", "--val-fraction", 0.25, "--name", "new"
    )
    assert code == 0, err
    assert "has no effect" not in err
    record = json.loads(ood("runs", "show", "new")[1])
    assert record["parts"] == {"train": 18, "val": 6, "test": 24}
    # The choice is made on images that are not tested on, as its advice says.
    code, _, err = ood("recommend", "--run", "new", "--method", "msp", "--method", "energy")
    assert code == 0, err
    assert "has no validation images" not in err


def test_a_classifier_that_guesses_is_said_to_before_its_methods(ood: Ood, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(80) % 4
    path = tmp_path / "noise.npz"
    np.savez(
        path, train_images=images, train_labels=labels,
        test_images=rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8), test_labels=labels,
    )  # fmt: skip
    _, _, err = ood("train", "--data", path, "--arch", "resnet18:width=2", "--epochs", 1)
    assert "warning: this is hardly better than chance (25.00 %)" in err
    _, out, err = ood("score", "--method", "msp", "--ood", "uniform-noise")
    assert "hardly better than chance\n" in err.split("scoring")[0]
    assert (
        "classifies hardly better than chance (25.00 %), so its scores are not informative"
        in (out.partition("FPR95 ↓")[0])
    )
    (run,) = json.loads(ood("report", "--format", "json")[1])["runs"]
    assert run["chance"] == 0.25


def test_a_known_name_is_distinguished_from_a_folder_of_that_name(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat(tmp_path / "here" / "uniform-noise")
    monkeypatch.chdir(tmp_path / "here")
    argv = ("score", "--method", "msp", "--format", "json", "--ood")
    note = (
        "uniform-noise means the data set that ood knows, not the folder uniform-noise in "
        "this folder; to use the folder: ./uniform-noise\n"
    )
    _, out, err = ood(*argv, "uniform-noise")
    assert (rows(out)[0]["n_ood"], note in err) == (1000, True)
    _, out, err = ood(*argv, "./uniform-noise")
    assert (rows(out)[0]["n_ood"], "means the data set" in err) == (7, False)


def test_a_known_name_is_distinguished_from_a_folder_before_anything_is_fetched(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from oodcli.data import run_data
    from oodcli.errors import DownloadError

    before: list[str] = []

    def download(name: str, *args: object, **options: object) -> None:
        before.append(capsys.readouterr().err)
        raise DownloadError(f"no {name}")

    monkeypatch.setattr(run_data, "download", download)
    flat(tmp_path / "here" / "svhn")
    monkeypatch.chdir(tmp_path / "here")
    for argv in (("score", "--ood", "svhn"), ("train", "--data", "svhn")):
        assert ood(*argv)[0] == 1
        assert "svhn means the data set that ood knows, not the folder" in before.pop()


def test_a_run_to_start_from_is_distinguished_from_a_file_of_its_name(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tiny").write_bytes(b"not weights")
    monkeypatch.chdir(tmp_path / "here")
    code, _, err = ood("train", "--data", tiny, "--init", "tiny", "--epochs", 1, "--name", "next")
    assert code == 0, err
    assert "--init tiny means the run, not the file tiny in this folder" in err


def test_the_run_that_is_used_is_marked(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "store" / "runs" / "tiny" / "weights.safetensors"
    ood("import", weights, "--arch", "resnet18:width=2", "--data", tiny, "--name", "later")

    def default() -> list[str]:
        entries = json.loads(ood("runs", "list", "--format", "json")[1])["runs"]
        return [each["name"] for each in entries if each["default"]]

    assert default() == ["later"]
    assert ood("runs", "use", "tiny")[:2] == (0, "tiny\n")
    assert default() == ["tiny"]
    out = ood("runs", "list")[1]
    assert "tiny *" in out
    assert "commands without --run use tiny; another: ood runs use RUN" in out
    assert "run: tiny" in ood("score", "--method", "msp", "--ood", "uniform-noise")[2]
    monkeypatch.setenv("OOD_RUN", "later")
    assert default() == ["later"]
    monkeypatch.delenv("OOD_RUN")
    assert ood("runs", "use", "--last")[:2] == (0, "later\n")
    assert ood("runs", "use")[0] == 2


def test_averages_are_over_common_sets_and_a_trial_set_can_be_dropped(ood: Ood, tiny: Path) -> None:
    ood("score", "--method", "msp", "--method", "energy", "--ood", "uniform-noise")
    ood("score", "--method", "msp", "--ood", "photographs")

    def table() -> tuple[dict[tuple[str, str], float], list[str]]:
        found = json.loads(ood("report", "--format", "json")[1])
        return {
            (r["method"], r["dataset"]): r["auroc"] for r in found["rows"] if r["group"] != "all"
        }, found["notes"]

    values, notes = table()
    for method in ("msp", "energy"):
        assert values[method, "average"] == values[method, "uniform-noise"]
    note = "averages of tiny are over the sets that all methods were scored on, without photographs"
    assert [each for each in notes if "averages of" in each] == [note]
    assert "did you mean 'photographs'?" in ood("runs", "drop", "photograph")[2]
    assert "give one of its sets: ood runs drop --run tiny SET" in ood("runs", "drop", "tiny")[2]
    assert ood("runs", "drop", "photographs")[2].endswith("dropped from run tiny: photographs\n")
    values, notes = table()
    assert "photographs" not in {dataset for _, dataset in values}
    assert not any("averages" in each for each in notes)
    ood("runs", "drop", "uniform-noise")
    assert "has no scores" in ood("report")[2]
    assert ood("score", "--method", "msp", "--ood", "uniform-noise")[0] == 0


def test_an_import_that_skips_unreadable_images_does_so_ever_after(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "store" / "runs" / "tiny" / "weights.safetensors"
    root = tree(tmp_path / "data")
    (root / "test" / "red" / "00.png").write_bytes(b"no image")
    argv = ("import", weights, "--arch", "resnet18:width=2", "--data", root, "--name")
    score = ("score", "--method", "msp", "--ood", "uniform-noise", "--run")
    assert ood(*argv, "strict")[0] == 0
    assert "cannot read image" in ood(*score, "strict")[2]
    assert ood(*argv, "lenient", "--skip-unreadable")[0] == 0
    code, out, err = ood(*score, "lenient")
    assert code == 0, err
    assert "data: 1 unreadable image skipped" in out
