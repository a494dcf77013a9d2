"""``ood predict``: which incoming images the classifier knows."""

import csv
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.screening.feature_file import read_features
from oodcli.screening.merging import open_part
from oodcli.store.store import file_lock
from tests.support.cli import Ood, flat
from tests.support.program import start_program

FIELDS = [
    "path",
    "class",
    "probability",
    "score",
    "threshold",
    "percentile",
    "p_value",
    "verdict",
    "group",
    "error",
]


@pytest.fixture
def incoming(tiny: Path, tmp_path: Path) -> Path:
    """Return a folder of ID images, noise, and two files that are no images."""
    root = tmp_path / "incoming"
    shutil.copytree(tiny / "test", root / "a")
    flat(root / "b")
    (root / "b" / "broken.png").write_bytes(b"no image")
    (root / "c.png").symlink_to("nowhere")
    (root / "notes.txt").write_text("passed over")
    return root


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def objects(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_image_gets_a_row_in_order(ood: Ood, incoming: Path) -> None:
    code, out, err = ood("predict", incoming, "--method", "energy", "--format", "csv")
    assert code == 0, err
    found = rows(out)
    assert list(found[0]) == FIELDS
    names = [Path(row["path"]).relative_to(incoming).as_posix() for row in found]
    assert names == sorted(names)
    assert len(names) == 24 + 7 + 2
    bad = {Path(row["path"]).name: row["error"] for row in found if row["error"]}
    assert bad == {"broken.png": "not an image file", "c.png": "the file no longer exists"}
    for row in found:
        if not row["error"]:
            assert row["class"] in ("blue", "red")
            assert 0.5 <= float(row["probability"]) <= 1
            known = float(row["score"]) >= float(row["threshold"])
            assert row["verdict"] == ("id" if known else "ood")
            assert 0 <= float(row["percentile"]) <= 100
            # The number of ID scores that are not larger, of 24.
            below = float(row["p_value"]) * 25 - 1
            assert below == pytest.approx(round(below))
            assert 24 * float(row["percentile"]) / 100 <= below + 1e-4 <= 24.1
    counted = [sum(row["verdict"] == each for row in found) for each in ("id", "ood")]
    assert f"33 images: {counted[0]} id, {counted[1]} ood, 2 unreadable" in err
    assert "± " in err
    assert "of 24 test images of colours; energy, fitted 20" in err


def test_the_scores_are_those_of_ood_score(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    noise = flat(tmp_path / "noise", n=30)
    methods = ("energy", "featurenorm", "knn:k=3", "react", "odin")
    export = tmp_path / "scores.npz"
    named = [piece for method in methods for piece in ("--method", method)]
    assert ood("score", *named, "--ood", noise, "--export", export)[0] == 0
    with np.load(export) as stored:
        for method in methods:
            options = ("--method", method, "--format", "jsonl", "--score-batch-size", "7")
            code, out, err = ood("predict", noise, *options)
            assert code == 0, err
            canonical = next(n for n in stored if n.startswith(method) and n.endswith("/noise"))
            got = {Path(str(each["path"])).name: each["score"] for each in objects(out)}
            # The set has the files in the same order, sorted by name.
            np.testing.assert_allclose(
                [got[name] for name in sorted(got)], stored[canonical], rtol=1e-6, atol=1e-9
            )


def test_a_threshold_among_tied_scores_is_said_to_be_coarse(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    noise = flat(tmp_path / "noise", n=3)
    # Each of 16 neurons is covered or not, so that 24 images have few scores between them.
    for _ in ("fitted", "stored"):
        code, _, err = ood("predict", noise, "--method", "nac:least=1")
        assert code == 0
        assert "% of the 24 ID scores of nac:least=1 are tied with another" in err
    assert "tied with another" not in ood("predict", noise, "--method", "energy")[2]


def test_arrays_stdin_and_single_files_are_read(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = flat(tmp_path / "noise", n=3)
    pixels = np.stack([np.asarray(Image.open(noise / f"{n}.png")) for n in range(3)])
    np.savez(tmp_path / "x.npz", images=pixels)
    other = shutil.copy(noise / "0.png", tmp_path / "no-ending")

    class Stdin:
        buffer: Iterator[bytes] = iter(
            [
                os.fsencode(noise / "1.png") + b"\n",
                b"\n",
                os.fsencode(noise) + b"\r\n",
                b"gone.png\n",
                b"a\0b\n",
                b"gone.npz",
            ]
        )

    monkeypatch.setattr(sys, "stdin", Stdin())
    code, out, err = ood(
        "predict", tmp_path / "x.npz", "-", other, noise / "1.png", "--method", "msp",
        "--format", "jsonl",
    )  # fmt: skip
    assert code == 0, err
    found = objects(out)
    npz = [f"{tmp_path / 'x.npz'}[{n}]" for n in range(3)]
    files = [str(noise / f"{n}.png") for n in range(3)]
    assert [each["path"] for each in found] == [
        *npz, files[1], *files, "gone.png", "a\0b", "gone.npz", str(other), files[1],
    ]  # fmt: skip
    score = {str(each["path"]): each["score"] for each in found}
    for array, file in zip(npz, files, strict=True):
        assert score[array] == pytest.approx(score[file], rel=1e-6)
    assert score[str(other)] == pytest.approx(score[files[0]], rel=1e-6)
    assert found[7]["error"] == "the file no longer exists"
    assert str(found[8]["error"]).startswith("a path cannot hold a zero byte")
    assert found[9]["error"] == "there is no file gone.npz; check its name"
    assert {each["schema"] for each in found} == {2}


def test_the_table_shows_few_images_and_of_many_the_least_known(
    ood: Ood, incoming: Path, tmp_path: Path
) -> None:
    code, out, _ = ood("predict", incoming, "--method", "energy")
    assert code == 0
    assert "unreadable: not an image file" in out
    assert out.count(".png") == 33
    flat(incoming / "many", n=60)
    code, out, err = ood("predict", incoming, "--method", "energy", "--threshold", "1e9")
    assert (code, err.count("threshold")) == (0, 0)
    assert "42 of 93 rows: the images with the lowest scores" in " ".join(out.split())
    assert "note: threshold 1e+09, as given: it accepts 0.00 % of 24 test images of colours" in out


def test_the_exit_code_tells_a_share_far_above_the_expected_from_single_images(
    ood: Ood, incoming: Path, tiny: Path, tmp_path: Path
) -> None:
    """A quarter of the ID images lie below the threshold: so many on a good night are no alarm."""
    night = ("predict", "--method", "energy", "--tpr", "0.75", "--format", "csv")
    code, out, err = ood(*night, tiny / "test", "--fail-on-ood")
    assert (code, sum(row["verdict"] == "ood" for row in rows(out))) == (0, 6)
    assert "6 of 24 images are OOD: not significantly more than among ID images (p = 0.63)" in err
    assert ood(*night, tiny / "test", "--fail-on-ood", "--fail-on-any-ood")[0] == 4
    bad = ("predict", incoming / "b", "--method", "energy", "--threshold", "1e9", "--format", "csv")
    assert ood(*bad)[0] == 0
    assert ood(*bad, "--fail-on-ood")[0] == 0  # above all ID scores too
    assert ood(*bad, "--fail-on-any-ood")[0] == 4
    assert ood(*bad[:-4], "--threshold=-1e9", "--fail-on-ood", "--fail-on-any-ood")[0] == 0


def lowest(ood: Ood, folder: Path) -> tuple[Path, float]:
    """Return the image of a folder with the lowest energy, and a threshold just above it."""
    _, out, _ = ood("predict", folder, "--method", "energy", "--format", "jsonl")
    first, second, *_ = sorted(objects(out), key=lambda each: float(str(each["score"])))
    scores = [float(str(each["score"])) for each in (first, second)]
    return Path(str(first["path"])), sum(scores) / 2


def test_an_alarm_is_said_in_words_in_json_and_by_the_exit_code(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    """24 ID images with one below the threshold, against 12 all below it: 1 in 96 million."""
    image, threshold = lowest(ood, tiny / "test")
    for number in range(12):
        shutil.copy(image, tmp_path / f"{number}.png")
    options = (
        "predict", *sorted(tmp_path.glob("*.png")), "--method", "energy",
        "--threshold", threshold, "--summary", tmp_path / "night.json",
    )  # fmt: skip
    # Of 36 images the 13 lowest hold all 12 new ones: C(24, 1) / C(36, 13).
    p = 24 / math.comb(36, 13)
    code, out, _ = ood(*options, "--fail-on-ood", "--fail-on-any-ood")
    assert code == 3
    said = " ".join(out.split())
    assert (
        f"ALARM: 12 of 12 images are OOD, far above the share among ID images (p = {p:.2g})" in said
    )
    found = json.loads((tmp_path / "night.json").read_text())
    assert (found["kind"], found["schema"], found["alarm"]) == ("ood-screening", 1, True)
    assert found["p"] == pytest.approx(p)
    assert found["images"] == found["tested"] == {"id": 0, "ood": 12, "errors": 0, "total": 12}
    assert (found["threshold"]["below"], found["threshold"]["n"]) == (1, 24)
    assert found["share"] == 1
    assert found["expected"] == pytest.approx(1 / 24)
    code, out, _ = ood(*options, "--fail-on-ood", "--alarm-level", p / 2)
    assert (code, "ALARM" in out) == (0, False)


def test_a_night_is_tested_for_itself_whatever_the_file_held_before(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    night, output, found = tmp_path / "night", tmp_path / "all.csv", tmp_path / "summary.json"
    image, threshold = lowest(ood, tiny / "test")
    shutil.copytree(tiny / "test", night)
    options = (
        "predict", night, "--method", "energy", "--threshold", threshold, "--output", output,
        "--summary", found, "--fail-on-ood",
    )  # fmt: skip
    assert ood(*options)[0] == 0
    for number in range(3):
        shutil.copy(image, night / f"new-{number}.png")
    assert ood(*options)[0] == 0
    summary = json.loads(found.read_text())
    assert summary["p"] == pytest.approx(24 / math.comb(27, 4))  # 0.0014
    for number in range(3, 7):
        shutil.copy(image, night / f"new-{number}.png")
    assert ood(*options)[0] == 3
    summary = json.loads(found.read_text())
    assert summary["tested"] == {"id": 0, "ood": 4, "errors": 0, "total": 4}
    assert summary["images"] == {"id": 23, "ood": 8, "errors": 0, "total": 31}
    assert summary["p"] == pytest.approx(24 / math.comb(28, 5))
    assert ood(*options)[0] == 0  # every image has its row: all of them, 8 of 31, are tested
    assert json.loads(found.read_text())["tested"]["total"] == 31


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_that_was_cut_is_resumed(
    ood: Ood, incoming: Path, tmp_path: Path, kind: str
) -> None:
    (incoming / "b" / 'new\nline, "quoted".png').write_bytes((incoming / "b/0.png").read_bytes())
    output = tmp_path / f"verdicts.{kind}"
    options = ("predict", incoming, incoming / "b", "--method", "energy", "--output", output)
    code, out, err = ood(*options)
    assert (code, out) == (0, "")
    whole = output.read_bytes()
    assert whole.count(b"\n") == 34 + 9 + (kind == "csv")
    for cut in (0, 5, 70, 150, len(whole) // 2, len(whole) - 1, len(whole)):
        output.write_bytes(whole[:cut])
        code, _, again = ood(*options)
        assert code == 0, again
        assert rounded(output.read_text(), kind) == rounded(whole.decode(), kind)
        assert again.splitlines()[-3].split(";")[0] == err.splitlines()[-3].split(";")[0]
    assert f"{output} has 43 rows: resuming after them" in again


def test_features_are_stored_beside_the_verdicts(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    output = tmp_path / "verdicts.csv"
    options = ("predict", incoming, "--method", "energy", "--output", output, "--features")
    assert ood(*options)[0] == 0
    whole, features = output.read_bytes(), np.array(read_features(output, rows=33))
    unreadable = [bool(row["error"]) for row in rows(whole.decode())]
    np.testing.assert_array_equal(np.isnan(features).all(axis=1), unreadable)
    assert len(np.unique(features, axis=0)) > 20
    output.write_bytes(whole[: len(whole) // 2])
    assert ood(*options)[0] == 0
    assert rounded(output.read_text(), "csv") == rounded(whole.decode(), "csv")
    np.testing.assert_allclose(read_features(output, rows=33), features, rtol=1e-4, atol=1e-6)
    code, _, err = ood("predict", incoming, "--method", "energy", "--features")
    assert (code, "name it: --output FILE.csv" in err) == (1, True)


def rounded(text: str, kind: str) -> list[dict[str, object]]:
    """Return rows whose scores may differ by the rounding of another batch."""
    found = rows(text) if kind == "csv" else objects(text)
    return [
        {key: value for key, value in row.items() if key not in ("score", "probability")}
        | {"score": row["score"] and f"{float(str(row['score'])):.4f}"}
        for row in found
    ]


def test_what_has_come_since_is_added(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    output = tmp_path / "verdicts.csv"
    options = ("predict", incoming, "--method", "energy", "--output", output)
    assert ood(*options)[0] == 0
    before = output.read_text()
    shutil.copy(incoming / "b" / "0.png", incoming / "a" / "0.png")
    assert ood(*options)[0] == 0
    assert output.read_text().startswith(before)
    assert [row["path"] for row in rows(output.read_text())][33:] == [str(incoming / "a/0.png")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "msp"), "was written with another method (energy, now msp)"),
        (("--tpr", "0.9"), "was written with another threshold ("),
        (("--format", "jsonl"), "was written with another format (csv, now jsonl)"),
        (("--amp",), "was written with another precision (float32, now bfloat16)"),
        (("--features",), "was written with another features (not stored, now stored)"),
    ],
)
def test_rows_of_other_settings_are_not_mixed(
    ood: Ood, incoming: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    output = tmp_path / "verdicts.csv"
    plain = ("predict", incoming, "--output", output)
    assert ood(*plain, "--method", "energy")[0] == 0
    content = output.read_bytes()
    given = options if "--method" in options else ("--method", "energy", *options)
    code, _, err = ood(*plain, *given)
    assert code == 1
    assert message in err
    assert "choose another file, or remove this one" in err
    assert output.read_bytes() == content


def test_a_file_of_another_program_is_left_alone(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    output = tmp_path / "verdicts.csv"
    output.write_text("mine\n")
    code, _, err = ood("predict", incoming, "--method", "energy", "--output", output)
    assert code == 1
    assert (
        f"{output} already exists, but verdicts.csv.ood.json with the settings of its rows" in err
    )
    assert output.read_text() == "mine\n"


def test_a_line_that_is_no_row_is_reported(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    output = tmp_path / "verdicts.jsonl"
    options = ("predict", incoming, "--method", "energy", "--output", output)
    assert ood(*options)[0] == 0
    output.write_bytes(output.read_bytes() + b"hello\n")
    code, _, err = ood(*options)
    assert code == 1
    assert f"line 34 of {output} is not a row of verdicts" in err


def test_a_quote_without_an_end_is_no_row(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    output = tmp_path / "verdicts.csv"
    options = ("predict", incoming, "--method", "energy", "--output", output)
    assert ood(*options)[0] == 0
    output.write_bytes(output.read_bytes() + b'"hello\n')
    code, _, err = ood(*options)
    assert code == 1
    assert f"line 35 of {output} is not a row of verdicts" in err


def test_a_file_that_another_process_writes_is_waited_for(
    ood: Ood, incoming: Path, tmp_path: Path
) -> None:
    output = tmp_path / "verdicts.csv"
    options = ("predict", incoming, "--method", "energy", "--output", output)
    assert ood(*options)[0] == 0
    waiting = f"waiting for another ood process that is writing {output}"
    with file_lock(output):
        other = start_program(*options)
        other.wait_until(lambda: waiting in other.err)
    code, out, err = other.ended()
    assert (code, out) == (0, ""), err


def test_a_store_that_is_not_writable_is_enough(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    options = ("predict", incoming, "--method", "energy")
    assert ood(*options)[0] == 0  # the detector is stored
    shutil.rmtree(tmp_path / "store" / "locks")
    (tmp_path / "store" / "locks").write_text("nothing can be locked here")
    for output in (tmp_path / "a.csv", tmp_path / "b.jsonl"):
        code, _, err = ood(*options, "--output", output)
        assert code == 0, err


def test_a_full_disk_of_verdicts_is_not_cured_by_another_store(
    ood: Ood, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("predict", incoming, "--method", "energy")
    assert ood(*options)[0] == 0  # the detector is stored

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    target = tmp_path / "verdicts.csv"
    code, _, err = ood(*options, "--output", target)
    assert code == 1
    told = err.splitlines()[-1]
    assert told.startswith(f"error: cannot write {target}.ood.json: the disk is full: it needs ")
    assert told.endswith("free some space, or choose another file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_full_disk_is_reported_with_the_file(ood: Ood, incoming: Path) -> None:
    options = ("predict", incoming, "--method", "energy", "--format", "csv")
    code, _, err = ood(*options, "--output", "/dev/full")
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: cannot write /dev/full: no space left on device; correct this and run the "
        "same command to resume, or choose another file"
    )
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "oodcli", *map(str, options)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    told = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert told[-1] == "error: cannot write to stdout: No space left on device"


def test_copies_that_cannot_be_made_are_reported_with_the_image(
    ood: Ood, incoming: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "a").write_text("no folder")
    code, _, err = ood(
        "predict", incoming, "--method", "energy", "--threshold", "1e9", "--copy-ood", copies
    )
    assert code == 1
    assert f"cannot copy {incoming / 'a'}" in err.splitlines()[-1]
    assert f"into {copies}: " in err.splitlines()[-1]


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="there is no such link")
@pytest.mark.parametrize("command", ["predict", "report"])
def test_a_pipe_may_be_the_file(ood: Ood, incoming: Path, command: str) -> None:
    options: tuple[object, ...] = ("report", "--format", "json")
    if command == "predict":
        options = ("predict", incoming, "--method", "energy", "--format", "csv")
    else:
        assert (
            ood("score", "--method", "energy", "--ood", incoming / "b", "--skip-unreadable")[0] == 0
        )
    program = [sys.executable, "-m", "oodcli", *map(str, options), "--output", "/dev/stdout"]
    done = subprocess.run(program, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert len(rows(text)) == 33 if command == "predict" else "schema" in json.loads(text)


def test_paths_cannot_come_from_a_closed_stdin(
    ood: Ood, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    code, _, err = ood("predict", "-", "--method", "energy")
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: stdin is closed, but - reads paths from it; keep it open"
    )


def test_ood_images_are_copied_and_nothing_is_overwritten(
    ood: Ood, incoming: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", images=np.full((2, 8, 8), 7, dtype=np.uint8))
    copies = tmp_path / "copies"
    (copies / "incoming" / "b").mkdir(parents=True)
    (copies / "incoming" / "b" / "0.png").write_bytes(b"mine")
    options = (
        "predict", incoming, tmp_path / "x.npz", "--method", "energy", "--threshold", "1e9",
        "--copy-ood", copies, "--format", "csv",
    )  # fmt: skip
    for _ in range(2):
        assert ood(*options)[0] == 0
        found = {path.relative_to(copies).as_posix() for path in copies.rglob("*.png")}
        wanted = {
            f"incoming/{path.relative_to(incoming).as_posix()}"
            for path in incoming.rglob("*.png")
            if path.name not in ("broken.png", "c.png")
        }
        assert found == {*wanted, "incoming/b/0-2.png", "x.npz[0].png", "x.npz[1].png"}
    assert (copies / "incoming/b/0.png").read_bytes() == b"mine"
    assert (copies / "incoming/b/0-2.png").read_bytes() == (incoming / "b/0.png").read_bytes()
    assert not list(copies.rglob(".ood-tmp-*"))


def test_copies_are_not_copied_again(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat(tmp_path / "noise", n=3)

    class Stdin:
        buffer = (os.fsencode(tmp_path / "noise"),)

    monkeypatch.setattr(sys, "stdin", Stdin())
    copies = tmp_path / "noise" / "copies"
    options = ("--method", "energy", "--threshold", "1e9", "--copy-ood", copies)
    for _ in range(2):
        code, out, _ = ood("predict", "-", *options)
        assert (code, "3 images: 0 id, 3 ood" in out) == (0, True)
        assert len(list(copies.rglob("*.png"))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("gone",), "there is no file or folder gone; check its name"),
        ((".", "--tpr", "0"), "--tpr must be above 0 and at most 1, not 0"),
        ((".", "--tpr", "1.5"), "--tpr must be above 0 and at most 1, not 1.5"),
        ((".", "--threshold", "nan"), "--threshold must be a finite number, not nan"),
        ((".", "--tpr", "0.9", "--threshold", "1"), "both set the threshold"),
        ((".", "--alarm-level", "1"), "--alarm-level must be above 0 and below 1, not 1"),
        ((".", "--summary", "."), ". is a folder; name a file in it"),
        ((".", "--method", "enrgy"), "did you mean 'energy'?"),
        ((".", "--method", "auto:k=1"), "auto has no parameters, and 'auto:k=1' gives it some"),
        ((".", "--run", "tny"), "did you mean 'tiny'?"),
        ((".", "--output", "x.txt"), "the extension of x.txt is neither .csv nor .jsonl"),
        (
            (".", "--output", "x.csv", "--format", "table"),
            "a table can only be printed to the terminal",
        ),
        ((".", "--output", "nowhere/x.csv"), "there is no folder"),
        ((".", "--copy-ood", "./inside"), "inside is inside the input folder ."),
        (("-", "-"), "- stands for stdin and may be given only once"),
        (("text.npz",), "text.npz is not an .npz file"),
    ],
)
@pytest.mark.usefixtures("tiny", "workplace")
def test_wrong_inputs_are_one_clear_line(ood: Ood, options: tuple[str, ...], message: str) -> None:
    Path("text.npz").write_text("hello")
    method = () if "--method" in options else ("--method", "energy")
    code, out, err = ood("predict", *options, *method)
    assert (code, out) == (1, "")
    assert message in err.splitlines()[-1]


def test_links_in_a_circle_end(ood: Ood, incoming: Path) -> None:
    (incoming / "loop").symlink_to(incoming)
    code, out, _ = ood("predict", incoming, "--method", "energy", "--format", "csv")
    assert (code, len(rows(out))) == (0, 33)


def test_where_there_is_no_image_nothing_is_begun(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is a method fitted, nor a file written."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    output = tmp_path / "verdicts.csv"
    options = ("--method", "energy", "--output", output)

    class Stdin:
        buffer: Iterator[bytes] = iter([b"\n"])

    monkeypatch.setattr(sys, "stdin", Stdin())
    for path, named in ((tmp_path / "empty", str(tmp_path / "empty")), ("-", "stdin")):
        code, out, err = ood("predict", path, *options)
        assert (code, out) == (1, "")
        assert err.splitlines()[-1].startswith(
            f"error: there is no image in {named}; give other paths"
        )
        assert not output.exists()
        fitted = list((tmp_path / "store").glob("runs/tiny/detectors/*"))
        assert bool(fitted) is (path == "-")


def test_a_night_of_unreadable_files_is_an_error_after_its_rows(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    for number in range(100):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    code, out, err = ood("predict", tmp_path, "--method", "energy", "--format", "jsonl")
    assert code == 1
    assert sum(each["error"] == "not an image file" for each in objects(out)) == 100
    assert "0 id, 0 ood, 100 unreadable" in err
    assert err.splitlines()[-1] == (
        f"error: none of 100 images could be judged, because none can be read, such as "
        f"{tmp_path / '0.png'}: not an image file; check that the files are complete"
    )
    output = tmp_path / "verdicts.csv"
    night = tmp_path / "night"
    shutil.copytree(tiny / "test", night)
    options = ("predict", night, "--method", "energy", "--output", output)
    assert ood(*options)[0] == 0
    assert ood(*options)[0] == 0  # every image has its row already
    (night / "new.png").write_bytes(b"x")
    code, _, err = ood(*options)
    assert code == 1
    assert "none of 1 image could be judged" in err


def test_images_of_every_kind_are_seen_alike(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    """One picture in many ways to store it gets one score."""
    rng = np.random.default_rng(0)
    grey = np.kron(rng.integers(0, 256, (4, 6)), np.ones((16, 16), dtype=np.int64))
    folder = tmp_path / "kinds"
    folder.mkdir()
    plain = Image.fromarray(grey.astype(np.uint8))
    plain.save(folder / "grey.png")
    plain.convert("RGB").save(folder / "rgb.png")
    plain.convert("RGBA").save(folder / "rgba.png")
    Image.fromarray((257 * grey).astype(np.uint16)).save(folder / "deep.png")
    plain.convert("RGB").convert("CMYK").save(folder / "cmyk.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    code, out, _ = ood("predict", folder, "--method", "energy", "--format", "jsonl")
    assert code == 0
    scores = {Path(str(each["path"])).name: each["score"] for each in objects(out)}
    assert len(scores) == 6
    for score in scores.values():
        assert score == pytest.approx(scores["rgb.png"], rel=1e-5)


def test_interrupted_says_how_to_resume(
    ood: Ood, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("oodcli.workflows.predict.predict", interrupted)
    code, _, err = ood("predict", incoming, "--output", tmp_path / "x.csv")
    assert code == 130
    assert f"run the same command to resume after the rows in {tmp_path / 'x.csv'}" in err
    code, _, err = ood("predict", incoming)
    assert (code, err.strip()) == (
        130,
        "error: interrupted; without --output FILE it cannot be resumed",
    )


def test_rows_reach_a_reader_that_goes_away(tiny: Path, tmp_path: Path) -> None:
    noise = flat(tmp_path / "noise", n=200)
    command = [
        sys.executable, "-m", "oodcli", "predict", noise, "--method", "msp", "--format", "csv",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline().decode().strip() == ",".join(FIELDS)
        program.stdout.close()
        assert program.stderr is not None
        told = program.stderr.read().decode()
    assert "Traceback" not in told
    assert program.returncode in (0, 141)


def test_without_a_method_one_that_needs_no_choice_is_taken_and_the_choice_offered(
    ood: Ood, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("oodcli.workflows.recommend.choose", None)
        code, out, err = ood("predict", incoming, "--format", "csv")
    assert code == 0, err
    # 24 training images, and 24 test images plain, framed for 3 x 3 tiles, and in eight ways.
    assert (
        "method: msp, since none is given (--method) and none has been recommended for run" in err
    )
    assert (
        "to choose one without OOD images: ood recommend --run tiny, which takes a forward" in err
    )
    assert "over up to 264 images" in err
    assert out == ood("predict", incoming, "--method", "msp", "--format", "csv")[1]
    _, _, err = ood("predict", incoming, "--format", "csv")
    assert re.search(r"up to 264 images \(about \S+ s on cpu, at the speed of the last one\)", err)


def test_without_a_method_the_recommended_one_is_taken_where_it_was_chosen(
    ood: Ood, incoming: Path
) -> None:
    code, out, err = ood("predict", incoming, "--method", "auto", "--format", "csv")
    assert code == 0, err
    assert "no method has been recommended" in err
    assert "choosing one, which takes a forward pass over up to 264 images" in err
    (method,) = (
        line.split(": ")[1].partition(", recommended for run")[0]
        for line in err.splitlines()
        if line.startswith("method: ")
    )
    for named in ((), ("--method", "auto"), ("--method", method)):
        code, again, err = ood("predict", incoming, *named, "--format", "csv")
        assert code == 0, err
        assert again == out
        assert "no method has been recommended" not in err


def test_predicted_classes_have_their_own_thresholds(
    ood: Ood, incoming: Path, tmp_path: Path
) -> None:
    options = ("--method", "energy", "--format", "csv", "--false-alarms", "0.2", "--per-class")
    code, out, err = ood("predict", incoming, *options)
    assert code == 0, err
    found = [row for row in rows(out) if not row["error"]]
    by_class: dict[str, set[str]] = {}
    for row in found:
        by_class.setdefault(row["class"], set()).add(row["threshold"])
        assert row["verdict"] == ("ood" if float(row["p_value"]) <= 0.2 else "id")
        assert row["verdict"] == ("ood" if float(row["score"]) < float(row["threshold"]) else "id")
    assert [len(values) for values in by_class.values()] == [1, 1]
    assert len(set.union(*by_class.values())) == 2
    assert "OOD for each predicted class (2 thresholds): p_value of at most 0.2" in err
    # 24 ID images are too few for either class, and for a smaller rate.
    code, _, err = ood("predict", incoming, *options[:4], "--false-alarms", "0.05", "--per-class")
    assert code == 0
    assert "needs 19 ID images of each predicted class; 2 classes with fewer" in err
    code, _, err = ood("predict", incoming, *options[:4], "--false-alarms", "0.01")
    assert code == 1
    assert "--false-alarms 0.01 needs 99 ID images" in err
    assert "at least --false-alarms 0.04" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "csv"), "rows cannot be written as a stream; name a file: --output FILE.csv"),
        (("--output", "/dev/null", "--format", "csv"), "rows cannot be written as a stream"),
        (("--copy-ood", "found"), "--copy-ood cannot copy on the way"),
        (("--tpr", "0.9"), "--tpr and --fdr both set the threshold; give one of them"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_what_cannot_wait_for_verdicts_is_refused(
    ood: Ood, incoming: Path, options: tuple[str, ...], message: str
) -> None:
    code, out, err = ood("predict", incoming, "--method", "energy", "--fdr", "0.1", *options)
    assert (code, out) == (1, "")
    assert message in err


def test_groups_stand_in_the_rows(ood: Ood, incoming: Path, tmp_path: Path) -> None:
    output = tmp_path / "v.csv"
    options = ("predict", incoming, "--method", "energy", "--output", output)
    assert ood(*options, "--group-by", "folder")[0] == 0
    for row in rows(output.read_text()):
        assert row["group"] == Path(row["path"]).relative_to(incoming).parent.as_posix()
    code, _, err = ood(*options)
    assert (code, "was written with another group by (folder, now null)" in err) == (1, True)
    code, _, err = ood(*options, "--group-by", "camera")
    assert code == 1
    assert "is no table (.csv, .tsv, .jsonl) with this column; give tables, or group by day" in err


HOSTILE = (
    b"=1+1.png", b"+a.png", b"-a.png", b"@SUM(A1).png", b"'q.png", b'a,b;c\t"d".png', b"\\n.png",
    b"new\nline\r.png", b"\x1b[31mred\x1b]0;title\x07.png", b"[bold]b.png", b"caf\xe9.png",
    "\u202egnp.exe\u2066.png".encode(), b"\xc2\x9b31m.png", b"n" * 251 + b".png", b" lead.png",
    b"%s.png", b"\x7f.png", b"<script>.png",
)  # fmt: skip


@pytest.mark.parametrize("options", [("csv",), ("csv", "--csv-safe"), ("jsonl",)])
def test_hostile_names_are_read_back_and_drive_no_terminal(
    ood: Ood, tiny: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    source = flat(tmp_path / "flat", n=1) / "0.png"
    folder = tmp_path / "in"
    folder.mkdir()
    for name in HOSTILE:
        shutil.copy(source, folder / os.fsdecode(name))
        (folder / os.fsdecode(b"bad-" + name[:200] + b".png")).touch()
    kind, *more = options
    output, copies = tmp_path / f"v.{kind}", tmp_path / "copies"
    command = ("predict", folder, "--method", "energy", "--threshold", "1e9", *more)
    shown = []
    for _ in ("new", "resumed"):
        code, out, err = ood(*command, "--output", output, "--copy-ood", copies)
        assert code == 0, err
        shown.append(out + err)
    assert "36 rows: resuming after them" in err
    with open_part(output).opened() as groups:
        found = [each for group in groups for each in group]
    assert sorted(each.path for each in found) == sorted(str(path) for path in folder.iterdir())
    assert {os.fsencode(path.name) for path in copies.iterdir()} == set(HOSTILE)
    shown.append(output.read_text())
    if not more:
        code, out, err = ood(*command)
        assert code == 0, err
        shown.append(out + err)
    code, out, err = ood("verdicts", "merge", output)
    shown.append(out + err)
    for text in shown:
        assert text.replace("\n", "").isprintable(), text


def test_lines_that_are_no_paths_are_rows_with_the_reason(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        b"x" * 4096 + b".png", b"x" * 5000, b"y/" * 3000 + b"z.tar", b"\x1b[2Jgone.tar",
        b"z" * 200_000, b"[a",
    ]  # fmt: skip

    class Stdin:
        buffer: Iterator[bytes] = iter([b"%s\n" % line for line in lines])

    output = tmp_path / "v.csv"
    monkeypatch.setattr(sys, "stdin", Stdin())
    code, out, err = ood("predict", "-", "--method", "energy", "--output", output)
    assert code == 1
    assert "none of 6 images could be judged" in err
    assert (out + err).replace("\n", "").isprintable()
    with open_part(output).opened() as groups:
        found = [each for group in groups for each in group]
    assert [os.fsencode(each.path) for each in found] == lines
    reasons = [each.error for each in found]
    assert reasons[1] == reasons[4] == "file name too long"
    assert all(reasons)


def test_files_of_several_frames_are_counted(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    folder = flat(tmp_path / "frames")
    with Image.open(folder / "0.png") as first, Image.open(folder / "1.png") as second:
        first.save(folder / "pages.tif", save_all=True, append_images=[second])
        first.save(folder / "moving.gif", save_all=True, append_images=[second])
    code, _, err = ood("predict", folder, "--method", "msp")
    assert code == 0, err
    assert "2 files with several frames or pages: the first of each is used" in err
    code, _, err = ood("predict", folder / "0.png", "--method", "msp")
    assert code == 0, err
    assert "frames" not in err
