"""Folders of ``save_to_disk`` on servers: as on the disk, without reading images to open them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.data.formats.arrow import open_saved
from oodcli.data.formats.arrow_stream import schema_and_batches
from oodcli.data.formats.arrow_tables import Picked
from oodcli.data.opening import open_dataset
from oodcli.errors import InvalidInputError
from oodcli.remote.files import path_of, use_cache
from oodcli.store.store import Store
from tests.support.server import Server, serving

pa = pytest.importorskip("pyarrow")
pytest.importorskip("aiohttp", reason="remote files need the extra oodcli[remote]")

ROWS, BATCH = 30, 4
PICKED = Picked("image", "struct", label="label")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what ``save_to_disk`` writes, with columns of many types beside the images."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(ROWS):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (150, 150, 3), np.uint8)).save(stream, "png")
        pictures.append(stream.getvalue())
    columns = {
        "box": pa.array([[0.5, 1.0]] * (ROWS - 1) + [None], pa.list_(pa.float32())),
        "three": pa.array([[1, 2, 3]] * ROWS, pa.list_(pa.int8(), 3)),
        "nothing": pa.nulls(ROWS),
        "tags": pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int32())),
        "image": pa.array(
            [{"bytes": each, "path": None if n % 3 else f"{n}.png"} for n, each in
             enumerate(pictures)], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        ),
        "thumb": pa.array(pictures, pa.large_binary()),
        "label": pa.array([n % 2 for n in range(ROWS - 1)] + [None], pa.int64()),
    }  # fmt: skip
    table, path = pa.table(columns), tmp_path_factory.mktemp("saved")
    halves = {"a.arrow": table.slice(0, 10), "b.arrow": table.slice(10)}
    for name, some in halves.items():
        with pa.OSFile(str(path / name), "wb") as out, pa.ipc.new_stream(out, table.schema) as made:
            made.write_table(some, max_chunksize=BATCH)
    state = {"_data_files": [{"filename": name} for name in halves]}
    (path / "state.json").write_text(json.dumps(state))
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    (path / "dataset_info.json").write_text(json.dumps({"features": features}))
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(b"") as running:
        running.files = {f"/saved/{path.name}": path.read_bytes() for path in folder.iterdir()}
        use_cache(None)
        yield running
    use_cache(None)


def opened(server: Server):
    return open_saved(path_of(f"{server.root}/saved"), name="x", spec="x", role="id")


def test_images_and_labels_are_those_on_the_disk(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    there = opened(server)
    here = open_dataset(str(folder), Store(tmp_path / "store"))
    assert there.class_names == here.class_names == ("x", "y")
    one, other = there.parts["test"], here.parts["test"]
    assert one.labels.tolist() == other.labels.tolist()
    assert [one.source.name_of(row) for row in (0, 12)] == ["a.arrow[0]", "b.arrow[2]"]
    found = [list(part.source.read(0, ROWS - 1)) for part in (one, other)]
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_opening_requests_no_image(folder: Path) -> None:
    content, asked = (folder / "b.arrow").read_bytes(), []

    class Counting(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            asked.append(count)
            return super().read(count)

    schema, batches = schema_and_batches(Counting(content), len(content), PICKED)
    assert schema.names[-1] == "label"
    assert sum(batch.num_rows for batch, _ in batches) == 20
    assert sum(asked) < 20_000 < len(content) / 50


@pytest.mark.parametrize("damage", ["cut", "flip", "dictionary"])
def test_damaged_streams_are_refused_in_one_line(server: Server, damage: str) -> None:
    whole = server.files["/saved/b.arrow"]
    if damage == "dictionary":
        table = pa.table({"image": [b"x"], "label": pa.array(["a"]).dictionary_encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as made:
            made.write_table(table)
        server.files["/saved/a.arrow"] = server.files["/saved/b.arrow"] = (
            sink.getvalue().to_pybytes()
        )
        with pytest.raises(InvalidInputError, match="dictionaries; copy the folder to a disk"):
            opened(server)
        return
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(20):
        content = bytearray(
            whole[: int(rng.integers(10, len(whole)))] if damage == "cut" else whole
        )
        if damage == "flip":
            for at in rng.integers(0, 3000, 8):
                content[at] ^= int(rng.integers(1, 256))
        try:
            _, batches = schema_and_batches(io.BytesIO(content), len(content), PICKED)
            for batch, _ in batches:
                batch.validate(full=True)
        except (ValueError, pa.ArrowException, OSError):  # one line is made of any of them
            refused += 1
    assert refused > 5
