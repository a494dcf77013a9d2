"""WebDataset shards: keys, labels, parts, and the index that is stored of each."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from oodcli.data import open_dataset
from oodcli.data.formats import webdataset
from oodcli.data.formats.webdataset import index_of, open_webdataset, opens
from oodcli.data.reader import Place
from oodcli.errors import CorruptArtifactError, InvalidInputError

COUNT = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)


def png(pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


FILES = [png(each) for each in PIXELS]


def write(path, files: dict[str, bytes | str]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard(path, rows, *, label=lambda row: str(row % 3), kind="cls"):
    files: dict[str, bytes | str] = {}
    for row in rows:
        files[f"{row:03d}.png"] = FILES[row]
        files[f"{row:03d}.{kind}"] = label(row)
    return write(path, files)


@pytest.fixture
def opened(store):
    return lambda path, role="id": open_webdataset(path, name="x", spec="x", role=role, store=store)


def pixels(source):
    return list(source.read(0, len(source)))


def test_shards_are_divided_by_their_names(tmp_path, opened):
    shard(tmp_path / "set/photos-train-000000.tar", range(4))
    shard(tmp_path / "set/photos-train-000001.tar", range(4, 8))
    shard(tmp_path / "set/photos-val-000000.tar", range(8, 10))
    shard(tmp_path / "set/photos-test-000000.tar", range(10, 12))
    dataset = opened(tmp_path / "set")
    rows = {"train": range(8), "val": range(8, 10), "test": range(10, 12)}
    assert dataset.class_names == ("0", "1", "2")
    assert list(dataset.parts) == list(rows)
    for name, part in dataset.parts.items():
        np.testing.assert_array_equal(pixels(part.source), PIXELS[list(rows[name])])
        assert part.labels.tolist() == [row % 3 for row in rows[name]]
    source = dataset.parts["train"].source
    assert source.key_of(5) == f"{tmp_path}/set/photos-train-000001.tar/005"
    assert source.name_of(5) == "photos-train-000001.tar/005"
    chosen = pickle.loads(pickle.dumps(source.take(np.array([7, 0]))))
    np.testing.assert_array_equal(pixels(chosen), PIXELS[[7, 0]])
    assert chosen.key_of(0) == source.key_of(7)
    assert len(opened(tmp_path / "set", "ood").ood_part) == 2
    ranged = opened(tmp_path / "set/photos-train-{000000..000001}.tar")
    assert list(ranged.parts) == ["train"]
    assert len(ranged.parts["train"]) == 8


def test_a_list_names_shards_that_lie_apart(tmp_path, opened, store):
    shard(tmp_path / "one/train-000000.tar", range(4))
    far = shard(tmp_path / "two/train-000001.tar", range(4, 8))
    test = shard(tmp_path / "two/test-000000.tar", range(8, 10))
    listed = tmp_path / "lists/shards.txt"
    listed.parent.mkdir()
    listed.write_text(f"# shards\n../one/train-000000.tar\r\n\n{far}\n{test}\n")
    assert opens(Place(listed))
    dataset = open_dataset(str(listed), store)
    assert {name: len(part) for name, part in dataset.parts.items()} == {"train": 8, "test": 2}
    np.testing.assert_array_equal(pixels(dataset.parts["train"].source), PIXELS[:8])
    listed.write_text(f"{far}\n../one/gone.tar\n")
    with pytest.raises(
        InvalidInputError, match=r"shards\.txt:2: \.\./one/gone\.tar is no \.tar file"
    ):
        open_dataset(str(listed), store)
    listed.write_text("a.png 3\n")
    assert not opens(Place(listed))


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("cls", lambda row: f"{row % 3}\n"),
        ("txt", lambda row: ["ant", "bee", "cow"][row % 3]),
        ("json", lambda row: json.dumps({"label": row % 3, "width": 5})),
        ("json", lambda row: json.dumps(["ant", "bee", "cow"][row % 3])),
    ],
)
def test_labels_are_numbers_names_or_json(tmp_path, opened, kind, label):
    dataset = opened(shard(tmp_path / "a.tar", range(COUNT), kind=kind, label=label))
    assert dataset.is_whole
    assert dataset.parts["test"].labels.tolist() == [row % 3 for row in range(COUNT)]
    assert dataset.class_names in {("0", "1", "2"), ("ant", "bee", "cow")}


def test_a_sample_is_its_files_with_one_key(tmp_path, opened):
    """The best image and label of a key count, wherever they stand; the rest does not matter."""
    path = write(
        tmp_path / "a.tar",
        {
            "./b/x.cls": "1", "./b/x.PNG": FILES[0], "./b/x.seg.png": FILES[5], "./b/x.txt": "a b",
            "y.webp": b"broken", "y.png": FILES[1], "y.json": "{}", "y.cls": "0",
            "lonely.cls": "2", "noise.bin": "x", ".hidden.png": FILES[5], "__MACOSX/z.png": b"x",
        },
    )  # fmt: skip
    dataset = opened(path)
    part = dataset.parts["test"]
    np.testing.assert_array_equal(pixels(part.source), PIXELS[:2])
    assert part.labels.tolist() == [1, 0]
    assert [part.source.name_of(row) for row in (0, 1)] == ["a.tar/b/x", "a.tar/y"]


def test_a_shard_is_looked_through_once(tmp_path, opened, monkeypatch, store):
    path = shard(tmp_path / "a.tar", range(4))
    first = opened(path).parts["test"]
    calls = []
    monkeypatch.setattr(webdataset, "index_of", lambda p: calls.append(p) or index_of(p))
    again = opened(path).parts["test"]
    assert calls == []
    assert again.source.fingerprint == first.source.fingerprint
    assert again.labels.tolist() == first.labels.tolist()
    np.testing.assert_array_equal(pixels(again.source), PIXELS[:4])
    shard(path, range(4, 8))
    np.testing.assert_array_equal(pixels(opened(path).parts["test"].source), PIXELS[4:8])
    assert calls == [path]
    for stored in store.indices.glob("*.safetensors"):
        stored.write_bytes(b"damaged")
    np.testing.assert_array_equal(pixels(opened(path).parts["test"].source), PIXELS[4:8])
    assert calls == [path, path]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"a.cls": "1"}, "has no images"),
        ({"a.png": FILES[0]}, "has no labels: no file KEY.cls, KEY.txt, KEY.json"),
        ({"a.png": FILES[0], "a.json": "{"}, "the label a.json is not JSON"),
        ({"a.png": FILES[0], "a.cls": b"\xff"}, "the label a.cls is not text in UTF-8"),
        ({"a.png": FILES[0], "a.json": "[" * 5000}, "the label a.json is not JSON"),
    ],
)
def test_shards_that_do_not_fit_are_refused(tmp_path, opened, files, wanted):
    path = write(tmp_path / "a.tar", files)
    with pytest.raises((InvalidInputError, CorruptArtifactError)) as caught:
        opened(path)
    assert wanted in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_cut_short_is_refused(tmp_path, opened):
    path = shard(tmp_path / "a.tar", range(4))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CorruptArtifactError, match=r"a\.tar cannot be read: .*; get the shard"):
        opened(path)


def test_a_shard_that_changed_since_is_an_error_of_the_row(tmp_path, opened):
    path = shard(tmp_path / "a.tar", range(4))
    source = opened(path).parts["test"].source
    path.write_bytes(path.read_bytes()[:600])
    assert [each.reason for each in pixels(source)[1:]] == ["the file ends within it"] * 3
    path.unlink()
    with pytest.raises(CorruptArtifactError, match="cannot be read: No such file"):
        pixels(source)


def test_what_holds_shards_is_distinguished_from_archives_and_folders_of_images(tmp_path):
    assert opens(Place(shard(tmp_path / "set/train/0.tar", range(2))))
    assert opens(Place(tmp_path / "set"))
    plain = write(tmp_path / "plain/ant/x.tar", {"ant/0.png": FILES[0], "bee/1.png": FILES[1]})
    assert not opens(Place(plain))
    assert not opens(Place(tmp_path / "plain"))
    (tmp_path / "broken.tar").write_bytes(b"no archive")
    assert not opens(Place(tmp_path / "broken.tar"))
    (tmp_path / "set/0.png").write_bytes(FILES[0])
    assert not opens(Place(tmp_path / "set"))
