"""``ood score --tune`` and ``ood tuning``."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Ood, flat, tree


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
    assert "tuning tries 7 settings of 1 methods" in err
    rows = {row["method"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == {"msp", "scale+energy@openood", "scale+energy@pseudo"}
    assert rows["scale+energy@openood"]["params"]["tuned_on"] == "grey"
    assert rows["scale+energy@pseudo"]["params"]["tuned"] == "pseudo"
    assert any("tuned without OOD data" in note for note in json.loads(out)["notes"])

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
    code, _, err = ood("score", "--method", "scale", "--tune", "openood", "--ood", folder)
    assert code == 1
    assert "--tune openood needs OOD validation images" in err
    code, _, err = ood(
        "score", "--method", "scale", "--tune", "openood", "--ood", folder, "--tune-ood", folder
    )
    assert code == 1
    assert "must not be chosen on what they are tested on" in err


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
