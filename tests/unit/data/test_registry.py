"""How a data set is found by what the user writes."""

from pathlib import Path

import numpy as np
import pytest

from oodcli.data import DATASETS, open_dataset
from oodcli.data.readers import kinds
from oodcli.errors import InvalidInputError, MissingArtifactError, UnknownNameError


@pytest.fixture
def pictures(tmp_path, monkeypatch, random_images, write_images):
    """Return a folder of two images, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", random_images(2, 4, 4, 3))
    return tmp_path / "pictures"


def test_registry_name_wins_over_a_folder_of_that_name(pictures, store):
    pictures.rename(pictures.with_name("uniform-noise"))
    assert len(open_dataset("uniform-noise", store, role="ood").ood_part) == 1000
    assert len(open_dataset("./uniform-noise", store, role="ood").ood_part) == 2
    assert len(open_dataset("uniform-noise/", store, role="ood").ood_part) == 2


def test_path_is_named_by_its_last_component(pictures, store):
    np.savez("some.set.npz", images=np.zeros((1, 4, 4), dtype=np.uint8))
    for spec in ("pictures", "pictures/", "pictures/../pictures"):
        assert open_dataset(spec, store, role="ood").name == "pictures"
    assert open_dataset("some.set.npz", store, role="ood").name == "some.set"


def test_name_before_the_path_wins(pictures, store):
    dataset = open_dataset("mine=pictures", store, role="ood")
    assert dataset.name == "mine"
    assert dataset.location == str(pictures)


def test_spec_opens_the_same_set_from_any_folder(pictures, store, monkeypatch):
    opened = [open_dataset(spec, store, role="ood") for spec in ("pictures", "mine=pictures")]
    assert [dataset.spec for dataset in opened] == [str(pictures), f"mine={pictures}"]
    monkeypatch.chdir("/")
    for dataset in opened:
        again = open_dataset(dataset.spec, store, role="ood")
        assert (again.name, again.spec) == (dataset.name, dataset.spec)
        assert again.ood_part.source.fingerprint == dataset.ood_part.source.fingerprint


def test_path_with_an_equals_sign_is_a_path_where_it_exists(pictures, store):
    pictures.rename(pictures.with_name("a=b"))
    dataset = open_dataset("a=b", store, role="ood")
    assert (dataset.name, dataset.spec) == ("a=b", str(pictures.with_name("a=b")))
    assert open_dataset("new=a=b", store, role="ood").name == "new"


def test_home_is_understood(pictures, store, monkeypatch):
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert open_dataset("~/pictures", store, role="ood").location == str(pictures)
    assert open_dataset("mine=~/pictures", store, role="ood").location == str(pictures)


def test_unknown_name_suggests_and_says_that_paths_are_accepted(store):
    with pytest.raises(UnknownNameError) as caught:
        open_dataset("digit", store)
    assert str(caught.value) == (
        "no data set 'digit'; did you mean 'digits'? (a path, or NAME=PATH, is also accepted)"
    )
    with pytest.raises(UnknownNameError, match="no data set ''; there are: cifar10, cifar10-c"):
        open_dataset("", store)


@pytest.mark.parametrize("spec", ["./gone", "/gone/far", "gone.npz", "mine=gone", "x" * 300 + "/y"])
def test_missing_path_is_named(tmp_path, store, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingArtifactError) as caught:
        open_dataset(spec, store)
    path = tmp_path / spec.removeprefix("mine=")
    assert str(caught.value) == f"no folder or file {path}; check the path"


def test_file_of_another_kind_is_refused(pictures, store):
    Path("notes.pdf").touch()
    with pytest.raises(InvalidInputError) as caught:
        open_dataset("notes.pdf", store)
    assert str(caught.value) == (f"{pictures.with_name('notes.pdf')} is none of: {kinds()}")


def test_val_fraction_holds_images_out_of_train(tmp_path, store):
    np.savez(
        tmp_path / "a.npz",
        train_images=np.zeros((20, 2, 2), dtype=np.uint8),
        train_labels=np.arange(20) % 2,
        test_images=np.zeros((2, 2, 2), dtype=np.uint8),
        test_labels=np.array([0, 1]),
    )
    dataset = open_dataset(str(tmp_path / "a.npz"), store, val_fraction=0.2)
    assert {name: len(part) for name, part in dataset.parts.items()} == {
        "train": 16,
        "val": 4,
        "test": 2,
    }
    assert np.bincount(dataset.parts["val"].labels).tolist() == [2, 2]


def test_registry_is_complete():
    for name, known in DATASETS.items():
        assert known.name == name
        assert known.title
        assert known.licence
        assert known.role == "id" or "train" not in known.counts
        for source in known.sources:
            assert source.md5 is None or len(source.md5) == 32
            assert source.urls or source.by_hand
            # Without a checksum, only a person can say whether it is the right file.
            assert source.is_manual == (not source.urls or source.md5 is None)
            assert all(url.startswith(("https://", "http://")) for url in source.urls)
        assert not known.home or known.home in DATASETS
    assert DATASETS["cifar10"].download_bytes == 170_498_071
    assert DATASETS["digits"].download_bytes == 0


def test_set_is_present_once_its_files_are_in_the_store(store):
    assert DATASETS["digits"].is_present(store)
    assert not DATASETS["cifar10"].is_present(store)
    (store.datasets / "cifar10").mkdir(parents=True)
    (store.datasets / "cifar10" / "cifar-10-python.tar.gz").touch()
    assert DATASETS["cifar10"].is_present(store)
