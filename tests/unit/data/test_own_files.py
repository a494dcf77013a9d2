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


def test_wrong_bytes_in_a_zip_file_are_reported(files, tmp_path, store):
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", files[1]["a/0.png"])
    content = bytearray(path.read_bytes())
    content[80] ^= 1
    path.write_bytes(content)
    (error,) = open_dataset(str(path), store, role="ood").ood_part.source.read(0, 1)
    assert isinstance(error, UnreadableImageError)
    assert "do not match their checksum" in error.reason


def test_what_is_no_archive_of_images_is_refused(files, tmp_path, store):
    _archive(tmp_path / "none.zip", {"notes.txt": b""})
    with pytest.raises(InvalidInputError, match="has no images"):
        open_dataset(str(tmp_path / "none.zip"), store, role="ood")
    (tmp_path / "no.zip").write_bytes(b"hello")
    with pytest.raises(CorruptArtifactError, match="cannot be read as an archive"):
        open_dataset(str(tmp_path / "no.zip"), store, role="ood")


def _bytes(suffix, files):
    stream = io.BytesIO()
    if suffix == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


LAYOUTS = {
    "parts": ["train/cat/{}", "train/dog/{}", "test/dog/{}", "train/cat/{}", "other/{}"],
    "in one folder": ["x/y/train/cat/{}", "x/y/train/dog/{}", "x/y/test/dog/{}",
                      "x/y/train/cat/deep/{}"],
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_class_folders_in_an_archive_are_a_data_set(files, tmp_path, store, suffix, layout):
    images, contents = files
    names = [pattern.format(f"{row}.png") for row, pattern in enumerate(LAYOUTS[layout])]
    _archive(tmp_path / f"a.{suffix}", dict(zip(names, contents.values(), strict=False)))
    dataset = open_dataset(str(tmp_path / f"a.{suffix}"), store)
    labels = {name: part.labels.tolist() for name, part in dataset.parts.items()}
    assert (dataset.class_names, labels) == (("cat", "dog"), {"train": [0, 0, 1], "test": [1]})
    test = dataset.parts["test"].source
    np.testing.assert_array_equal(next(iter(test.read(0, 1))), images[2])
    assert test.key_of(0) == f"{tmp_path}/a.{suffix}/{names[2]}"


def test_a_whole_in_an_archive_is_divided_as_a_folder_is(files, tmp_path, store):
    _archive(tmp_path / "a.zip", {f"{'ab'[row % 2]}/{row}.png": content
                                  for row, content in enumerate(files[1].values())})  # fmt: skip
    dataset = open_dataset(str(tmp_path / "a.zip"), store, test_fraction=0.5)
    assert {name: len(part) for name, part in dataset.parts.items()} == {"train": 5, "test": 4}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.png", "cat/b.png"], r"image .*a\.zip/a\.png lies outside of any class folder"),
        (["train/a.png", "test/cat/b.png"], r"train/a\.png lies outside of any class folder"),
        (
            ["train/cat/a.png", "test/dog/b.png"],
            r"a\.zip/test has a class 'dog' that train has not",
        ),
        (["training/cat/a.png", "test/b/a.png"], r"outside|class"),
        (["training/cat/a.png", "x/cat/a.png"], r"'training', which is not a class; rename it"),
        (["val/cat/a.png", "val/dog/a.png"], r"has neither train nor test"),
    ],
)
def test_an_archive_in_another_layout_is_refused_as_a_folder_is(
    files, tmp_path, store, names, reason
):
    _archive(tmp_path / "a.zip", dict(zip(names, files[1].values(), strict=False)))
    if reason == "outside|class":  # folders beside those of parts are no part of the data
        assert open_dataset(str(tmp_path / "a.zip"), store).class_names == ("b",)
        return
    with pytest.raises(InvalidInputError, match=reason):
        open_dataset(str(tmp_path / "a.zip"), store)


@pytest.mark.parametrize("outer", ["zip", "tar"])
@pytest.mark.parametrize("inner", ["zip", "tar"])
def test_an_archive_in_an_archive_is_read_in_place(files, tmp_path, store, outer, inner):
    images, contents = files
    pieces = list(contents.values())
    cats = _bytes(inner, {"0.png": pieces[0], "1.png": pieces[1], "._0.png": b"x"})
    dogs = _bytes("tar", {f"dog.{inner}": _bytes(inner, {"x/2.png": pieces[2]})})
    path = tmp_path / f"a.{outer}"
    path.write_bytes(
        _bytes(outer, {f"cat.{inner}": cats, "more.tar": dogs, "mouse/3.png": pieces[3]})
    )
    part = open_dataset(str(path), store, role="ood").ood_part
    np.testing.assert_array_equal(np.stack(list(part.source.read(0, 4))), images[:4])
    assert part.source.name_of(2) == f"more.tar/dog.{inner}/x/2.png"
    dataset = open_dataset(str(path), store)
    assert dataset.class_names == ("cat", "more", "mouse")  # as the folders it unpacks to
    assert dataset.id_test.labels.tolist() == [0, 0, 1, 2]


def test_a_compressed_archive_in_an_archive_is_refused(files, tmp_path, store):
    inner = _bytes("zip", {"a.png": files[1]["a/0.png"]})
    path = tmp_path / "a.zip"
    _archive(path, {"b.zip": inner})  # deflated
    with pytest.raises(InvalidInputError, match=r"holds b\.zip compressed, so that it cannot be"):
        open_dataset(str(path), store, role="ood")
    path.write_bytes(_bytes("zip", {"a.png": files[1]["a/0.png"], "b.tar.gz": b""}))
    with pytest.raises(InvalidInputError, match=r"holds b\.tar\.gz compressed"):
        open_dataset(str(path), store, role="ood")
    deep = inner
    for _ in range(4):
        deep = _bytes("zip", {"x.zip": deep})
    path.write_bytes(deep)
    with pytest.raises(InvalidInputError, match="too deep inside"):
        open_dataset(str(path), store, role="ood")
    path.write_bytes(_bytes("zip", {"b.zip": inner[:-30]}))
    with pytest.raises(CorruptArtifactError, match=r"a\.zip: b\.zip cannot be read"):
        open_dataset(str(path), store, role="ood")


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
