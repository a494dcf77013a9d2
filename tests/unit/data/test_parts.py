"""Data sets whose parts lie apart, and columns that are named for several sets at once."""

import shutil
from pathlib import Path

import pytest

from oodcli.data import open_dataset
from oodcli.data.catalogue import list_datasets
from oodcli.data.columns import Columns
from oodcli.data.opening import with_columns
from oodcli.data.own_names import RegisteredDataset, register, registered
from oodcli.errors import InvalidInputError, MissingArtifactError
from oodcli.workflows.datasets import add_dataset


@pytest.fixture
def folder(tmp_path, random_images, write_images, monkeypatch):
    """Write four images into cat/ and dog/, and lists and tables of them."""
    for name in ("cat", "dog"):
        write_images(tmp_path / "img" / name, random_images(2, 4, 4, 3))
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("img/cat/00000.png 0\nimg/dog/00000.png 1\n")
    Path("b.txt").write_text("img/dog/00001.png 1\n")
    Path("a.csv").write_text("file,kind,x\nimg/dog/00000.png,dog,1\nimg/cat/00000.png,cat,2\n")
    Path("b.csv").write_text("file,kind,x\nimg/dog/00001.png,dog,3\n")
    return tmp_path


def labels(dataset):
    return {name: part.labels.tolist() for name, part in dataset.parts.items()}


def test_two_lists_are_one_data_set(folder, store):
    dataset = open_dataset("train=a.txt,test=b.txt", store)
    assert (dataset.name, dataset.class_names) == ("a", ("0", "1"))
    assert labels(dataset) == {"train": [0, 1], "test": [1]}
    assert dataset.spec == f"train={folder}/a.txt,test={folder}/b.txt"
    assert labels(open_dataset(dataset.spec, store)) == labels(dataset)
    named = open_dataset("pets=train=a.txt,val=a.txt,test=b.txt", store)
    assert (named.name, list(named.parts)) == ("pets", ["train", "val", "test"])
    assert open_dataset(named.spec, store).name == "pets"
    assert not dataset.takes_test
    as_ood = open_dataset("train=a.txt,test=b.txt", store, role="ood")
    assert list(as_ood.ood_part.source.files) == ["img/dog/00001.png"]


def test_numbers_of_other_parts_are_those_of_the_first(folder, store):
    Path("one.csv").write_text("file,kind\nimg/cat/00000.png,1\nimg/cat/00001.png,2\n")
    Path("two.csv").write_text("file,kind\nimg/dog/00000.png,2\n")
    dataset = open_dataset("train=one.csv:label=kind,test=two.csv:label=kind", store)
    assert dataset.class_names == ("1", "2")
    assert labels(dataset) == {"train": [0, 1], "test": [1]}
    assert dataset.notes == ("labels of one are numbers from 1",)


def test_parts_in_different_forms_have_the_classes_of_the_train_part(folder, store):
    dataset = open_dataset("pets=test=b.csv:path=file,label=kind,train=img", store)
    assert (dataset.class_names, labels(dataset)) == (
        ("cat", "dog"), {"test": [1], "train": [0, 0, 1, 1]}
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match=r"test=a\.txt has a class '0' that .*img has not"):
        open_dataset("train=img,test=a.txt", store)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("train=a.txt,train=b.txt", "names a part twice"),
        ("train=a.txt,test=gone.txt", r"no folder or file .*gone\.txt"),
        ("train=img,test=set", r"test=set has parts of its own, train, test"),
        ("train=a.txt,test=c.txt", r"has no label"),
    ],
)
def test_parts_that_cannot_be_one_data_set(folder, store, spec, reason):
    for part in ("train", "test"):
        shutil.copytree("img", Path("set") / part)
    Path("c.txt").write_text("img/cat/00000.png\n")
    with pytest.raises(Exception, match=reason) as caught:
        open_dataset(spec, store)
    assert "\n" not in str(caught.value)


def test_columns_are_written_behind_every_table(folder):
    assert with_columns(None, ["a.csv"], []) == [("a.csv",), ()]
    given = ["digits", "x=a.csv", "train=a.csv,test=b.csv:label=x", "a.txt", "a.csv:path=file"]
    assert with_columns("label=kind", given, ["b.csv"]) == [
        ("digits", "x=a.csv:label=kind", "train=a.csv:label=kind,test=b.csv:label=x", "a.txt",
         "a.csv:path=file"),
        ("b.csv:label=kind",),
    ]  # fmt: skip
    with pytest.raises(InvalidInputError, match=r"has no effect: it is for .*table"):
        with_columns("label=kind", ["digits", "a.txt"])
    with pytest.raises(InvalidInputError, match="'kind' does not name one"):
        with_columns("kind", ["a.csv"])


def test_parts_and_columns_behind_a_path_are_stored_with_a_name(folder, store):
    dataset = add_dataset(store, "pets", Path("train=img,test=b.csv:path=file,label=kind"))
    assert labels(dataset) == {"train": [0, 0, 1, 1], "test": [1]}
    stored = RegisteredDataset(
        "pets", Path(f"train={folder}/img,test={folder}/b.csv:path=file,label=kind")
    )
    assert registered(store)["pets"] == stored
    assert (dataset.name, dataset.spec) == ("pets", "pets")
    rows = {row.name: row for row in list_datasets(store).datasets}
    assert rows["pets"].present
    (folder / "b.csv").rename(folder / "c.csv")
    rows = {row.name: row for row in list_datasets(store).datasets}
    assert not rows["pets"].present
    with pytest.raises(MissingArtifactError, match=r"no folder or file .*b\.csv"):
        open_dataset("pets", store)
    assert add_dataset(store, "cats", Path("c.csv:label=kind")).class_names == ("dog",)
    with pytest.raises(InvalidInputError, match="give them a name of your own"):
        add_dataset(store, "cifar10", Path("train=img,test=img"))
    assert list(registered(store)) == ["pets", "cats"]


def test_columns_are_stored_with_a_name(folder, store):
    entry = RegisteredDataset("pets", folder / "a.csv", columns=Columns(label="kind"))
    register(entry, store)
    assert registered(store)["pets"] == entry
    assert 'columns = "label=kind"' in (store.root / "datasets.toml").read_text()
    dataset = open_dataset("pets", store)
    assert (dataset.class_names, dataset.spec) == (("cat", "dog"), "pets")
    text = (store.root / "datasets.toml").read_text().replace("label=kind", "kind")
    (store.root / "datasets.toml").write_text(text)
    with pytest.raises(
        InvalidInputError, match=r"datasets\.toml: pets is wrong.*one|does not name"
    ):
        registered(store)
