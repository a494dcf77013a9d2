"""Images are opened in one place, which takes a few formats and none that starts a program."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from oodcli import pillow
from oodcli.data.decoding.files import decode, decode_stream, rgb_of
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.pillow import EXTENSIONS, FORMATS

ROOT = Path(__file__).resolve().parents[2]
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    b"%%Trailer\n%%EOF\n"
)
READ = "supported: JPEG, PNG, BMP, WEBP, TIFF, GIF, PPM, AVIF, HEIF, JXL"
PACKAGES = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Put a program in the place of Ghostscript that leaves a file; return that file."""
    trace = tmp_path / "started"
    for name in ("gs", "gswin32c", "gswin64c"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ntouch '{trace}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return trace


@pytest.mark.parametrize("content", [EPS, b"\xc5\xd0\xd3\xc6\x20\0\0\0\xff\0\0\0" + EPS])
def test_a_picture_starts_no_program(tmp_path, ghostscript, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError) as caught:
        decode(path)
    assert caught.value.reason == (
        "it is EPS, an unsupported format (Pillow would start Ghostscript for it); " + READ
    )
    assert not ghostscript.exists()


def test_the_trap_would_have_shown_a_program(tmp_path, ghostscript):
    """Pillow by itself does start it, so that the test above can fail."""
    (tmp_path / "x.png").write_bytes(EPS)
    with Image.open(tmp_path / "x.png") as image, pytest.raises(OSError):
        image.load()
    assert ghostscript.exists()


def test_an_opened_picture_starts_no_program(tmp_path, ghostscript):
    with (
        Image.open(io.BytesIO(EPS)) as image,
        pytest.raises(InvalidInputError, match=r"it is EPS, an unsupported format .Pillow"),
    ):
        rgb_of(image)
    assert not ghostscript.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_list_is_read(name):
    if name in {"WEBP", "AVIF"} and not features.check(name.lower()):
        pytest.skip(f"Pillow was built without {name}")
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason="the extra formats is not installed")
        pillow._load(name)
    image = Image.new("RGB", (5, 3), (200, 10, 30))
    stream = io.BytesIO()
    image.save(stream, name, **({"quality": 100} if name in {"JPEG", "AVIF"} else {}))
    stream.seek(0)
    pixels = decode_stream(stream, where="x")
    assert pixels.shape == (3, 5, 3)
    assert np.abs(pixels.astype(int) - (200, 10, 30)).max() <= 4


def test_the_pictures_of_a_camera_in_one_file_are_a_jpeg():
    stream = io.BytesIO()
    first = Image.new("RGB", (16, 8), "red")
    first.save(stream, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 8), "blue")])
    stream.seek(0)
    assert decode_stream(stream, where="x")[0, 0, 0] > 250


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not an image file"),
        (b"%PDF-1.7\n", f"it is PDF, an unsupported format; {READ}"),
        (b"\0\0\0\x0cjP  ", f"it is JPEG 2000, an unsupported format; {READ}"),
        (
            b"\xd7\xcd\xc6\x9a\0\0",
            "it is WMF, an unsupported format "
            f"(Pillow would hand it to the operating system); {READ}",
        ),
        (
            b"\x89HDF\r\n\x1a\n",
            f"it is HDF5, an unsupported format (Pillow would hand it to another program); {READ}",
        ),
    ],
)
def test_other_formats_are_refused_by_name(content, reason):
    with pytest.raises(UnreadableImageError) as caught:
        decode_stream(io.BytesIO(content), where="x.png")
    assert caught.value.reason == reason


def test_names_and_formats_are_one_list():
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    for name in ("AVIF", *PACKAGES):
        known.update(FORMATS[name])
    assert known >= EXTENSIONS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"\0\0\0\x18ftypheic",
            'it is HEIF, which needs the package pillow-heif: pip install "oodcli[formats]"',
        ),
        (
            b"\xff\x0a\0\0",
            'it is JXL, which needs the package pillow-jxl-plugin: pip install "oodcli[formats]"',
        ),
        (b"\0\0\0\x20ftypavif", "it is AVIF, which needs Pillow from 11.3 on, with AVIF"),
    ],
)
def test_formats_of_packages_that_are_absent_name_them(monkeypatch, content, reason):
    for name in ("AVIF", *PACKAGES):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    monkeypatch.setattr("oodcli.pillow.importlib.import_module", absent)
    with pytest.raises(UnreadableImageError) as caught:
        decode_stream(io.BytesIO(content), where="x")
    assert caught.value.reason == reason


def absent(name):
    raise ImportError(name)


def jpeg_xl(*sizes, container=False):
    """Return the head of a JPEG XL file: bits from the lowest on, of (value, count) each."""
    bits, at = 0, 0
    for value, count in sizes:
        bits, at = bits | value << at, at + count
    stream = b"\xff\x0a" + bits.to_bytes(14, "little")
    if not container:
        return stream
    head = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
    return head + (8 + len(stream)).to_bytes(4) + b"jxlc" + stream


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        (((1, 1), (31, 5), (1, 3)), (256, 256)),  # in eights, 1:1
        (((1, 1), (3, 5), (0, 3), (4, 5)), (32, 40)),
        (((0, 1), (0, 2), (299, 9), (0, 3), (1, 2), (4999, 13)), (300, 5000)),
        (((0, 1), (3, 2), (2**30 - 1, 30), (5, 3)), (2**30, 2**30 * 16 // 9)),
    ],
)
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(sizes, wanted, container):
    stream = io.BytesIO(jpeg_xl(*sizes, container=container))
    assert pillow._jpeg_xl_size(pillow._codestream(stream)) == wanted


def test_a_bomb_in_jpeg_xl_is_not_decoded():
    pytest.importorskip("pillow_jxl", reason="the extra formats is not installed")
    bomb = jpeg_xl((0, 1), (3, 2), (2**30 - 1, 30), (1, 3))
    with pytest.raises(UnreadableImageError, match="perhaps a decompression bomb"):
        decode_stream(io.BytesIO(bomb), where="x")


@pytest.mark.parametrize("head", [b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\0abcd", b""])
def test_a_head_of_jpeg_xl_that_leads_nowhere_ends(head):
    stream = io.BytesIO(b"\0\0\0\x0cJXL \r\n\x87\n" + head)
    with pytest.raises(ValueError, match="it is JXL, and damaged"):
        pillow._jpeg_xl_size(pillow._codestream(stream))


@pytest.mark.parametrize(
    "code",
    [
        "from PIL import Image\n\nImage.open",
        "import PIL.Image as I\n\nI.open",
        "from PIL.Image import open as see\n\nsee",
        "from PIL import ImageFile\n\nImageFile.Parser",
        "from torchvision.io import read_image\n\nread_image",
        "from matplotlib.pyplot import imread\n\nimread",
    ],
)
def test_the_linter_bans_every_other_door(code):
    argv = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251"]
    told = subprocess.run(
        [*argv, "--stdin-filename", "oodcli/data/other.py", "-"],
        input=code, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert told.returncode == 1
    assert "TID251" in told.stdout


def test_bytes_of_formats_of_packages_get_their_ending():
    contents = (b"\0\0\0\x20ftypavif", b"\0\0\0\x18ftypheic", b"\xff\x0a", b"%PDF", b"\xff\xd8\xff")
    endings = [pillow.extension_of(content) for content in contents]
    assert endings == [".avif", ".heic", ".jxl", "", ".jpg"]
