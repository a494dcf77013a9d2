"""Runs in the store: found, named, renamed and removed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
)
from oodcli.store.removal import Leftover, leftovers, remove_leftover, remove_run, rename_run
from oodcli.store.run_locks import locked_run
from oodcli.store.run_names import default_run, find_run, new_name, run_folders, set_default_run
from oodcli.store.runs import TRAINING, Job, Run, RunFolder
from oodcli.store.store import Store, write_json

RUN = Run(
    origin="trained",
    created="2026-01-01T00:00:00+00:00",
    job=Job("digits", "resnet18:width=16", {"epochs": 3}, seed=0),
    data_name="digits",
    class_names=("0", "1"),
    blocks=("1.1", "1.2"),
    network="a" * 32,
    weights="b" * 32,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return an empty store."""
    return Store(tmp_path / "store")


def add(store: Store, name: str, **changes: object) -> RunFolder:
    """Put a run into the store."""
    folder = RunFolder(store.runs / name)
    folder.write(replace(RUN, **changes))  # type: ignore[arg-type]
    folder.weights.write_bytes(b"weights")
    return folder


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    assert add(store, "one").read() == RUN


def test_a_record_from_before_there_were_filters_stays_bilinear(store: Store) -> None:
    folder, content = add(store, "old"), RUN.to_json()
    assert content["preprocess"].pop("filter") == "bilinear"
    write_json(folder.path / "run.json", content)
    assert folder.read() == RUN
    assert folder.read().preprocess.filter == "bilinear"


def test_the_run_created_last_is_taken(store: Store) -> None:
    add(store, "z", created="2026-01-01")
    add(store, "a", created="2026-03-01")
    add(store, "m", created="2026-02-01")
    assert find_run(store, None).name == "a"
    assert [f.name for f in run_folders(store)] == ["z", "m", "a"]


def test_an_unfinished_run_is_never_taken_by_default(store: Store) -> None:
    add(store, "done", created="2026-01-01")
    write_json(store.runs / "later" / TRAINING, {"kind": "ood-run", "created": "2026-05-01"})
    assert find_run(store, None).name == "done"
    with pytest.raises(MissingArtifactError, match="ood train --resume --run later"):
        find_run(store, "later").read()


def test_no_run_at_all_says_how_to_make_one(store: Store) -> None:
    with pytest.raises(MissingArtifactError, match="train one: ood train --data digits"):
        find_run(store, None)
    write_json(store.runs / "half" / TRAINING, {"created": "2026-05-01"})
    with pytest.raises(MissingArtifactError, match="finish one: ood train --resume --run half"):
        find_run(store, None)


def test_a_misspelt_run_gets_a_suggestion(store: Store) -> None:
    add(store, "digits-a")
    with pytest.raises(UnknownNameError, match="did you mean 'digits-a'"):
        find_run(store, "digit-a")


def test_names_that_are_taken_get_a_number(store: Store) -> None:
    assert new_name(store, None, "cifar10 resnet18:x=1") == "cifar10-resnet18-x-1"
    add(store, "cifar10-resnet18-x-1")
    assert new_name(store, None, "cifar10 resnet18:x=1") == "cifar10-resnet18-x-1-2"
    with pytest.raises(
        InvalidInputError, match=r"run cifar10-resnet18-x-1 already exists.* name: --name RUN"
    ):
        new_name(store, "cifar10-resnet18-x-1", "")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "x" * 101])
def test_names_that_are_no_folder_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidInputError, match="is not a valid name of a run"):
        new_name(store, name, "")


def test_a_folder_that_is_not_a_run_is_left_alone_and_its_name_is_taken(store: Store) -> None:
    mine = store.runs / "mine"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("x")
    assert run_folders(store) == []
    with pytest.raises(InvalidInputError, match="already"):
        new_name(store, "mine", "")
    with pytest.raises(UnknownNameError):
        remove_run(store, "mine")
    assert (mine / "thesis.txt").read_text() == "x"


def test_what_a_killed_import_left_is_not_in_the_way(store: Store) -> None:
    (store.runs / "half").mkdir(parents=True)
    (store.runs / "half" / "weights.safetensors").write_bytes(b"x")
    assert new_name(store, "half", "") == "half"


def test_renaming_keeps_everything(store: Store) -> None:
    add(store, "old")
    rename_run(store, "old", "new")
    assert find_run(store, "new").read() == RUN
    with pytest.raises(UnknownNameError):
        find_run(store, "old")


def test_renaming_to_a_taken_name_changes_nothing(store: Store) -> None:
    add(store, "a")
    add(store, "b")
    with pytest.raises(InvalidInputError):
        rename_run(store, "a", "b")
    assert [f.name for f in run_folders(store)] == ["a", "b"]


def test_removing_frees_activations_of_a_network_nobody_else_has(store: Store) -> None:
    for name in ("a", "b"):
        add(store, name)
    activations = store.activations / RUN.network
    activations.mkdir(parents=True)
    (activations / "x").write_bytes(b"12345")
    remove_run(store, "a")
    assert activations.exists()
    freed, left = remove_run(store, "b")
    assert not activations.exists()
    assert not (store.runs / "b").exists()
    assert freed > 5
    assert left == []


def test_removing_leaves_files_that_are_not_the_tools(store: Store) -> None:
    folder = add(store, "a")
    (folder.path / "notes.md").write_text("mine")
    _, left = remove_run(store, "a")
    assert left == [folder.path / "notes.md"]
    assert (folder.path / "notes.md").read_text() == "mine"
    assert run_folders(store) == []


@pytest.mark.parametrize("change", [{"schema": 99}, {"arch": None, "drop": "network"}])
def test_a_record_of_another_kind_is_reported(store: Store, change: dict[str, object]) -> None:
    folder = add(store, "a")
    content = RUN.to_json() | {k: v for k, v in change.items() if k != "drop"}
    content.pop(str(change.get("drop")), None)
    write_json(folder.path / "run.json", content)
    with pytest.raises(CorruptArtifactError):
        folder.read()


def _rest(store: Store, name: str = "gone") -> Path:
    """Leave in the store what a removal that was cut off leaves of a run."""
    folder = add(store, name)
    (folder.scores / "0123").mkdir(parents=True)
    (folder.scores / "0123" / "x.safetensors").write_bytes(b"12345")
    (folder.path / "run.json").unlink()
    return folder.path


def test_a_run_in_use_is_neither_removed_nor_renamed(store: Store) -> None:
    add(store, "a")
    with locked_run(store, "a") as folder, locked_run(store, "a"):
        for change in (lambda: remove_run(store, "a"), lambda: rename_run(store, "a", "b")):
            with pytest.raises(InvalidInputError) as error:
                change()
            assert str(error.value) == (
                "run a is in use by another ood process; stop it, or wait until it has ended"
            )
        assert folder.read() == RUN
    rename_run(store, "a", "b")
    remove_run(store, "b")
    assert run_folders(store) == []


def test_a_run_that_is_removed_while_one_waits_for_it_is_reported(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add(store, "a")
    found = find_run

    def just_before(store: Store, name: str | None) -> RunFolder:
        there = found(store, name)
        shutil.rmtree(folder.path)
        return there

    monkeypatch.setattr("oodcli.store.run_locks.find_run", just_before)
    with (
        pytest.raises(MissingArtifactError, match="run a was removed or renamed just now"),
        locked_run(store, "a"),
    ):
        pass


def test_a_store_that_cannot_be_written_can_still_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "a")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with locked_run(store, "a") as folder:
        assert folder.read() == RUN
    with pytest.raises(PermissionError):
        remove_run(store, "a")


def test_what_is_left_of_a_run_is_listed_and_can_be_removed_by_its_name(store: Store) -> None:
    rest = _rest(store)
    add(store, "kept")
    (rest / "notes.md").write_text("mine")
    assert leftovers(store) == [Leftover(rest, "run", len(b"weights") + 5)]
    with pytest.raises(InvalidInputError, match="ood runs remove gone"):
        new_name(store, "gone", "")
    freed, left = remove_run(store, "gone")
    assert freed == len(b"weights") + 5
    assert left == [rest / "notes.md"]
    assert leftovers(store) == []
    assert [folder.name for folder in run_folders(store)] == ["kept"]


def test_activations_of_no_run_are_left_over_unless_a_record_cannot_be_read(store: Store) -> None:
    add(store, "a")
    for network in (RUN.network, "f" * 32):
        (store.activations / network).mkdir(parents=True)
        (store.activations / network / "x").write_bytes(b"123")
    stale = Leftover(store.activations / ("f" * 32), "activations", 3)
    assert leftovers(store) == [stale]
    other = add(store, "b", network="f" * 32)
    assert leftovers(store) == []
    (other.path / "run.json").write_text("{")
    assert leftovers(store) == []  # they may be those of b
    remove_run(store, "b")
    assert leftovers(store) == [stale]
    remove_leftover(store, stale)
    assert not stale.path.exists()
    assert (store.activations / RUN.network / "x").exists()


def test_old_temporary_files_are_left_over_wherever_they_lie(store: Store) -> None:
    folder = add(store, "a")
    old, new = folder.path / ".ood-tmp-old", store.images / "k" / ".ood-tmp-new"
    for path in (old, new):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
    os.utime(old, (0, 0))
    assert leftovers(store) == [Leftover(old, "temporary", 4)]
    remove_leftover(store, Leftover(old, "temporary", 4))
    assert not old.exists()
    assert new.exists()


def test_a_leftover_that_became_a_run_meanwhile_is_not_removed(store: Store) -> None:
    rest = _rest(store)
    (found,) = leftovers(store)
    add(store, "gone")
    remove_leftover(store, found)
    assert find_run(store, "gone").read() == RUN
    assert rest.exists()


def test_the_chosen_run_is_taken_before_the_last_and_the_variable_before_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        add(store, name)
    last = find_run(store, None).name
    first, other = (name for name in ("a", "b", "c") if name != last)
    set_default_run(store, first)
    assert (find_run(store, None).name, default_run(store)) == (first, (first, "ood runs use"))
    monkeypatch.setenv("OOD_RUN", other)
    assert find_run(store, None).name == other
    assert find_run(store, last).name == last
    monkeypatch.setenv("OOD_RUN", "none")
    with pytest.raises(
        MissingArtifactError, match=r"no run .none. in .* \(the default, set by OOD_RUN\); set"
    ):
        find_run(store, None)
    monkeypatch.delenv("OOD_RUN")
    rename_run(store, first, "renamed")
    assert find_run(store, None).name == "renamed"
    remove_run(store, "renamed")
    with pytest.raises(MissingArtifactError, match="choose another: ood runs use RUN"):
        find_run(store, None)
    with pytest.raises(UnknownNameError):
        set_default_run(store, "renamed")
    set_default_run(store, None)
    assert find_run(store, None).name == last
