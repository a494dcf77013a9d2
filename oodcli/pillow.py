"""The only access to Pillow for files: which image formats are read, and their names.

Pillow by itself takes any of about fifty formats for what a file is called, whatever the name ends
in, and starts Ghostscript for PostScript. Nothing else in the package may open an image with
Pillow; a rule of the linter (``banned-api``) sees to it.
"""

import warnings
from typing import IO

from PIL import Image, UnidentifiedImageError

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
}
"""Formats that are read, none of which calls a program, with the endings of their files' names."""

EXTENSIONS = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Endings, in lower case, of the names that are taken for those of images."""

# Photographs of 200 megapixels exist. A small file that unpacks to a larger picture yet is an
# error like any other unreadable file: Pillow warns, and such warnings are errors. Filters are
# set once, for the process: the context manager of the warnings module is not safe in threads.
MOST_PIXELS = 2**28
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)
# What Pillow warns of otherwise is metadata, such as damaged EXIF, that no pixel depends on.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_HEAD_BYTES = 64
# Formats for which Pillow starts a program or calls a handler that some other package installs.
_CALLS = {
    "EPS": "Pillow would start Ghostscript for it",
    "WMF": "Pillow would hand it to the operating system",
    "BUFR": "Pillow would hand it to another program",
    "GRIB": "Pillow would hand it to another program",
    "HDF5": "Pillow would hand it to another program",
}
_MAGIC = (
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "WMF"),
    (0, b"BUFR", "BUFR"),
    (0, b"GRIB", "GRIB"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
)


def open_image(stream: IO[bytes]) -> Image.Image:
    """Open an image file of one of `FORMATS`; its pixels are decoded when they are asked for.

    Parameters
    ----------
    stream
        The bytes of the file, at the first of them.

    Raises
    ------
    ValueError
        If it is of no such format; the text names the format where it is a known one.
    Exception
        Whatever else Pillow raises on malformed headers, such as
        ``PIL.Image.DecompressionBombError``.
    """
    try:
        return Image.open(stream, formats=tuple(FORMATS))  # noqa: TID251 - this is the door
    except UnidentifiedImageError:
        stream.seek(0)
        raise ValueError(_reason(stream.read(_HEAD_BYTES))) from None


def check_opened(image: Image.Image) -> None:
    """Refuse an image that somebody else opened and whose pixels would be decoded by a program.

    Raises
    ------
    ValueError
        If its format is such a one.
    """
    if image.format in _CALLS:
        raise ValueError(_refused(image.format))


def _reason(head: bytes) -> str:
    """Say why a file is not read, by how it begins."""
    if not head:
        return "the file is empty"
    known = (name for at, magic, name in _MAGIC if head[at:].startswith(magic))
    name = next(known, None)
    return "not an image file" if name is None else _refused(name)


def _refused(name: str) -> str:
    why = f" ({_CALLS[name]})" if name in _CALLS else ""
    return f"it is {name}, an unsupported format{why}; supported: {', '.join(FORMATS)}"
