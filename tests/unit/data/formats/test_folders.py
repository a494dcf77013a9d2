"""Folders of images, with classes and without."""

import shutil

import numpy as np
import pytest

from oodcli.data import open_dataset
from oodcli.errors import InvalidInputError

WANTED = (
    "expected is CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE, and val/CLASS/IMAGE if "
    "there is any"
)


@pytest.fixture
def tree(tmp_path, random_images, write_images):
    """Return a folder with cats and dogs to train and test on."""
    root = tmp_path / "pets"
    for seed, (part, name, count) in enumerate(
        [("train", "dog", 3), ("train", "cat", 2), ("test", "cat", 1), ("test", "dog", 2)]
    ):
        write_images(root / part / name, random_images(count, 4, 4, 3, seed=seed))
    return root


def test_reads_parts_and_classes_in_order_of_name(tree, store):
    dataset = open_dataset(str(tree), store)
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.location == dataset.spec == str(tree)
    assert {name: part.labels.tolist() for name, part in dataset.parts.items()} == {
        "train": [0, 0, 1, 1, 1],
        "test": [0, 1, 1],
    }
    assert dataset.parts["train"].source.files[2] == "dog/00000.png"


def test_finds_images_at_any_depth_below_a_class(tree, store, random_images, write_images):
    write_images(tree / "train" / "cat" / "more" / "still", random_images(2, 4, 4, 3))
    assert open_dataset(str(tree), store).parts["train"].labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_takes_val_where_there_is_one(tree, store):
    shutil.copytree(tree / "test", tree / "val")
    assert set(open_dataset(str(tree), store).parts) == {"train", "val", "test"}


def test_test_part_may_lack_a_class(tree, store):
    shutil.rmtree(tree / "test" / "cat")
    assert open_dataset(str(tree), store).parts["test"].labels.tolist() == [1, 1]


def test_test_part_alone_is_enough(tree, store):
    shutil.rmtree(tree / "train")
    dataset = open_dataset(str(tree), store)
    assert set(dataset.parts) == {"test"}
    assert dataset.class_names == ("cat", "dog")


def test_class_without_images_is_named(tree, store):
    (tree / "train" / "emu").mkdir()
    with pytest.raises(InvalidInputError) as caught:
        open_dataset(str(tree), store)
    assert str(caught.value) == f"class folder {tree / 'train' / 'emu'} has no images; remove it"


def test_class_that_train_lacks_is_named(tree, store, random_images, write_images):
    write_images(tree / "test" / "emu", random_images(1, 4, 4, 3))
    with pytest.raises(InvalidInputError) as caught:
        open_dataset(str(tree), store)
    assert str(caught.value) == (
        f"{tree / 'test'} has a class 'emu' that train has not; "
        f"remove it, or add {tree / 'train' / 'emu'}"
    )


def test_image_outside_of_a_class_is_named(tree, store, random_images, write_images):
    write_images(tree / "train", random_images(1, 4, 4, 3))
    with pytest.raises(InvalidInputError) as caught:
        open_dataset(str(tree), store)
    assert str(caught.value) == (
        f"image {tree / 'train' / '00000.png'} lies outside of any class folder; {WANTED}"
    )


def test_folder_of_classes_is_one_whole(tree, store):
    dataset = open_dataset(str(tree / "train"), store)
    assert dataset.class_names == ("cat", "dog")
    assert {name: part.labels.tolist() for name, part in dataset.parts.items()} == {
        "test": [0, 0, 1, 1, 1]
    }
    assert dataset.is_whole
    assert not open_dataset(str(tree), store).is_whole


def test_folder_of_classes_is_divided_where_that_is_asked_for(
    tmp_path, store, random_images, write_images
):
    for seed, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "pets" / name, random_images(10, 4, 4, 3, seed=seed))
    divided = open_dataset(str(tmp_path / "pets"), store, test_fraction=0.2, val_fraction=0.25)
    assert {name: np.bincount(part.labels).tolist() for name, part in divided.parts.items()} == {
        "train": [6, 6],
        "val": [2, 2],
        "test": [2, 2],
    }
    files = [file for part in divided.parts.values() for file in part.source.files]
    assert sorted(files) == sorted(
        f"{name}/{row:05d}.png" for name in ("cat", "dog") for row in range(10)
    )
    before = divided.division
    (tmp_path / "pets" / "cat" / "00003.png").rename(tmp_path / "pets" / "cat" / "zebra.png")
    again = open_dataset(str(tmp_path / "pets"), store, test_fraction=0.2, val_fraction=0.25)
    assert again.division != before


@pytest.mark.parametrize(("folder", "part"), [
    ("Train", "train"), ("training", "train"), ("TEST", "test"), ("validation", "val"),
    ("valid", "val"), ("dev", "val"),
])  # fmt: skip
def test_folder_that_is_called_like_a_part_is_no_class(tree, store, folder, part):
    (tree / "train").rename(tree / "cats")
    (tree / "test").rename(tree / folder)
    with pytest.raises(InvalidInputError) as caught:
        open_dataset(str(tree), store)
    assert str(caught.value) == (
        f"folder {tree} has a folder {folder!r}, which is not a class; rename it to {part}: "
        f"{WANTED}"
    )


def test_folder_without_classes_tells_the_layout(tree, store):
    with pytest.raises(InvalidInputError) as caught:
        open_dataset(str(tree / "train" / "cat"), store)
    assert str(caught.value) == (
        f"image {tree / 'train' / 'cat' / '00000.png'} lies outside of any class folder; {WANTED}"
    )


def test_val_alone_is_not_enough(tree, store):
    shutil.rmtree(tree / "train")
    (tree / "test").rename(tree / "val")
    with pytest.raises(InvalidInputError, match="has neither train nor test; expected is"):
        open_dataset(str(tree), store)


def test_part_without_class_folders_is_named(tree, store):
    shutil.rmtree(tree / "test")
    (tree / "test").mkdir()
    with pytest.raises(InvalidInputError, match=r"pets/test has no class folders; expected is"):
        open_dataset(str(tree), store)


def test_ood_tree_gives_its_test_part_without_classes(tree, store):
    dataset = open_dataset(str(tree), store, role="ood")
    assert set(dataset.parts) == {"test"}
    assert dataset.ood_part.labels is None
    assert dataset.class_names == ()
    assert list(dataset.ood_part.source.files) == [
        "cat/00000.png",
        "dog/00000.png",
        "dog/00001.png",
    ]


def test_ood_tree_without_test_gives_its_val_part(tree, store):
    (tree / "test").rename(tree / "val")
    assert len(open_dataset(str(tree), store, role="ood").ood_part) == 3


def test_any_other_ood_folder_gives_all_its_images(tree, store):
    shutil.rmtree(tree / "test")
    assert len(open_dataset(str(tree), store, role="ood").ood_part) == 5


def test_ood_folder_without_images_is_an_error(tmp_path, store):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError) as caught:
        open_dataset(str(tmp_path / "empty"), store, role="ood")
    assert str(caught.value) == (
        f"folder {tmp_path / 'empty'} has no images; name a folder of image files"
    )


def test_images_held_out_are_read_from_their_own_files(tree, store, random_images):
    whole = open_dataset(str(tree), store).parts["train"]
    dataset = open_dataset(str(tree), store, val_fraction=0.4)
    assert [len(dataset.parts[name]) for name in ("train", "val")] == [3, 2]
    assert dataset.parts["val"].labels.tolist() == [0, 1]
    files = [*dataset.parts["train"].source.files, *dataset.parts["val"].source.files]
    assert sorted(files) == sorted(whole.source.files)
    first = next(iter(dataset.parts["val"].source.read(0, 1)))
    row = whole.source.files.index(dataset.parts["val"].source.files[0])
    np.testing.assert_array_equal(first, next(iter(whole.source.read(row, row + 1))))
