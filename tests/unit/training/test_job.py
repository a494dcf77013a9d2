"""What fixes the weights of a run: one list, written, read and compared."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.models import parse_architecture
from oodcli.store.preprocess import Preprocess
from oodcli.store.runs import RECORD, TRAINING, Job, Run, RunFolder, TrainingRecord
from oodcli.store.store import Store, read_json, write_json
from oodcli.training.job import TrainRequest, _recipe_of, read_unfinished, same_run
from oodcli.training.recipe_choice import recipe_named

INIT = {"source": "first", "digest": "d" * 32, "arch": None, "pretrained": False}
JOB = Job(
    data="digits",
    arch="resnet18:width=4",
    recipe=recipe_named("digits").to_json(),
    seed=3,
    amp=True,
    compile=True,
    val_fraction=0.25,
    test_fraction=0.125,
    division="e" * 32,
    skip_unreadable=True,
    preprocess=Preprocess((16, 24), "shorter-crop:32"),
    init=INIT,
)
OTHER: dict[str, Any] = {
    "data": "mnist",
    "arch": "resnet18",
    "recipe": recipe_named("mode-base").to_json(),
    "seed": 4,
    "amp": False,
    "compile": False,
    "val_fraction": 0.0,
    "test_fraction": 0.0,
    "division": "",
    "skip_unreadable": False,
    "preprocess": Preprocess((16, 24), "exact"),
    "init": {**INIT, "digest": "f" * 32},
    "outliers": {"source": "noise", "name": "noise", "made": True},
    "mixing": {"source": "fractals", "name": "fractals", "part": "test", "images": 5},
}
OUTCOME = {"device": "cpu", "processes": 1, "threads": 1, "seconds": 2.5, "history": "h"}


def finished(job: Job, **changes: Any) -> Run:
    """Return the record of a job that is done."""
    run = Run("trained", "2026-01-01", job, "digits", ("0", "1"), ("1.1",), "n", "w")
    return replace(run, training=OUTCOME, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stored(store: Store, job: Job, *, done: bool) -> RunFolder:
    folder = RunFolder(store.runs / "a")
    if done:
        folder.write(finished(job))
    else:
        folder.begin(TrainingRecord(job, "ood train", "2026-01-01"))
    return folder


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("fact", [each.name for each in fields(Job)])
def test_every_fact_tells_two_runs_apart(store: Store, fact: str, done: bool) -> None:
    folder = stored(store, JOB, done=done)
    assert same_run(store, JOB, None) == folder
    changed = replace(JOB, **{fact: OTHER[fact]})
    assert same_run(store, changed, None) is None
    with pytest.raises(InvalidInputError, match="run a was started with other settings"):
        same_run(store, changed, "a")
    # Runs are averaged in a report where they differ by this fact only if it is the seed.
    assert (changed.without_seed() == JOB.without_seed()) == (fact == "seed")


@pytest.mark.parametrize("done", [True, False])
def test_a_value_that_recipes_did_not_have_is_as_it_was_without(store: Store, done: bool) -> None:
    older = {k: v for k, v in JOB.recipe.items() if k != "grey_chance"}
    folder = stored(store, replace(JOB, recipe=older), done=done)
    assert same_run(store, JOB, None) == folder


def test_the_record_has_the_facts_among_those_of_the_run(store: Store) -> None:
    folder = stored(store, JOB, done=True)
    content = read_json(folder.path / RECORD)
    assert list(content) == [
        "kind", "schema", "origin", "created", "arch", "data", "data_name", "class_names",
        "preprocess", "blocks", "network", "weights", "recipe", "seed", "parts", "val_fraction",
        "test_fraction", "division", "versions", "command", "training", "imported",
    ]  # fmt: skip
    assert list(content["training"]) == [
        "device", "processes", "amp", "compile", "skip_unreadable", "threads", "seconds", "init",
        "outliers", "mixing", "history",
    ]  # fmt: skip
    assert content["training"]["init"] == INIT
    assert folder.read() == finished(JOB)


def test_an_import_has_one_fact_among_its_own(store: Store) -> None:
    folder = RunFolder(store.runs / "a")
    job = Job("x", "resnet18", skip_unreadable=True)
    given = {"source": "x.pt", "preprocess_from": {"size": "option"}}
    run = replace(finished(job), origin="imported", training={}, imported=given)
    folder.write(run)
    content = read_json(folder.path / RECORD)
    assert list(content["imported"]) == ["source", "skip_unreadable", "preprocess_from"]
    assert content["imported"]["skip_unreadable"] is True
    assert (content["training"], content["recipe"], content["seed"]) == ({}, {}, None)
    assert folder.read() == run


def test_a_run_in_training_is_written_flat(store: Store) -> None:
    folder = stored(store, JOB, done=False)
    content = read_json(folder.path / TRAINING)
    assert content == {
        "kind": "ood-run",
        "schema": 1,
        **{k: v for k, v in json.loads(json.dumps(asdict(JOB))).items() if k != "preprocess"},
        "size": [16, 24],
        "resize": "shorter-crop:32",
        "command": "ood train",
        "created": "2026-01-01",
    }
    assert read_unfinished(folder) == TrainingRecord(JOB, "ood train", "2026-01-01")


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": None},
        {"recipe": {**JOB.recipe, "epochs": 0}},
        {"recipe": {**JOB.recipe, "nonsense": 1}},
        {"size": [16]},
        {"init": {"nonsense": 1}},
    ],
)
def test_a_damaged_run_in_training_is_refused(store: Store, changes: dict[str, Any]) -> None:
    folder = stored(store, JOB, done=False)
    content = read_json(folder.path / TRAINING)
    write_json(folder.path / TRAINING, {**content, **changes})
    with pytest.raises(CorruptArtifactError, match=r"the unfinished run a is damaged: .* remove"):
        read_unfinished(folder)
    assert same_run(store, JOB, None) is None


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [
        ("t2fnorm", "t2fnorm:scoring=omitted"),  # as the recipe for ImageNet says
        ("t2fnorm:scoring=tau", "t2fnorm"),  # as asked for
        ("t2fnorm:tau=0.2", "t2fnorm:tau=0.2"),
    ],
)
def test_an_objective_without_parameters_has_those_of_its_recipe(
    objective: str, wanted: str
) -> None:
    request = TrainRequest("imagenet", objective=objective, init="trained")
    recipe = _recipe_of(request, parse_architecture("resnet18"), "imagenet", None)
    assert (recipe.name, recipe.objective) == ("t2fnorm-imagenet", wanted)
