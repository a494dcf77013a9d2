"""``ood verdicts``: files of ``ood predict`` merged and summarised on the command line."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.support.cli import Ood


@pytest.fixture
def two(ood: Ood, tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a file of verdicts on ID images, and one on 24 images that are all OOD."""
    code, out, _ = ood("predict", tiny / "test", "--method", "energy", "--format", "jsonl")
    found = sorted((json.loads(line) for line in out.splitlines()), key=lambda row: row["score"])
    # One ID image lies below this threshold.
    threshold = (found[0]["score"] + found[1]["score"]) / 2
    (tmp_path / "odd").mkdir()
    for number in range(24):
        shutil.copy(found[0]["path"], tmp_path / "odd" / f"{number}.png")
    files = tmp_path / "id.csv", tmp_path / "odd.jsonl"
    for images, file in zip((tiny / "test", tmp_path / "odd"), files, strict=True):
        options = ("--method", "energy", "--threshold", threshold, "--output", file)
        code, _, err = ood("predict", images, *options)
        assert code == 0, err
    return files


def test_the_summary_is_that_of_predict(
    ood: Ood, two: tuple[Path, Path], tiny: Path, tmp_path: Path
) -> None:
    again = tmp_path / "both.csv"
    summary = tmp_path / "summary.json"
    threshold = json.loads(two[1].read_text().splitlines()[0])["threshold"]
    options = ("--method", "energy", "--threshold", threshold, "--output", again)
    code, _, err = ood("predict", tiny / "test", tmp_path / "odd", *options, "--summary", summary)
    assert code == 0, err
    expected = json.loads(summary.read_text())
    code, out, err = ood("verdicts", "merge", *two, "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    assert found["files"] == [str(file) for file in two]
    assert len(found["rows"]) == 25  # the OOD images
    assert found["seconds"] is None
    for key, value in expected.items():
        if key not in ("seconds", "created"):
            assert found[key] == (pytest.approx(value) if key == "expected" else value), key
    code, out, _ = ood("verdicts", "summary", again)
    assert code == 0
    assert f"note: 48 images: {expected['images']['id']} id, {expected['images']['ood']} ood" in out
    assert "of 24 test images of colours" in out


def test_exit_codes_are_those_of_predict(ood: Ood, two: tuple[Path, Path]) -> None:
    with two[1].open() as stream:
        bad = sum('"verdict": "ood"' in line for line in stream)
    with two[0].open() as stream:
        wrong = sum(row["verdict"] == "ood" for row in csv.DictReader(stream))
    assert (bad, wrong) == (24, 1)
    for command in (("merge", *two), ("summary", two[1])):
        assert ood("verdicts", *command)[0] == 0
        assert ood("verdicts", *command, "--fail-on-ood", "--fail-on-any-ood")[0] == 3
        assert ood("verdicts", *command, "--fail-on-ood", "--alarm-level", "1e-30")[0] == 0
        assert ood("verdicts", *command, "--fail-on-any-ood")[0] == 4
    code, _, err = ood("verdicts", "merge", *two, "--output", "all.txt")
    assert (code, err) == (
        1, "error: the extension of all.txt must be .csv, .jsonl or .parquet; choose one\n"
    )  # fmt: skip
    assert ood("verdicts", "summary", two[0], "--alarm-level", "2")[0] == 1
