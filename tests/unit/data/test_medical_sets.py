"""Medical images lie in folders, tables, archives and volumes, and have the same pixels there."""

import zipfile

import numpy as np
import pytest

from oodcli.data.decoding.scaling import Resizing
from oodcli.data.incoming import decoded, items
from oodcli.data.opening import open_dataset
from oodcli.data.own_names import RegisteredDataset, register
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.pools import open_pools
from oodcli.windows import Window
from tests.support.medical import write_dicom, write_nifti

pytest.importorskip("pydicom", reason="the extra medical is not installed")
pytest.importorskip("nibabel", reason="the extra medical is not installed")

WINDOW = Window.of("40/400")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Write CT slices, one file of three frames, and a volume of four slices, in two classes."""
    root = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    ct = {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12}
    for name, shape in (("IM1", (5, 4)), ("IM2.dcm", (3, 5, 4))):
        values = rng.integers(800, 1400, shape).astype(np.uint16)
        write_dicom(root / "set" / "liver" / name, values, **ct)
    voxels = rng.integers(-300, 300, (4, 5, 4)).astype(np.int16)
    write_nifti(root / "set" / "lung" / "v.nii.gz", voxels, np.eye(4))
    return root


ROWS = [
    *[f"liver/{each}" for each in ("IM1", "IM2.dcm[0]", "IM2.dcm[1]", "IM2.dcm[2]")],
    *[f"lung/v.nii.gz[{at}]" for at in range(4)],
]


def pixels(part):
    return [np.asarray(image) for image in part.source.read(0, len(part))]


def test_every_frame_is_a_row_with_the_label_of_its_file(scans, store):
    opened = open_dataset(str(scans / "set"), store, window=WINDOW)
    assert list(opened.parts["test"].source.files) == ROWS
    assert opened.parts["test"].labels.tolist() == [0] * 4 + [1] * 4
    assert opened.parts["test"].source.key_of(1) == str(scans / "set" / ROWS[1])
    (note,) = opened.notes
    assert "8 images in 3 files (slices of volumes: axial)" in note
    assert "may become training and test images" in note
    ood = open_dataset(str(scans / "set"), store, role="ood", window=WINDOW)
    assert list(ood.parts["test"].source.files) == ROWS


def test_folder_table_archive_and_incoming_images_are_the_same(scans, store, tmp_path):
    whole = pixels(open_dataset(str(scans / "set"), store, window=WINDOW).parts["test"])
    lines = [f"{scans / 'set' / row},{row.partition('/')[0]}" for row in ROWS]
    table = tmp_path / "scans.csv"
    table.write_text("\n".join(["path,label", *lines]))
    listed = open_dataset(str(table), store, window=WINDOW).parts["test"]
    assert listed.labels.tolist() == [0] * 4 + [1] * 4
    same = [pixels(listed)]
    with open_pools() as pools:
        images = items([str(scans / "set")], store=store, window=WINDOW)
        found = list(decoded(images, Resizing((5, 4)), pools.threads(), WINDOW))
    assert [item.name for item, _ in found] == [str(scans / "set" / row) for row in ROWS]
    assert [item.relative for item, _ in found][-1] == "lung/v.nii.gz[3]"
    same.append([image for _, image in found])
    for other in same:
        assert all((one == two).all() for one, two in zip(whole, other, strict=True))
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(scans / "set" / "liver" / "IM1", "a.dcm")
    packed = open_dataset(str(tmp_path / "scans.zip"), store, role="ood", window=WINDOW)
    assert (pixels(packed.parts["test"])[0] == whole[0]).all()


def test_a_volume_is_a_set_of_its_slices(scans, store):
    path = scans / "set" / "lung" / "v.nii.gz"
    opened = open_dataset(str(path), store, role="ood", window=Window.of("40/400:coronal"))
    assert opened.name == "v"
    assert [opened.ood_part.source.key_of(at) for at in (0, 4)] == [f"{path}[0]", f"{path}[4]"]
    assert len(opened.ood_part) == 5
    with pytest.raises(InvalidInputError, match="has no classes; put volumes into a folder"):
        open_dataset(str(path), store, role="id")


def test_a_name_is_sliced_as_its_path(scans, store):
    folder, coronal = scans / "set" / "lung", Window.of("40/400:coronal")
    register(RegisteredDataset("mine", folder), store)
    named, found = (
        [item.name for item in items([text], store=store, window=coronal)]
        for text in ("mine", str(folder))
    )
    assert named == found == [f"{folder}/v.nii.gz[{at}]" for at in range(5)]


def test_a_table_names_a_frame_of_several(scans, store, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(f"path\n{scans / 'set' / 'liver' / 'IM2.dcm'}\n")
    (image,) = open_dataset(str(table), store, role="ood", window=WINDOW).ood_part.source.read(0, 1)
    assert isinstance(image, UnreadableImageError)
    assert image.where.startswith(f"{table}:2 (")
    assert "it has 3 frames; name one in a list or table, FILE[FRAME] from 0" in image.reason


def test_another_window_is_another_set(scans, store):
    def fingerprint(window):
        return (
            open_dataset(str(scans / "set"), store, window=window).parts["test"].source.fingerprint
        )

    prints = {fingerprint(window) for window in (None, WINDOW, Window.of("40/401"))}
    assert len(prints) == 3
    assert fingerprint(Window.of("40/400")) in prints
    volume = scans / "set" / "lung" / "v.nii.gz"
    volume.write_bytes(volume.read_bytes() + b"\0")
    assert fingerprint(WINDOW) not in prints


def test_sets_without_frames_are_as_before(store, tmp_path, write_images, random_images):
    write_images(tmp_path / "a", random_images(3, 4, 4, 3))
    opened = open_dataset(str(tmp_path / "a"), store, role="ood", window=WINDOW)
    assert opened.notes == ()
    assert list(opened.ood_part.source.files) == ["00000.png", "00001.png", "00002.png"]
