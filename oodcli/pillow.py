"""The only access to Pillow for reading files: supported image formats and their extensions.

By default Pillow tries about fifty formats, whatever the extension of the file, and starts
Ghostscript for PostScript. No other module of the package may open an image with Pillow; a rule of
the linter (``banned-api``) enforces this.
"""

import importlib
import threading
import warnings
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
    "JXL": (".jxl",),
}
"""Supported formats, none of which starts a program, with their file extensions."""

# Formats that Pillow, or this version of it, does not read by itself, and what reads them.
_FROM_PACKAGES = {
    "AVIF": ("PIL.AvifImagePlugin", "Pillow from 11.3 on, with AVIF"),
    "HEIF": ("pillow_heif", 'the package pillow-heif: pip install "oodcli[formats]"'),
    "JXL": ("pillow_jxl", 'the package pillow-jxl-plugin: pip install "oodcli[formats]"'),
}
_BUILT_IN = tuple(name for name in FORMATS if name not in _FROM_PACKAGES)
_loading = threading.Lock()

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
# Tags of EXIF: the directory with details of the photograph, and when it was taken.
_EXIF_IFD, _DATE_TIME_ORIGINAL = 0x8769, 0x9003
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
    (4, b"ftyphei", "HEIF"),
    (4, b"ftyphev", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JXL"),
    (0, b"\0\0\0\x0cJXL ", "JXL"),
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
    known = next((ending for start, ending in _STARTS if content.startswith(start)), "")
    return known or FORMATS.get(_name_of(content[:_HEAD_BYTES]) or "", ("",))[0]


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
        return Image.open(stream, formats=_BUILT_IN)  # noqa: TID251 - the only use
    except UnidentifiedImageError:
        stream.seek(0)
        head = stream.read(_HEAD_BYTES)
    name = _name_of(head)
    if name not in _FROM_PACKAGES:
        raise ValueError(_reason(head, name))
    _load(name)
    if name == "JXL":
        _check_jpeg_xl(stream)
    stream.seek(0)
    try:
        return Image.open(stream, formats=(name,))  # noqa: TID251 - the only use
    except UnidentifiedImageError:
        raise ValueError(f"it is {name}, and damaged") from None


def _load(name: str) -> None:
    """Load what reads a format.

    Raises
    ------
    ValueError
        If it is not installed.
    """
    module, needed = _FROM_PACKAGES[name]
    with _loading:
        if name in Image.OPEN:
            return
        try:
            package = importlib.import_module(module)
        except ImportError:
            raise ValueError(f"it is {name}, which needs {needed}") from None
        if name == "HEIF":
            package.register_heif_opener(thumbnails=False)
        if name == "JXL":
            # Images are decoded by several threads or processes at the same time already.
            plugin: Any = importlib.import_module("pillow_jxl.JpegXLImagePlugin")
            plugin.DECODE_THREADS = 0
    if name not in Image.OPEN:
        raise ValueError(f"it is {name}, which needs {needed}")


def _check_jpeg_xl(stream: IO[bytes]) -> None:
    """Refuse a JPEG XL file of too many pixels before its reader, which decodes at once, opens it.

    Raises
    ------
    PIL.Image.DecompressionBombError
        If it has.
    ValueError
        If its header is damaged.

    Notes
    -----
    ISO/IEC 18181-1, D.2: sizes are written bit by bit from the lowest on, the width perhaps as a
    ratio of the height.
    """
    height, width = _jpeg_xl_size(_codestream(stream))
    if height * width > MAX_PIXELS:
        raise Image.DecompressionBombError


def _codestream(stream: IO[bytes]) -> bytes:
    """Return the first bytes of the image proper, which may lie in a box of a container."""
    stream.seek(0)
    head = stream.read(12)
    at = 0 if head.startswith(b"\xff\x0a") else 12
    while at:
        stream.seek(at)
        box = stream.read(16)
        size, kind = int.from_bytes(box[:4]), box[4:8]
        begin = 16 if size == 1 else 8
        if size == 1:
            size = int.from_bytes(box[8:16])
        if kind in (b"jxlc", b"jxlp"):
            at += begin + (4 if kind == b"jxlp" else 0)
            break
        if len(box) < 16 or size < begin:
            raise ValueError("it is JXL, and damaged")
        at += size
    stream.seek(at)
    return stream.read(16)


def _jpeg_xl_size(head: bytes) -> tuple[int, int]:
    """Return height and width, by the header of a codestream."""
    if not head.startswith(b"\xff\x0a"):
        raise ValueError("it is JXL, and damaged")
    bits, at = int.from_bytes(head[2:], "little"), 0

    def number(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    small = number(1)

    def length() -> int:
        return 8 * (number(5) + 1) if small else 1 + number((9, 13, 18, 30)[number(2)])

    height = length()
    ratio = number(3)
    if ratio == 0:
        return height, length()
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height, height * over // under


def check_opened(image: Image.Image) -> None:
    """Refuse an image opened by the caller whose pixels an external program would decode.

    Raises
    ------
    ValueError
        If the format of the image is decoded by a program.
    """
    if image.format in _CALLS:
        raise ValueError(_refused(image.format))


def _name_of(head: bytes) -> str | None:
    """Return the name of a format that is known, by how a file begins."""
    return next((name for at, magic, name in _MAGIC if head[at:].startswith(magic)), None)


def _reason(head: bytes, name: str | None) -> str:
    """Say why a file is not read."""
    if not head:
        return "the file is empty"
    return "not an image file" if name is None else _refused(name)


def _refused(name: str) -> str:
    why = f" ({_CALLS[name]})" if name in _CALLS else ""
    return f"it is {name}, an unsupported format{why}; supported: {', '.join(FORMATS)}"


def exif_time(stream: IO[bytes]) -> str | None:
    """Return the EXIF field DateTimeOriginal of an image file; None if there is none.

    Parameters
    ----------
    stream
        The file, from its start; only its head is read.

    References
    ----------
    CIPA DC-008-2019, "Exif 2.32", section 4.6.5.
    """
    try:
        with open_image(stream) as image:
            found = image.getexif().get_ifd(_EXIF_IFD).get(_DATE_TIME_ORIGINAL)
    except Exception:  # noqa: BLE001 - Pillow raises anything for damaged files
        return None
    return found if isinstance(found, str) else None
