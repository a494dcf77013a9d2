"""``ood score --tune`` and ``ood tuning``."""

import json
from pathlib import Path

import numpy as np
import pytest

from oodcli.data.benchmarks import Benchmark
from oodcli.data.dataset import Dataset
from oodcli.data.splits import Split
from oodcli.store.store import Store
from tests.support.cli import Ood, flat, tree


@pytest.fixture
def held_out(ood: Ood, tmp_path: Path) -> Path:
    """Train a run that has validation images; return a folder of OOD validation images."""
    data = tree(tmp_path / "colours", n=20)
    argv = ["train", "--data", data, "--arch", "resnet18:width=2", "--epochs", 1]
    assert ood(*argv, "--val-fraction", 0.3, "--batch-size", 8)[0] == 0
    rng = np.random.default_rng(5)
    np.savez(tmp_path / "grey.npz", images=rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    return tmp_path / "grey.npz"


def test_parameters_are_chosen_with_and_without_ood_images(
    ood: Ood, held_out: Path, tmp_path: Path
) -> None:
    folder = flat(tmp_path / "odd", n=9)
    code, out, err = ood(
        "score", "--method", "scale", "--method", "msp", "--tune", "openood", "--tune", "pseudo",
        "--tune-ood", held_out, "--ood", folder, "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    assert "tuning tries 7 settings of 1 method\n" in err
    rows = {row["method"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == {"msp", "scale+energy@openood", "scale+energy@pseudo"}
    assert rows["scale+energy@openood"]["params"]["tuned_on"] == "grey"
    assert rows["scale+energy@pseudo"]["params"]["tuned"] == "pseudo"
    notes = json.loads(out)["notes"]
    assert any("tuned without OOD data" in note for note in notes)
    assert "@openood: parameters chosen against grey" in notes
    assert "@pseudo: parameters chosen against jigsaws of colours val" in notes

    code, out, _ = ood("tuning", "scale@pseudo", "--format", "json")
    (search,) = json.loads(out)["searches"]
    assert code == 0
    assert search["n_id"] == search["n_ood"] == 12
    assert len(search["candidates"]) == 7
    best = max(each["auroc"] for each in search["candidates"])
    first = next(each["method"] for each in search["candidates"] if each["auroc"] == best)
    assert search["chosen"] == first
    code, out, _ = ood("tuning")
    assert code == 0
    assert "jigsaws of" in out
    code, out, _ = ood("tuning", "scale")
    assert code == 0
    assert out.count("scale:percentile=65+energy") >= 2


def test_tuning_says_what_it_lacks(ood: Ood, held_out: Path, tmp_path: Path) -> None:
    code, _, err = ood("tuning")
    assert code == 1
    assert "no parameters have been searched" in err
    folder = flat(tmp_path / "odd", n=9)
    code, _, err = ood(
        "score", "--method", "scale", "--method", "knn:k=3", "--tune", "openood", "--ood", folder
    )
    assert code == 1
    assert "--tune openood needs OOD validation images" in err
    assert "fitting" not in err
    code, _, err = ood(
        "score", "--method", "scale", "--tune", "openood", "--ood", folder, "--tune-ood", folder
    )
    assert code == 1
    assert "must not be tuned on test images" in err


def test_tuning_needs_validation_images(ood: Ood, tiny: Path) -> None:
    code, _, err = ood("score", "--method", "scale", "--tune", "pseudo")
    assert code == 1
    assert "--tune needs validation images, and colours has none" in err


def test_an_unknown_search_is_named_with_the_nearest(
    ood: Ood, held_out: Path, tmp_path: Path
) -> None:
    folder = flat(tmp_path / "odd", n=9)
    assert ood("score", "--method", "scale", "--tune", "pseudo", "--ood", folder)[0] == 0
    code, _, err = ood("tuning", "scal@pseudo")
    assert code == 1
    assert "did you mean 'scale+energy@pseudo'" in err


def test_the_benchmark_names_the_ood_validation_images(
    ood: Ood, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oodcli.scoring.sets
    from oodcli.data.dataset import take

    made = Benchmark(
        name="made", title="two colours", id_set="colours", near=("digits-6-9",),
        far=("uniform-noise",), ood_val="digits-6-9", ood_val_list="made/val",
        lists={"digits-6-9": "made/test"},
    )  # fmt: skip
    for module in ("scoring.sets", "reporting.sources", "data.benchmarks"):
        monkeypatch.setattr(f"oodcli.{module}.BENCHMARKS", {"made": made})
    rows = {"made/val": np.arange(0, 40), "made/test": np.arange(40, 90)}

    def split(dataset: Dataset, key: str, _store: Store) -> Split:
        return Split(take(dataset.ood_part, rows[key]), key, "0" * 64)

    monkeypatch.setattr(oodcli.scoring.sets, "split", split)
    code, out, err = ood(
        "score", "--benchmark", "made", "--method", "scale", "--tune", "openood", "--format", "json"
    )
    assert code == 0, err
    params = json.loads(out)["rows"][0]["params"]
    assert params["tuned_on"] == "digits-6-9 val"
    (search,) = json.loads(ood("tuning", "--format", "json")[1])["searches"]
    assert (search["ood_set"], search["n_ood"]) == ("digits-6-9 val", 40)


@pytest.mark.parametrize("argv", [
    ("--tune", "pseudo"), ("--tune", "openood"), ("--method", "auto"),
])  # fmt: skip
def test_what_lacks_images_is_refused_before_any_is_read(
    ood: Ood, tiny: Path, argv: tuple[str, ...]
) -> None:
    code, out, err = ood("score", *argv)
    assert (code, out) == (1, "")
    assert "needs validation images, and colours has none" in err
    assert "reading" not in err


def test_damaged_scores_are_reported_before_the_work(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    assert ood("score", "--method", "msp", "--ood", "uniform-noise")[0] == 0
    (index,) = tmp_path.rglob("scoring.json")
    index.write_text(index.read_text().replace("0.", "0.1", 1))
    code, _, err = ood("score", "--method", "energy", "--ood", "gaussian-noise")
    assert code == 1
    assert str(index) in err
    assert "reading" not in err


def test_a_file_that_cannot_be_written_is_reported_before_the_work(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    code, _, err = ood("score", "--method", "msp", "--export", tmp_path / "none" / "scores.npz")
    assert code == 1
    assert "there is no folder" in err
    assert "forward pass" not in err


def test_a_quick_look_does_not_hide_what_was_scored_in_full(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    folder = flat(tmp_path / "odd", n=9)
    assert ood("score", "--method", "scale", "--ood", folder)[0] == 0
    code, out, _ = ood("score", "--method", "msp", "--ood", folder, "--limit", 3)
    assert "a quick look: 3 images of each set, evenly spaced" in out
    code, out, _ = ood("report", "--method", "scale")
    assert code == 0
    assert "quick look" not in out
    assert "scale+energy" in out
    assert "a quick look" in ood("report", "--limit", 3)[1]
