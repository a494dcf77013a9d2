"""``ood cluster``: groups of the OOD images of a file of verdicts."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oodcli.screening.feature_file import feature_path, read_features
from oodcli.store.store import read_json, write_json
from oodcli.text import unescaped
from tests.support.cli import Ood

ALL_OOD = ("--method", "energy", "--threshold", 1e9)


@pytest.fixture
def verdicts(ood: Ood, tiny: Path, tmp_path: Path) -> Path:
    """Judge images of two colours, a copy and a brighter copy as OOD; return the file."""
    incoming = tmp_path / "incoming"
    shutil.copytree(tiny / "test", incoming)
    source = incoming / "red" / "03.png"
    shutil.copy(source, incoming / "red" / "copy\x1b.png")
    with Image.open(source) as image:
        pixels = np.asarray(image)
    brighter = np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(incoming / "red" / "z.png")
    (incoming / "broken.png").write_bytes(b"no image")
    file = tmp_path / "verdicts.csv"
    code, _, err = ood("predict", incoming, *ALL_OOD, "--features", "--output", file)
    assert code == 0, err
    return file


def found(out: str) -> dict[str, Any]:
    content = json.loads(out)
    assert (content["kind"], content["schema"]) == ("ood-clusters", 1)
    return content


def test_colours_are_clusters_and_copies_are_near_duplicates(
    ood: Ood, verdicts: Path, tmp_path: Path
) -> None:
    argv = ("cluster", verdicts, "--clusters", 2, "--output", tmp_path / "groups")
    code, out, err = ood(*argv, "--format", "json")
    assert code == 0, err
    result = found(out)
    assert result["n_ood"] == len(result["images"]) == 26
    assert result["stored_features"] is True
    assert (result["run"], result["method"]) == ("tiny", "energy")
    by_colour: dict[str, set[int]] = {"blue": set(), "red": set()}
    for image in result["images"]:
        by_colour[Path(image["path"]).parent.name].add(image["cluster"])
        assert image["missing"] is None
    assert sorted(by_colour.values()) == [{1}, {2}]
    copied = {
        Path(image["path"]).name: Path(image["duplicate_of"]).name
        for image in result["images"]
        if image["duplicate_of"] is not None
    }
    assert copied == {"copy\x1b.png": "03.png", "z.png": "03.png"}
    sizes = [(each["size"], each["duplicates"]) for each in result["clusters"]]
    assert sorted(sizes) == [(12, 0), (14, 2)]
    # A contact sheet of each, and one row per image whose name can be read back.
    names = {path.name for path in (tmp_path / "groups").iterdir()}
    assert names == {"cluster-01.png", "cluster-02.png", "clusters.csv"}
    with Image.open(tmp_path / "groups" / result["clusters"][0]["sheet"]) as sheet:
        assert sheet.width > 10 * 96
    rows = list(csv.DictReader((tmp_path / "groups" / "clusters.csv").read_text().splitlines()))
    assert [unescaped(row["path"]) for row in rows] == [each["path"] for each in result["images"]]
    assert [int(row["cluster"]) for row in rows] == [each["cluster"] for each in result["images"]]
    assert list(rows[0]) == ["path", "cluster", "duplicate_of", "distance", "class", "score"]
    code, _, err = ood(*argv)
    assert code == 1
    assert "groups is not empty" in " ".join(err.split())
    code, out, err = ood(*argv, "--overwrite")
    assert code == 0, err
    assert "26 OOD images of" in out
    assert "contact sheets and clusters.csv" in out


def test_clusters_are_for_spreadsheets_as_their_verdicts_are(
    ood: Ood, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(tiny / "test" / "red" / "03.png", tmp_path / "in" / "=1+1.png")
    monkeypatch.chdir(tmp_path / "in")
    for file, options, first in (
        (tmp_path / "v.csv", (), "=1+1.png,1,"),
        (tmp_path / "safe.csv", ("--csv-safe",), '"\'=1+1.png",1,'),
    ):
        assert ood("predict", "=1+1.png", *ALL_OOD, "--output", file, *options)[0] == 0
        groups = file.with_suffix("")
        code, _, err = ood("cluster", file, "--output", groups)
        assert code == 0, err
        assert (groups / "clusters.csv").read_text().splitlines()[1].startswith(first)


def test_without_stored_features_the_network_gives_the_same_clusters(
    ood: Ood, verdicts: Path, tmp_path: Path
) -> None:
    stored = found(ood("cluster", verdicts, "--format", "json")[1])
    features = read_features(verdicts).copy()
    feature_path(verdicts).unlink()
    code, out, err = ood("cluster", verdicts, "--format", "json")
    assert code == 0, err
    result = found(out)
    assert result["stored_features"] is False
    assert [each["cluster"] for each in result["images"]] == [
        each["cluster"] for each in stored["images"]
    ]
    np.testing.assert_allclose(
        [each["distance"] for each in result["images"]],
        [each["distance"] for each in stored["images"]],
        atol=1e-4,
    )
    assert len(features) == 27  # the unreadable image has a row
    # Images that have been moved are named; the others are grouped.
    (tmp_path / "incoming" / "blue" / "00.png").unlink()
    code, out, err = ood("cluster", verdicts)
    assert code == 0, err
    assert "1 image cannot be read any more" in out
    assert "blue/00.png: it no longer exists" in out
    shutil.rmtree(tmp_path / "incoming")
    code, out, err = ood("cluster", verdicts)
    assert (code, out) == (1, "")
    assert "none of 26 OOD images of" in " ".join(err.split())


@pytest.mark.parametrize("given", ["rows.parquet", "shards"])
def test_images_in_named_columns_of_tables_are_found_again(
    ood: Ood, tiny: Path, tmp_path: Path, given: str
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    files = sorted((tiny / "test").rglob("*.png"))
    # Without names of columns, the thumbnails would be the images.
    columns = {"image": [files[0].read_bytes()] * 24, "shot": [file.read_bytes() for file in files]}
    place, verdicts = tmp_path / given, tmp_path / "verdicts.csv"
    if place.suffix:
        parquet.write_table(table(columns), place)
    else:
        place.mkdir()
        for start in (0, 12):
            some = {name: each[start : start + 12] for name, each in columns.items()}
            parquet.write_table(table(some), place / f"train-{start:05d}.parquet")
    argv = ("predict", place, "--columns", "path=shot", *ALL_OOD, "--output", verdicts)
    assert ood(*argv)[0] == 0
    settings = read_json(Path(f"{verdicts}.ood.json"))
    assert settings["columns"] == {str(place): "path=shot"}
    code, out, err = ood("cluster", verdicts, "--format", "json", "--clusters", 2)
    assert code == 0, err
    images = found(out)["images"]
    assert len(images) == 24
    assert [image["missing"] for image in images] == [None] * 24
    sizes = [each["size"] for each in found(out)["clusters"]]
    assert sizes == [12, 12]
    assert not any(image["duplicate_of"] for image in images)


def test_stored_features_need_neither_images_nor_run(
    ood: Ood, verdicts: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "incoming")
    argv = ("--store", tmp_path / "empty", "--output", tmp_path / "groups")
    code, out, err = ood("cluster", verdicts, "--format", "json", "--clusters", 3, *argv)
    assert code == 0, err
    result = found(out)
    assert [each["number"] for each in result["clusters"]] == [1, 2, 3]
    assert all(each["duplicate_of"] is None for each in result["images"])
    assert all(each["missing"] for each in result["images"])
    assert (tmp_path / "groups" / "cluster-03.png").is_file()
    feature_path(verdicts).unlink()
    code, _, err = ood("cluster", verdicts, "--store", tmp_path / "empty")
    assert code == 1
    assert "ood predict --features stores with the verdicts" in " ".join(err.split())


def test_what_cannot_be_clustered_is_refused(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "none.jsonl"
    folder = tiny / "test" / "blue"
    argv = ("predict", folder, "--method", "energy", "--threshold", -1e9, "--output", file)
    assert ood(*argv)[0] == 0
    for more, said in [
        ((file,), "none.jsonl has no OOD image among 12 rows"),
        ((file, "--clusters", "many"), "--clusters must be auto or a number, not 'many'"),
        ((file, "--clusters", 0), "--clusters must be auto or from 1 to 1,000, not 0"),
        ((file, "--seed", -1), "--seed must be from 0"),
        ((tmp_path / "absent.csv",), "there is no file"),
    ]:
        code, out, err = ood("cluster", *more)
        assert (code, out) == (1, ""), said
        assert said in " ".join(err.split())
    settings = file.with_name("none.jsonl.ood.json")
    write_json(settings, {**read_json(settings), "network": "0" * 32})
    file.write_text(file.read_text().replace('"verdict": "id"', '"verdict": "ood"'))
    code, _, err = ood("cluster", file)
    assert code == 1
    assert "run tiny has another network than the one that judged" in " ".join(err.split())
