"""Lists and tables of image files: CSV, TSV, JSON Lines, and folders with a metadata table."""

import json
from pathlib import Path

import numpy as np
import pytest

from oodcli.data import open_dataset, prepare
from oodcli.data.formats.rows import ListedSource
from oodcli.data.formats.tables import open_table
from oodcli.data.incoming import items
from oodcli.data.reader import Columns
from oodcli.data.reader_contract import check
from oodcli.data.readers import METADATA, TABLE
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.store.store import Store


@pytest.fixture
def folder(tmp_path, random_images, write_images, monkeypatch):
    """Write six images as img/00000.png …, and make their parent the current folder."""
    write_images(tmp_path / "img", random_images(6, 4, 5, 3))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(text, *, role="id", name="t.csv", columns=None, encoding="utf-8"):
    Path(name).write_bytes(text.encode(encoding))
    return open_table(Path(name), name="t", spec="t", role=role, columns=columns)


def row(number, *more):
    return ",".join([f"img/{number:05d}.png", *more])


def problems(part):
    return [i for i in part.source.read(0, len(part)) if isinstance(i, UnreadableImageError)]


def test_a_column_of_parts_makes_a_whole_data_set(folder, random_images):
    rows = [row(0, "cat", "train"), row(1, "ant", "Training"), row(2, "cat", "validation"),
            row(3, "ant", "test"), row(4, "cat", "test"), row(5, "cat", "train")]  # fmt: skip
    dataset = opened("path,label,split\n" + "\n".join(rows))
    assert dataset.class_names == ("ant", "cat")
    assert not dataset.is_whole
    found = {name: (part.labels.tolist(), list(part.source.files))
             for name, part in dataset.parts.items()}  # fmt: skip
    assert found == {
        "train": ([1, 0, 1], [f"img/0000{k}.png" for k in (0, 1, 5)]),
        "val": ([1], ["img/00002.png"]),
        "test": ([0, 1], ["img/00003.png", "img/00004.png"]),
    }
    images = random_images(6, 4, 5, 3)
    test = dataset.parts["test"].source
    np.testing.assert_array_equal(np.stack(list(test.read(0, 2))), images[[3, 4]])
    assert [test.key_of(at) for at in (0, 1)] == ["t.csv:5", "t.csv:6"]
    as_ood = open_table(Path("t.csv"), name="t", spec="t", role="ood")
    assert list(as_ood.ood_part.source.files) == ["img/00003.png", "img/00004.png"]


FORMS = {
    "comma": ("t.csv", "path,label\n{0},a\n{1},b\n"),
    "semicolon": ("t.csv", "image;class\n{0};a\n{1};b\n"),
    "tab": ("t.tsv", "file_name\ttarget\n{0}\ta\n{1}\tb\n"),
    "windows": ("t.csv", '\ufeffPath,Label\r\n"{0}","a"\r\n\r\n"{1}","b"\r\n'),
    "more columns": ("t.csv", "id,label,score,filepath\n0,a,,{0}\n1,b,3,{1}\n"),
    "quoted": ("t.csv", 'path,note,label\n"{0}","x, ""y""\nz",a\n{1},,b'),
    "json": ("t.jsonl", '{{"path": "{0}", "label": "a"}}\n{{"label": "b", "path": "{1}"}}'),
    "hugging face": (
        "t.ndjson",
        '{{"image": {{"path": "{0}", "bytes": null}}, "label": "a"}}\n'
        '{{"image": {{"path": "{1}"}}, "label": "b"}}\n',
    ),
    "list with tabs": ("t.txt", "# x\n{0}\ta\n{1}\tb\n"),
    "list with commas": ("t.txt", "{0},a\n{1},b\n"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("absolute", [False, True])
def test_every_form_of_a_table_gives_the_same_images_and_labels(
    folder, store, random_images, form, absolute
):
    name, text = FORMS[form]
    paths = [str((folder if absolute else Path()) / f"img/0000{number}.png") for number in (4, 1)]
    Path(name).write_text(text.format(*paths), encoding="utf-8", newline="")
    part = open_dataset(name, store).id_test
    assert part.labels.tolist() == [0, 1]
    images = list(part.source.read(0, 2))
    np.testing.assert_array_equal(np.stack(images), random_images(6, 4, 5, 3)[[4, 1]])


def test_an_excel_file_of_unicode_text_is_read(folder):
    text = f"path\tlabel\r\n{'img/00001.png'}\té\r\n"
    assert opened(text, name="t.csv", encoding="utf-16").class_names == ("é",)


def test_lines_are_those_of_the_file(folder):
    text = 'path,note,label\n\nimg/00000.png,"a\nb\n",x\nimg/00001.png,,y\n\nimg/00002.png,,x\n'
    source = opened(text).id_test.source
    assert source.lines.tolist() == [3, 6, 8]


@pytest.mark.parametrize(
    ("labels", "classes", "indices", "note"),
    [
        (["0", "2", "1"], ("0", "1", "2"), [0, 2, 1], "labels of t are numbers from 0"),
        (["1", "3", "2"], ("1", "2", "3"), [0, 2, 1], "labels of t are numbers from 1"),
        (["b", "a", "b"], ("a", "b"), [1, 0, 1], None),
        (["2a", "10", "9b"], ("10", "2a", "9b"), [1, 0, 2], None),
    ],
)
def test_labels_are_numbers_from_0_or_1_or_names(folder, labels, classes, indices, note):
    text = "path,label\n" + "\n".join(row(at, label) for at, label in enumerate(labels))
    dataset = opened(text)
    assert dataset.class_names == classes
    assert dataset.id_test.labels.tolist() == indices
    assert dataset.notes == (() if note is None else (note,))
    assert dataset.is_whole


def test_bad_rows_are_rows_with_their_line_and_the_reason(folder, store):
    Path("img/bad.png").write_bytes(b"no image")
    dataset = opened(
        "path,label,split\n"
        + "\n".join(
            [row(0, "0", "train"), row(1, "1", "train"), row(2, "", "train"),
             "gone.png,1,train", "img/bad.png,0,train", row(3, "7", "test"), row(4, "x", "test"),
             ",1,test", row(4), row(4, "1", "test", "more"), row(5, "1", "test")]
        )
    )  # fmt: skip
    assert dataset.class_names == ("0", "1")
    train, test = dataset.parts["train"], dataset.parts["test"]
    assert [f"{bad.where}: {bad.reason}" for bad in (*problems(train), *problems(test))] == [
        "t.csv:4 (img/00002.png): it has no label",
        "t.csv:5 (gone.png): the file no longer exists",
        "t.csv:6 (img/bad.png): not an image file",
        "t.csv:7 (img/00003.png): its label '7' is outside of the classes of the train part, "
        "0 to 1",
        "t.csv:8 (img/00004.png): its label 'x' is outside of the classes of the train part, "
        "0 to 1",
        "t.csv:9: the path is empty",
        "t.csv:10: the line has 1 field of 3",
        "t.csv:11: the line has 4 fields, and the header 3",
    ]
    kept = prepare(test, store, name="t", size=(4, 4), skip_unreadable=True)
    assert (kept.labels.tolist(), len(kept.skipped)) == ([1], 5)
    with pytest.raises(UnreadableImageError, match=r"t\.csv:7 .*--skip-unreadable"):
        prepare(test, store, name="t", size=(4, 4))
    found = list(items(["t.csv"], store=store))
    assert [item.name for item in found] == [f"t.csv:{line}" for line in range(7, 13)]
    assert [item.error for item in found[:3]] == [None, None, "the path is empty"]


def test_bad_lines_of_json_are_rows(folder):
    lines = [
        json.dumps({"file": "img/00000.png", "label": 1}), "{", "[1]", '{"file": 3}',
        json.dumps({"file": "img/00001.png", "label": [1]}), '{"file": "a\\u0000b", "label": 2}',
        '{"file": "\\ud800.png", "label": {}}', "[" * 100_000,
        '{"file": "\\ud800.png", "label": 2.0}', '{"file": "x.png", "label": null}',
    ]  # fmt: skip
    dataset = opened("\n".join(lines), name="t.jsonl")
    assert dataset.class_names == ("1", "2")
    reasons = [bad.reason for bad in problems(dataset.id_test)]
    assert len(dataset.id_test.source.fingerprint) == 32  # of paths that the disk can have
    assert [reason.partition(":")[0] for reason in reasons] == [
        "the line is no JSON", "the line is no JSON object", "file is no path",
        "label is neither a text nor a whole number", "the path holds a zero byte",
        "label is neither a text nor a whole number", "the line is no JSON",
        "the file no longer exists", "it has no label",
    ]  # fmt: skip


def test_columns_are_named_or_numbered(folder, store):
    rows = "\n".join([row(0, "x", "a"), row(1, "y", "b")])
    text = f"which one,kind,species\n{rows}\n"
    by_name = opened(text, columns=Columns("which one", "species"))
    assert by_name.class_names == ("a", "b")
    by_number = opened(text, columns=Columns("1", "2"))
    assert by_number.class_names == ("x", "y")
    assert opened(rows, columns=Columns("1", "3")).id_test.source.lines.tolist() == [1, 2]
    again = open_dataset("mine=t.csv:path=1,label=3", store)
    assert again.spec == f"mine={folder}/t.csv:path=1,label=3"
    assert open_dataset(again.spec, store).class_names == ("a", "b") == again.class_names


@pytest.mark.parametrize(
    ("text", "columns", "reason"),
    [
        ("", None, "is empty"),
        ("path,label\n", None, "lists no images"),
        ("a,b\n1,2\n", None, "has no column of paths; it has a, b; name the column"),
        ("img/0.png,3\n", None, "has no header; write one, such as path,label"),
        ("path,label\n", Columns(label="kind"), "has no column 'kind'; it has path, label"),
        ("path,label\n", Columns("file"), "has no column of paths"),
        ("path\nimg/00000.png\n", None, "img/00000.png has no label"),
        ("path,split\nimg/00000.png,fold1\n", None, "t.csv:2: 'fold1' is no part of a data set"),
        ("path,split\nimg/00000.png,\n", None, "t.csv:2: '' is no part of a data set"),
        ("path,label,split\nimg/00000.png,a,val\n", None, "has neither train nor test images"),
        ('path,label\n"img/0.png,a\n', None, "close its quotation marks"),
        ('path,label\n"img/0.png"x,a\n', None, "t.csv:2 is not a row of a table"),
        ("path," + "x" * 2**20, None, "more than 1,048,575 characters"),
        ("path,label\nimg/00000.png,99999999\n", None, "no row has a label from 0 to 65,535"),
    ],
)
def test_what_is_no_table_is_one_line(folder, text, columns, reason):
    with pytest.raises(InvalidInputError) as caught:
        opened(text, columns=columns)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_in_another_encoding_is_refused(folder):
    with pytest.raises(InvalidInputError, match="not a text file in UTF-8"):
        opened("path,label\ncafé.png,a\n", encoding="latin-1")


def test_a_quotation_mark_that_is_not_closed_hides_no_row(folder):
    text = 'path,label\n"img/00000.png,a\nimg/00001.png,b\nimg/00002.png",b\nimg/00003.png,b\n'
    (bad,) = problems(opened(text).id_test)
    assert bad.where.startswith("t.csv:2 (")
    assert bad.reason == "the path holds a line break: a quotation mark may not be closed"


def test_a_folder_with_metadata_is_a_data_set(folder, store, random_images, write_images):
    text = "file_name,label\n00000.png,cat\n00001.png,dog\n00002.png,cat\n"
    Path("img/metadata.csv").write_text(text)
    whole = open_dataset("img", store)
    assert (whole.class_names, whole.is_whole) == (("cat", "dog"), True)
    assert whole.id_test.source.key_of(1) == f"{folder}/img/metadata.csv:3"
    assert len(open_dataset("img", store, role="ood").ood_part) == 6  # all images that are there
    check(METADATA, Path("img"))
    for part, labels in (("train", "ab"), ("validation", "b"), ("test", "ba")):
        write_images(Path("pets") / part / "sub", random_images(2, 4, 4, 3))
        lines = [
            json.dumps({"file_name": f"sub/0000{at}.png", "label": label})
            for at, label in enumerate(labels)
        ]
        Path("pets", part, "metadata.jsonl").write_text("\n".join(lines))
    divided = open_dataset("pets", store)
    assert {name: part.labels.tolist() for name, part in divided.parts.items()} == {
        "train": [0, 1], "val": [1], "test": [1, 0],
    }  # fmt: skip
    assert not problems(divided.parts["val"])


def test_one_metadata_table_for_folders_of_parts(folder, store):
    Path("img").rename("train")
    text = "file_name,label\ntrain/00000.png,cat\ntest/x.png,cat\n"
    Path("metadata.csv").write_text(text)
    dataset = open_dataset(str(folder), store)
    assert {name: list(part.source.files) for name, part in dataset.parts.items()} == {
        "train": ["train/00000.png"], "test": ["test/x.png"],
    }  # fmt: skip


def test_a_table_keeps_the_contract_of_readers(folder):
    Path("t.csv").write_text("path,label\n" + "\n".join(row(at, "ab"[at % 2]) for at in range(6)))
    check(TABLE, Path("t.csv"))


def test_rows_are_taken_with_what_is_known_of_them():
    texts = ["", "a", "ü/é.png", "\udcff", "x" * 1000]
    source = ListedSource(Path("/r"), texts, lines=np.arange(5), bad={0: "no", 3: "no"})
    taken = source.take(np.array([3, 1, 0, 3]))
    assert list(taken.files) == ["\udcff", "a", "", "\udcff"]
    assert (taken.bad, taken.lines.tolist()) == ({0: "no", 2: "no", 3: "no"}, [3, 1, 0, 3])
    assert list(taken.take(np.array([1])).files) == ["a"]


def test_copies_of_listed_images_stay_below_their_folder(folder, store):
    Path("t.csv").write_text(f"path\n../x/{folder.name}/a.png\n{folder}/img/00000.png\nimg/b.png\n")
    below = [item.relative for item in items(["t.csv"], store=Store(folder))]
    assert below[0] == f"x/{folder.name}/a.png"
    assert below[1] == f"{folder}/img/00000.png"[1:]
    assert below[2] == "img/b.png"
