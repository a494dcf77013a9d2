"""The same readers on real photographs."""

import numpy as np
import pytest
from PIL import Image

from oodcli.data import jigsaw, open_dataset, prepare


@pytest.fixture(scope="module")
def cifar10_images(shared):
    """Return the first 500 test images of CIFAR-10, ``(500, 32, 32, 3)``, and their labels."""
    with Image.open(shared / "data" / "cifar10" / "test.webp") as grid:
        rows = np.asarray(grid.crop((0, 0, 3200, 160)).convert("RGB"))
    tiles = rows.reshape(5, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    with np.load(shared / "data" / "cifar10" / "test_labels.npz") as labels:
        return tiles, labels["labels"][:500]


def test_cifar10_reads_alike_from_a_folder_and_from_an_array(
    cifar10_images, tmp_path, store, write_images
):
    images, labels = cifar10_images
    write_images(tmp_path / "folder" / "test" / "class", images)
    np.savez_compressed(tmp_path / "file.npz", test_images=images, test_labels=labels)
    from_folder = open_dataset(str(tmp_path / "folder"), store).id_test
    from_file = open_dataset(str(tmp_path / "file.npz"), store).id_test
    first = prepare(from_folder, store, name="folder")
    second = prepare(from_file, store, name="file")
    assert first.digest == second.digest
    np.testing.assert_array_equal(second.pixels(), images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(second.labels, labels)


def test_jigsaw_of_cifar10_keeps_every_value(cifar10_images):
    pixels = cifar10_images[0].transpose(0, 3, 1, 2)
    shuffled = jigsaw(pixels, np.arange(len(pixels)))
    inner = pixels[:, :, :30, :30].reshape(len(pixels), 3, -1)
    np.testing.assert_array_equal(
        np.sort(shuffled[:, :, :30, :30].reshape(len(pixels), 3, -1)), np.sort(inner)
    )
    assert (shuffled != pixels).mean() > 0.5


def test_scenes_are_read_as_numpy_reads_them(shared, store):
    path = shared / "data" / "sun_resize32.npz"
    with np.load(path) as file:
        images, labels, names = file["images"], file["labels"], file["class_names"]
    dataset = open_dataset(f"sun={path}", store)
    assert (dataset.name, dataset.spec) == ("sun", f"sun={path}")
    assert dataset.class_names == tuple(names.tolist())
    prepared = prepare(dataset.id_test, store, name="sun")
    np.testing.assert_array_equal(prepared.pixels(), images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(prepared.labels, labels)
