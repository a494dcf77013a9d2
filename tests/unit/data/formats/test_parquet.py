"""Parquet files and folders of save_to_disk: what is read of them, and what is refused."""

import gc
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.data.formats import parquet
from oodcli.data.formats.arrow import open_saved
from oodcli.data.formats.arrow_tables import Features, pick_columns
from oodcli.data.formats.parquet import open_parquet
from oodcli.data.reader import Columns
from oodcli.data.splits import LISTS_SET, split
from oodcli.errors import InvalidInputError, UnreadableImageError

pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
pq = pytest.importorskip("pyarrow.parquet")

COUNT = 60
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
LABELS = (np.arange(COUNT) * 7 % 3).tolist()
NAMES = ["ant", "bee", "cow"]
STRUCT = [("bytes", "binary"), ("path", "string")]


def png(pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


FILES = [png(each) for each in PIXELS]


def structs(rows, *, content=True, folder=""):
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    each = [{"bytes": FILES[r] if content else None, "path": f"{folder}{r}.png"} for r in rows]
    return pa.array(each, type_)


def described(**features) -> dict[str, str]:
    """Return the metadata that Hugging Face writes."""
    return {"huggingface": json.dumps({"info": {"features": features}})}


HF = described(image={"_type": "Image"}, label={"_type": "ClassLabel", "names": NAMES})


def write(path: Path, rows=range(COUNT), *, metadata=HF, group=16, **columns) -> Path:
    rows = list(rows)
    columns = columns or {"image": structs(rows), "label": pa.array([LABELS[r] for r in rows])}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=group)
    return path


def opened(path, role="id", /, **columns):
    chosen = Columns(**columns) if columns else None
    return open_parquet(path, name="x", spec="x", role=role, columns=chosen)


def copied(source):
    """Return what a worker process gets."""
    return pickle.loads(pickle.dumps(source))


def write_arrow(path, table, *, rows=None, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table, max_chunksize=rows)


def pixels(source):
    return list(source.read(0, len(source)))


def refused(*arguments, **options) -> str:
    with pytest.raises(InvalidInputError) as caught:
        opened(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_of_hugging_face_is_a_data_set(tmp_path):
    path = write(tmp_path / "a.parquet")
    dataset = opened(path)
    assert dataset.is_whole
    assert dataset.class_names == ("ant", "bee", "cow")
    part = dataset.parts["test"]
    assert part.labels.tolist() == LABELS
    np.testing.assert_array_equal(pixels(part.source), PIXELS)
    assert part.source.key_of(33) == f"{path}[33]"
    assert part.source.name_of(33) == "a.parquet[33]"


def test_any_rows_in_any_order_and_from_any_place_on(tmp_path):
    """Row groups have 16 rows: some are passed, others begun again."""
    source = opened(write(tmp_path / "a.parquet"), "ood").parts["test"].source
    rows = np.random.default_rng(1).permutation(COUNT)
    chosen = copied(source.take(rows))
    np.testing.assert_array_equal(pixels(chosen), PIXELS[rows])
    assert chosen.key_of(5) == source.key_of(rows[5])
    for start, stop in ((0, 3), (3, 40), (20, 33), (59, 60)):
        np.testing.assert_array_equal(list(source.read(start, stop)), PIXELS[start:stop])
    few = source.take(np.array([40, 3, 41])).take(np.array([2, 0]))
    np.testing.assert_array_equal(pixels(few), PIXELS[[41, 40]])
    assert len(few.groups.sizes) == 1


def test_a_file_is_opened_once_for_all_of_its_row_groups(tmp_path, monkeypatch):
    """An open file holds its footer and a page; none is left to the garbage collector."""
    opened_files = []
    original = parquet.open_file
    source = opened(write(tmp_path / "a.parquet"), "ood").parts["test"].source
    monkeypatch.setattr(parquet, "open_file", lambda p: opened_files.append(p) or original(p))
    gc.disable()
    try:
        assert len(list(source.read(0, COUNT))) == COUNT
        readers = [each for each in gc.get_objects() if type(each) is parquet._Reader]
        assert len(readers) == 1
    finally:
        gc.enable()
    assert len(opened_files) == 1


def test_reading_continues_where_another_call_ended(tmp_path, monkeypatch):
    """Shards of images that are not stored are read one by one; a row group is passed once."""
    source = opened(write(tmp_path / "a.parquet", group=COUNT), "ood").parts["test"].source
    assert len(list(source.read(0, 20))) == 20
    monkeypatch.setattr("oodcli.data.formats.parquet.open_file", None)
    np.testing.assert_array_equal(list(source.read(20, 45)), PIXELS[20:45])


def test_shards_are_divided_by_their_names(tmp_path):
    write(tmp_path / "data/train-00000-of-00002.parquet", range(20))
    write(tmp_path / "data/train-00001-of-00002.parquet", range(20, 30))
    write(tmp_path / "data/validation-00000-of-00001.parquet", range(30, 40))
    write(tmp_path / "data/test-00000-of-00001.parquet", range(40, 60))
    dataset = opened(tmp_path)
    rows = {"train": range(30), "val": range(30, 40), "test": range(40, 60)}
    assert list(dataset.parts) == list(rows)
    for name, part in dataset.parts.items():
        np.testing.assert_array_equal(pixels(part.source), PIXELS[list(rows[name])])
        assert part.labels.tolist() == [LABELS[row] for row in rows[name]]
    ood = opened(tmp_path, "ood").ood_part
    np.testing.assert_array_equal(pixels(ood.source), PIXELS[40:])
    assert ood.labels is None
    whole = opened(tmp_path / "data/train-*.parquet")
    assert list(whole.parts) == ["train"]
    assert len(whole.parts["train"]) == 30
    ranged = opened(tmp_path / "data/train-{00000..00001}-of-00002.parquet", "ood")
    assert len(ranged.ood_part) == 30


def test_a_published_test_part_without_labels_is_skipped(tmp_path):
    write(tmp_path / "train-0.parquet", range(20))
    write(tmp_path / "validation-0.parquet", range(20, 30))
    write(tmp_path / "test-0.parquet", image=structs(range(30, 40)), label=pa.array([-1] * 10))
    dataset = opened(tmp_path)
    assert list(dataset.parts) == ["train", "val"]
    assert dataset.notes == ("the test part of x has no labels, and is left out",)
    assert len(opened(tmp_path, "ood").ood_part) == 10


def test_a_column_of_parts_divides_a_file(tmp_path):
    split = ["train", "validation", "test"] * 20
    path = write(tmp_path / "a.parquet", image=structs(range(COUNT)), label=LABELS, split=split)
    parts = opened(path).parts
    assert {name: len(part) for name, part in parts.items()} == {"train": 20, "val": 20, "test": 20}
    np.testing.assert_array_equal(pixels(parts["val"].source), PIXELS[1::3])
    other = write(tmp_path / "b.parquet", image=structs([0, 1]), label=[0, 1], fold=["test", "x"])
    assert "column 'fold' names a part 'x'" in refused(other, split="fold")


@pytest.mark.parametrize("type_", ["binary", "large_binary"])
def test_plain_bytes_and_names_of_classes(tmp_path, type_):
    names = [NAMES[label] for label in LABELS]
    content = pa.array(FILES, getattr(pa, type_)())
    path = write(tmp_path / "a.parquet", metadata=None, jpg=content, kind=names, number=LABELS)
    part = opened(path, label="kind").parts["test"]
    np.testing.assert_array_equal(pixels(part.source), PIXELS)
    assert part.labels.tolist() == LABELS
    coded = pa.array(names).dictionary_encode()
    again = write(tmp_path / "b.parquet", metadata=None, jpg=content, label=coded)
    assert opened(again).parts["test"].labels.tolist() == LABELS
    assert opened(path, label="number").class_names == ("0", "1", "2")


def test_rows_without_bytes_name_files_beside_the_table(tmp_path):
    (tmp_path / "in").mkdir()
    for row in (0, 1):
        (tmp_path / f"in/{row}.png").write_bytes(FILES[row])
    paths = ["in/0.png", "in/1.png", "in/2.png", "../x.png", "/etc/hostname", "a\0b", None]
    image = pa.array([{"bytes": None, "path": path} for path in paths])
    path = write(tmp_path / "a.parquet", image=image.cast(structs([0]).type), label=[0] * 7)
    read = pixels(opened(path, "ood").ood_part.source)
    np.testing.assert_array_equal(read[:2], PIXELS[:2])
    assert [(each.where, each.reason) for each in read[2:]] == [
        (f"{path}[2]", "the row has no bytes, and its file in/2.png cannot be read: "
         "No such file or directory"),
        (f"{path}[3]", "the row has no bytes, and its path ../x.png leads out of the folder of "
         "the table"),
        (f"{path}[4]", "the row has no bytes, and its path /etc/hostname leads out of the folder "
         "of the table"),
        (f"{path}[5]", r"the row has no bytes, and its path a\x00b leads out of the folder of "
         "the table"),
        (f"{path}[6]", "the row has no image"),
    ]  # fmt: skip


def test_a_damaged_row_group_is_the_error_of_its_rows(tmp_path):
    path = write(tmp_path / "a.parquet")
    source = opened(path, "ood").ood_part.source
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(1).column(0)
    at = group.data_page_offset
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(content)
    read = pixels(source)
    np.testing.assert_array_equal(read[:16], PIXELS[:16])
    assert all(isinstance(each, UnreadableImageError) for each in read[16:32])
    assert read[16].reason.startswith("its row group cannot be read: ")
    assert "\n" not in read[16].reason
    np.testing.assert_array_equal(read[32:], PIXELS[32:])


@pytest.mark.parametrize(
    ("columns", "chosen", "wanted"),
    [
        ({"label": [0]}, {}, "has no column of image files"),
        ({"image": ["a.png"], "label": [0]}, {}, "has no column of image files"),
        ({"image": [b"x"]}, {}, "has no column of labels; name it: --columns label=COLUMN"),
        ({"image": [b"x"], "label": [0.5]}, {"label": "label"}, "holds no label per image"),
        ({"image": [b"x"], "label": [[0, 1]]}, {"label": "label"}, "holds no label per image"),
        ({"a": [b"x"], "b": [b"x"], "label": [0]}, {}, "has 2 columns that could be the image: "
         "'a', 'b'; choose one: --columns path=a"),
        ({"image": [b"x"], "label": [0]}, {"path": "img"}, "has no column 'img'; it has 'image', "
         "'label'"),
        ({"image": [b"x"], "label": [0]}, {"path": "label"}, "column 'label' does not hold image"),
        ({"image": [b"x"], "label": [None]}, {}, "has no column of labels; name it: --columns"),
        ({"image": [b"x"], "label": [-7]}, {}, "no row has a label from 0 to 65,535"),
        ({"image": [b"x"], "label": [70_000]}, {}, "no row has a label from 0 to 65,535"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, chosen, wanted):
    arrays = {name: pa.array(values) for name, values in columns.items()}
    if columns.get("label") == [None]:
        arrays["label"] = pa.array([None], pa.int64())
    path = write(tmp_path / "a.parquet", metadata=None, **arrays)
    message = refused(path, **chosen)
    assert str(path) in message
    assert wanted in message


def test_two_columns_of_classes_want_a_choice(tmp_path):
    both = {"_type": "ClassLabel", "names": NAMES}
    metadata = described(img={"_type": "Image"}, fine_label=both, coarse_label=both)
    path = write(
        tmp_path / "a.parquet", metadata=metadata, img=structs(range(COUNT)), fine_label=LABELS,
        coarse_label=[0] * COUNT,
    )  # fmt: skip
    assert "could be the label: 'fine_label', 'coarse_label'" in refused(path)
    assert opened(path, label="fine_label").parts["test"].labels.tolist() == LABELS
    assert len(opened(path, "ood").ood_part) == COUNT


def test_rows_without_a_class_are_rows_that_cannot_be_read(tmp_path):
    path = write(
        tmp_path / "a.parquet", image=structs(range(5)), label=pa.array([0, 3, None, 2, 1])
    )
    part = opened(path).parts["test"]
    assert part.labels.tolist() == [0, 0, 0, 2, 1]
    read = pixels(part.source)
    assert [(read[row].where, read[row].reason) for row in (1, 2)] == [
        (f"{path}[1]", "its label '3' is none of the 3 classes"),
        (f"{path}[2]", "it has no label"),
    ]
    np.testing.assert_array_equal([read[0], *read[3:]], PIXELS[[0, 3, 4]])
    chosen = copied(part.source.take(np.array([3, 2])))
    assert pixels(chosen)[1].reason == "it has no label"
    clean = part.source.take(np.array([3, 0]))
    np.testing.assert_array_equal(pixels(clean), PIXELS[[3, 0]])
    assert part.source.fingerprint != opened(path, "ood").ood_part.source.fingerprint


def test_a_class_that_no_train_image_has_is_none(tmp_path):
    write(tmp_path / "train.parquet", metadata=None, image=structs([0, 1]), label=["cow", "ant"])
    write(tmp_path / "test.parquet", metadata=None, image=structs([2, 3]), label=["bee", "cow"])
    dataset = opened(tmp_path)
    assert dataset.class_names == ("ant", "cow")
    assert dataset.parts["train"].labels.tolist() == [1, 0]
    assert dataset.parts["test"].labels.tolist() == [0, 1]
    bad, good = pixels(dataset.parts["test"].source)
    assert bad.reason == "its label 'bee' is none of the 2 classes of the train part"
    np.testing.assert_array_equal(good, PIXELS[3])


@pytest.mark.parametrize(
    ("labels", "names", "found"),
    [([1, 3, 2], ("1", "2", "3"), [0, 2, 1]), ([0, 2, 2], ("0", "1", "2"), [0, 2, 2])],
)
def test_numbers_count_from_0_or_1_and_that_is_said(tmp_path, labels, names, found):
    path = write(tmp_path / "a.parquet", metadata=None, image=structs(range(3)), label=labels)
    dataset = opened(path)
    assert dataset.class_names == names
    assert dataset.parts["test"].labels.tolist() == found
    assert dataset.notes == (f"labels of x are numbers from {names[0]}",)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write(tmp_path / "a.parquet", [0, 1])
    write(tmp_path / "b.parquet", metadata=None, image=structs([2]), label=["ant"])
    assert "b.parquet has no column 'label' such as that of" in refused(tmp_path)
    write(tmp_path / "b.parquet", [2])
    write(tmp_path / "train-0.parquet", [3])
    assert "train-0.parquet is named after a part of the data set, and a.parquet is not" in refused(
        tmp_path
    )


def test_rows_that_are_only_claimed_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", range(4))

    class Claims:
        num_row_groups, num_rows = 1, 10**9

        def row_group(self, _group):
            return self

    with pytest.raises(ValueError, match=r"claims to have 1,000,000,000 rows in"):
        parquet._groups(0, path, Claims())


def test_metadata_that_is_not_understood_does_not_matter():
    for text in (b"", b"[]", b"{", b'{"info": 3}', b'{"info": {"features": [1]}}', b"[" * 10**5):
        assert Features.in_schema({b"huggingface": text}) == Features()
    names = Features.of({"a": {"_type": "ClassLabel", "names": [1]}, "b": 3}).classes
    assert names == {}
    columns = pick_columns({"x": "bytes"}, Features(), Columns(), "f", labelled=False)
    assert columns.image == "x"


@pytest.fixture
def saved(tmp_path):
    """Write what ``DatasetDict.save_to_disk`` writes, two files for the train part."""
    folder = tmp_path / "saved"
    features = json.loads(HF["huggingface"])["info"]["features"]
    files = {"train": [range(20), range(20, 40)], "test": [range(40, 60)]}
    for part, shards in files.items():
        (folder / part).mkdir(parents=True)
        names = [f"data-{at:05d}-of-{len(shards):05d}.arrow" for at in range(len(shards))]
        for name, rows in zip(names, shards, strict=True):
            columns = {"image": structs(rows), "label": pa.array([LABELS[r] for r in rows])}
            table = pa.table(columns).replace_schema_metadata(HF)
            write_arrow(folder / part / name, table, rows=7)
        state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "x"}
        (folder / part / "state.json").write_text(json.dumps(state))
        (folder / part / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(files)}))
    return folder


def open_folder_saved(path, role="id"):
    return open_saved(path, name="x", spec="x", role=role)


def test_a_folder_of_save_to_disk_is_a_data_set(saved):
    dataset = open_folder_saved(saved)
    assert dataset.class_names == tuple(NAMES)
    np.testing.assert_array_equal(pixels(dataset.parts["train"].source), PIXELS[:40])
    assert dataset.parts["train"].labels.tolist() == LABELS[:40]
    source = dataset.parts["test"].source
    rows = np.array([19, 0, 7])
    np.testing.assert_array_equal(pixels(copied(source.take(rows))), PIXELS[40 + rows])
    train = dataset.parts["train"].source
    assert train.key_of(25) == f"{saved}/train/data-00001-of-00002.arrow[5]"
    one = open_folder_saved(saved / "train")
    assert one.is_whole
    np.testing.assert_array_equal(pixels(one.parts["test"].source), PIXELS[:40])


def test_a_row_without_bytes_is_an_error_of_the_row(saved):
    table = pa.table({"image": structs([0, 1], content=False), "label": [0, 1]})
    write_arrow(saved / "test/data-00000-of-00001.arrow", table)
    read = pixels(open_folder_saved(saved, "ood").ood_part.source)
    assert [each.reason for each in read] == ["the row has no image"] * 2


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("dataset_dict.json", {"splits": ["../x"]}, "names '../x', which is no file beside it"),
        ("dataset_dict.json", [], "is not a JSON object"),
        ("dataset_dict.json", {}, "has no list 'splits'"),
        ("test/state.json", {"_data_files": [{"filename": "/etc/passwd"}]}, "'/etc/passwd', which"),
        ("test/state.json", {"_data_files": [3]}, "names None, which is no file beside it"),
        ("test/state.json", {"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow cannot be"),
        ("test/state.json", {"_data_files": [], "_indices_data_files": [1]}, "flatten_indices()"),
    ],
)
def test_folders_of_save_to_disk_that_are_wrong_are_refused(saved, file, content, wanted):
    (saved / file).write_text(json.dumps(content))
    with pytest.raises(InvalidInputError) as caught:
        open_folder_saved(saved)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compressed_arrow_files_are_refused(saved):
    table = pa.table({"image": structs([0] * 50), "label": [0] * 50})
    write_arrow(saved / "test/data-00000-of-00001.arrow", table, compression="zstd")
    with pytest.raises(InvalidInputError, match="its images are compressed"):
        open_folder_saved(saved)


def test_benchmark_lists_find_images_by_the_paths_beside_their_bytes(tmp_path, store):
    names = [f"ILSVRC2012_val_{number:08d}" for number in (3, 1, 2, 4)]
    # Hugging Face writes the class behind the name.
    paths = [f"{name}_n01440764.JPEG" if at else f"{name}.JPEG" for at, name in enumerate(names)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": FILES[at], "path": f"val/{path}" if at else path} for at, path in enumerate(paths)
    ]
    columns = {"image": pa.array(rows, kind), "label": pa.array([0, 1, 0, 1])}
    path = write(tmp_path / "validation-00000-of-00001.parquet", group=3, **columns)
    lists = store.datasets / LISTS_SET / "imagenet"
    lists.mkdir(parents=True)
    (lists / "test_imagenet.txt").write_text(
        "imagenet_1k/val/ILSVRC2012_val_00000001.JPEG 7\n"
        "imagenet_1k/val/ILSVRC2012_val_00000003.JPEG 5\n"
        "imagenet_1k/val/ILSVRC2012_val_00000004.JPEG 9\n"
    )
    chosen = split(opened(path, "ood"), "imagenet/test_imagenet", store).part
    assert chosen.labels.tolist() == [5, 7, 9]
    kept = (0, 1, 3)
    assert [chosen.source.name_of(row) for row in range(3)] == [f"{path.name}[{r}]" for r in kept]
    assert (np.array(pixels(chosen.source)) == PIXELS[list(kept)]).all()
    bare = write(tmp_path / "b.parquet", image=pa.array(FILES[:2]))
    with pytest.raises(InvalidInputError, match="does not consist of image files"):
        split(opened(bare, "ood"), "imagenet/test_imagenet", store)
