"""The first screen of ``ood report``: the result in words and a short table."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.cli import Ood

SETS = {
    "cifar100": "near",
    "tiny-imagenet": "near",
    "places365": "far",
    "svhn-lossless": "far",
    "textures": "far",
}


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Scores of five methods on the sets of a benchmark; energy is best near, knn far."""
    rng = np.random.default_rng(0)
    shifts = {
        "msp": (1.0, 1.5), "energy": (2.0, 1.6), "knn": (0.5, 4.0), "featurenorm": (0.4, 3.0),
        "vim": (0.6, 3.9),
    }  # fmt: skip
    arrays = {}
    for method, (near, far) in shifts.items():
        arrays[f"{method}/cifar10"] = rng.normal(0, 1, 200)
        for name, group in SETS.items():
            shift = near if group == "near" else far
            arrays[f"{method}/{name}"] = rng.normal(-shift, 1, 100)
    np.savez(tmp_path / "scores.npz", **arrays)
    return tmp_path / "scores.npz"


def test_the_first_screen_says_the_result_of_the_long_table(scores: Path, ood: Ood) -> None:
    given = ("report", "--scores", scores, "--id", "cifar10")
    _, out, _ = ood(*given)
    content = json.loads(ood(*given, "--format", "json")[1])
    (summary,) = content["summaries"]
    means = {
        (row["method"], row["group"]): row for row in content["rows"] if row["dataset"] == "average"
    }
    for lead, best in zip(summary["leaders"], ("energy", "knn"), strict=True):
        group = lead["group"]
        own = {method: row for (method, name), row in means.items() if name == group}
        assert lead["method"] == best == max(own, key=lambda method: own[method]["auroc"])
        assert lead["auroc"] == own[best]["auroc"]
        assert lead["fpr95"] == own[best]["fpr95"]
        second = sorted(own, key=lambda method: own[method]["auroc"])[-2]
        assert lead["runner_up"] == second
        assert lead["delta"] == pytest.approx(own[best]["auroc"] - own[second]["auroc"])
        assert lead["interval"][0] < lead["delta"] < lead["interval"][1]
        assert f"{group} ({len(lead['datasets'])} sets): {best} is best" in out
    single = [row for row in content["rows"] if row["dataset"] != "average"]
    heights = {name: max(row["auroc"] for row in single if row["dataset"] == name) for name in SETS}
    hardest = min(heights, key=lambda name: heights[name])
    assert summary["hardest"]["dataset"] == hardest
    assert summary["hardest"]["auroc"] == heights[hardest]
    assert f"hardest set: {hardest} (near); the best method there, energy," in out
    lines = out.splitlines()
    assert len(lines) <= 24
    table = {line.split()[0]: line.split() for line in lines if line.startswith(" ")}
    for method in ("energy", "knn", "msp", "featurenorm"):
        expected = [
            f"{100 * means[method, group][metric]:.2f}"
            for group in ("near", "far")
            for metric in ("fpr95", "auroc")
        ]
        assert table[method][-4:] == expected
    assert "vim" not in table  # it is neither best nor a reference


def test_the_long_table_follows_on_request_and_in_files(
    scores: Path, ood: Ood, tmp_path: Path
) -> None:
    given = ("report", "--scores", scores, "--id", "cifar10")
    _, short, _ = ood(*given)
    _, full, _ = ood(*given, "--full")
    words = short[: short.index("next:")].strip()
    assert full.startswith(words)
    assert "AUPR-in" in full
    assert "AUPR-in" not in short
    assert f"next: ood report --scores {scores} --id cifar10 --full" in short
    ood(*given, "--output", tmp_path / "report.txt")
    text = (tmp_path / "report.txt").read_text()
    assert text.startswith(words)
    assert "AUPR-in" in text
    # Options that choose a table give that table alone.
    assert ood(*given, "--method", "vim")[1].count("is best") == 0


def test_one_set_has_no_averages(scores: Path, ood: Ood) -> None:
    given = ("report", "--scores", scores, "--id", "cifar10", "--set", "textures")
    _, full, _ = ood(*given, "--full")
    assert not [line for line in full.splitlines() if line.lstrip().startswith("average")]
    content = json.loads(ood(*given, "--format", "json")[1])
    (summary,) = content["summaries"]
    assert summary["hardest"] is None
    assert [each["datasets"] for each in summary["leaders"]] == [["textures"]]
