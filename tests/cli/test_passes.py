"""What ``ood score`` decodes, runs through the network and stores, counted."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodcli.data.decoding import files
from oodcli.data.decoding.files import decode
from tests.support.cli import flat, tree

Ood = Callable[..., tuple[int, str, str]]


def forget(store: Path) -> None:
    """Remove what training has decoded and computed."""
    for name in ("images", "activations"):
        shutil.rmtree(store / name, ignore_errors=True)


def test_no_image_is_computed_twice_for_training_calibration_and_puzzles(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    """The calibration images, a tenth of those of training, are found among these."""
    forget(tmp_path / "store")
    flat(tmp_path / "odd")
    line = ("score", "--ood", tmp_path / "odd", "--method", "klm", "--method", "mds")
    # klm learns from the two images that there are for it, and refuses them: code 1.
    _, out, err = ood(*line, "--method", "featurenorm", "--format", "json")
    assert "klm is not defined here" in err
    computed = {each["dataset"]: each["computed"] for each in json.loads(out)["passes"]}
    # Of training, every image and its puzzle.
    assert computed == {"colours": 24, "odd": 7, "colours train": 48}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of files that are decoded."""
    seen: list[Path] = []

    def counted(path: Path, **how: Any) -> np.ndarray:
        seen.append(path)
        return decode(path, **how)

    monkeypatch.setattr(files, "decode", counted)
    return seen


def by_set(result: dict[str, Any]) -> dict[str, Any]:
    return {each["dataset"]: each for each in result["passes"]}


def planned(ood: Ood, *line: object) -> dict[str, tuple[int, int, int]]:
    code, out, err = ood("score", *line, "--dry-run", "--format", "json")
    assert code == 0, err
    return {
        each["dataset"]: (each["images"], each["missing"], each["undecoded"])
        for each in json.loads(out)["passes"]
    }


def test_a_dry_run_decodes_nothing(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    forget(tmp_path / "store")
    flat(tmp_path / "odd")
    line = ("--ood", tmp_path / "odd", "--method", "featurenorm", "--method", "klm")
    every = {
        "colours": (24, 24, 24),
        "odd": (7, 7, 7),
        "colours train": (24, 24, 24),
        "colours train (jigsaw)": (24, 24, 0),
    }
    assert planned(ood, *line) == every
    assert planned(ood, *line, "--limit", 5) == {
        "colours": (5, 5, 5),
        "odd": (5, 5, 5),
        "colours train": (5, 5, 5),
        "colours train (jigsaw)": (5, 5, 0),
    }
    assert decoded == []
    assert "To decode" in ood("score", *line, "--dry-run")[1]
    # What it foretold is what is done.
    _, out, _ = ood("score", *line, "--format", "json")
    computed = {each["dataset"]: each["computed"] for each in json.loads(out)["passes"]}
    assert computed == {"colours": 24, "odd": 7, "colours train": 48}
    assert len(decoded) == 24 + 7 + 24
    assert planned(ood, *line) == {name: (n, 0, 0) for name, (n, _, _) in every.items()}


def test_a_dry_run_counts_calibration_images_where_nothing_else_is_learned_from(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    flat(tmp_path / "odd")
    forget(tmp_path / "store")
    found = planned(ood, "--ood", tmp_path / "odd", "--method", "klm")
    assert found == {"colours": (24, 24, 24), "odd": (7, 7, 7), "colours train": (2, 2, 2)}
    assert decoded == []


def test_a_limit_decodes_that_many_images(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    forget(tmp_path / "store")
    flat(tmp_path / "odd")
    code, _, err = ood(
        "score", "--ood", tmp_path / "odd", "--method", "msp", "--method", "knn", "--limit", 5
    )
    assert code == 0, err
    assert len(decoded) == 15
    code, _, err = ood("normratio", "--max-images", 6)
    assert code == 0, err
    assert len(decoded) == 21


def test_few_images_tell_whether_a_set_is_grey(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    """Without --ood the sets that come with ood are planned, in grey or in colour."""
    forget(tmp_path / "store")
    assert "photographs" in planned(ood, "--method", "msp")
    assert 1 <= len(decoded) <= 64


def test_training_images_that_are_not_kept_are_decoded_once(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their activations, and those of their puzzles, are computed while the pixels are there."""
    forget(tmp_path / "store")
    line = ("score", "--method", "featurenorm", "--method", "knn", "--format", "json")
    line = (*line, "--ood", flat(tmp_path / "odd"))
    code, out, err = ood(*line)
    assert code == 0, err
    kept = json.loads(out)
    forget(tmp_path / "store")
    decoded.clear()
    monkeypatch.setattr("oodcli.data.decoding.prepare.MAX_PIXELS_BYTES", 0)
    code, out, err = ood(*line)
    assert code == 0, err
    found = json.loads(out)
    assert not list((tmp_path / "store" / "images").rglob("*.npy"))
    times = Counter(path for path in decoded if "train" in path.parts)
    assert len(times) == 24
    assert set(times.values()) == {1}
    assert found["rows"] == kept["rows"]
    assert by_set(found) == by_set(kept)
    # What a pass that was cut off left out is decoded again, and nothing is made of the rest.
    (victim,) = (tmp_path / "store" / "activations").rglob("norms/*.safetensors")
    victim.unlink()
    decoded.clear()
    assert json.loads(ood(*line)[1])["rows"] == kept["rows"]
    assert len([path for path in decoded if "train" in path.parts]) == 24


def test_scored_images_that_are_not_kept_are_decoded_once(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test and OOD images alike, also where a method learns from training images."""
    forget(tmp_path / "store")
    line = ("score", "--method", "msp", "--method", "knn", "--format", "json")
    line = (*line, "--ood", flat(tmp_path / "odd"))
    kept = json.loads(ood(*line)[1])
    forget(tmp_path / "store")
    decoded.clear()
    monkeypatch.setattr("oodcli.data.decoding.prepare.MAX_PIXELS_BYTES", 0)
    code, out, err = ood(*line)
    assert code == 0, err
    found = json.loads(out)
    assert not list((tmp_path / "store" / "images").rglob("*.npy"))
    assert sorted(Counter(decoded).values()) == [1] * (24 + 24 + 7)
    assert found["rows"] == kept["rows"]
    assert by_set(found) == by_set(kept)


def test_limited_images_that_are_not_kept_are_decoded_once(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --limit too, for which images are chosen out of each set, puzzles included."""
    forget(tmp_path / "store")
    line = ("score", "--method", "featurenorm", "--method", "knn", "--format", "json")
    line = (*line, "--ood", flat(tmp_path / "odd"), "--limit", 5)
    kept = json.loads(ood(*line)[1])
    forget(tmp_path / "store")
    decoded.clear()
    monkeypatch.setattr("oodcli.data.decoding.prepare.MAX_PIXELS_BYTES", 0)
    code, out, err = ood(*line)
    assert code == 0, err
    found = json.loads(out)
    assert not list((tmp_path / "store" / "images").rglob("*.npy"))
    assert sorted(Counter(decoded).values()) == [1] * 15
    assert found["rows"] == kept["rows"]
    assert by_set(found) == by_set(kept)


def test_images_of_a_search_that_are_not_kept_are_decoded_once(
    ood: Ood, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tree(tmp_path / "data", n=20)
    argv = ("train", "--data", data, "--arch", "resnet18:width=2", "--epochs", 1)
    assert ood(*argv, "--val-fraction", 0.3, "--batch-size", 8)[0] == 0
    odd, other = flat(tmp_path / "odd"), flat(tmp_path / "other", n=9)
    line = ("score", "--ood", odd, "--method", "knn", "--tune", "openood", "--tune-ood", other)
    results = []
    for limit in (10**9, 0):
        forget(tmp_path / "store")
        decoded.clear()
        monkeypatch.setattr("oodcli.data.decoding.prepare.MAX_PIXELS_BYTES", limit)
        code, out, err = ood(*line, "--format", "json")
        assert code == 0, err
        results.append(json.loads(out))
        assert list(Counter(decoded).values()) == [1] * (40 + 28 + 12 + 7 + 9)
    assert results[0]["rows"] == results[1]["rows"]


def test_calibration_images_that_are_not_kept_are_decoded_once(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(tmp_path / "store")
    monkeypatch.setattr("oodcli.data.decoding.prepare.MAX_PIXELS_BYTES", 0)
    code, _, err = ood("score", "--ood", flat(tmp_path / "odd"), "--method", "react")
    assert code == 0, err
    assert list(Counter(path for path in decoded if "train" in path.parts).values()) == [1, 1]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("line", [("normratio",), ("normratio", "--max-images", 6)])
def test_images_of_normratio_that_are_not_kept_are_decoded_once(
    ood: Ood,
    tmp_path: Path,
    decoded: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    line: list[object],
) -> None:
    results = []
    for limit in (10**9, 0):
        forget(tmp_path / "store")
        decoded.clear()
        monkeypatch.setattr("oodcli.data.decoding.prepare.MAX_PIXELS_BYTES", limit)
        code, out, err = ood(*line, "--format", "json")
        assert code == 0, err
        results.append(json.loads(out))
        assert list(Counter(decoded).values()) == [1] * (6 if len(line) > 1 else 24)
    assert results[0]["blocks"] == results[1]["blocks"]


def test_images_that_a_detector_is_fitted_on_are_decoded_once(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(tmp_path / "store")
    monkeypatch.setattr("oodcli.data.decoding.prepare.MAX_PIXELS_BYTES", 0)
    code, _, err = ood("predict", flat(tmp_path / "odd"), "--method", "knn")
    assert code == 0, err
    inside = [path for path in decoded if "odd" not in path.parts]
    assert sorted(Counter(inside).values()) == [1] * (24 + 24)


def test_calibration_images_alone_are_decoded(
    ood: Ood, tiny: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    """A tenth of the training images, for a method that learns from no others."""
    forget(tmp_path / "store")
    line = ("--ood", flat(tmp_path / "odd"), "--method", "react")
    assert planned(ood, *line) == {
        "colours": (24, 24, 24), "odd": (7, 7, 7), "colours train": (2, 2, 2),
    }  # fmt: skip
    code, out, err = ood("score", *line, "--format", "json")
    assert code == 0, err
    assert len([path for path in decoded if "train" in path.parts]) == 2
    # They are found among all training images, once these are there, and have the same values.
    shutil.rmtree(tmp_path / "store" / "runs" / "tiny" / "scores", ignore_errors=True)
    assert ood("score", *line, "--method", "knn")[0] == 0
    again = json.loads(ood("score", *line, "--format", "json")[1])
    assert again["rows"] == json.loads(out)["rows"]
    assert planned(ood, *line)["colours train"] == (2, 0, 0)
