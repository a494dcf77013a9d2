"""Archives, lists and .npy arrays of the user's own."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from oodcli.data import open_dataset
from oodcli.data.formats.arrays import open_npy
from oodcli.data.formats.lists import open_list, parse_list
from oodcli.errors import CorruptArtifactError, InvalidInputError, OodError, UnreadableImageError


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def files(random_images):
    images = random_images(9, 6, 5, 3)
    return images, {f"a/{row}.png": png(image) for row, image in enumerate(images)}


def _archive(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            link = tarfile.TarInfo("a/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_images_of_an_archive_are_read_in_place_sorted(files, tmp_path, store, suffix):
    images, contents = files
    hidden = {"__MACOSX/a/._0.png": b"x", "a/.hidden.png": b"x", "notes.txt": b"x"}
    _archive(tmp_path / f"some.{suffix}", {**dict(reversed(contents.items())), **hidden})
    dataset = open_dataset(str(tmp_path / f"some.{suffix}"), store, role="ood")
    assert dataset.name == "some"
    np.testing.assert_array_equal(np.stack(list(dataset.ood_part.source.read(0, 9))), images)
    again = open_dataset(f"b={tmp_path}/some.{suffix}", store, role="ood")
    assert again.ood_part.source.fingerprint == dataset.ood_part.source.fingerprint
    taken = dataset.ood_part.source.take(np.array([1, 7]))
    np.testing.assert_array_equal(np.stack(list(taken.read(0, 2))), images[[1, 7]])
    assert taken.fingerprint != dataset.ood_part.source.fingerprint


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_damaged_archive_is_one_line_whatever_is_cut(files, tmp_path, store, suffix):
    path = tmp_path / f"some.{suffix}"
    _archive(path, files[1])
    whole = path.read_bytes()
    for keep in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:keep])
        try:
            source = open_dataset(str(path), store, role="ood").ood_part.source
            failures = [i for i in source.read(0, len(source)) if isinstance(i, OodError)]
        except OodError as error:
            failures = [error]
        assert all("\n" not in str(error) for error in failures)
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(whole)
        for at in rng.integers(0, len(bad), 6):
            bad[at] = rng.integers(0, 256)
        path.write_bytes(bad)
        try:
            source = open_dataset(str(path), store, role="ood").ood_part.source
            list(source.read(0, len(source)))
        except OodError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most damage is no error


def test_wrong_bytes_in_a_zip_file_are_told(files, tmp_path, store):
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", files[1]["a/0.png"])
    content = bytearray(path.read_bytes())
    content[80] ^= 1
    path.write_bytes(content)
    (error,) = open_dataset(str(path), store, role="ood").ood_part.source.read(0, 1)
    assert isinstance(error, UnreadableImageError)
    assert "do not match their checksum" in error.reason


def test_archives_are_ood_sets_alone(files, tmp_path, store):
    _archive(tmp_path / "some.zip", files[1])
    with pytest.raises(InvalidInputError, match="unpack it into a folder"):
        open_dataset(str(tmp_path / "some.zip"), store)
    _archive(tmp_path / "none.zip", {"notes.txt": b""})
    with pytest.raises(InvalidInputError, match="has no images"):
        open_dataset(str(tmp_path / "none.zip"), store, role="ood")
    (tmp_path / "no.zip").write_bytes(b"hello")
    with pytest.raises(CorruptArtifactError, match="cannot be read as an archive"):
        open_dataset(str(tmp_path / "no.zip"), store, role="ood")


def test_list_names_images_and_classes(tmp_path, store, random_images, write_images):
    images = random_images(3, 4, 4, 3)
    write_images(tmp_path / "with blank" / "x", images)
    text = "# comment\nx/00002.png 1\n\nx/00000.png 0\r\nx/00001.png 1\n"
    (tmp_path / "list.txt").write_text(text)
    dataset = open_list(
        tmp_path / "list.txt", name="l", spec="l", role="id", root=tmp_path / "with blank"
    )
    assert dataset.id_test.labels.tolist() == [1, 0, 1]
    assert dataset.class_names == ("0", "1")
    np.testing.assert_array_equal(
        np.stack(list(dataset.id_test.source.read(0, 3))), images[[2, 0, 1]]
    )
    (tmp_path / "list.txt").write_text("with blank/x/00001.png\nwith blank/x/00000.png -1\n")
    own = open_dataset(str(tmp_path / "list.txt"), store, role="ood")
    np.testing.assert_array_equal(np.stack(list(own.ood_part.source.read(0, 2))), images[[1, 0]])
    with pytest.raises(InvalidInputError, match=r"00001\.png has no label"):
        open_dataset(str(tmp_path / "list.txt"), store)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "lists no images"),
        (b"# only\n", "lists no images"),
        (b"\xff\xfe", "not a text file"),
        (b"a.png -2", "label -2 is out of range"),
        (b"a.png 999999999", "out of range"),
        (b"/etc/passwd 1", "not a path below the folder"),
        (b"ok.png 0\n../b.png 1", "line 2: '../b.png' is not a path below"),
    ],
)
def test_list_that_cannot_be_is_one_line(text, reason):
    with pytest.raises(InvalidInputError) as caught:
        parse_list(text, where="list")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_array_is_a_set(tmp_path, store, random_images, order):
    images = random_images(7, 5, 4, 3)
    np.save(tmp_path / "some.npy", np.asarray(images, order=order))
    np.save(tmp_path / "classes.npy", np.arange(7) % 3)
    dataset = open_dataset(str(tmp_path / "some.npy"), store, role="ood")
    np.testing.assert_array_equal(np.stack(list(dataset.ood_part.source.read(0, 7))), images)
    labelled = open_npy(
        tmp_path / "some.npy", name="n", spec="n", role="id", labels=tmp_path / "classes.npy"
    )
    assert labelled.id_test.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert labelled.class_names == ("0", "1", "2")
    chosen = labelled.id_test.source.take(np.array([6, 1]))
    np.testing.assert_array_equal(np.stack(list(chosen.read(0, 2))), images[[6, 1]])


def test_npy_that_is_no_images_is_refused(tmp_path, store):
    path = tmp_path / "some.npy"
    for array, reason in [
        (np.zeros((2, 3, 3)), "is float64, not uint8"),
        (np.zeros((2, 3), dtype=np.uint8), r"has shape \(2, 3\)"),
        (np.zeros((2, 2, 3, 4), dtype=np.uint8), "images are"),
        (np.zeros((0, 3, 3), dtype=np.uint8), "no image in it"),
        (np.array([{}]), "Python objects"),
    ]:
        np.save(path, array)
        with pytest.raises(InvalidInputError, match=reason):
            open_dataset(str(path), store, role="ood")
    np.save(path, np.zeros((4, 9, 9), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match="does not fit 323 bytes"):
        open_dataset(str(path), store, role="ood")
    np.save(path, np.zeros((4, 9, 9), dtype=np.uint8))
    np.save(tmp_path / "l.npy", np.zeros(3, dtype=np.int64))
    with pytest.raises(InvalidInputError, match="4 images need shape"):
        open_npy(path, name="n", spec="n", role="id", labels=tmp_path / "l.npy")
