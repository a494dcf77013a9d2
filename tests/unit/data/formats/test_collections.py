"""Published sets, laid out as their authors have them; of real images where there are some."""

import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from oodcli.data import DATASETS, open_dataset, prepare
from oodcli.data.formats.cifar import CIFAR100
from oodcli.data.formats.collections import CORRUPTIONS, sample_rows
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError, OodError


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def pixels_of(part, store, **how):
    return prepare(part, store, name="x", **how).pixels()


@pytest.fixture
def svhn_digits(shared):
    with np.load(shared / "data" / "svhn_crops.npz") as file:
        test = file["split"] == "test"
        return file["images"][test], file["labels"][test]


def write_mat(path, images, labels):
    """Write a file as SVHN's: images last to vary, the digit 0 called 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": y}, do_compression=True)


def test_svhn_reads_real_digits_and_calls_zero_zero(svhn_digits, store):
    images, labels = svhn_digits
    write_mat(store.datasets / "svhn" / "test_32x32.mat", images, labels)
    part = open_dataset("svhn", store, role="ood").ood_part
    np.testing.assert_array_equal(part.labels, labels)
    assert (labels == 0).any()
    np.testing.assert_array_equal(pixels_of(part, store), images.transpose(0, 3, 1, 2))


def test_svhn_by_digit_takes_the_first_thousand_of_each_in_file_order(store):
    labels = np.random.default_rng(0).integers(0, 10, 12_000)
    images = np.zeros((12_000, 1, 1, 3), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(12_000) % 256, np.arange(12_000) // 256
    write_mat(store.datasets / "svhn" / "test_32x32.mat", images, labels)
    part = open_dataset("svhn-10000", store, role="ood").ood_part
    seen = [
        int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for image in part.source.read(0, len(part))
    ]
    wanted = []
    for digit in range(10):
        wanted += [row for row in range(12_000) if labels[row] == digit][:1000]
    assert seen == sorted(wanted)
    assert np.bincount(part.labels).max() == 1000


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0", b"\x89HDF\r\n", b"<html>" * 100])
def test_file_that_is_not_svhn_is_one_line(store, content):
    path = store.datasets / "svhn" / "test_32x32.mat"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError) as caught:
        open_dataset("svhn", store)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_svhn_cut_short_or_with_other_arrays_is_one_line(svhn_digits, store):
    images, labels = svhn_digits
    path = store.datasets / "svhn" / "test_32x32.mat"
    write_mat(path, images[:40], labels[:40])
    whole = path.read_bytes()
    for keep in range(130, len(whole), len(whole) // 20):
        path.write_bytes(whole[:keep])
        with pytest.raises(OodError) as caught:
            list(open_dataset("svhn", store).id_test.source.read(0, 40))
        assert "\n" not in str(caught.value)
    savemat(
        path, {"X": images[:3].transpose(1, 2, 3, 0), "y": np.array([[1], [2]], dtype=np.uint8)}
    )
    with pytest.raises(CorruptArtifactError, match="has 3 images for 2 labels"):
        list(open_dataset("svhn", store).id_test.source.read(0, 3))
    savemat(path, {"Z": np.zeros(2)})
    with pytest.raises(CorruptArtifactError, match="has no array 'y'"):
        open_dataset("svhn", store)
    savemat(path, {"X": images[:1].transpose(1, 2, 3, 0), "y": np.array([[11]])})
    with pytest.raises(CorruptArtifactError, match="other labels than 1 to 10"):
        open_dataset("svhn", store)


def test_mnist_reads_the_official_test_files(shared, store):
    folder = store.datasets / "mnist"
    folder.mkdir(parents=True)
    with tarfile.open(shared / "data" / "mnist_t10k.tar") as archive:
        archive.extractall(folder, filter="data")
    sums = {s.file: s.md5 for s in DATASETS["mnist"].sources}
    for path in folder.iterdir():
        assert hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == sums[path.name]
    part = open_dataset("mnist", store).id_test
    raw = np.frombuffer(
        gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], dtype=np.uint8
    ).reshape(-1, 28, 28)
    seen = pixels_of(part, store, size=(28, 28))
    np.testing.assert_array_equal(seen, np.repeat(raw[:, None], 3, axis=1))
    assert part.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    with pytest.raises(MissingArtifactError, match="training images of mnist are not in"):
        open_dataset("mnist-lossless", store)


def idx(array):
    shape = np.array(array.shape, dtype=">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + shape + array.tobytes()


def test_both_parts_of_mnist_are_one_ood_set_test_images_first(store, random_images):
    folder = store.datasets / "mnist"
    folder.mkdir(parents=True)
    train, test = random_images(4, 28, 28, seed=1), random_images(3, 28, 28, seed=2)
    for name, images in (("train", train), ("t10k", test)):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        # Unpacked files will do as well.
        labels = np.arange(len(images), dtype=np.uint8)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    part = open_dataset("mnist-lossless", store, role="ood").ood_part
    assert part.labels.tolist() == [0, 1, 2, 0, 1, 2, 3]
    seen = np.stack(list(part.source.read(0, 7)))
    np.testing.assert_array_equal(seen[..., 0], np.concatenate([test, train]))
    np.testing.assert_array_equal(np.stack(list(part.source.read(2, 5))), seen[2:5])
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(test))[:50])
    with pytest.raises(CorruptArtifactError, match="is not an idx file"):
        list(open_dataset("mnist", store).id_test.source.read(0, 3))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(test[0])))
    with pytest.raises(CorruptArtifactError, match="array of 3 dimensions"):
        list(open_dataset("mnist", store).id_test.source.read(0, 3))


def test_cifar100_reads_real_images_with_fine_labels(shared, store):
    folder = shared / "data" / "cifar100"
    with np.load(folder / "test_labels.npz") as file:
        labels, names = file["labels"][:300], [str(n).encode() for n in file["class_names"]]
    with Image.open(folder / "test.webp") as grid:
        pixels = np.asarray(grid.convert("RGB"))[: 32 * 10]
    columns = pixels.shape[1] // 32
    images = pixels.reshape(10, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    images = images[:300]
    batch = {
        b"data": images.transpose(0, 3, 1, 2).reshape(300, 3072),
        b"fine_labels": labels.tolist(),
        b"coarse_labels": [0] * 300,
    }
    contents = {
        "train": pickle.dumps(batch, protocol=2),
        "test": pickle.dumps(batch, protocol=2),
        "meta": pickle.dumps({b"fine_label_names": names, b"coarse_label_names": []}, protocol=2),
    }
    write_tar(
        store.datasets / "cifar100" / "cifar-100-python.tar.gz",
        {f"cifar-100-python/{name}": content for name, content in contents.items()},
        "w:gz",
    )
    with pytest.raises(CorruptArtifactError, match="not the published file"):
        open_dataset("cifar100", store)
    real = CIFAR100.members
    md5 = {n: hashlib.md5(c, usedforsecurity=False).hexdigest() for n, c in contents.items()}
    object.__setattr__(CIFAR100, "members", md5)
    try:
        dataset = open_dataset("cifar100", store)
        assert (len(dataset.class_names), dataset.class_names[0]) == (100, "apple")
        np.testing.assert_array_equal(dataset.id_test.labels, labels)
        np.testing.assert_array_equal(
            pixels_of(dataset.id_test, store), images.transpose(0, 3, 1, 2)
        )
    finally:
        object.__setattr__(CIFAR100, "members", real)


@pytest.fixture
def textures(shared):
    """Return 60 real textures: JPEG bytes by their official path."""
    with tarfile.open(shared / "data" / "dtd10_64.tar") as archive:
        return {
            f"dtd/images/{member.name}": archive.extractfile(member).read()
            for member in archive.getmembers()[::20]
        }


def test_textures_read_alike_from_the_archive_and_unpacked(textures, store, tmp_path):
    archive = tmp_path / "got" / "dtd-r1.0.1.tar.gz"
    write_tar(archive, {"dtd/labels/train1.txt": b"x", **textures}, "w:gz")
    from_archive = open_dataset(f"textures={archive.parent}", store, role="ood")
    assert from_archive.name == "textures"
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "mine", filter="data")
    same = [
        open_dataset(f"textures={folder}", store, role="ood")
        for folder in (tmp_path / "mine", tmp_path / "mine" / "dtd", archive)
    ]
    for dataset in (from_archive, *same):
        assert dataset.ood_part.source.as_published
        assert dataset.ood_part.source.files == sorted(
            path.removeprefix("dtd/images/") for path in textures
        )
        np.testing.assert_array_equal(
            pixels_of(dataset.ood_part, store), pixels_of(from_archive.ood_part, store)
        )


def test_archive_is_unpacked_once(textures, store, monkeypatch):
    write_tar(store.datasets / "textures" / "dtd-r1.0.1.tar.gz", textures, "w:gz")
    first = open_dataset("textures", store, role="ood")

    def fail(*_args):
        raise AssertionError("unpacked again")

    monkeypatch.setattr("oodcli.data.unpack.entries", fail)
    again = open_dataset("textures", store, role="ood")
    assert again.ood_part.source.fingerprint == first.ood_part.source.fingerprint


@pytest.mark.parametrize("kind", ["zip", "stored zip", "folder", "folder itself"])
def test_tiny_imagenet_reads_real_images_by_number(shared, store, tmp_path, kind):
    files = {}
    with tarfile.open(shared / "data" / "tiny_imagenet_val32.tar.xz") as archive:
        for member in archive:
            number = member.name.rpartition("_")[2].removesuffix(".JPEG")
            if member.name.endswith("annotations.txt") or number in ("2", "10", "9", "100"):
                content = archive.extractfile(member).read()
                files[f"tiny-imagenet-200/{member.name}"] = content
            if len(files) == 5:
                break
    if "tiny-imagenet-200/val/val_annotations.txt" not in files:
        with tarfile.open(shared / "data" / "tiny_imagenet_val32.tar.xz") as archive:
            text = archive.extractfile("val/val_annotations.txt").read()
        files["tiny-imagenet-200/val/val_annotations.txt"] = text
    home = tmp_path / "tin"
    if kind.endswith("zip"):
        method = zipfile.ZIP_STORED if kind == "stored zip" else zipfile.ZIP_DEFLATED
        write_zip(home / "tiny-imagenet-200.zip", files, method)
    else:
        for name, content in files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(content)
        home = home / "tiny-imagenet-200" if kind == "folder itself" else home
    dataset = open_dataset(f"tiny-imagenet={home}", store)
    part = dataset.parts["val"]
    classes = dict(
        line.split("\t")[:2]
        for line in files["tiny-imagenet-200/val/val_annotations.txt"].decode().splitlines()
    )
    names = ["val_2.JPEG", "val_9.JPEG", "val_10.JPEG", "val_100.JPEG"]
    assert [dataset.class_names[label] for label in part.labels] == [classes[n] for n in names]
    assert len(dataset.class_names) == 200
    wanted = [
        np.asarray(
            Image.open(io.BytesIO(files[f"tiny-imagenet-200/val/images/{n}"])).convert("RGB")
        )
        for n in names
    ]
    np.testing.assert_array_equal(np.stack(list(part.source.read(0, 4))), np.stack(wanted))


def test_places365_is_read_inside_its_archive(store, random_images):
    images = random_images(12, 20, 30, 3)
    files = {
        f"val_256/Places365_val_{row + 1:08d}.jpg": png(image) for row, image in enumerate(images)
    }
    shuffled = dict(sorted(files.items(), key=lambda item: hash(item[0])))
    path = write_tar(store.datasets / "places365" / "val_256.tar", shuffled)
    part = open_dataset("places365", store, role="ood").ood_part
    np.testing.assert_array_equal(np.stack(list(part.source.read(0, 12))), images)
    np.testing.assert_array_equal(np.stack(list(part.source.read(5, 7))), images[5:7])
    assert sorted(p.name for p in store.datasets.rglob("*") if p.is_file()) == ["val_256.tar"]
    assert len(open_dataset("places365-sample", store).ood_part) == 12
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(CorruptArtifactError, match="cannot be read as an archive"):
        open_dataset("places365", store, role="ood")


def test_sample_is_fixed_and_of_the_wanted_size():
    rows = sample_rows(36_500, 10_000)
    assert len(np.unique(rows)) == 10_000
    assert rows[:5].tolist() == sorted(rows.tolist())[:5]
    np.testing.assert_array_equal(rows, sample_rows(36_500, 10_000))
    assert abs(rows.mean() - 36_500 / 2) < 500


def test_cifar10_c_is_read_inside_its_archive(store, random_images):
    labels = np.tile(np.array([3, 8, 8, 0], dtype=np.uint8), 5)
    arrays = {name: random_images(20, 32, 32, 3, seed=k) for k, name in enumerate(CORRUPTIONS)}
    files = {}
    for name, array in {**arrays, "labels": labels}.items():
        stream = io.BytesIO()
        np.save(stream, array)
        files[f"CIFAR-10-C/{name}.npy"] = stream.getvalue()
    write_tar(store.datasets / "cifar10-c" / "CIFAR-10-C.tar", files)
    part = open_dataset("cifar10-c", store, role="ood").ood_part
    assert len(part) == 19 * 20
    np.testing.assert_array_equal(
        np.stack(list(part.source.read(0, len(part)))),
        np.concatenate([arrays[name] for name in CORRUPTIONS]),
    )
    sample = open_dataset("cifar10-c-sample", store, role="ood").ood_part
    assert sample.labels.tolist() == [3, 8, 8, 0]
    for row, image in enumerate(sample.source.read(0, 4)):
        same = [
            (name, at)
            for name in CORRUPTIONS
            for at in range(row, 20, 4)
            if (arrays[name][at] == image).all()
        ]
        assert len(same) == 1, "every test image stands once, in one of its corruptions"
    del files["CIFAR-10-C/fog.npy"]
    write_tar(store.datasets / "cifar10-c" / "CIFAR-10-C.tar", files)
    with pytest.raises(CorruptArtifactError, match=r"not all files of CIFAR-10-C: 'fog\.npy'"):
        open_dataset("cifar10-c", store)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("svhn", "test_32x32.mat"),
        ("mnist", "t10k-images-idx3-ubyte.gz"),
        ("textures", "dtd-r1.0.1.tar.gz"),
        ("places365-sample", "val_256.tar"),
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
        ("cifar10-c-sample", "CIFAR-10-C.tar"),
        ("ssb-hard", "ssb_hard.zip"),
    ],
)
def test_absent_set_names_its_file_and_the_command(store, name, file):
    with pytest.raises(MissingArtifactError) as caught:
        open_dataset(name, store)
    message = str(caught.value)
    assert file in message
    assert "run: ood datasets download" in message
    assert not DATASETS[name].is_present(store)


def test_archive_without_the_images_is_refused(store):
    write_tar(store.datasets / "isun" / "iSUN.tar.gz", {"readme.txt": b"hello"}, "w:gz")
    with pytest.raises(CorruptArtifactError, match="has no folder iSUN/iSUN_patches inside"):
        open_dataset("isun", store)
    write_zip(store.datasets / "ssb-hard" / "ssb_hard.zip", {"readme.txt": b"hello"})
    with pytest.raises(
        CorruptArtifactError, match=r"ssb_hard\.zip has no images; get the archive again"
    ):
        open_dataset("ssb-hard", store)


def test_lists_are_no_images(store):
    (store.datasets / "openood-lists").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="holds lists, not images"):
        open_dataset("openood-lists", store)
