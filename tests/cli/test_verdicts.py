"""``ood verdicts``: files of ``ood predict`` merged and summarised on the command line."""

import csv
import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from oodcli.screening.feature_file import read_features
from oodcli.screening.verdict_file import settings_path
from oodcli.store.store import read_json, write_json
from tests.support.cli import Ood, flat


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


@pytest.fixture
def mixed(tiny: Path, tmp_path: Path) -> Path:
    """Return a folder of 24 ID images, and of 30 images of noise, whose verdicts are mixed."""
    shutil.copytree(tiny / "test", tmp_path / "mixed" / "id")
    flat(tmp_path / "mixed" / "noise", n=30)
    return tmp_path / "mixed"


def decided(file: Path, rate: float) -> None:
    """Check the verdicts of a file against the procedure of Benjamini and Hochberg."""
    found = [row for row in csv.DictReader(file.read_text().splitlines()) if not row["error"]]
    ordered = sorted(Fraction(row["p_value"]).limit_denominator(1000) for row in found)
    hits = [p for k, p in enumerate(ordered, 1) if p <= k * Fraction(str(rate)) / len(ordered)]
    cutoff = float(max(hits)) if hits else 0.0
    for row in found:
        assert row["verdict"] == ("ood" if float(row["p_value"]) <= cutoff else "id")
        assert row["threshold"] == ""


def test_a_false_discovery_rate_decides_over_all_rows_of_a_file(
    ood: Ood, mixed: Path, tmp_path: Path
) -> None:
    output, summary = tmp_path / "v.csv", tmp_path / "s.json"
    rate = ("--method", "knn:k=3", "--fdr", "0.1")
    options = ("predict", mixed, *rate, "--output", output, "--summary", summary, "--features")
    (mixed / "broken.png").write_bytes(b"no image")
    code, _, err = ood(*options)
    assert code == 0, err
    whole = output.read_bytes()
    decided(output, 0.1)
    found = json.loads(summary.read_text())
    rows = list(csv.DictReader(whole.decode().splitlines()))
    assert found["images"] == {
        "id": sum(row["verdict"] == "id" for row in rows),
        "ood": sum(row["verdict"] == "ood" for row in rows),
        "errors": 1,
        "total": 55,
    }
    assert 0 < found["images"]["ood"] < 54
    assert found["threshold"]["value"] is None
    assert found["threshold"]["fdr"] == 0.1
    assert "false discovery rate 10.00 %: the images with a p_value of at most" in err
    assert "the smallest possible p_value is 1/25, since the detector has 24 ID images: " in err
    # A call that is killed leaves rows without a verdict, and is resumed.
    lines = whole.decode().splitlines(keepends=True)
    pending = [re.sub(",(id|ood),,$", ",,,", line.rstrip("\n")) + "\n" for line in lines[:20]]
    output.write_text("".join(pending) + lines[20][:9])
    assert ",,,\n" in output.read_text()
    write_json(settings_path(output), read_json(settings_path(output)) | {"finished": False})
    code, out, _ = ood("verdicts", "summary", output, "--format", "json")
    assert (code, json.loads(out)["images"]["total"]) == (0, 19)
    code, _, err = ood(*options)
    assert code == 0, err
    assert "has 19 rows: resuming after them" in err
    again = list(csv.DictReader(output.read_text().splitlines()))
    assert [row["verdict"] for row in again] == [row["verdict"] for row in rows]
    assert len(read_features(output)) == 55
    # Images that come later change verdicts of earlier rows.
    few = [mixed / "noise" / f"{number}.png" for number in range(3)]
    grows = ("--output", tmp_path / "grows.csv")
    for images, ood_rows in ((few, 0), ([*few, mixed / "noise"], 33)):
        assert ood("predict", mixed / "id", *images, *rate, *grows)[0] == 0
        decided(grows[1], 0.1)
        assert grows[1].read_text().count(",ood,") == ood_rows


def test_shards_are_decided_together(ood: Ood, mixed: Path, tmp_path: Path) -> None:
    rate = ("--method", "knn:k=3", "--fdr", "0.1")
    parts = [tmp_path / f"{name}.csv" for name in ("id", "noise")]
    for part in parts:
        assert ood("predict", mixed / part.stem, *rate, "--output", part)[0] == 0
        decided(part, 0.1)
    merged, both = tmp_path / "merged.csv", tmp_path / "both.csv"
    code, out, err = ood("verdicts", "merge", *parts, "--output", merged)
    assert code == 0, err
    decided(merged, 0.1)
    assert ood("predict", mixed / "id", mixed / "noise", *rate, "--output", both)[0] == 0
    verdicts = [
        [row["verdict"] for row in csv.DictReader(file.read_text().splitlines())]
        for file in (merged, both)
    ]
    assert verdicts[0] == verdicts[1]
    assert "false discovery rate 10.00 %" in out
    code, out, err = ood("verdicts", "merge", merged, "--fdr", "0.5", "--format", "json")
    assert (code, json.loads(out)["threshold"]["fdr"]) == (0, 0.5)
    code, _, err = ood("verdicts", "merge", merged, "--fdr", "0.01")
    assert (code, "--fdr 0.01 needs 99 ID images" in err) == (1, True)
    # A file with a threshold can be decided again by its p-values.
    plain, again = tmp_path / "plain.csv", tmp_path / "again.csv"
    assert ood("predict", mixed, "--method", "knn:k=3", "--output", plain)[0] == 0
    assert ood("verdicts", "merge", plain, "--fdr", "0.2", "--output", again)[0] == 0
    decided(again, 0.2)
    assert read_json(settings_path(again))["fdr"] == 0.2
