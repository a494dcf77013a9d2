"""Image files become 8-bit RGB, or an error that says why not."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from oodcli.data.decoding.files import FileSource, decode, find_images, several_frames
from oodcli.errors import InvalidInputError, UnreadableImageError


def test_decodes_rgb_as_it_is(tmp_path, random_images):
    image = random_images(5, 7, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), image)


def test_decodes_a_jpeg_as_pillow_does(tmp_path, random_images):
    Image.fromarray(random_images(40, 30, 3)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_array_equal(decode(tmp_path / "a.jpg"), np.asarray(image))


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("1", "png"), ("L", "jpg")])
def test_greyscale_gets_three_equal_channels(tmp_path, random_images, mode, suffix):
    Image.fromarray(random_images(8, 8)).convert(mode).save(tmp_path / f"a.{suffix}")
    pixels = decode(tmp_path / f"a.{suffix}")
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_palette_colours_are_looked_up(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=b"\x00\xff")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), [[[255] * 3, [200, 100, 50]]])


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (200, 100, 50, 0), [255, 255, 255]),
        ("RGBA", (200, 100, 50, 255), [200, 100, 50]),
        ("RGBA", (0, 100, 255, 51), [204, 224, 255]),
        ("LA", (0, 0), [255, 255, 255]),
        ("LA", (80, 255), [80, 80, 80]),
    ],
)
def test_transparent_images_lie_over_white(tmp_path, mode, colour, seen):
    Image.new(mode, (2, 2), colour).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[0, 0].tolist() == seen


def test_one_transparent_colour_is_white(tmp_path):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    image.save(tmp_path / "a.png", transparency=(9, 9, 9))
    assert decode(tmp_path / "a.png").tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    """A picture with a red corner is written as a camera held so would, and read as it was."""
    seen = np.zeros((16, 24, 3), dtype=np.uint8)
    seen[:8, :8, 0] = 255
    seen[8:, 16:, 2] = 255
    turn = {
        2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.swapaxes(0, 1),
        6: np.rot90(seen), 7: seen[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(seen, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn.get(orientation, seen)))
    quality = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **quality.get(suffix, {}))
    read = decode(tmp_path / f"a.{suffix}")
    assert read.shape == seen.shape
    assert np.abs(read.astype(int) - seen).max() < 12


def test_published_images_are_read_as_published_code_reads_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3)).save(
        tmp_path / "a.png", exif=exif
    )
    Image.new("RGBA", (4, 3), (200, 100, 50, 51)).save(tmp_path / "b.png")
    source = FileSource(tmp_path, ["a.png", "b.png"], as_published=True)
    for name, pixels in zip(source.files, source.read(0, 2), strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / name).convert("RGB")))
    upright = FileSource(tmp_path, ["a.png", "b.png"])
    assert [image.shape for image in upright.read(0, 2)] == [(4, 3, 3), (3, 4, 3)]
    assert upright.fingerprint != source.fingerprint
    chosen = source.take(np.array([1]))
    assert chosen.as_published


def test_a_photograph_of_90_megapixels_is_read(tmp_path):
    Image.new("L", (9_500, 9_500), 7).save(tmp_path / "a.png", compress_level=1)
    pixels = decode(tmp_path / "a.png")
    assert pixels.shape == (9_500, 9_500, 3)
    assert pixels[-1, -1].tolist() == [7, 7, 7]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert decode(tmp_path / "a.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_greyscale_of_16_bits_is_scaled_not_clipped(tmp_path, suffix):
    grey = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    assert decode(tmp_path / f"a.{suffix}")[0, :, 1].tolist() == [0, 1, 128, 255]


def test_greyscale_of_32_bits_beyond_16_is_refused(tmp_path):
    Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="do not fit 16 bits"):
        decode(tmp_path / "a.tif")


def test_floating_point_pixels_are_read_from_0_to_1(tmp_path):
    values = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert decode(tmp_path / "a.tif")[0].tolist() == [[v] * 3 for v in (0, 64, 128, 255)]


@pytest.mark.parametrize(
    ("value", "said"), [(254, "0 to 254"), (-0.5, "-0.5 to 0"), (np.nan, "nan to nan")]
)
def test_other_floating_point_pixels_are_refused(tmp_path, value, said):
    Image.fromarray(np.array([[0, value]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match=f"floating-point numbers from {said}; they are"):
        decode(tmp_path / "a.tif")


def test_colour_of_16_bits_is_its_upper_8(tmp_path):
    head = b"P6 2 1 65535\n"
    values = np.array([[0x01FF, 0x8000, 0xFFFF], [0x0080, 0x7FFF, 0x4040]], ">u2")
    (tmp_path / "a.ppm").write_bytes(head + values.tobytes())
    assert np.abs(decode(tmp_path / "a.ppm")[0].astype(int) - (values >> 8)).max() <= 1


def test_cmyk_is_converted_by_its_profile(tmp_path):
    """A profile that turns all but black into the same grey stands for one of a printer."""
    profile = cmyk_profile()
    for name, icc in (("with", profile), ("without", None), ("damaged", profile[:200])):
        options = {} if icc is None else {"icc_profile": icc}
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"{name}.tif", **options)
    plain = [255, 0, 0]
    assert decode(tmp_path / "without.tif")[0, 0].tolist() == plain
    assert decode(tmp_path / "damaged.tif")[0, 0].tolist() == plain
    assert decode(tmp_path / "with.tif", as_published=True)[0, 0].tolist() == plain
    red, green, blue = decode(tmp_path / "with.tif")[0, 0].astype(int)
    assert abs(red - green) <= 2
    assert abs(green - blue) <= 2
    assert 100 < red < 140


def cmyk_profile():
    """Return a small ICC profile (version 2, lut8) that maps CMYK to L* = 50, and black to 0."""
    curve = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    lut += b"".join(round(v * 65536).to_bytes(4) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut += curve * 4 + bytes([128, 128, 128, 0, 128, 128]) * 2**3 + curve * 3
    text = b"text\0\0\0\0grey\0"
    white = b"XYZ \0\0\0\0" + b"".join(round(v * 65536).to_bytes(4) for v in (0.9642, 1, 0.8249))
    desc = b"desc\0\0\0\0" + (5).to_bytes(4) + b"grey\0" + bytes(78)
    tags = {b"desc": desc, b"cprt": text, b"wtpt": white, b"A2B0": lut}
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + (at + len(body)).to_bytes(4) + len(content).to_bytes(4)
        body += padded
    size = at + len(body)
    head = size.to_bytes(4) + b"lcms" + bytes.fromhex("02400000") + b"prtrCMYKLab "
    head += bytes(12) + b"acsp" + bytes(28)
    head += b"".join(round(v * 65536).to_bytes(4) for v in (0.9642, 1, 0.8249)) + bytes(48)
    return head + len(tags).to_bytes(4) + table + body


def test_files_of_several_frames_are_counted(tmp_path):
    pages = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for suffix in ("tif", "gif", "webp", "png"):
        pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    pages[0].save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=pages[1:])
    before = several_frames()
    for path in tmp_path.iterdir():
        assert decode(path)[0, 0].tolist() == pytest.approx([255, 0, 0], abs=2)
    assert several_frames() - before == 4


def test_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif", "ppm"])
def test_file_cut_short_is_an_error(tmp_path, random_images, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(random_images(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(UnreadableImageError) as caught:
        decode(path)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)


def test_empty_file_says_so(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UnreadableImageError) as caught:
        decode(tmp_path / "a.png")
    assert str(caught.value) == (
        f"cannot read image {tmp_path / 'a.png'}: the file is empty; "
        "replace it, or skip such images: --skip-unreadable"
    )


def test_text_file_says_it_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UnreadableImageError, match="not an image file"):
        decode(tmp_path / "a.png")


def test_missing_file_says_it_is_gone(tmp_path):
    with pytest.raises(UnreadableImageError, match="the file no longer exists"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("side", [17_000, 30_000])
def test_decompression_bomb_is_an_error(tmp_path, side):
    """Both of Pillow's limits count: that of its warning and that of its error."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    )
    with pytest.raises(
        UnreadableImageError, match="more than 268,435,456 pixels, perhaps a decompression bomb"
    ):
        decode(tmp_path / "a.png")


def test_damaged_metadata_is_passed_over_in_silence(tmp_path):
    """In a process of its own, since pytest has warning filters of its own."""
    path = tmp_path / "a.jpg"
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12"
    Image.new("RGB", (8, 8)).save(path, exif=damaged)
    read = "import sys; from PIL import Image; Image.open(sys.argv[1])"
    ours = (
        "import sys, pathlib; from oodcli.data.decoding.files import decode; "
        "decode(pathlib.Path(sys.argv[1]))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, check=True, text=True
        ).stderr
        for code in (read, ours)
    ]
    assert "Corrupt EXIF data" in told[0]
    assert told[1] == ""


def test_file_name_that_is_not_text_can_be_shown(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png"))
    path.touch()
    with pytest.raises(UnreadableImageError) as caught:
        decode(path)
    assert str(caught.value).encode().count(b"\\xff") == 1


def test_finds_images_of_every_extension_sorted_and_not_hidden(tmp_path):
    for name in ("b/2.JPG", "b/10.jpeg", "a.PnG", "c.tiff", "d.webp", "z.pgm", "e.gif", "f.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("notes.txt", ".hidden.png", "._a.png", ".cache/x.png", "b/no_extension"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [
        "a.PnG", "b/10.jpeg", "b/2.JPG", "c.tiff", "d.webp", "e.gif", "f.bmp", "z.pgm",
    ]  # fmt: skip


def test_follows_links_but_not_in_circles(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    assert find_images(tmp_path) == ["link/a.png", "real/a.png"]


def test_link_to_nothing_is_found_and_a_pipe_is_not(tmp_path):
    (tmp_path / "broken.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images(tmp_path) == ["broken.png"]


def test_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"cannot list folder .*gone: No such file"):
        find_images(tmp_path / "gone")


def test_reads_any_range_in_order(tmp_path, random_images, write_images):
    images = random_images(37, 4, 4, 3)
    files = [path.name for path in write_images(tmp_path, images)]
    source = FileSource(tmp_path, files)
    assert len(source) == 37
    np.testing.assert_array_equal(np.stack(list(source.read(0, 37))), images)
    np.testing.assert_array_equal(np.stack(list(source.read(5, 18))), images[5:18])
    assert list(source.read(3, 3)) == []


def test_bad_file_is_an_error_in_its_place(tmp_path, random_images, write_images):
    images = random_images(6, 4, 4, 3)
    paths = write_images(tmp_path, images)
    paths[2].write_bytes(b"no image")
    read = list(FileSource(tmp_path, [path.name for path in paths]).read(0, 6))
    assert isinstance(read[2], UnreadableImageError)
    assert read[2].where == str(paths[2])
    np.testing.assert_array_equal(read[3], images[3])


def test_decodes_only_what_is_taken(tmp_path, random_images, write_images, monkeypatch):
    paths = write_images(tmp_path, random_images(9, 4, 4, 3))
    decoded = []

    def counted(path, **how):
        decoded.append(path)
        return decode(path, **how)

    monkeypatch.setattr("oodcli.data.decoding.files.decode", counted)
    images = FileSource(tmp_path, [path.name for path in paths]).read(2, 9)
    next(images)
    next(images)
    assert decoded == paths[2:4]


def test_fingerprint_changes_with_files_and_only_then(tmp_path, random_images, write_images):
    files = [path.name for path in write_images(tmp_path, random_images(3, 4, 4, 3))]

    def fingerprint(names=files, root=tmp_path):
        return FileSource(root, names).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint(files[:2]) != before
    assert fingerprint(files[::-1]) != before
    status = (tmp_path / files[0]).stat()
    os.utime(tmp_path / files[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint() == before  # the same content at another time
    (tmp_path / files[0]).write_bytes((tmp_path / files[1]).read_bytes())
    later = fingerprint()
    assert later != before
    (tmp_path / files[0]).unlink()
    assert fingerprint() not in (before, later)


def test_folders_with_files_alike_have_other_fingerprints(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.ppm").write_bytes(b"same size")
        os.utime(tmp_path / name / "0.ppm", ns=(0, 0))
    sources = [FileSource(tmp_path / name, ["0.ppm"]) for name in ("a", "b")]
    assert sources[0].fingerprint != sources[1].fingerprint
