"""OpenOOD's lists, rebuilt: against its own text, and on real images."""

import gzip
import hashlib
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from oodcli.data import open_dataset, prepare
from oodcli.data.dataset import Dataset, joined
from oodcli.data.decoding.files import FileSource
from oodcli.data.formats.arrays import ArraySource
from oodcli.data.splits import ARCHIVE, known_lists, sorted_text, split
from oodcli.errors import InvalidInputError, MissingArtifactError
from oodcli.images import Part

REBUILT = [f"cifar10/{name}" for name in (
    "val_cifar10", "test_cifar10", "test_cifar100", "val_tin", "test_tin", "test_mnist",
    "test_svhn", "test_texture", "test_places365",
)] + [f"cifar100/{name}" for name in (
    "val_cifar100", "test_cifar100", "test_cifar10", "val_tin", "test_tin", "test_mnist",
    "test_svhn", "test_texture", "test_places365",
)]  # fmt: skip


@pytest.fixture(scope="module")
def lists(shared):
    """Return the published lists: lines by name."""
    with tarfile.open(shared / "data" / "openood_imglists.tar.xz") as archive:
        return {
            member.name.removeprefix("./")
            .removeprefix("benchmark_imglist/")
            .removesuffix(".txt"): (archive.extractfile(member).read().decode())
            for member in archive
            if member.isfile()
        }


def _cifar(shared, name):
    """Return CIFAR test images, in an order of our own, with the official order within a class."""
    folder = shared / "data" / name
    with np.load(folder / "test_labels.npz") as file:
        labels, names = file["labels"], file["class_names"]
        index = file["index_in_class"]
    with Image.open(folder / "test.webp") as grid:
        pixels = np.asarray(grid.convert("RGB"))
    rows, columns = pixels.shape[0] // 32, pixels.shape[1] // 32
    tiles = pixels.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4)
    part = Part(ArraySource(tiles.reshape(-1, 32, 32, 3)), labels.astype(np.int64))
    return Dataset(name, {"test": part}, tuple(names.tolist()), "here", name), index


def _named(name, files, labels=None, part="test"):
    """Return a data set of image files that are never read."""
    source = FileSource("nowhere", files)
    return Dataset(name, {part: Part(source, labels)}, (), "here", name)


@pytest.fixture(scope="module")
def datasets(shared, lists):
    """Return every set the lists are about, as its primary archive gives it, by its short name."""
    with tarfile.open(shared / "data" / "mnist_t10k.tar") as archive:
        packed = archive.extractfile("t10k-labels-idx1-ubyte.gz").read()
    test = np.frombuffer(gzip.decompress(packed)[8:], dtype=np.uint8).astype(np.int64)
    train = np.empty(60_000, dtype=np.int64)
    house = np.empty(26_032, dtype=np.int64)
    for line in lists["cifar10/test_mnist"].splitlines():
        if line.startswith("mnist/train/"):
            digit, number = line.split("/")[2].split(".")[0].split("_")
            train[int(number)] = int(digit)
    for line in lists["cifar10/test_svhn"].splitlines():
        number, digit = line.split("/")[2].split(".")[0].split("_")
        house[int(number) - 1] = int(digit)
    blank = np.zeros((1, 1, 1), dtype=np.uint8)
    mnist = joined(
        Part(ArraySource(np.broadcast_to(blank, (10_000, 1, 1))), test),
        Part(ArraySource(np.broadcast_to(blank, (60_000, 1, 1))), train),
    )
    svhn = Part(ArraySource(np.broadcast_to(blank, (26_032, 1, 1))), house)
    textures = sorted(
        line.split()[0].removeprefix("texture/")
        for line in lists["cifar10/test_texture"].splitlines()
    )
    return {
        "cifar10": _cifar(shared, "cifar10")[0],
        "cifar100": _cifar(shared, "cifar100")[0],
        "tin": _named("tiny-imagenet", [f"val/images/val_{k}.JPEG" for k in range(10_000)]),
        "places365": _named("places365", [f"Places365_val_{k:08d}.jpg" for k in range(1, 36_501)]),
        "texture": _named("textures", textures),
        "mnist": Dataset("mnist-lossless", {"test": mnist}, (), "here", "mnist-lossless"),
        "svhn": Dataset("svhn-lossless", {"test": svhn}, (), "here", "svhn-lossless"),
    }


def _of(datasets, key):
    return datasets[key.rpartition("_")[2]]


@pytest.mark.parametrize("key", REBUILT)
def test_rebuilt_list_has_the_lines_of_the_published_one(key, lists, datasets):
    published = lists[key]
    if key.endswith("places365"):
        # The primary archive has no folders of categories.
        published = "".join(f"places365/{line.split('/')[2]}\n" for line in published.splitlines())
    assert sorted_text(_of(datasets, key), key).splitlines() == sorted(published.splitlines())


@pytest.mark.parametrize("key", REBUILT)
def test_split_carries_the_checksum_of_the_published_text(key, lists, datasets, store):
    chosen = split(_of(datasets, key), key, store)
    assert chosen.sha256 == hashlib.sha256(lists[key].encode()).hexdigest()
    assert len(chosen.part) == known_lists()[key].lines == len(lists[key].splitlines())


def test_published_order_is_the_archives_where_the_list_is_sorted(lists, datasets, store):
    """Tiny ImageNet and CIFAR-10 as an OOD set: the very text, and so its checksum."""
    for key in ("cifar10/test_tin", "cifar10/val_tin", "cifar100/test_tin", "cifar100/val_tin"):
        chosen = split(datasets["tin"], key, store).part.source.files
        assert "".join(f"tin/{path} -1\n" for path in chosen) == lists[key]
    assert (
        sorted_text(datasets["cifar10"], "cifar100/test_cifar10") == lists["cifar100/test_cifar10"]
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_file_number_is_the_index_in_the_class_of_real_images(name, shared, lists, store):
    """The images chosen are those whose official number the list has, whatever their order."""
    dataset, index = _cifar(shared, name)
    labels = dataset.parts["test"].labels
    wanted = {line.split()[0] for line in lists[f"{name}/val_{name}"].splitlines()}
    rows = [
        row
        for row in range(10_000)
        if f"{name}/test/{dataset.class_names[labels[row]]}/{index[row] + 1:04d}.png" in wanted
    ]
    chosen = prepare(split(dataset, f"{name}/val_{name}", store).part, store, name="val")
    images = dataset.parts["test"].source.images[rows]
    np.testing.assert_array_equal(chosen.pixels(), images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(chosen.labels, labels[rows])


def test_validation_and_test_are_disjoint_and_whole(datasets, store):
    for name in ("cifar10", "cifar100"):
        val, test = (
            split(datasets[name], f"{name}/{part}_{name}", store).part.source.rows
            for part in ("val", "test")
        )
        assert np.array_equal(np.sort(np.concatenate([val, test])), np.arange(10_000))
        near_val = set(split(datasets["tin"], f"{name}/val_tin", store).part.source.files)
        near = set(split(datasets["tin"], f"{name}/test_tin", store).part.source.files)
        assert not near & near_val


def test_other_images_are_refused(datasets, store):
    few = _named("textures", ["banded/banded_0002.jpg"])
    with pytest.raises(
        InvalidInputError, match=r"not those of OpenOOD's list cifar10/test_texture"
    ):
        split(few, "cifar10/test_texture", store)
    with pytest.raises(InvalidInputError, match="does not consist of image files"):
        split(datasets["svhn"], "cifar10/test_texture", store)
    cifar = datasets["cifar10"]
    labels = np.roll(cifar.parts["test"].labels, 5000)
    other = Dataset(
        "cifar10",
        {"test": Part(cifar.parts["test"].source, labels % 7)},
        cifar.class_names,
        "x",
        "x",
    )
    with pytest.raises(InvalidInputError, match="not those of OpenOOD's list"):
        split(other, "cifar10/val_cifar10", store)


def test_lists_of_imagenet_are_read_from_the_users_archive(
    store, tmp_path, random_images, write_images
):
    write_images(tmp_path / "ninco" / "a", random_images(3, 8, 8, 3))
    dataset = open_dataset(f"ninco={tmp_path / 'ninco'}", store, role="ood")
    with pytest.raises(MissingArtifactError, match="ood datasets download openood-lists"):
        split(dataset, "imagenet/test_ninco", store)
    folder = store.datasets / "openood-lists"
    folder.mkdir(parents=True)
    text = "ninco/b/00002.png -1\r\nninco/a/00000.png -1\r\n"
    with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
        archive.writestr("benchmark_imglist/imagenet/test_ninco.txt", text)
        archive.writestr("benchmark_imglist/imagenet/val_ninco.txt", "ninco/a/gone.png 3\n")
    chosen = split(dataset, "imagenet/test_ninco", store)
    assert chosen.part.source.files == ["a/00000.png", "a/00002.png"]
    assert chosen.part.labels is None
    unix = text.replace("\r\n", "\n").encode()
    assert chosen.sha256 == hashlib.sha256(unix).hexdigest()
    with pytest.raises(InvalidInputError, match=r"has 0 of the 1 images .* is gone\.png"):
        split(dataset, "imagenet/val_ninco", store)
