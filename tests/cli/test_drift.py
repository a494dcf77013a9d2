"""``ood drift``: groups of judged images against ID images."""

import json
import shutil
from pathlib import Path

import pytest

from oodcli.screening.feature_file import feature_path, read_features
from oodcli.screening.verdict_file import settings_path
from oodcli.store.store import read_json, write_json
from tests.support.cli import Ood, flat


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def verdicts(ood: Ood, tiny: Path, tmp_path: Path) -> Path:
    """Return verdicts on two days of ID images, one of noise, and one of damaged files."""
    root = tmp_path / "stream"
    for day in ("day9", "day10"):
        shutil.copytree(tiny / "test", root / day)
        for label in ("blue", "red"):
            for file in (root / day / label).iterdir():
                file.rename(root / day / f"{label}-{file.name}")
            (root / day / label).rmdir()
    flat(root / "day11", n=30)
    (root / "day12").mkdir()
    (root / "day12" / "x.png").write_bytes(b"no image")
    output = tmp_path / "v.csv"
    options = ("--method", "knn:k=3", "--group-by", "folder", "--features", "--output", output)
    code, _, err = ood("predict", root, *options)
    assert code == 0, err
    return output


def test_the_day_that_changed_is_named(ood: Ood, verdicts: Path, tmp_path: Path) -> None:
    plot = tmp_path / "drift.svg"
    code, out, err = ood("drift", verdicts, "--plot", plot, "--fail-on-drift")
    assert code == 3, err
    assert "CHANGED: 1 group of 4; the first is day11 (share, scores, features" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(" day")] == [
        "day9", "day10", "day11", "day12",
    ]  # fmt: skip
    assert "1 unreadable" in out
    assert "drift of knn:k=3 on tiny against 24 test images of colours" in out
    assert plot.read_bytes().startswith(b"<?xml")
    assert f"plot: {plot}" in err
    code, out, _ = ood("drift", verdicts, "--format", "json")
    assert code == 0
    found = json.loads(out)
    assert (found["kind"], found["first"], found["changed"]) == ("ood-drift", "day11", True)
    by = {each["group"]: each for each in found["groups"]}
    assert [by[day]["changed"] for day in ("day9", "day10", "day11")] == [False, False, True]
    assert by["day9"]["tests"][1]["statistic"] == 0.0  # the same images as the reference
    assert (by["day11"]["ood"], by["day11"]["images"]) == (30, 30)
    assert by["day12"]["share"] is None
    assert found["reference_images"] == 24


def test_a_file_of_verdicts_can_be_the_reference(ood: Ood, verdicts: Path, tmp_path: Path) -> None:
    noise, other = tmp_path / "noise.csv", tmp_path / "other.csv"
    common = ("--method", "knn:k=3", "--features", "--output")
    assert ood("predict", tmp_path / "stream" / "day11", *common, noise)[0] == 0
    code, out, err = ood("drift", verdicts, "--reference", noise, "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    assert found["reference"] == f"30 images of {noise}"
    assert {each["group"]: each["changed"] for each in found["groups"]} == {
        "day9": True, "day10": True, "day11": False, "day12": False,
    }  # fmt: skip
    # Without groups all images are one, with a note; without features these are not compared.
    code, out, err = ood("drift", noise, "--fail-on-drift")
    assert code == 3
    assert "the verdicts have no groups, so all images are one" in err
    assert ood("drift", verdicts, "--reference", "tiny", "--fail-on-drift")[0] == 3
    assert (
        ood("predict", tmp_path / "stream" / "day9", "--method", "msp", "--output", other)[0] == 0
    )
    code, _, err = ood("drift", verdicts, "--reference", other)
    assert code == 1
    assert f"the scores of {other} are of another method (msp, here knn:k=3)" in err
    code, _, err = ood("drift", other)
    assert code == 0
    assert "features are not compared, since they are not stored" in err


def test_a_packed_detector_has_the_reference_without_a_store(
    ood: Ood, verdicts: Path, tmp_path: Path
) -> None:
    packed, other = tmp_path / "knn", tmp_path / "msp"
    for method, file in (("knn:k=3", packed), ("msp", other)):
        assert ood("detector", "pack", "--method", method, "--output", file)[0] == 0
    wanted = ood("drift", verdicts, "--format", "json")[1]
    without = ("--store", tmp_path / "none", "--format", "json")
    code, out, err = ood("drift", verdicts, "--reference", packed, *without)
    assert (code, out, err) == (0, wanted, "")
    code, out, err = ood("drift", verdicts, "--reference", other, *without)
    assert (code, out) == (1, "")
    assert f"the detector {other} has another method (msp, here knn:k=3)" in err
    content = packed.read_bytes()
    packed.write_bytes(content[:-100])
    code, out, err = ood("drift", verdicts, "--reference", packed, *without)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is damaged or incomplete" in err


def test_verdicts_by_class_expect_what_their_thresholds_promise(
    ood: Ood, verdicts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "by-class.csv"
    options = ("--method", "knn:k=3", "--false-alarms", "0.2", "--per-class", "--output", output)
    assert ood("predict", tmp_path / "stream" / "day9", *options)[0] == 0
    groups = read_json(settings_path(output))["by_class"]
    found = json.loads(ood("drift", output, "--format", "json")[1])
    assert found["expected"] == pytest.approx((sum(g["below"] + 1 for g in groups) - 1) / 24)
    assert found["groups"][0]["expected_low"] is None


def test_shards_and_their_merged_file_are_compared_alike(
    ood: Ood, verdicts: Path, tmp_path: Path
) -> None:
    options = ("--method", "knn:k=3", "--group-by", "folder", "--features")
    parts, merged = tmp_path / "parts", tmp_path / "merged.jsonl"
    parts.mkdir()
    for shard in ("1/2", "2/2"):
        stream = ("predict", tmp_path / "stream", *options, "--shard", shard)
        assert ood(*stream, "--output", parts / "v.csv")[0] == 0
    code, _, err = ood("verdicts", "merge", parts, "--output", merged)
    assert code == 0, err
    assert len(read_features(merged)) == 79
    found = [
        json.loads(ood("drift", files, "--format", "json")[1])
        for files in (parts, merged, verdicts)
    ]
    names = ("share", "scores", "features", "classes")
    for each in found:
        assert each["first"] == "day11"
        assert tuple(test["name"] for test in each["groups"][2]["tests"]) == names
    assert found[0]["groups"] == found[1]["groups"]
    for one, other in zip(found[0]["groups"], found[2]["groups"], strict=True):
        assert (one["images"], one["ood"]) == (other["images"], other["ood"])
    # Features of other rows do not stay beside a merged file that has none.
    bare = tmp_path / "bare.csv"
    stream = ("predict", tmp_path / "stream", "--method", "knn:k=3", "--output", bare)
    assert ood(*stream)[0] == 0
    assert ood("verdicts", "merge", bare, "--output", merged)[0] == 0
    assert not feature_path(merged).exists()
    (parts / "v-00002-of-00002.csv.features.npy").unlink()
    code, _, err = ood("verdicts", "merge", parts, "--output", tmp_path / "again.csv")
    assert (code, "keep each FILE.features.npy beside its FILE" in err) == (1, True)
    assert not (tmp_path / "again.csv").exists()


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--level", "0"), "--level must be above 0 and below 1, not 0"),
        (("--level", "nan"), "--level must be above 0 and below 1, not nan"),
        (
            ("--reference", "gone.csv"),
            "--reference is neither a file of verdicts, a detector nor a run: ",
        ),
        (("--plot", "drift.gif"), "the extension of drift.gif must be one of .png, .svg, .pdf"),
        (("--store", "empty"), "the ID images of tiny are not here ("),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(
    ood: Ood, verdicts: Path, options: tuple[str, str], message: str
) -> None:
    code, out, err = ood("drift", verdicts, *options)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_rows_without_a_group_or_of_an_earlier_version_are_said(
    ood: Ood, verdicts: Path, tmp_path: Path
) -> None:
    text = verdicts.read_text().replace(",day9,", ",,")
    verdicts.write_text(text)
    code, _, err = ood("drift", verdicts)
    assert code == 0
    assert "24 images without a group left out" in err
    verdicts.write_text(text.replace(",day11,", ",,").replace(",day10,", ",,"))
    code, _, err = ood("drift", verdicts)
    assert (code, "could be read and has a group" in err) == (1, True)
    shutil.rmtree(tmp_path / "store" / "runs" / "tiny" / "detectors")
    code, _, err = ood("drift", verdicts)
    assert (code, "run tiny has no stored ID images of knn:k=3 (float32)" in err) == (1, True)
    beside = settings_path(verdicts)
    write_json(beside, read_json(beside) | {"schema": 1})
    code, _, err = ood("drift", verdicts)
    assert (code, "was written by an earlier version, without groups" in err) == (1, True)
