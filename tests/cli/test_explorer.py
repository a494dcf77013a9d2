"""The explorer of an HTML report in a real browser."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from oodcli.cli.app import main
from tests.support.browser import opened

SETS = {"cifar100": "near", "tin": "near", "svhn": "far", "texture": "far"}
METHODS = {"msp": 1.0, "energy": 1.6, "mds": 0.7}
CLASSES = 10


def scores(folder: Path) -> Path:
    """Write scores of three methods on the sets of a benchmark, with labels and predictions."""
    draw = np.random.default_rng(0)
    labels = draw.integers(CLASSES, size=400)
    wrong = draw.random(400) < 0.1
    arrays = {
        "@labels/cifar10": labels,
        "@predictions/cifar10": np.where(wrong, (labels + 1) % CLASSES, labels),
    }
    for method, distance in METHODS.items():
        arrays[f"{method}/cifar10"] = draw.normal(0, 1, 400) - wrong
        for at, name in enumerate(SETS):
            arrays[f"{method}/{name}"] = draw.normal(-distance * (1 + 0.3 * at), 1, 300)
    np.savez(folder / "scores.npz", **arrays)
    return folder / "scores.npz"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of a report of these scores, and the same values as CSV."""
    folder = tmp_path_factory.mktemp("explorer")
    source = ["report", "--scores", str(scores(folder)), "--no-pictures"]
    for how in ("html", "csv"):
        with pytest.raises(SystemExit) as end:
            main([*source, "--format", how, "--output", str(folder / f"page.{how}")])
        assert not end.value.code
    return folder / "page.html"


def rows(page: Path) -> list[dict[str, str]]:
    """Return the rows of the same report as CSV."""
    return list(csv.DictReader(io.StringIO(page.with_suffix(".csv").read_text())))


def test_the_heat_map_has_the_numbers_of_the_table(page, chromium):
    expected = {(r["method"], r["dataset"], r["group"]): float(r["auroc"]) for r in rows(page)}
    with opened(chromium, page) as seen:
        lines = seen.locator("#overview tbody tr").all_inner_texts()
        found = {line.split("\t")[0]: line.split("\t")[1:] for line in lines}
    order = [*expected]
    for method in METHODS:
        assert found[method] == [f"{100 * expected[key]:.2f}" for key in order if key[0] == method]
