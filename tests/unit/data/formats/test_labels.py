"""Labels are read by one rule, whatever they lie in."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from oodcli.data.formats.labels import LabelReader, Labels, classes_of
from oodcli.data.opening import open_dataset
from oodcli.errors import InvalidInputError, UnreadableImageError

pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

PARTS = ("train", "test")


def picture(number):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def as_table(root, rows):
    lines = []
    for part, labels in rows.items():
        for at, label in enumerate(labels):
            (root / f"{part}{at}.png").write_bytes(picture(at))
            lines.append(f"{part}{at}.png,{'' if label is None else label},{part}")
    path = root / "t.csv"
    path.write_text("\n".join(["path,label,split", *lines]))
    return path


def as_parquet(root, rows):
    (root / "p").mkdir()
    for part, labels in rows.items():
        kind = pa.int64() if isinstance(labels[0], int) else pa.string()
        pictures = [picture(at) for at in range(len(labels))]
        table = pa.table({"image": pictures, "label": pa.array(labels, kind)})
        parquet.write_table(table, root / "p" / f"{part}-00000-of-00001.parquet")
    return root / "p"


def as_shards(root, rows):
    (root / "w").mkdir()
    for part, labels in rows.items():
        with tarfile.open(root / "w" / f"{part}-000000.tar", "w") as archive:
            for at, label in enumerate(labels):
                written = "-1" if label is None else label
                for ending, content in (("png", picture(at)), ("cls", written.encode())):
                    member = tarfile.TarInfo(f"{at:03d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root / "w"


FORMS = {"table": as_table, "parquet": as_parquet, "shards": as_shards}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "case",
    [
        (
            {"train": ["bee", "ant", "bee"], "test": ["ant", "cat", None]},
            ("ant", "bee"),
            ([1, 0, 1], [0, 0, 0]),
            ["its label 'cat' is none of the 2 classes of the train part", "it has no label"],
            [],
        ),
        (
            {"train": ["3", "1", "10"], "test": ["2", "11", "-1", "0"]},
            tuple(map(str, range(11))),
            ([3, 1, 10], [2, 0, 0, 0]),
            [
                "its label '11' is outside of the classes of the train part, 0 to 10",
                "it has no label",
            ],
            ["labels of {} are numbers from 0"],
        ),
        (
            {"train": ["2", "1", "2"], "test": ["1", "x", "70000"]},
            ("1", "2"),
            ([1, 0, 1], [0, 0, 0]),
            [
                "its label 'x' is outside of the classes of the train part, 1 to 2",
                "its label '70000' is outside of the classes of the train part, 1 to 2",
            ],
            ["labels of {} are numbers from 1"],
        ),
        (
            {"train": ["a", "b"], "test": [None, None]},
            ("a", "b"),
            ([0, 1],),
            [],
            ["the test part of {} has no labels, and is left out"],
        ),
    ],
    ids=["names", "from 0", "from 1", "left out"],
)
def test_classes_are_the_same_in_every_form(tmp_path, store, form, case):
    rows, names, labels, bad, notes = case
    opened = open_dataset(str(FORMS[form](tmp_path, rows)), store)
    assert opened.class_names == names
    found = [opened.parts[part].labels.tolist() for part in PARTS if part in opened.parts]
    assert found == list(labels)
    last = list(opened.parts.values())[-1].source
    wrong = [each for each in last.read(0, len(last)) if isinstance(each, UnreadableImageError)]
    assert [each.reason for each in wrong] == bad
    assert list(opened.notes) == [note.format(opened.name) for note in notes]


def test_numbers_of_a_column_are_read_as_written_ones(tmp_path, store):
    rows = {"train": [3, 1, 10], "test": [2, 11, None, 0]}
    opened = open_dataset(str(as_parquet(tmp_path, rows)), store)
    assert opened.class_names == tuple(map(str, range(11)))
    assert opened.parts["test"].labels.tolist() == [2, 0, 0, 0]


def test_numbers_stand_for_known_names_and_names_for_themselves():
    reader = LabelReader("here", ("cat", "dog"))
    reader.add_numbers(np.array([1, 0, -1, 7]))
    reader.add_texts(["cat", "cow"])
    classes = classes_of({"test": reader.labels()}, name="a", where="here")
    assert classes.names == ("cat", "dog")
    assert classes.labels["test"].tolist() == [1, 0, 0, 0, 0, 0]
    assert classes.bad["test"] == {
        2: "it has no label",
        3: "its label '7' is none of the 2 classes",
        5: "its label 'cow' is none of the 2 classes",
    }
    # A number beyond the classes is never taken for a name.
    reader = LabelReader("here", ("cat", "7"))
    reader.add_numbers(np.array([0, 7]))
    classes = classes_of({"test": reader.labels()}, name="a", where="here")
    assert classes.bad["test"] == {1: "its label '#7' is none of the 2 classes"}


def test_too_many_labels_are_no_classes(monkeypatch):
    monkeypatch.setattr("oodcli.data.formats.labels.MAX_CLASSES", 2)
    labels = Labels(np.arange(3), ("a", "b", "c"))
    with pytest.raises(InvalidInputError, match="t has more than 2 different labels; name another"):
        classes_of({"test": labels}, name="t", where="t")


def test_a_json_label_is_read_too(tmp_path, store):
    path = tmp_path / "w-000000.tar"
    with tarfile.open(path, "w") as archive:
        for at, label in enumerate((2, 1)):
            for ending, content in (
                ("png", picture(at)),
                ("json", json.dumps({"label": label}).encode()),
            ):
                member = tarfile.TarInfo(f"{at}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    opened = open_dataset(str(path), store)
    assert opened.class_names == ("1", "2")
    assert opened.parts["test"].labels.tolist() == [1, 0]
