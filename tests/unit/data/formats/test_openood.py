"""OpenOOD's folder ``data``: its images as its own lists name them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.data import BENCHMARKS, open_dataset
from oodcli.data.own_names import registered
from oodcli.data.run_data import missing_sets
from oodcli.data.splits import split
from oodcli.errors import InvalidInputError, MissingArtifactError
from oodcli.store.store import Store
from oodcli.workflows.datasets import add_dataset

LISTS = {
    "cifar10/train_cifar10": ["cifar10/train/bird/0001.png 1", "cifar10/train/airplane/0002.png 0"],
    "cifar10/test_cifar10": ["cifar10/test/bird/0003.png 1", "cifar10/test/airplane/0004.png 0"],
    "cifar10/val_cifar10": ["cifar10/test/airplane/0005.png 0"],
    "cifar10/test_tin": ["tin/val/images/val_7.JPEG -1", "tin/val/images/val_6.JPEG -1"],
    "cifar10/test_svhn": ["svhn/test/000008_1.jpg -1"],
    "imagenet/test_ninco": ["ninco/a/1.jpg -1"],
}
WITHOUT_IMAGES = ("imagenet/test_ninco",)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "OpenOOD" / "data"
    for key, lines in LISTS.items():
        path = root / "benchmark_imglist" / f"{key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
        for number, line in enumerate(lines):
            image = root / "images_classic" / line.rpartition(" ")[0]
            if key not in WITHOUT_IMAGES:
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(image)
    return root


def levels(part) -> list[int]:
    return [int(np.mean(image)) for image in part.source.read(0, len(part))]


def test_one_name_serves_all_sets_whose_images_are_there(store: Store, tree: Path) -> None:
    added = add_dataset(store, "openood", tree)
    assert added.layout == (
        "5 of 5 lists of cifar10; 0 of 1 lists of imagenet (no images of test_ninco)"
    )
    assert registered(store)["openood"].path == tree
    missing = missing_sets(BENCHMARKS["openood-cifar10"], store)
    assert {"tiny-imagenet", "svhn-lossless"}.isdisjoint(missing)
    assert {"textures", "places365", "cifar100"} <= set(missing)
    # The lists are there, the images are not.
    assert missing_sets(BENCHMARKS["openood-imagenet"], store)[0] == "ssb-hard"


def test_the_id_set_has_the_images_and_labels_of_its_lists(store: Store, tree: Path) -> None:
    add_dataset(store, "openood", tree)
    opened = open_dataset("cifar10", store)
    assert opened.class_names == ("airplane", "bird")
    assert {name: len(part) for name, part in opened.parts.items()} == {"train": 2, "test": 3}
    labels = opened.parts["train"].labels
    assert labels is not None
    assert labels.tolist() == [1, 0]
    tested = opened.parts["test"].labels
    assert tested is not None
    # Sorted by path: airplane/0004, airplane/0005, bird/0003.
    assert tested.tolist() == [0, 0, 1]
    assert levels(opened.parts["test"]) == [10, 0, 0]
    chosen = split(opened, "cifar10/test_cifar10", store)
    assert chosen.part.labels is not None
    assert chosen.part.labels.tolist() == [1, 0]
    assert levels(chosen.part) == [0, 10]
    text = (tree / "benchmark_imglist" / "cifar10" / "test_cifar10.txt").read_bytes()
    assert chosen.sha256 == hashlib.sha256(text).hexdigest()


def test_a_list_is_a_set_by_its_name(store: Store, tree: Path) -> None:
    add_dataset(store, "openood", tree)
    opened = open_dataset("openood:cifar10/test_tin", store, role="ood")
    assert levels(opened.ood_part) == [0, 10]
    assert opened.name == "test_tin"
    again = open_dataset(opened.spec, store, role="ood")
    assert again.ood_part.source.fingerprint == opened.ood_part.source.fingerprint
    with pytest.raises(InvalidInputError, match=r"no images of a list 'imagenet/test_ninco'; name"):
        open_dataset("openood:imagenet/test_ninco", store, role="ood")
    with pytest.raises(InvalidInputError, match="name one as openood:cifar10/test_tin"):
        open_dataset("openood", store, role="ood")


def test_what_is_no_tree_is_refused_and_not_registered(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="run: ood datasets add openood DATA"):
        open_dataset("openood:cifar10/test_tin", store, role="ood")
    (tmp_path / "other").mkdir()
    with pytest.raises(InvalidInputError, match="has no folder benchmark_imglist; name the folder"):
        add_dataset(store, "openood", tmp_path / "other")
    assert "openood" not in registered(store)
