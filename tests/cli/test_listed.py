"""The same images as folder, table, list and archive: the same scores, verdicts and parts."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.store.scores import read_scores, read_scorings
from tests.support.cli import Ood, flat

FORMS = ("folder", "csv", "tsv", "jsonl", "zip", "tar", "nested")


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, Path]:
    """Write the same seven images in every form; return their paths."""
    folder = flat(tmp_path / "folder")
    names = sorted(file.name for file in folder.iterdir())
    rows = [f"folder/{name}" for name in names]
    (tmp_path / "a.csv").write_text("photo,note\n" + "".join(f'"{row}",x\n' for row in rows))
    (tmp_path / "a.tsv").write_text("photo\n" + "".join(f"{tmp_path}/{row}\n" for row in rows))
    lines = (json.dumps({"photo": row}) for row in rows)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for kind in ("zip", "tar"):
        shutil.make_archive(str(tmp_path / "a"), kind, tmp_path, "folder")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.write(tmp_path / "a.tar", "a.tar")
    named = {form: tmp_path / f"a.{form}" for form in FORMS}
    return {**named, "folder": folder, "nested": tmp_path / "nested.zip"}


def test_scores_and_verdicts_are_the_same_in_every_form(
    ood: Ood, tiny: Path, tmp_path: Path, forms: dict[str, Path]
) -> None:
    sets = [text for name, path in forms.items() for text in ("--ood", f"{name}={path}")]
    methods = ("--method", "msp", "--method", "knn")
    code, _, err = ood("score", *methods, *sets, "--columns", "path=photo")
    assert code == 0, err
    folder = tmp_path / "store/runs/tiny/scores"
    (scoring,) = read_scorings(folder)
    for method in ("msp", next(name for name in scoring.methods if name.startswith("knn"))):
        first, *others = (read_scores(folder, scoring, method, name) for name in FORMS)
        assert first.shape == (7,)
        for scores in others:
            np.testing.assert_array_equal(scores, first)
    code, out, err = ood(
        "predict", *forms.values(), "--columns", "path=photo", "--method", "msp", "--format",
        "jsonl", "--copy-ood", tmp_path / "copies", "--threshold", 2,
    )  # fmt: skip
    assert code == 0, err
    verdicts = [json.loads(line) for line in out.splitlines()]
    shown = [tuple(v["score"] for v in verdicts[at : at + 7]) for at in range(0, 49, 7)]
    assert len(shown) == len(FORMS)
    assert len(set(shown)) == 1
    keys = ("folder/3.png", "a.csv:5", "a.tsv:5", "a.jsonl:4", "a.zip/folder/3.png",
            "a.tar/folder/3.png", "nested.zip/a.tar/folder/3.png")  # fmt: skip
    assert [v["path"] for v in verdicts[3::7]] == [str(tmp_path / key) for key in keys]
    assert {v["verdict"] for v in verdicts} == {"ood"}
    (nested,) = (tmp_path / "copies").rglob("nested.zip*/a.tar/folder/3.png")
    assert nested.read_bytes() == (forms["folder"] / "3.png").read_bytes()
    images = {path.read_bytes() for path in forms["folder"].iterdir()}
    assert {path.read_bytes() for path in (tmp_path / "copies").rglob("*.png")} <= images


def test_a_million_rows_with_one_bad_path_would_cost_one_line(
    ood: Ood, tiny: Path, tmp_path: Path, forms: dict[str, Path]
) -> None:
    """Of a run's scores, as of verdicts: the row is named, skipped on request, and counted."""
    with forms["csv"].open("a") as table:
        table.write("gone.png,x\n")
    table = f"{forms['csv']}:path=photo"
    code, _, err = ood("score", "--method", "msp", "--ood", table)
    assert code == 1
    assert f"cannot read image {forms['csv']}:9 (gone.png): the file no longer exists" in err
    assert len([line for line in err.splitlines() if "gone" in line]) == 1
    code, _, err = ood("score", "--method", "msp", "--ood", table, "--skip-unreadable")
    assert code == 0, err
    code, out, _ = ood("predict", table, "--method", "msp", "--format", "jsonl")
    assert code == 0
    (bad,) = (row for row in map(json.loads, out.splitlines()) if row["error"])
    assert (bad["path"], bad["error"]) == (f"{forms['csv']}:9", "the file no longer exists")


def test_a_table_is_trained_on_as_the_folder_is(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    files = sorted(path for path in tiny.rglob("*.png"))
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}\n" for path in files]
    (tmp_path / "t.csv").write_text("file,colour,fold\n" + "".join(rows))
    code, _, err = ood(
        "train", "--data", tmp_path / "t.csv", "--columns", "label=colour,split=fold", "--arch",
        "resnet18:width=2", "--epochs", 2, "--batch-size", 8, "--name", "listed",
    )  # fmt: skip
    assert code == 0, err
    runs = tmp_path / "store/runs"
    ours, theirs = (
        json.loads((runs / name / "run.json").read_text()) for name in ("listed", "tiny")
    )
    assert ours["data"] == f"{tmp_path}/t.csv:label=colour,split=fold"
    assert ours["class_names"] == theirs["class_names"]
    assert (runs / "listed/weights.safetensors").read_bytes() == (
        runs / "tiny/weights.safetensors"
    ).read_bytes()


def test_a_list_that_counts_from_one_says_how_to_write_it(ood: Ood, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    for part in ("train", "test"):
        (tmp_path / f"{part}.txt").write_text("a.png 1\nb.png 2\n")
        (tmp_path / f"{part}.csv").write_text("path,label\na.png,1\nb.png,2\n")
    line = ("--arch", "resnet18:width=2", "--image-size", 16, "--epochs", 1, "--batch-size", 2)
    data = f"train={tmp_path / 'train.{}'},test={tmp_path / 'test.{}'}"
    code, _, err = ood("train", "--data", data.format("txt", "txt"), *line)
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: class 0 of train has no training images left; add some, or remove it; if the "
        "classes of a list count from 1, write it as CSV: path,label"
    )
    code, _, err = ood("train", "--data", data.format("csv", "csv"), *line)
    assert code == 0, err
    assert "labels of train are numbers from 1" in err
