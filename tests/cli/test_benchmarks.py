"""Scoring on benchmarks: what is missing, full spectrum, lists, and the benchmark's resizing."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from oodcli.data.benchmarks import Benchmark
from oodcli.data.splits import Split
from oodcli.metrics import Curve, convention_named
from oodcli.store.runs import RunFolder
from tests.support.cli import Ood, tree

MADE = Benchmark(
    name="made",
    title="a benchmark for two colours",
    id_set="colours",
    near=("photographs",),
    far=("digits-6-9", "uniform-noise"),
    shifted=("gaussian-noise",),
    convention="openood",
    resize="shorter-crop",
)
_WITH_BENCHMARKS = (
    "data.benchmarks",
    "scoring.sets",
    "reporting.sources",
    "reporting.notes",
    "training.images",
)


@pytest.fixture
def tiny(tiny: Path, tmp_path: Path) -> Path:
    """Return the images of the run, which has them under the name that the benchmark knows."""
    folder = RunFolder(tmp_path / "store" / "runs" / "tiny")
    record = folder.read()
    folder.write(replace(record, job=replace(record.job, data=f"colours={tiny}")))
    return tiny


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts made benchmarks in place of the real ones."""

    def put(*made: Benchmark) -> None:
        known = {each.name: each for each in made}
        # All are loaded before one is changed, so that none is loaded with what is made.
        for module in [import_module(f"oodcli.{name}") for name in _WITH_BENCHMARKS]:
            monkeypatch.setattr(module, "BENCHMARKS", known)

    return put


def test_missing_sets_are_named_with_the_command_that_gets_them(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None]
) -> None:
    benchmarks(replace(MADE, far=("svhn", "uniform-noise", "textures")))
    code, out, err = ood("score", "--benchmark", "made", "--method", "msp")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: benchmark made lacks svhn, textures; get them: "
        "ood datasets download --benchmark made, or score the others: --allow-missing"
    )
    code, out, err = ood(
        "score", "--benchmark", "made", "--method", "msp", "--allow-missing", "--limit", 5
    )
    assert code == 0
    assert "note: not the whole benchmark made: without svhn, textures" in out
    assert "uniform-noise" in out
    # The report of another day says so too.
    assert "without svhn, textures" in ood("report", "--limit", 5)[1]


def test_without_the_lists_of_a_benchmark_whole_sets_are_scored_under_no_name(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None]
) -> None:
    lists = {"uniform-noise": "made/test_noise", "photographs": "made/test_photographs"}
    benchmarks(
        replace(MADE, needs=("openood-lists",), lists=lists, id_test_list="made/test_colours")
    )
    wanted = ("score", "--benchmark", "made", "--method", "msp", "--format", "json")
    code, out, err = ood(*wanted)
    assert (code, out) == (1, "")
    assert "benchmark made lacks openood-lists; get them" in err
    code, out, err = ood(*wanted, "--allow-missing")
    assert code == 0, err
    assert (
        "the lists of made are not in the store, so that all images of each set are scored, "
        "without gaussian-noise; results are not those of the benchmark; get the lists: "
        "ood datasets download openood-lists" in err
    )
    table = json.loads(out)
    groups = {row["dataset"]: row["group"] for row in table["rows"] if row["dataset"] != "average"}
    assert groups == {"photographs": "near", "digits-6-9": "far", "uniform-noise": "far"}
    # Nothing may be compared with what is published on the benchmark.
    assert table["benchmark"] is None
    assert json.loads(ood("report", "--format", "json")[1])["benchmark"] is None


@pytest.mark.parametrize("allowed", [(), ("--allow-missing",)])
@pytest.mark.parametrize("shifted", [(), ("gaussian-noise",)])
def test_a_benchmark_without_any_ood_set_is_refused_before_the_pass(
    ood: Ood,
    tiny: Path,
    benchmarks: Callable[..., None],
    allowed: tuple[str, ...],
    shifted: tuple[str, ...],
) -> None:
    benchmarks(replace(MADE, near=(), far=("svhn", "textures"), shifted=shifted))
    code, out, err = ood("score", "--benchmark", "made", "--method", "msp", *allowed)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: no OOD set of benchmark made is in the store; get them: ood datasets download "
        "--benchmark made, or use sets of your own instead: --ood NAME|FOLDER"
    )
    assert "forward pass" not in err
    assert "reading" not in err
    # Without a name, what comes with ood is scored; shifted sets alone make no table.
    _, _, err = ood("score", "--method", "msp", "--limit", 4)
    assert (
        "no OOD set of benchmark made is in the store: scoring on the photographs and noise" in err
    )


def test_benchmark_of_other_data_is_refused(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None]
) -> None:
    code, _, err = ood("score", "--benchmark", "digits")
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: benchmark digits is for networks trained on digits, "
        "and run tiny was trained on colours; name its sets: --near, --far or --ood"
    )


def test_own_benchmark_falls_back_to_what_comes_with_ood(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None]
) -> None:
    benchmarks(replace(MADE, near=(), far=("svhn", "textures"), shifted=()))
    _, out, err = ood("score", "--method", "msp", "--limit", 4)
    assert (
        "no OOD set of benchmark made is in the store: scoring on the photographs and noise" in err
    )
    assert "gaussian-noise" in out
    assert "convention neutral" in out


def test_the_name_of_a_folder_makes_no_benchmark_and_no_recipe(
    ood: Ood, tmp_path: Path, benchmarks: Callable[..., None]
) -> None:
    benchmarks(MADE)
    for known in ("colours", "digits", "imagenet200"):
        folder = tree(tmp_path / known, n=4)
        argv = ("train", "--epochs", 1, "--batch-size", 8, "--name", f"f-{known}", "--data", folder)
        code, _, err = ood(*argv)
        assert code == 0, err
        # What is trained on images of nobody's; 24 by 20 pixels are seen at 32.
        record = json.loads(ood("runs", "show", f"f-{known}")[1])
        assert (record["data_name"], record["arch"]) == (known, "resnet18")
        assert record["recipe"]["name"] == "featurenorm-resnet18"
        assert record["preprocess"]["size"] == [32, 32]
    code, _, err = ood("score", "--run", "f-colours", "--method", "msp", "--limit", 4, "--dry-run")
    assert code == 0, err
    assert "made" not in err


def test_own_benchmark_continues_with_the_sets_in_the_store(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None]
) -> None:
    benchmarks(replace(MADE, far=("svhn",), shifted=()))
    _, out, err = ood("score", "--method", "msp", "--limit", 4)
    assert "continuing without svhn of made" in err
    assert "benchmark made, convention openood" in out
    assert "note: not the whole benchmark made: without svhn" in out


def test_full_spectrum_rows_put_shifted_images_on_the_id_side(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None], tmp_path: Path
) -> None:
    benchmarks(MADE)
    file = tmp_path / "scores.npz"
    code, out, _ = ood(
        "score", "--benchmark", "made", "--method", "energy", "--format", "json", "--export", file
    )
    assert code == 0
    rows = {(row["dataset"], row["group"]): row for row in json.loads(out)["rows"]}
    assert list(rows) == [
        ("photographs", "near"), ("average", "near"),
        ("digits-6-9", "far"), ("uniform-noise", "far"), ("average", "far"), ("average", "all"),
        ("photographs", "fs-near"), ("average", "fs-near"),
        ("digits-6-9", "fs-far"), ("uniform-noise", "fs-far"), ("average", "fs-far"),
    ]  # fmt: skip
    scores = np.load(file)
    plain, shifted = scores["energy/colours"], scores["energy/gaussian-noise"]
    for dataset, group in (("photographs", "near"), ("uniform-noise", "far")):
        for id_scores, shown in ((plain, group), (np.concatenate([plain, shifted]), f"fs-{group}")):
            curve = Curve.of(id_scores, scores[f"energy/{dataset}"], method="energy", dataset="x")
            wanted = curve.detection(convention_named("openood"))
            assert rows[dataset, shown]["auroc"] == wanted.auroc
            assert rows[dataset, shown]["fpr95"] == wanted.fpr95
            assert rows[dataset, shown]["n_id"] == len(id_scores)
    # Noise has no classes, so that the accuracy over the whole spectrum is not known.
    assert rows["photographs", "fs-near"]["id_accuracy"] is None
    table = ood("report", "--benchmark", "made", "--full")[1]
    assert "fs-near" in table
    assert "fs (full spectrum): ID images are the test images and gaussian-noise (1,000" in table


def test_full_spectrum_needs_every_shifted_set(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None]
) -> None:
    benchmarks(replace(MADE, shifted=("gaussian-noise", "cifar10-c-sample")))
    _, out, _ = ood("score", "--benchmark", "made", "--method", "msp", "--allow-missing")
    assert "fs-near" not in out
    assert "without cifar10-c-sample" in out


def test_benchmark_decides_how_images_are_resized(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None], tmp_path: Path
) -> None:
    """The images are 20 by 24 pixels: cut to the centre, or squeezed."""
    seen = {}
    for how in ("exact", "shorter-crop"):
        benchmarks(replace(MADE, resize=how, shifted=()))
        file = tmp_path / f"{how}.npz"
        ood("score", "--benchmark", "made", "--method", "energy", "--export", file)
        seen[how] = np.load(file)
    for name in seen["exact"].files:
        same = np.array_equal(seen["exact"][name], seen["shorter-crop"][name])
        # The photographs, digits and noise are square: the same either way.
        assert same == (name != "energy/colours") or name.startswith("@")


def test_the_table_says_whose_resizing_images_got(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None]
) -> None:
    """The run squeezes its images of 20 by 24 pixels; the benchmark cuts them to the centre."""
    benchmarks(replace(MADE, shifted=()))
    by_benchmark = "benchmark made has it (shorter-crop to 32 x 32)"
    by_network = "the network has it (exact to 32 x 32)"
    notes = {
        "benchmark": f"tiny: images are resized as {by_benchmark}, not as {by_network}; to change "
        "that: ood score --resize network",
        "network": f"tiny: images are resized as {by_network}, not as {by_benchmark}; to change "
        "that: ood score --resize benchmark",
    }
    argv = ["score", "--benchmark", "made", "--method", "msp", "--format", "json"]
    for more, who, how in (
        ((), "benchmark", "shorter-crop"),
        (("--resize", "network"), "network", "exact"),
        (("--resize", "benchmark"), "benchmark", "shorter-crop"),
    ):
        code, out, err = ood(*argv, *more)
        assert code == 0, err
        for shown in (json.loads(out), json.loads(ood("report", "--format", "json")[1])):
            (run,) = shown["runs"]
            assert (run["resized_as"], run["resize"]) == (who, how)
            assert [note for note in shown["notes"] if "resized" in note] == [notes[who]]
    # Where both have the same way there is nothing to say.
    benchmarks(replace(MADE, resize="exact", shifted=()))
    shown = json.loads(ood(*argv)[1])
    assert shown["runs"][0]["resized_as"] is None
    assert shown["runs"][0]["resize"] == "exact"
    assert not [note for note in shown["notes"] if "resized" in note]


def test_the_resizing_of_a_benchmark_needs_one(ood: Ood, tiny: Path) -> None:
    argv = ["score", "--ood", "uniform-noise", "--method", "msp", "--resize", "benchmark"]
    code, out, err = ood(*argv)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: --resize benchmark: no benchmark is scored here; name one (--benchmark), or leave "
        "it out"
    )


def test_report_keeps_benchmarks_apart(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None]
) -> None:
    other = replace(MADE, name="other", near=(), shifted=(), resize="exact", convention="knn")
    benchmarks(replace(MADE, shifted=()), other)
    for name in ("made", "other"):
        ood("score", "--benchmark", name, "--method", "msp")
    first, second = (ood("report", "--benchmark", name)[1] for name in ("made", "other"))
    assert "photographs" in first
    assert "convention openood" in first
    assert "photographs" not in second
    assert "convention knn" in second
    benchmarks(MADE, other, replace(MADE, name="third", near=("svhn",), far=(), shifted=()))
    code, _, err = ood("report", "--benchmark", "third")
    assert code == 1
    assert (
        "run tiny has no scores on third; compute them: ood score --run tiny --benchmark third"
        in err
    )


def test_lists_stand_in_the_report(
    ood: Ood, tiny: Path, benchmarks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation and test images come from the lists, and so does their checksum."""
    from oodcli.data.dataset import take

    def split(dataset, key, store):
        part = dataset.ood_part
        rows = {"val": np.arange(0, 4), "test": np.arange(4, len(part))}[key.partition("_")[0]]
        return Split(take(part, rows), key, f"{len(rows):02d}ab{'0' * 60}")

    monkeypatch.setattr("oodcli.scoring.sets.split", split)
    monkeypatch.setattr("oodcli.data.run_data.split", split)
    benchmarks(
        replace(
            MADE,
            shifted=(),
            id_val_list="val_colours",
            id_test_list="test_colours",
            lists={"uniform-noise": "test_noise"},
        )
    )
    code, out, _ = ood("score", "--benchmark", "made", "--method", "msp", "--format", "json")
    assert code == 0
    content = json.loads(out)
    assert content["splits"] == {
        "colours": {"list": "test_colours", "sha256": "20ab" + "0" * 60},
        "uniform-noise": {"list": "test_noise", "sha256": "996ab" + "0" * 60},
    }
    assert content["runs"][0]["n_id"] == 20
    assert {row["n_ood"] for row in content["rows"] if row["dataset"] == "uniform-noise"} == {996}
    table = ood("report", "--full")[1]
    assert "images of OpenOOD's lists (sha256): colours 20ab0000, uniform-noise 996ab000" in table
