import gzip
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from oodcli.data.decoding.files import decode, find_images
from oodcli.errors import UnreadableImageError
from oodcli.medical import frame_count
from oodcli.windows import Window
from tests.support.medical import PATIENT, write_dicom, write_nifti

pydicom = pytest.importorskip("pydicom", reason="the extra medical is not installed")
nibabel = pytest.importorskip("nibabel", reason="the extra medical is not installed")

# Hounsfield units -160, 40, 100 and 239, whose grey levels tests/unit/test_windows.py works out.
STORED = np.array([[864, 1064], [1124, 1263]], np.uint16)
GREY = [[0, 128], [166, 255]]
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12}
WINDOW = Window.of("40/400")


def grey(path, window=None):
    image = decode(path, window=window)
    assert image.dtype == np.uint8
    assert (image == image[:, :, :1]).all()
    return image[:, :, 0].tolist()


def reason(path, window=None):
    with pytest.raises(UnreadableImageError) as caught:
        decode(path, window=window)
    assert PATIENT not in str(caught.value)
    return caught.value.reason


def test_dicom_is_rescaled_and_windowed(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", STORED, **CT)
    assert grey(path, WINDOW) == GREY
    signed = write_dicom(tmp_path / "b.dcm", (STORED.astype(np.int16) - 1024))
    assert grey(signed, WINDOW) == GREY


def test_monochrome1_is_inverted_after_the_window(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", STORED, PhotometricInterpretation="MONOCHROME1", **CT)
    assert grey(path, WINDOW) == [[255, 127], [89, 0]]


def test_dicom_of_more_than_8_bits_needs_a_window(tmp_path):
    path = write_dicom(
        tmp_path / "a.dcm", STORED, WindowCenter=[40, -600], WindowWidth=[400, 1500], **CT
    )
    assert reason(path) == (
        "its grey values of 12 bits need a window; the file names 40/400, -600/1500: "
        "--window 40/400"
    )
    bare = write_dicom(tmp_path / "b.dcm", STORED, **CT)
    assert reason(bare).endswith("names none: --window CENTER/WIDTH or --window LOW..HIGH")


def test_dicom_of_8_bits_is_read_as_it_is(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    assert (decode(write_dicom(tmp_path / "rgb.dcm", rgb), window=WINDOW) == rgb).all()
    assert grey(write_dicom(tmp_path / "grey.dcm", rgb[:, :, 0])) == rgb[:, :, 0].tolist()
    few = write_dicom(tmp_path / "few.dcm", np.array([[0, 7, 15]], np.uint8), BitsStored=4)
    assert grey(few) == [[0, 119, 255]]


def test_ybr_becomes_rgb(tmp_path):
    # PS3.3, C.7.6.3.1.2: Y = 76, Cb = 85 and Cr = 255 are red.
    ybr = np.full((2, 2, 3), (76, 85, 255), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    assert decode(path)[0, 0].tolist() == [254, 0, 0]


def test_palettes_are_looked_up(tmp_path):
    tables = {
        f"{name}PaletteColorLookupTable{what}": value
        for name, at in (("Red", 0), ("Green", 1), ("Blue", 2))
        for what, value in (
            ("Descriptor", [4, 0, 16]),
            ("Data", np.array([0x1000 * at, 0x8000, 0xFF00, 0x0100], "<u2").tobytes()),
        )
    }
    path = write_dicom(
        tmp_path / "a.dcm",
        np.array([[0, 1], [2, 3]], np.uint8),
        PhotometricInterpretation="PALETTE COLOR",
        **tables,
    )
    assert decode(path).tolist() == [[[0, 16, 32], [128] * 3], [[255] * 3, [1] * 3]]


def test_frames_have_numbers_and_their_own_rescaling(tmp_path):
    frames = np.stack([STORED, STORED - 24, STORED]).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", frames, **CT)
    assert frame_count(path) == 3
    assert grey(tmp_path / "a.dcm[2]", WINDOW) == GREY
    assert "it has 3 frames; name one in a list or table, FILE[FRAME] from 0" in reason(
        path, WINDOW
    )
    assert "no frame 3: frames are numbered from 0 to 2" in reason(tmp_path / "a.dcm[3]", WINDOW)
    groups = []
    for intercept in (-1024, -1000, -1024):
        each, rescaling = pydicom.Dataset(), pydicom.Dataset()
        rescaling.RescaleSlope, rescaling.RescaleIntercept = 1, intercept
        each.PixelValueTransformationSequence = [rescaling]
        groups.append(each)
    enhanced = write_dicom(
        tmp_path / "b.dcm", frames, BitsStored=12, PerFrameFunctionalGroupsSequence=groups
    )
    assert [grey(f"{enhanced}[{at}]" and tmp_path / f"b.dcm[{at}]", WINDOW) for at in range(3)] == [
        GREY
    ] * 3


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"])
def test_compressed_pixels_are_the_same(tmp_path, syntax):
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    stored = np.tile(STORED, (20, 20))
    path = write_dicom(tmp_path / "a.dcm", stored, syntax=syntax, **CT)
    assert grey(path, WINDOW) == np.tile(GREY, (20, 20)).tolist()


def test_a_missing_plugin_and_an_unknown_syntax_are_named(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", STORED, syntax="1.2.840.10008.1.2.5", **CT)
    decoder = type(pydicom.pixels.get_decoder("1.2.840.10008.1.2.5"))
    monkeypatch.setattr(decoder, "is_available", False)
    assert reason(path, WINDOW).startswith(
        "its pixels are compressed as RLE Lossless, which needs a plug-in of pydicom: pip install"
    )
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.9.9.5\0")
    path.write_bytes(content)
    assert "its transfer syntax 1.2.840.10008.9.9.5 is not read" in reason(path, WINDOW)


def test_large_and_deflated_pixels_are_refused_before_they_are_decoded(tmp_path):
    bomb = write_dicom(tmp_path / "a.dcm", STORED, Rows=60000, Columns=60000, **CT)
    assert reason(bomb, WINDOW).startswith("more than 268,435,456 pixels")
    path = write_dicom(tmp_path / "b.dcm", STORED, **CT)
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    deflated = zlib.compress(b"\0" * 100)
    path.write_bytes(
        content.replace(
            b"UI\x14\0" + b"1.2.840.10008.1.2.1.99", b"UI\x16\0" + b"1.2.840.10008.1.2.1.99"
        )
        + deflated
    )
    assert "it is deflated DICOM" in reason(path, WINDOW)


def test_a_compressed_frame_of_another_size_is_refused(tmp_path):
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    jpeg = stream.getvalue()
    at = jpeg.index(b"\xff\xc0") + 5
    huge = jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :]
    pixels = pydicom.encaps.encapsulate([huge])
    path = write_dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint8))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    assert reason(path).startswith("more than 268,435,456 pixels")


def test_damaged_files_are_one_line_and_quote_nothing(tmp_path):
    whole = write_dicom(tmp_path / "a.dcm", STORED, **CT).read_bytes()
    rng = np.random.default_rng(0)
    bad = tmp_path / "bad.dcm"
    reasons = []
    for at in range(100):
        content = bytearray(whole)
        for place in rng.integers(132, len(whole), 4):
            content[place] = rng.integers(0, 256)
        bad.write_bytes(content[: rng.integers(100, len(whole))] if at % 2 else content)
        frame_count(bad)
        try:
            assert decode(bad, window=WINDOW).shape[2] == 3
        except UnreadableImageError as error:
            reasons.append(str(error))
    assert len(reasons) > 50
    assert not any("\n" in each or PATIENT in each for each in reasons)


AFFINES = {
    "RAS": np.diag([1.0, 1, 1, 1]),
    "LPS": np.diag([-1.0, -1, 1, 1]),
    "ASL": np.array([[0, 0, -1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
}


def volume_as(kind, ras):
    """Return a volume (right, anterior, superior) as a file of an orientation stores it."""
    if kind == "LPS":
        return ras[::-1, ::-1]
    return ras if kind == "RAS" else ras[::-1].transpose(1, 2, 0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", AFFINES)
def test_slices_of_volumes_are_turned_as_they_are_looked_at(tmp_path, kind, ending):
    # Each voxel of 2 x 3 x 4 has a value of its own: 100 right + 10 anterior + superior.
    r, a, s = np.meshgrid(range(2), range(3), range(4), indexing="ij")
    ras = (100 * r + 10 * a + s).astype(np.int16)
    path = write_nifti(tmp_path / f"v{ending}", volume_as(kind, ras), AFFINES[kind])
    window = {axis: Window.of(f"0..255:{axis}") for axis in ("axial", "coronal", "sagittal")}
    assert [frame_count(path, each) for each in window.values()] == [4, 3, 2]
    # The right of the patient is on the left; anterior, or superior, is on top.
    axial = [[121, 21], [111, 11], [101, 1]]
    assert grey(tmp_path / f"v{ending}[1]", window["axial"]) == axial
    coronal = [[123, 23], [122, 22], [121, 21], [120, 20]]
    assert grey(tmp_path / f"v{ending}[2]", window["coronal"]) == coronal
    sagittal = [[23, 13, 3], [22, 12, 2], [21, 11, 1], [20, 10, 0]]
    assert grey(tmp_path / f"v{ending}[0]", window["sagittal"]) == sagittal
    assert "it has 4 slices; name one in a list or table, FILE[SLICE] from 0" in reason(
        path, window["axial"]
    )
    assert "no slice 4" in reason(tmp_path / f"v{ending}[4]", window["axial"])


def test_voxels_are_scaled_and_need_a_window(tmp_path):
    voxels = np.array([[[0]], [[40]]], np.int16)
    path = write_nifti(tmp_path / "v.nii", voxels, np.eye(4))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([2, 10], "<f4").tobytes()  # scl_slope and scl_inter
    path.write_bytes(content)
    assert grey(path, Window.of("10..100")) == [[227, 0]]  # 2 * 40 + 10 = 90, and 10
    assert reason(path) == (
        "its voxels of type int16 need a window; the file names none: --window LOW..HIGH or "
        "--window CENTER/WIDTH"
    )
    shown = write_nifti(tmp_path / "s.nii", voxels, np.eye(4), cal_min=0, cal_max=80)
    assert reason(shown).endswith("the file names 0..80: --window 0..80")
    plain = write_nifti(tmp_path / "p.nii", voxels.astype(np.uint8), np.eye(4))
    assert grey(plain) == [[40, 0]]


def test_other_volumes_are_refused(tmp_path, monkeypatch):
    series = write_nifti(tmp_path / "t.nii", np.zeros((2, 2, 2, 5), np.int16), np.eye(4))
    assert "it has 4 dimensions, 2 x 2 x 2 x 5" in reason(series, WINDOW)
    cut = tmp_path / "c.nii"
    cut.write_bytes(series.read_bytes()[:300])
    assert reason(cut, WINDOW) == "not an image file"
    flat = write_nifti(tmp_path / "f.nii.gz", np.zeros((2, 2, 1), np.int16), np.eye(4))
    flat.write_bytes(gzip.compress(gzip.decompress(flat.read_bytes())[:-3]))
    assert reason(flat, WINDOW) == "it is NIfTI, and damaged (ValueError)"
    monkeypatch.setattr("oodcli.medical.nifti.MAX_UNPACKED_BYTES", 10)
    assert "unpack it: gunzip" in reason(flat, WINDOW)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    dicom = write_dicom(tmp_path / "a.dcm", STORED, **CT)
    nifti = write_nifti(tmp_path / "a.nii", np.zeros((2, 2, 1), np.int16), np.eye(4))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    assert (
        reason(dicom)
        == 'it is DICOM, which needs the package pydicom: pip install "oodcli[medical]"'
    )
    assert (
        reason(nifti)
        == 'it is NIfTI, which needs the package nibabel: pip install "oodcli[medical]"'
    )


def test_files_without_an_extension_are_found_by_their_content(tmp_path):
    for name in ("IM0001", "1.2.840.5", "DICOMDIR", "a.dcm", "b.txt"):
        write_dicom(tmp_path / name, STORED, **CT)
    (tmp_path / "README").write_text("no image")
    assert find_images(tmp_path) == ["1.2.840.5", "IM0001", "a.dcm"]


def test_a_file_named_like_a_frame_is_itself(tmp_path):
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.png[0]")
    assert decode(tmp_path / "a.png[0]")[0, 0].tolist() == [1, 2, 3]
    Image.new("RGB", (3, 2)).save(tmp_path / "b.png")
    assert "only frames of DICOM files" in reason(tmp_path / "b.png[0]")
