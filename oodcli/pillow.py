"""The only access to Pillow for reading files: supported image formats and their extensions.

By default Pillow tries about fifty formats, whatever the extension of the file, and starts
Ghostscript for PostScript. No other module of the package may open an image with Pillow; a rule of
the linter (``banned-api``) enforces this.
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
"""Supported formats, none of which starts a program, with their file extensions."""

EXTENSIONS = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""File extensions, in lower case, of files that are treated as images."""

# Photographs of 200 megapixels exist. A file that unpacks to an even larger image is reported like
# any other unreadable file: Pillow's warning is turned into an error. The warning filters are set
# once per process: the context manager of the warnings module is not thread-safe.
MAX_PIXELS = 2**28
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Pillow's other warnings concern metadata, such as damaged EXIF, that does not affect pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_HEAD_BYTES = 64
# Formats for which Pillow starts a program or calls a handler installed by another package.
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


_STARTS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"BM", ".bmp"),
    (b"RIFF", ".webp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"GIF8", ".gif"),
    (b"P5", ".pgm"),
    (b"P6", ".ppm"),
)


def extension_of(content: bytes) -> str:
    """Return the ending of the name of an image file, by its first bytes; empty if unknown."""
    return next((ending for start, ending in _STARTS if content.startswith(start)), "")


def open_image(stream: IO[bytes]) -> Image.Image:
    """Open an image file in one of `FORMATS`; its pixels are decoded on first access.

    Parameters
    ----------
    stream
        Binary stream positioned at the start of the file.

    Raises
    ------
    ValueError
        If the format is not supported; the message names the format if it is recognised.
    Exception
        Any other exception of Pillow on malformed headers, such as
        ``PIL.Image.DecompressionBombError``.
    """
    try:
        return Image.open(stream, formats=tuple(FORMATS))  # noqa: TID251 - the only use
    except UnidentifiedImageError:
        stream.seek(0)
        raise ValueError(_reason(stream.read(_HEAD_BYTES))) from None


def check_opened(image: Image.Image) -> None:
    """Refuse an image opened by the caller whose pixels an external program would decode.

    Raises
    ------
    ValueError
        If the format of the image is decoded by a program.
    """
    if image.format in _CALLS:
        raise ValueError(_refused(image.format))


def _reason(head: bytes) -> str:
    """Return why a file cannot be read, from its first bytes."""
    if not head:
        return "the file is empty"
    known = (name for at, magic, name in _MAGIC if head[at:].startswith(magic))
    name = next(known, None)
    return "not an image file" if name is None else _refused(name)


def _refused(name: str) -> str:
    why = f" ({_CALLS[name]})" if name in _CALLS else ""
    return f"it is {name}, an unsupported format{why}; supported: {', '.join(FORMATS)}"
