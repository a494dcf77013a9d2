"""The form of every JSON object and file that the tool writes, held by files in ``tests/golden``.

A form has one line for every field, with the types of its values. After a change that is meant,
write the files again and read the difference:
``OOD_WRITE_GOLDEN=1 python -m pytest -n0 tests/cli/test_golden.py``.
"""

import json
import os
import re
from pathlib import Path

from tests.support.cli import Ood, flat, tree

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WRITE = bool(os.environ.get("OOD_WRITE_GOLDEN"))
# Objects whose keys are names of things and not of fields.
MAPS = frozenset(
    {
        "auroc", "cuda", "datasets", "depends", "devices", "digests", "duplicates", "extras",
        "families", "files", "folders", "grid", "images_per_s", "intervals", "left_out", "methods",
        "normratio", "params", "seconds", "std", "usage", "versions", "defaults", "sets",
    }
)  # fmt: skip
KINDS = {
    dict: "object", list: "list", str: "string", bool: "boolean", int: "integer", float: "number",
    type(None): "null",
}  # fmt: skip
METHODS = ("--method", "msp", "--method", "featurenorm", "--method", "knn:k=3")


def form(content: object) -> str:
    """Return one line for every field: its place, and the types of what stands there."""
    found: dict[str, set[str]] = {}

    def walk(value: object, place: str, key: str) -> None:
        kind = KINDS[type(value)]
        found.setdefault(place, set()).add(kind)
        if isinstance(value, dict):
            for name, each in value.items():
                walk(each, f"{place}.{'<name>' if key in MAPS else name}", name)
        elif isinstance(value, list):
            for each in value:
                walk(each, f"{place}[]", "")

    walk(content, "$", "")
    return "".join(f"{place}: {' | '.join(sorted(found[place]))}\n" for place in sorted(found))


def held(name: str, content: object) -> None:
    """Compare the form of an object with its golden file."""
    text = form(content)
    path = GOLDEN / f"{name}.txt"
    if WRITE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{name}: see the docstring of this module"


def of_file(path: Path) -> object:
    """Return the object in a file, with its seal."""
    return json.loads(path.read_text())


def test_every_command_and_every_file_has_its_form(ood: Ood, tmp_path: Path) -> None:
    images, odd = tree(tmp_path / "colours"), flat(tmp_path / "odd")
    small = ("--arch", "resnet18:width=2", "--epochs", 1, "--val-fraction", 0.5, "--name", "tiny")
    assert ood("train", "--data", images, *small)[0] == 0
    store = tmp_path / "store"

    def printed(*argv: object) -> dict[str, object]:
        code, out, err = ood(*argv)
        assert code == 0, err
        return json.loads(out)

    as_json = ("--format", "json")
    held("score-plan", printed("score", *METHODS, "--ood", odd, "--dry-run", *as_json))
    held("score", printed("score", *METHODS, "--ood", odd, *as_json))
    held("normratio", printed("normratio", *as_json))
    held("report", printed("report", *as_json))
    statistics = ("--ci", "--compare", "msp", "featurenorm", "--published")
    held("report-full", printed("report", *statistics, *as_json))
    printed("score", "--method", "scale", "--tune", "pseudo", "--ood", odd, *as_json)
    held("tuning", printed("tuning", "scale", *as_json))
    held("recommend", printed("recommend", *as_json))
    held("runs-list", printed("runs", "list", *as_json))
    held("runs-show", printed("runs", "show", "tiny"))
    held("methods-list", printed("methods", "list", *as_json))
    held("methods-show", printed("methods", "show", "knn", *as_json))
    held("recipes-list", printed("recipes", "list", *as_json))
    held("recipes-show", printed("recipes", "show", "digits", *as_json))
    held("datasets-list", printed("datasets", "list", *as_json))
    diagnosis = printed("doctor", *as_json)
    del diagnosis["extras"]  # as it is installed
    held("doctor", diagnosis)
    lines = tmp_path / "verdicts.jsonl"
    summary = tmp_path / "summary.json"
    code, _, err = ood("predict", odd, "--method", "msp", "--output", lines, "--summary", summary)
    assert code == 0, err
    held("verdict", json.loads(lines.read_text().splitlines()[0]))
    held("verdict-settings", of_file(lines.with_name("verdicts.jsonl.ood.json")))
    held("predict-summary", of_file(summary))
    # One file of each kind: names of runs, digests and numbers apart.
    kinds: dict[str, Path] = {}
    for path in sorted(store.rglob("*.json")):
        kind = re.sub(r"[0-9a-f]{16,}|[0-9]{5}", "*", str(path.relative_to(store)))
        kinds.setdefault(kind, path)
    for kind, path in kinds.items():
        held("file-" + re.sub(r"[^a-z]+", "-", kind.removesuffix(".json")), of_file(path))
