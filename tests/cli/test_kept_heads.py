"""Heads that training leaves beside the last layer, from ``ood train`` to scores and back."""

import csv
import json
from pathlib import Path

import pytest

from tests.support.cli import Ood, tree

TRAIN = (
    "train", "--arch", "resnet18:width=2", "--recipe", "featurenorm-resnet18", "--image-size", 16,
    "--epochs", 1, "--batch-size", 12,
)  # fmt: skip


def scores(path: Path) -> list[str]:
    """Return the scores of a file of verdicts."""
    return [row["score"] for row in csv.DictReader(path.read_text().splitlines())]


@pytest.mark.parametrize(
    ("objective", "kept"),
    [
        ("rotpred", {"rotation": 4}),
        ("conf-branch", {"confidence": 1}),
        ("g-odin", {"divisor": 1}),
    ],
)
def test_a_kept_head_is_recorded_imported_packed_and_scored(
    ood: Ood, tmp_path: Path, objective: str, kept: dict[str, int]
) -> None:
    data = tree(tmp_path / "colours")
    code, _, err = ood(*TRAIN, "--data", data, "--objective", objective, "--name", "own")
    assert code == 0, err
    assert f"ood score --run own --method {objective}" in err
    record = json.loads(ood("runs", "show", "own")[1])
    assert record["training"]["kept_heads"] == kept
    weights = tmp_path / "store" / "runs" / "own" / "weights.safetensors"
    code, _, err = ood(
        "import", weights, "--arch", "resnet18:width=2", "--data", data, "--name", "again",
        "--image-size", 16, "--mean", 0.5, "--std", 0.5,
    )  # fmt: skip
    assert code == 0, err
    (name, outputs), *_ = kept.items()
    assert f"heads beside the last layer: {name} (outputs: {outputs})" in err
    assert json.loads(ood("runs", "show", "again")[1])["imported"]["kept_heads"] == kept
    packed = tmp_path / "packed.safetensors"
    code, _, err = ood(
        "detector", "pack", "--run", "own", "--method", objective, "--output", packed
    )
    assert code == 0, err
    found = []
    for number, source in enumerate((("--run", "own"), ("--run", "again"), ("--detector", packed))):
        method = () if source[0] == "--detector" else ("--method", objective)
        output = tmp_path / f"{number}.csv"
        code, _, err = ood("predict", data / "train", *source, *method, "--output", output)
        assert code in (0, 3), err
        found.append(scores(output))
    assert len(set(found[0])) > 1
    assert found[0] == found[1] == found[2]
