"""Drift and promised rates on real images: SVHN creeps into a stream of CIFAR-10.

Takes a minute; run on request: ``python -m pytest -m slow tests/e2e/test_drift.py``.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from oodcli.screening.drift import GroupRows, Reference, compare
from oodcli.screening.thresholds import ThresholdRule

Ood = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow

SHARES = (0.0, 0.0, 0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
DAY = 200


def tiles(path: Path) -> np.ndarray:
    """Cut a grid of 32×32 images, row by row."""
    grid = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = grid.shape[0] // 32, grid.shape[1] // 32
    parts = grid.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
    return parts.reshape(-1, 32, 32, 3)


@pytest.fixture(scope="module")
def root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write ID images with labels, and a stream of days with more and more SVHN."""
    root = tmp_path_factory.mktemp("stream")
    rng = np.random.default_rng(0)
    order = rng.permutation(10_000)
    test = tiles(shared / "data" / "cifar10" / "test.webp")[order]  # class after class
    labels = np.repeat(np.arange(10), 1000)[order]
    np.savez(
        root / "c10.npz",
        train_images=test[2000:3000], train_labels=labels[2000:3000],
        test_images=test[:2000], test_labels=labels[:2000],
    )  # fmt: skip
    with np.load(shared / "data" / "svhn_crops.npz") as stored:
        others = iter(stored["images"][rng.permutation(len(stored["images"]))])
    images = iter(test[3000:])
    for number, share in enumerate(SHARES):
        day = root / "stream" / f"day{number + 1}"
        day.mkdir(parents=True)
        n_ood = round(share * DAY)
        for at in range(DAY):
            source, kind = (others, "svhn") if at < n_ood else (images, "cifar")
            Image.fromarray(next(source)).save(day / f"{kind}{at:03d}.png")
    return root


def test_svhn_in_a_stream_of_cifar10_is_noticed(
    ood: Ood, shared: Path, root: Path, tmp_path: Path
) -> None:
    checkpoint = next((shared / "data" / "checkpoints").glob("resnet20-*.th"))
    code, _, err = ood(
        "import", checkpoint, "--arch", "resnet20", "--data", root / "c10.npz",
        "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225",
    )  # fmt: skip
    assert code == 0, err
    output, merged = tmp_path / "v.csv", tmp_path / "fdr.csv"
    options = ("--method", "knn", "--group-by", "folder", "--features", "--output", output)
    code, _, err = ood("predict", root / "stream", *options)
    assert code == 0, err
    code, out, err = ood("drift", output, "--format", "json", "--fail-on-drift")
    assert code == 3, err
    found = json.loads(out)
    # Noticed at 10 % of 200 images, if not before; and no day without SVHN is reported.
    assert found["first"] in ("day5", "day6")
    changed = [each["changed"] for each in found["groups"]]
    assert changed[:3] == [False] * 3
    assert changed[5:] == [True] * 3
    assert all(test["p_adjusted"] < 0.05 for test in found["groups"][-1]["tests"])
    # The list at a false discovery rate of 10 % has few CIFAR-10 images.
    assert ood("verdicts", "merge", output, "--fdr", "0.1", "--output", merged)[0] == 0
    flagged = [
        "svhn" in row["path"]
        for row in csv.DictReader(merged.read_text().splitlines())
        if row["verdict"] == "ood"
    ]
    assert len(flagged) > 20
    assert 1 - np.mean(flagged) < 0.25
    # Streams of ID images only, drawn from all real scores, are reported as rarely as promised.
    rows = [row for row in csv.DictReader(output.read_text().splitlines()) if row["score"]]
    id_rows = [row for row in rows if "cifar" in row["path"]]
    scores = np.array([float(row["score"]) for row in id_rows])
    classes = np.array([row["class"] for row in id_rows])
    rng = np.random.default_rng(1)
    draws, level = 200, 0.2
    reported = 0
    for _ in range(draws):
        order = rng.permutation(len(scores))
        known, days = order[:700], np.array_split(order[700:1100], 4)
        threshold = ThresholdRule().on(np.sort(scores[known]))
        reference = Reference("ID", scores[known], threshold.below, classes[known])
        groups = [
            GroupRows(str(number), scores[day], int((scores[day] < threshold.value).sum()),
                      classes=classes[day])
            for number, day in enumerate(days)
        ]  # fmt: skip
        reported += any(each.changed for each in compare(groups, reference, level=level))
    assert 0.03 * draws < reported <= binom.ppf(0.999, draws, level)
