"""The same images in the forms of the field: the same scores to the bit, and the same verdicts."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.store.scores import read_scores, read_scorings
from tests.support.cli import Ood, flat

FORMS = ("folder", "parquet", "save_to_disk", "webdataset", "hdf5")


def write(root: Path) -> dict[str, Path]:
    """Write the same seven images in every form; return their paths."""
    arrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    files = sorted(flat(root / "folder").iterdir())
    contents = [file.read_bytes() for file in files]
    table = arrow.table({"image": [{"bytes": content, "path": "x"} for content in contents]})
    parquet.write_table(table, root / "rows.parquet", row_group_size=3)
    saved = root / "saved"
    saved.mkdir()
    (saved / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    out = arrow.OSFile(str(saved / "a.arrow"), "wb")
    with out, arrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    with tarfile.open(root / "shard-0.tar", "w") as archive:
        for row, content in enumerate(contents):
            for end, data in (("png", content), ("cls", b"0")):
                entry = tarfile.TarInfo(f"{row}.{end}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    with h5py.File(root / "arrays.h5", "w") as file:
        file["images"] = np.stack([np.asarray(Image.open(each)) for each in files])
    return {
        "folder": root / "folder", "parquet": root / "rows.parquet", "save_to_disk": saved,
        "webdataset": root / "shard-0.tar", "hdf5": root / "arrays.h5",
    }  # fmt: skip


def test_scores_and_verdicts_are_the_same_in_every_form(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    paths = write(tmp_path)
    sets = [text for name, path in paths.items() for text in ("--ood", f"{name}={path}")]
    code, out, err = ood("score", "--method", "msp", "--method", "knn", *sets, "--format", "json")
    assert code == 0, err
    assert "no forward pass" not in err
    folder = tmp_path / "store/runs/tiny/scores"
    (scoring,) = read_scorings(folder)
    for method in ("msp", next(name for name in scoring.methods if name.startswith("knn"))):
        first, *others = (read_scores(folder, scoring, method, name) for name in FORMS)
        assert first.shape == (7,)
        for scores in others:
            np.testing.assert_array_equal(scores, first)
    code, out, err = ood("predict", *paths.values(), "--method", "msp", "--format", "jsonl")
    assert code in {0, 3}, err
    verdicts = [json.loads(line) for line in out.splitlines()]
    assert len({tuple(v["score"] for v in verdicts[at : at + 7]) for at in range(0, 35, 7)}) == 1
    keys = ("folder/3.png", "rows.parquet[3]", "saved/a.arrow[3]", "shard-0.tar/3", "arrays.h5[3]")
    assert [v["path"] for v in verdicts[3::7]] == [str(tmp_path / key) for key in keys]


def test_tables_and_shards_are_data_sets_to_train_on(ood: Ood, tmp_path: Path) -> None:
    """A column chosen behind the path, and the parts that shards are named after."""
    arrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    contents = []
    for row in range(24):
        stream = io.BytesIO()
        pixels = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8) + np.uint8(120 * (row % 2))
        Image.fromarray(pixels).save(stream, "PNG")
        contents.append(stream.getvalue())
    kinds = ["dark", "light"] * 12
    for part, rows in (("train", slice(16)), ("test", slice(16, 24))):
        table = arrow.table(
            {"photo": contents[rows], "kind": kinds[rows], "label": [0] * len(kinds[rows])}
        )
        parquet.write_table(table, tmp_path / f"{part}-0.parquet")
    code, _, err = ood(
        "train", "--data", f"{tmp_path}/*.parquet:label=kind", "--arch", "resnet18:width=2",
        "--epochs", 1, "--name", "a",
    )  # fmt: skip
    assert code == 0, err
    run = json.loads((tmp_path / "store/runs/a/run.json").read_text())
    assert run["class_names"] == ["dark", "light"]
