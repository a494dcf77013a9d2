"""Scores of a run: added to, replaced, and found again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oodcli.errors import CorruptArtifactError
from oodcli.store.scores import (
    ScoredSet,
    Scoring,
    add_scores,
    first_duplicate,
    full_name,
    read_scores,
    read_scorings,
)
from oodcli.store.store import Store

ID = ScoredSet("digits", "id", 3, "d0")
FAR = ScoredSet("noise", "far", 2, "d1", benchmark="digits")
SCORING = Scoring(
    limit=None,
    precision="float32",
    id_set=ID,
    id_accuracy=0.9,
    sets=(FAR,),
    methods={"msp": {"temperature": 1.0}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a run's scores."""
    return tmp_path / "scores"


def add(folder: Path, scoring: Scoring = SCORING, method: str = "msp", value: float = 1.0) -> None:
    """Add scores of one method on all sets of a scoring."""
    scores = {
        (method, entry.name): np.full(entry.n, value, dtype=np.float32)
        for entry in (scoring.id_set, *scoring.sets)
    }
    methods = {method: {"value": value}}
    add_scores(Store(folder.parent), folder, replace(scoring, methods=methods), scores)


def test_scores_come_back_as_they_were(folder: Path) -> None:
    add(folder)
    (scoring,) = read_scorings(folder)
    got = read_scores(folder, scoring, "msp", "noise")
    assert got is not None
    assert got.dtype == np.float32
    assert got.tolist() == [1.0, 1.0]
    assert read_scores(folder, scoring, "energy", "noise") is None
    assert scoring.id_accuracy == 0.9
    assert scoring.sets == (FAR,)


def test_methods_and_sets_of_several_calls_stand_side_by_side(folder: Path) -> None:
    add(folder)
    near = ScoredSet("other", "near", 4, "d2")
    add(folder, replace(SCORING, sets=(near,)), method="energy", value=2.0)
    (scoring,) = read_scorings(folder)
    assert list(scoring.methods or {}) == ["msp", "energy"]
    assert [entry.name for entry in scoring.sets] == ["noise", "other"]
    assert read_scores(folder, scoring, "energy", "noise") is None


def test_new_scores_take_the_place_of_old_ones(folder: Path) -> None:
    add(folder, value=1.0)
    add(folder, value=5.0)
    (scoring,) = read_scorings(folder)
    got = read_scores(folder, scoring, "msp", "noise")
    assert got is not None
    assert got.tolist() == [5.0, 5.0]
    assert scoring.methods == {"msp": {"value": 5.0}}


def test_other_images_under_an_old_name_drop_the_old_scores(folder: Path) -> None:
    add(folder, method="msp")
    add(folder, replace(SCORING, sets=(replace(FAR, digest="changed"),)), method="energy")
    (scoring,) = read_scorings(folder)
    assert read_scores(folder, scoring, "msp", "noise") is None
    assert read_scores(folder, scoring, "msp", "digits") is not None


def test_a_limit_and_another_precision_are_kept_apart_and_the_newest_comes_first(
    folder: Path,
) -> None:
    add(folder)
    add(folder, replace(SCORING, precision="bfloat16"))
    add(folder, replace(SCORING, limit=2))
    assert [(s.limit, s.precision) for s in read_scorings(folder)] == [
        (2, "float32"),
        (None, "bfloat16"),
        (None, "float32"),
    ]


def test_changed_scores_are_found(folder: Path) -> None:
    add(folder)
    (scoring,) = read_scorings(folder)
    for path in (folder / scoring.key).glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtifactError, match="digest"):
        read_scores(folder, scoring, "msp", "noise")
    for path in (folder / scoring.key).glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CorruptArtifactError, match="the scores of msp on noise are missing"):
        read_scores(folder, scoring, "msp", "noise")


@pytest.mark.parametrize("damage", ['{"schema": 0}', '{"schema": 1}', "nonsense"])
def test_a_damaged_index_is_reported(folder: Path, damage: str) -> None:
    add(folder)
    (scoring,) = read_scorings(folder)
    (folder / scoring.key / "scoring.json").write_text(damage)
    with pytest.raises(CorruptArtifactError):
        read_scorings(folder)


def test_no_scores_yet(folder: Path) -> None:
    assert read_scorings(folder) == []


def test_the_first_name_that_stands_twice() -> None:
    assert first_duplicate(["a", "b", "a", "b"]) == "a"
    assert first_duplicate(["a", "b"]) is None


def test_a_shaper_alone_is_found_under_the_name_with_its_scorer() -> None:
    known = {"scale+energy", "scale+energy@pseudo", "msp", "energy"}
    assert full_name("scale", known) == "scale+energy"
    assert full_name("scale@pseudo", known) == "scale+energy@pseudo"
    assert full_name("msp", known) == "msp"
    assert full_name("knn", known) == "knn"
