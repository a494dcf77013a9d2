"""HDF5 files: plain arrays of the file itself, read block by block, and nothing else."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from oodcli.data.formats.hdf5 import open_hdf5
from oodcli.data.reader import Columns
from oodcli.errors import InvalidInputError

h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(50) % 3


def opened(path, role="id", /, **columns):
    chosen = Columns(**columns) if columns else None
    return open_hdf5(path, name="x", spec="x", role=role, columns=chosen)


def pixels(source, start=0, stop=None):
    return list(source.read(start, len(source) if stop is None else stop))


@pytest.fixture
def write(tmp_path):
    def make(**arrays):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name, values in arrays.items():
                file[name.replace("__", "/")] = values
        return tmp_path / "a.h5"

    return make


@pytest.mark.parametrize("options", [{}, {"chunks": (7, 6, 5, 3), "compression": "gzip"}])
def test_images_and_labels(tmp_path, options):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=PIXELS, shuffle=bool(options), **options)
        file["labels"], file["class_names"] = LABELS[:, None], ["ant", "bée", "cow"]
    dataset = opened(path)
    assert dataset.class_names == ("ant", "bée", "cow")
    part = dataset.parts["test"]
    assert part.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(pixels(part.source), PIXELS)
    np.testing.assert_array_equal(pixels(part.source, 11, 38), PIXELS[11:38])
    assert part.source.name_of(4) == "a.h5[4]"
    assert opened(path, "ood").ood_part.labels is None


def test_blocks_follow_those_of_the_file(write, monkeypatch):
    """Blocks of one image each: rows come in any number at a time, in order."""
    monkeypatch.setattr("oodcli.data.formats.hdf5._BLOCK_BYTES", 1)
    source = opened(write(images=PIXELS), "ood").ood_part.source
    np.testing.assert_array_equal(pixels(source, 3, 9), PIXELS[3:9])


def test_parts_channels_first_and_chosen_arrays(write):
    first = PIXELS.transpose(0, 3, 1, 2)
    path = write(
        train_images=first[:30], train_labels=LABELS[:30], test_images=first[30:],
        test_labels=LABELS[30:], group__x=PIXELS[:2], group__y=LABELS[:2],
    )  # fmt: skip
    dataset = opened(path)
    assert {name: len(part) for name, part in dataset.parts.items()} == {"train": 30, "test": 20}
    np.testing.assert_array_equal(pixels(dataset.parts["test"].source), PIXELS[30:])
    chosen = opened(path, path="group/x", label="group/y").parts["test"]
    np.testing.assert_array_equal(pixels(chosen.source), PIXELS[:2])
    assert chosen.labels.tolist() == [0, 1]


def test_encoded_images(tmp_path):
    path, files = tmp_path / "a.h5", []
    for each in PIXELS:
        stream = io.BytesIO()
        Image.fromarray(each).save(stream, "PNG")
        files.append(np.frombuffer(stream.getvalue(), np.uint8))
    files[3] = files[3][:0]
    files[4] = files[4][:50]
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (50,), dtype=h5py.vlen_dtype(np.uint8))
        for row, content in enumerate(files):
            images[row] = content
    source = opened(path, "ood").ood_part.source
    read = pixels(source)
    np.testing.assert_array_equal(read[:3] + read[5:], np.delete(PIXELS, [3, 4], axis=0))
    assert (read[3].where, read[3].reason) == (f"{path}[3]", "the row has no image")
    assert read[4].where == f"{path}[4]"
    chosen = pickle.loads(pickle.dumps(source.take(np.array([9, 7]))))
    np.testing.assert_array_equal(pixels(chosen), PIXELS[[9, 7]])
    assert chosen.key_of(1) == f"{path}[7]"


def test_nothing_outside_of_the_file_is_read(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["images"] = PIXELS
    (tmp_path / "raw").write_bytes(bytes(1000))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["external"] = h5py.ExternalLink("other.h5", "/images")
        file["soft"] = h5py.SoftLink("/external")
        file.create_dataset(
            "raw", shape=(2, 3, 3), dtype="u1", external=[(str(tmp_path / "raw"), 0, 18)]
        )
        layout = h5py.VirtualLayout(PIXELS.shape, "u1")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", shape=PIXELS.shape)
        file.create_virtual_dataset("virtual", layout)
    for name, wanted in (
        ("external", "it is a link, which is not followed"),
        ("soft", "it is a link, which is not followed"),
        ("raw", "its values lie in another file, which is not read"),
        ("virtual", "its values lie in another file, which is not read"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            opened(path, "ood", path=name)
        assert str(caught.value) == (
            f"{path}: array {name!r} cannot be read: {wanted}; write the file again"
        )


@pytest.mark.parametrize(
    ("arrays", "columns", "wanted"),
    [
        ({"x": PIXELS}, {}, "has no array 'images'; it has x; expected are images and labels"),
        ({"images": PIXELS}, {"path": "y"}, "has no array 'y'; it has images"),
        ({"images": PIXELS}, {"split": "images"}, "has no column of parts, but arrays"),
        ({"images": PIXELS.astype("f4")}, {}, "is float32, not uint8"),
        ({"images": PIXELS, "labels": LABELS[:3]}, {}, "has shape (3,); 50 images need"),
        ({"images": PIXELS, "labels": np.zeros((50, 4), int)}, {}, "(multi-label)"),
        ({"images__x": PIXELS}, {"path": "images"}, "has no array 'images'; it has images/x"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(write, arrays, columns, wanted):
    path = write(**arrays)
    with pytest.raises(InvalidInputError) as caught:
        opened(path, **columns)
    assert wanted in str(caught.value)
    assert str(path) in str(caught.value)


def test_blocks_that_are_too_large_are_refused_before_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("oodcli.data.formats.hdf5._MAX_CHUNK_BYTES", 1000)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=PIXELS, chunks=(50, 6, 5, 3))
    with pytest.raises(InvalidInputError, match=r"blocks of 50 images.*chunks=\(1, 6, 5, 3\)"):
        opened(path, "ood")


WRITER = """
import h5py, sys
file = h5py.File(sys.argv[1], "w", libver=sys.argv[2])
file.create_dataset("images", data=[[[[1, 2, 3]] * 2] * 2] * 4, dtype="uint8")
file.flush()
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("version", "locks", "expected"),
    [
        ("earliest", True, "in another program; close it there, or, to read it as it is: HDF5_USE"),
        ("earliest", False, None),
        ("latest", False, "if none has it open, write it again or clear its mark: h5clear -s {}"),
    ],
)
def test_a_file_that_another_program_writes_is_named(
    tmp_path, monkeypatch, version, locks, expected
):
    path = tmp_path / "a.h5"
    if not locks:
        monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    line = [sys.executable, "-c", WRITER, str(path), version]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        if expected is None:
            assert len(opened(path, "ood").ood_part) == 4
        else:
            with pytest.raises(InvalidInputError) as caught:
                opened(path, "ood")
            assert f"{path} is open for writing in another program" in str(caught.value)
            assert expected.format(path) in str(caught.value)
        writer.communicate()
    assert len(opened(path, "ood").ood_part) == 4


def test_a_file_system_without_locks_is_named(write, monkeypatch):
    path = write(images=PIXELS)

    def locked(*_args, **_options):
        raise OSError("unable to lock file, errno = 37, error message = 'No locks available'")

    monkeypatch.setattr(h5py, "File", locked)
    with pytest.raises(InvalidInputError, match="may not support; to read it as it is: HDF5_USE"):
        opened(path, "ood")


def test_another_file_is_no_hdf5_file(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no such file")
    with pytest.raises(InvalidInputError, match=r"a\.h5 is not an HDF5 file: "):
        opened(tmp_path / "a.h5")
