"""What a number or a verdict rests on is believed only as it was written."""

import json
import re
import shutil
from pathlib import Path

import pytest

from oodcli.store.store import Store, read_json
from oodcli.workflows.train import TrainRequest, train
from tests.support.cli import Ood, flat, tree

FEW = ("--method", "msp", "--method", "featurenorm", "--method", "ash-s")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images and a store that has a file of every kind."""
    from typer.testing import CliRunner

    from oodcli.cli.app import app

    root = tmp_path_factory.mktemp("full")
    images, odd = tree(root / "colours", n=20), flat(root / "odd", n=9)
    train(
        Store(root / "store"),
        TrainRequest(
            data=str(images), arch="resnet18:width=2", name="r", epochs=1, batch_size=8,
            val_fraction=0.3,
        ),
    )  # fmt: skip
    for argv in (
        ["score", "--ood", str(odd), *FEW, "--tune", "pseudo"],
        ["score", "--ood", str(odd), *FEW],
        ["recommend"],
        ["predict", str(odd), "--method", "ash-s"],
    ):
        result = CliRunner().invoke(app, [*argv, "--store", str(root / "store")])
        assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def store(full: Path, tmp_path: Path) -> Path:
    """Return a copy of the store for one test."""
    return Path(shutil.copytree(full / "store", tmp_path / "store"))


def edited(text: str) -> str:
    """Return JSON with the first digit of a number raised by one, the seal and layout unharmed."""
    changed = re.sub(
        r"([:\n] +)(\d)(?=[\d.,\n])", lambda m: m[1] + str((int(m[2]) + 1) % 10), text, count=1
    )
    if changed == text:  # it has no number
        changed = re.sub(r'": "\w', '": "_', text, count=1)
    assert changed != text
    return changed


def kind_of(name: str) -> str:
    """Return the name of a file in a store, whatever digests stand in it."""
    return re.sub(r"[0-9a-f]{16,}", "*", name)


def some_of_each_kind(store: Path) -> list[Path]:
    """Return the first and the last file of every kind that a store has."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted([*store.rglob("*.json"), *store.rglob("history.jsonl")]):
        kinds.setdefault(kind_of(path.relative_to(store).as_posix()), []).append(path)
    return [path for files in kinds.values() for path in dict.fromkeys((files[0], files[-1]))]


def test_every_json_file_of_a_store_is_sealed(store: Path) -> None:
    files = {path.relative_to(store).as_posix(): path for path in store.rglob("*.json")}
    for path in files.values():
        assert read_json(path)
    assert {kind_of(name) for name in files} == {
        "runs/r/run.json",
        "runs/r/recommendation.json",
        "runs/r/normratio/normalised-all.json",
        "runs/r/scores/*/scoring.json",
        "runs/r/scores/searches/*.json",
        "runs/r/detectors/*/detector.json",
        "images/*/manifest.json",
        "activations/*/*/manifest.json",
    }


COMMANDS = {
    "report": ("report", "--format", "json"),
    "plots": ("report", "--format", "json", "--plots", "{out}"),
    "tuning": ("tuning", "--format", "json"),
    "show": ("runs", "show", "r"),
    "score": ("score", "--ood", "{odd}", *FEW, "--format", "json"),
    "recommend": ("recommend", "--format", "json"),
    "predict": ("predict", "{odd}", "--method", "ash-s", "--format", "jsonl"),
}
# What a command reads; what it does not is no business of it.
REFUSED = {
    "run.json": set(COMMANDS) - {"tuning"},
    "scoring.json": {"report", "plots", "show", "score"},
    "normalised-all.json": {"plots", "show"},
    "searches": {"tuning"},
    "history.jsonl": {"plots"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_edited_file_is_made_again_or_refused_by_name(
    ood: Ood, full: Path, store: Path, tmp_path: Path, command: str
) -> None:
    argv = [part.format(odd=full / "odd", out=tmp_path / "plots") for part in COMMANDS[command]]

    def numbers(out: str) -> object:
        lines = [json.loads(line) for line in out.splitlines()] if command == "predict" else out
        return [line["score"] for line in lines] if command == "predict" else _bare(out)

    code, right, err = ood(*argv)
    assert code == 0, err
    for path in some_of_each_kind(store):
        if command == "plots" and path.name not in ("normalised-all.json", "history.jsonl"):
            continue  # it reads what report reads, and takes long
        written = path.read_bytes()
        path.write_text(edited(written.decode()))
        code, out, err = ood(*argv)
        kind = "searches" if path.parent.name == "searches" else path.name
        if command in REFUSED.get(kind, ()):
            assert (code, out) == (1, ""), path
            assert str(path) in err
            assert "is damaged or was edited" in err
            path.write_bytes(written)
        else:
            assert code == 0, (path, err)
            assert numbers(out) == numbers(right), path
            if path.name == "recommendation.json" and command in ("report", "score"):
                assert any(str(path) in note for note in json.loads(out)["notes"])


def _bare(out: str) -> object:
    """Return what a command printed, without what may differ between two calls."""
    content = json.loads(out)
    for name in ("passes", "created", "scores"):
        content.pop(name, None)
    # Of an edited recommendation a report says that it is not used.
    for each in content.get("summaries", ()):
        each.pop("recommended")
    if "notes" in content:
        content["notes"] = [note for note in content["notes"] if "recommendation" not in note]
    return content
