"""Images in .npz files: what is read, and what is refused."""

import zipfile

import numpy as np
import pytest

from oodcli.data import open_dataset
from oodcli.data.formats.arrays import ArraySource, NpySource, NpzSource
from oodcli.errors import InvalidInputError


def read_all(source, start=0, stop=None):
    return np.stack(list(source.read(start, len(source) if stop is None else stop)))


@pytest.fixture
def whole_set(random_images):
    """Return the arrays of a small data set with three classes."""
    return {
        "train_images": random_images(6, 4, 5, 3, seed=1),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": random_images(3, 4, 5, 3, seed=2),
        "test_labels": np.array([2, 1, 0], dtype=np.uint8),
        "class_names": np.array(["ant", "bee", "cow"]),
    }


@pytest.fixture
def save(tmp_path):
    """Return a function that writes arrays to set.npz and returns its path."""

    def write(**arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return tmp_path / "set.npz"

    return write


@pytest.fixture
def refusal(store, save):
    """Return a function that opens arrays as a data set and returns the error after the path."""

    def open_arrays(**arrays):
        path = save(**arrays)
        with pytest.raises(InvalidInputError) as caught:
            open_dataset(str(path), store)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message.removeprefix(str(path))

    return open_arrays


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(9, 6, 7), (9, 6, 7, 1), (9, 6, 7, 3), (700, 64, 64, 3)])
def test_streams_what_numpy_loads(tmp_path, random_images, write, shape):
    """The last shape is read in three blocks."""
    images = random_images(*shape)
    write(tmp_path / "a.npz", images=images)
    with np.load(tmp_path / "a.npz") as file:
        loaded = file["images"].reshape(*shape[:3], -1)
    expected = np.broadcast_to(loaded, (*shape[:3], 3))
    source = NpzSource(tmp_path / "a.npz", "images")
    assert len(source) == shape[0]
    np.testing.assert_array_equal(read_all(source), expected)
    np.testing.assert_array_equal(read_all(source, 4, 8), expected[4:8])


def test_fortran_order_reads_the_same(tmp_path, random_images):
    images = random_images(5, 6, 7, 3)
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(images))
    source = NpzSource(tmp_path / "a.npz", "images")
    np.testing.assert_array_equal(read_all(source, 1, 4), images[1:4])


def test_opens_a_whole_set(whole_set, save, store):
    path = save(**whole_set, val_images=whole_set["test_images"], val_labels=np.array([0, 0, 1]))
    dataset = open_dataset(str(path), store)
    assert dataset.name == "set"
    assert dataset.spec == dataset.location == str(path)
    assert dataset.class_names == ("ant", "bee", "cow")
    assert {name: part.labels.tolist() for name, part in dataset.parts.items()} == {
        "train": [0, 1, 2, 0, 1, 2],
        "val": [0, 0, 1],
        "test": [2, 1, 0],
    }
    assert dataset.parts["test"].labels.dtype == np.int64
    np.testing.assert_array_equal(read_all(dataset.parts["test"].source), whole_set["test_images"])


def test_opens_one_set_of_images_with_and_without_labels(whole_set, save, store):
    images = whole_set["test_images"]
    part = open_dataset(str(save(images=images, files=np.array(["a"]))), store).parts["test"]
    assert part.labels is None
    dataset = open_dataset(str(save(images=images, labels=np.array([0, 3, 3]))), store)
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.id_test.labels.tolist() == [0, 3, 3]


def test_names_of_classes_may_be_bytes(whole_set, save, store):
    whole_set["class_names"] = np.array([b"ant", b"bee", b"cow"])
    assert open_dataset(str(save(**whole_set)), store).class_names == ("ant", "bee", "cow")


def test_ood_takes_the_test_images_and_no_labels(whole_set, save, store):
    del whole_set["test_labels"]
    dataset = open_dataset(str(save(**whole_set)), store, role="ood")
    assert list(dataset.parts) == ["test"]
    assert dataset.ood_part.labels is None
    assert dataset.ood_part.source.array == "test_images"


def test_ood_labels_of_any_kind_do_not_matter(whole_set, save, store):
    path = save(images=whole_set["test_images"], labels=np.full(3, -1))
    assert len(open_dataset(str(path), store, role="ood").ood_part) == 3


def test_images_of_floats_are_refused(refusal):
    assert refusal(images=np.zeros((2, 4, 4, 3))) == (
        ": array 'images' is float64, not uint8; store pixel values from 0 to 255 as uint8"
    )


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 2, 4, 4), (2, 28, 28, 28), (1, 2, 4, 4, 3)])
def test_images_of_another_shape_are_refused(refusal, shape):
    assert refusal(images=np.zeros(shape, dtype=np.uint8)) == (
        f": array 'images' has shape {shape}; images are (n, h, w), (n, h, w, 1), (n, h, w, 3), "
        "(n, 1, h, w) or (n, 3, h, w)"
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_come_first(save, store, random_images, channels):
    images = random_images(4, 6, 5, channels)
    path = save(images=images.transpose(0, 3, 1, 2))
    wanted = np.broadcast_to(images, (4, 6, 5, 3))
    np.testing.assert_array_equal(read_all(NpzSource(path, "images")), wanted)
    npy = path.with_suffix(".npy")
    np.save(npy, images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(read_all(NpySource(npy)), wanted)


def medmnist(random_images, *shape, labels=1):
    """Return the arrays of a file of MedMNIST."""
    arrays = {}
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{part}_images"] = random_images(count, *shape)
        arrays[f"{part}_labels"] = (np.arange(count * labels) % 3).astype("u1").reshape(-1, labels)
    return arrays


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (64, 64)])
def test_files_of_medmnist_are_read_as_they_come(save, store, random_images, shape):
    arrays = medmnist(random_images, *shape)
    dataset = open_dataset(str(save(**arrays)), store)
    assert dataset.class_names == ("0", "1", "2")
    assert {name: part.labels.tolist() for name, part in dataset.parts.items()} == {
        "train": [0, 1, 2, 0, 1, 2], "val": [0, 1, 2], "test": [0, 1, 2, 0]
    }  # fmt: skip
    first = read_all(dataset.parts["val"].source)[0]
    wanted = arrays["val_images"][0]
    np.testing.assert_array_equal(
        first, wanted if wanted.ndim == 3 else wanted[:, :, None].repeat(3, 2)
    )


def test_several_labels_per_image_are_refused(refusal, random_images):
    assert refusal(**medmnist(random_images, 8, 8, labels=14)) == (
        ": array 'train_labels' has 14 labels per image (multi-label); one class per image is "
        "needed, shape (6,)"
    )


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4, 3)])
def test_no_images_are_refused(refusal, shape):
    assert refusal(images=np.zeros(shape, dtype=np.uint8)) == (
        f": array 'images' has shape {shape}: there is no image in it"
    )


def test_images_of_too_many_pixels_are_refused(refusal, monkeypatch):
    monkeypatch.setattr("oodcli.data.formats.arrays.MAX_PIXELS", 20)
    assert refusal(images=np.zeros((1, 3, 7), dtype=np.uint8)) == (
        ": array 'images' has shape (1, 3, 7); an image may have 20 pixels at most"
    )


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_format_versions_that_hold_plain_arrays_are_read(tmp_path, random_images, version):
    images = random_images(2, 4, 4)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("images.npy", "w") as f:
        np.lib.format.write_array(f, images, version=version)
    if version == (3, 0):
        with pytest.raises(InvalidInputError, match=r"its format version is 3\.0; write"):
            NpzSource(tmp_path / "a.npz", "images")
    else:
        np.testing.assert_array_equal(
            read_all(NpzSource(tmp_path / "a.npz", "images"))[..., 0], images
        )


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.array([0, 1]), "has shape (2,); 3 images need shape (3,)"),
        (np.zeros((3, 1, 1), dtype=np.int64), "has shape (3, 1, 1); 3 images need shape (3,)"),
        (np.array([0.0, 1.0, 2.0]), "is float64; labels are whole numbers from 0"),
        (np.array([True, False, True]), "is bool; labels are whole numbers from 0"),
        (np.array(["a", "b", "c"]), "is <U1; labels are whole numbers from 0"),
        (np.array([0, -2, 1]), "has label -2; labels count from 0"),
        (np.array([0, 1, 3]), "has label 3, but there are 3 classes, counted from 0"),
        (
            np.array([0, 1, 10**12]),
            "has label 1000000000000; number the classes from 0, 65536 at most",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(refusal, whole_set, labels, reason):
    whole_set["test_labels"] = labels
    assert refusal(**whole_set) == f": array 'test_labels' {reason}"


def test_label_that_train_lacks_is_refused(refusal, whole_set):
    del whole_set["class_names"]
    whole_set["test_labels"] = np.array([0, 1, 5])
    assert refusal(**whole_set) == (
        ": array 'test_labels' has label 5, but there are 3 classes, counted from 0"
    )


@pytest.mark.parametrize("names", [np.array([1, 2, 3]), np.array([["a", "b", "c"]])])
def test_names_of_classes_that_are_no_list_of_texts_are_refused(refusal, whole_set, names):
    whole_set["class_names"] = names
    assert refusal(**whole_set) == (
        f": array 'class_names' is {names.dtype} of shape {names.shape}; it must hold one text "
        "per class"
    )


WANTED = (
    "expected are images and labels, or train_images, train_labels, test_images and test_labels"
)


def test_missing_arrays_are_named(refusal, whole_set):
    assert refusal(x=np.zeros(3), y=np.zeros(3)) == f" has no array 'images'; it has x, y; {WANTED}"
    del whole_set["test_labels"]
    assert refusal(**whole_set) == f" has test_images but no array 'test_labels'; {WANTED}"
    assert refusal(val_images=whole_set["test_images"]) == (
        f" has val_images but neither train nor test; {WANTED}"
    )


def test_objects_are_refused_and_not_unpickled(refusal, whole_set):
    whole_set["class_names"] = np.array(["a", "b", "c"], dtype=object)
    assert refusal(**whole_set) == (
        ": array 'class_names' cannot be read: it holds Python objects; write the file again"
    )
    assert "cannot be read: it holds Python objects" in refusal(
        images=np.array([np.zeros((2, 2)), None], dtype=object)
    )


def test_other_arrays_may_be_objects(whole_set, save, store):
    path = save(**whole_set, notes=np.array([{"a": 1}], dtype=object))
    assert len(open_dataset(str(path), store).parts) == 2


def test_file_that_is_no_zip_is_refused(tmp_path, store):
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(InvalidInputError, match=r"a\.npz is not an \.npz file: File is not a zip"):
        open_dataset(str(tmp_path / "a.npz"), store)


def test_file_cut_short_is_refused(whole_set, save, store):
    path = save(**whole_set)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInputError, match=r"set\.npz is not an \.npz file"):
        open_dataset(str(path), store)


def test_array_shorter_than_its_header_says_is_refused(tmp_path, store, random_images):
    np.save(tmp_path / "images.npy", random_images(9, 4, 4, 3))
    content = (tmp_path / "images.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", content[:-10])
    with pytest.raises(InvalidInputError) as caught:
        open_dataset(str(tmp_path / "a.npz"), store)
    assert str(caught.value) == (
        f"{tmp_path / 'a.npz'}: array 'images' cannot be read: shape (9, 4, 4, 3) of uint8 does "
        "not fit 422 bytes; write the file again"
    )


def test_damaged_pixels_are_found_when_read(tmp_path, store, random_images):
    """The checksum of the zip file covers all rows, also when reading starts in the middle."""
    np.savez(tmp_path / "a.npz", images=random_images(50, 16, 16, 3))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    source = open_dataset(str(tmp_path / "a.npz"), store).parts["test"].source
    for start in (0, 40):
        with pytest.raises(InvalidInputError, match="array 'images' cannot be read: Bad CRC-32"):
            list(source.read(start, 50))


def test_damaged_file_is_never_a_crash(tmp_path, store, whole_set):
    """Flip one byte after another, and read whatever opens."""
    np.savez_compressed(tmp_path / "good.npz", **whole_set)
    content = (tmp_path / "good.npz").read_bytes()
    path = tmp_path / "bad.npz"
    refused = 0
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            for part in open_dataset(str(path), store).parts.values():
                read_all(part.source)
        except InvalidInputError:
            refused += 1
    assert refused > len(content) / 3 / 2


def test_fingerprint_follows_the_file(tmp_path, random_images):
    np.savez(tmp_path / "a.npz", images=random_images(2, 4, 4, 3), others=random_images(2, 4, 4, 3))
    before = NpzSource(tmp_path / "a.npz", "images").fingerprint
    assert NpzSource(tmp_path / "a.npz", "images").fingerprint == before
    assert NpzSource(tmp_path / "a.npz", "others").fingerprint != before
    np.savez(tmp_path / "a.npz", images=random_images(2, 4, 4, 3, seed=1))
    assert NpzSource(tmp_path / "a.npz", "images").fingerprint != before


def test_array_source_has_three_channels_and_the_digest_of_its_pixels(random_images):
    grey = random_images(4, 5, 6)
    source = ArraySource(grey)
    np.testing.assert_array_equal(read_all(source, 1, 3), np.stack([grey[1:3]] * 3, axis=-1))
    assert source.fingerprint == ArraySource(grey.copy()).fingerprint
    assert source.fingerprint != ArraySource(grey + 1).fingerprint
