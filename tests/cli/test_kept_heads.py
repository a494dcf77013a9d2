"""Last layers of a kind of their own, from ``ood train`` to scores and back."""

import csv
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.support.cli import Ood, tree

TRAIN = (
    "train", "--arch", "resnet18:width=2", "--recipe", "featurenorm-resnet18", "--image-size", 16,
    "--epochs", 1, "--batch-size", 12,
)  # fmt: skip


def imported(ood: Ood, tmp_path: Path, data: Path) -> str:
    """Import the weights of run ``own`` as run ``again``; return what that said."""
    weights = tmp_path / "store" / "runs" / "own" / "weights.safetensors"
    code, _, err = ood(
        "import", weights, "--arch", "resnet18:width=2", "--data", data, "--name", "again",
        "--image-size", 16, "--mean", 0.5, "--std", 0.5,
    )  # fmt: skip
    assert code == 0, err
    return err


def screened(ood: Ood, tmp_path: Path, data: Path, method: str) -> list[list[dict[str, str]]]:
    """Return the verdicts of run ``own``, of run ``again``, and of ``own`` packed."""
    packed = tmp_path / "packed.safetensors"
    code, _, err = ood("detector", "pack", "--run", "own", "--method", method, "--output", packed)
    assert code == 0, err
    found = []
    for number, source in enumerate((("--run", "own"), ("--run", "again"), ("--detector", packed))):
        chosen = () if source[0] == "--detector" else ("--method", method)
        output = tmp_path / f"{number}.csv"
        code, _, err = ood("predict", data / "train", *source, *chosen, "--output", output)
        assert code in (0, 3), err
        found.append(list(csv.DictReader(output.read_text().splitlines())))
    return found


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
    err = imported(ood, tmp_path, data)
    (name, outputs), *_ = kept.items()
    assert f"heads beside the last layer: {name} (outputs: {outputs})" in err
    assert json.loads(ood("runs", "show", "again")[1])["imported"]["kept_heads"] == kept
    verdicts = screened(ood, tmp_path, data, objective)
    assert len({row["score"] for row in verdicts[0]}) > 1
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_a_layer_of_standardised_features_is_imported_packed_and_scored(
    ood: Ood, tmp_path: Path
) -> None:
    """ASCOOD predicts by z-scores, and scores features as they are."""
    data = tree(tmp_path / "colours")
    code, _, err = ood(*TRAIN, "--data", data, "--objective", "ascood", "--name", "own")
    assert code == 0, err
    assert "ood score --run own --method scale" in err
    run = tmp_path / "store" / "runs" / "own"
    assert load_file(run / "weights.safetensors")["fc.sigma"] == 0.5
    assert "fc.sigma" not in imported(ood, tmp_path, data)  # it is neither renamed nor ignored
    verdicts = screened(ood, tmp_path, data, "t2fnorm")
    assert len({row["score"] for row in verdicts[0]}) > 1
    assert verdicts[0] == verdicts[1] == verdicts[2]
