"""CIFAR-10 as published, with a made archive of few images."""

import hashlib
import io
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from oodcli.data import open_dataset, prepare
from oodcli.data.formats.cifar import CIFAR10, find, open_cifar
from oodcli.errors import CorruptArtifactError, MissingArtifactError

ARCHIVE, FOLDER, MEMBERS = CIFAR10.archive, CIFAR10.folder, CIFAR10.members
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def batches(random_images):
    """Return the bytes of every file: three images a batch."""
    files = {
        name: pickle.dumps(
            {
                b"batch_label": name.encode(),
                b"labels": [nth, 9 - nth, 5],
                b"data": random_images(3, 3072, seed=nth),
                b"filenames": [b"a.png", b"b.png", b"c.png"],
            },
            protocol=2,
        )
        for nth, name in enumerate(sorted(MEMBERS.keys() - {"batches.meta"}))
    }
    files["batches.meta"] = pickle.dumps({b"label_names": [n.encode() for n in NAMES]}, protocol=2)
    return files


@pytest.fixture
def members(batches):
    return {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in batches.items()
    }


@pytest.fixture
def small(members):
    """Return CIFAR-10 as it would be, had it been published with these few images."""
    return replace(CIFAR10, members=members)


@pytest.fixture
def archive(tmp_path, batches):
    """Return an archive laid out as the published one, with files beside the batches."""
    path = tmp_path / "downloads" / ARCHIVE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"readme.html": b"hello", **batches}.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path, batches):
    path = tmp_path / "unpacked" / FOLDER
    path.mkdir(parents=True)
    for name, content in batches.items():
        (path / name).write_bytes(content)
    return path


def test_reads_images_in_the_official_order(archive, store, small, random_images):
    dataset = open_cifar(archive, store, release=small, name="cifar10", spec="cifar10")
    assert dataset.class_names == tuple(NAMES)
    assert dataset.parts["train"].labels.tolist() == [0, 9, 5, 1, 8, 5, 2, 7, 5, 3, 6, 5, 4, 5, 5]
    assert dataset.parts["test"].labels.tolist() == [5, 4, 5]
    train = list(dataset.parts["train"].source.read(3, 5))
    rows = random_images(3, 3072, seed=1)  # data_batch_2: 1,024 values of red, green, blue each
    np.testing.assert_array_equal(train[1], rows[1].reshape(3, 32, 32).transpose(1, 2, 0))
    assert len(list(dataset.parts["test"].source.read(0, 3))) == 3


def test_archive_and_folder_are_the_same_data_set(archive, folder, store, small):
    opened = [
        open_cifar(location, store, release=small, name="cifar10", spec="x")
        for location in (archive, folder)
    ]
    for part in ("train", "test"):
        first, second = (dataset.parts[part] for dataset in opened)
        assert first.source.fingerprint == second.source.fingerprint
        np.testing.assert_array_equal(
            np.stack(list(first.source.read(0, 3))), np.stack(list(second.source.read(0, 3)))
        )


def test_nothing_is_unpacked_once_labels_and_pixels_are_stored(archive, store, small):
    def opened():
        return open_cifar(archive, store, release=small, name="cifar10", spec="x")

    first = prepare(opened().parts["train"], store, name="cifar10")
    archive.write_bytes(b"no archive any more")
    again = opened()
    assert again.class_names == tuple(NAMES)
    images = prepare(again.parts["train"], store, name="cifar10")
    assert images.digest == first.digest
    np.testing.assert_array_equal(images.pixels(), first.pixels())
    with pytest.raises(CorruptArtifactError, match="cannot be unpacked"):
        list(again.parts["test"].source.read(0, 1))


def test_damaged_label_cache_is_read_again(folder, store, small):
    open_cifar(folder, store, release=small, name="cifar10", spec="x")
    (cache,) = (store.datasets / "cifar10").glob("labels-*.json")
    good = cache.read_text()
    for bad in ("{", "{}", good.replace("airplane", "airplant"), good.replace(" 9,", " 8,", 1)):
        assert bad != good
        cache.write_text(bad)
        dataset = open_cifar(folder, store, release=small, name="cifar10", spec="x")
        assert dataset.class_names[0] == "airplane"
        assert dataset.parts["train"].labels[1] == 9
        assert cache.read_text() == good


def test_file_that_is_not_the_published_one_is_named(folder, store, small):
    (folder / "data_batch_3").write_bytes(b"something else")
    with pytest.raises(CorruptArtifactError) as caught:
        open_cifar(folder, store, release=small, name="cifar10", spec="x")
    assert str(caught.value) == (
        f"data_batch_3 in {folder} is not the published file: its md5 is "
        f"6c7ba9c5a141421e1c03cb9807c97c74, not {small.members['data_batch_3']}; "
        "get the archive again"
    )


def test_published_checksums_hold_by_default(archive, store):
    with pytest.raises(CorruptArtifactError, match="not c99cafc152244af753f735de768cd75f"):
        open_cifar(archive, store, release=CIFAR10, name="cifar10", spec="x")


def test_missing_file_is_named(folder, store, small):
    (folder / "data_batch_5").unlink()
    with pytest.raises(CorruptArtifactError) as caught:
        open_cifar(folder, store, release=small, name="cifar10", spec="x")
    assert str(caught.value) == f"{folder} has no data_batch_5; get the archive again"


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_archive_cut_short_is_an_error(archive, store, small, keep):
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(CorruptArtifactError, match=r"cifar-10-python\.tar\.gz (cannot be|has no)"):
        open_cifar(archive, store, release=small, name="cifar10", spec="x")


def test_absent_set_says_how_to_get_it(store):
    with pytest.raises(MissingArtifactError) as caught:
        open_dataset("cifar10", store)
    assert str(caught.value) == (
        f"cifar10 is not in {store.datasets / 'cifar10'}; run: ood datasets download cifar10, "
        "or name a folder that holds cifar-10-python.tar.gz: cifar10=FOLDER"
    )


def test_folder_of_the_user_without_the_archive_is_refused(tmp_path, store):
    with pytest.raises(MissingArtifactError) as caught:
        open_dataset(f"cifar10={tmp_path}", store)
    assert str(caught.value) == (
        f"{tmp_path} does not hold cifar10 as published; "
        "name a folder that does, or give your images another name: NAME=PATH"
    )


def test_finds_archive_and_batches_in_a_folder(archive, folder, tmp_path):
    assert find(archive.parent, CIFAR10) == find(archive, CIFAR10) == archive
    assert find(folder.parent, CIFAR10) == find(folder, CIFAR10) == folder
    assert find(tmp_path, CIFAR10) is None


@pytest.fixture
def published(members):
    """Let the made files pass for the published ones."""
    real = CIFAR10.members
    object.__setattr__(CIFAR10, "members", members)
    yield
    object.__setattr__(CIFAR10, "members", real)


def test_is_recognised_wherever_it_lies(published, archive, folder, store):
    for path in (archive.parent, archive, folder.parent, folder):
        for spec, name in [
            (str(path), "cifar10"),
            (f"cifar10={path}", "cifar10"),
            (f"c={path}", "c"),
        ]:
            dataset = open_dataset(spec, store)
            assert (dataset.name, dataset.spec) == (name, f"{name}={path}")
            assert open_dataset(dataset.spec, store).location == dataset.location
            assert len(dataset.id_test) == 3


def test_stored_archive_is_opened_by_name(published, archive, store):
    (store.datasets / "cifar10").mkdir(parents=True)
    archive.rename(store.datasets / "cifar10" / ARCHIVE)
    dataset = open_dataset("cifar10", store, val_fraction=0.2)
    assert dataset.spec == "cifar10"
    assert [len(dataset.parts[name]) for name in ("train", "val", "test")] == [12, 3, 3]
    images = prepare(dataset.parts["val"], store, name="cifar10")
    assert images.pixels().shape == (3, 3, 32, 32)
