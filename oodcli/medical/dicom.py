"""Frames of DICOM files as pixels of 8 bits, by the steps of DICOM PS3.3, C.11.

Stored values become those of the modality (Hounsfield units) by slope and intercept or a table,
these become grey levels by the window of the user, and MONOCHROME1 is inverted. Presentation
states, overlays, padding values and the windows that a file names itself are not applied.
"""

import threading
import warnings
from importlib import import_module
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from oodcli.pillow import MAX_PIXELS
from oodcli.windows import Window

MAX_FRAMES = 1_000_000
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_META_ELEMENTS = 64
_LONG = (b"OB", b"OW", b"UN", b"UT", b"SQ")  # representations whose length has 4 bytes
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# All that is read of a file: what describes its pixels, and nothing of the patient.
_ELEMENTS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "WindowCenter",
    "WindowWidth", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData", *_FUNCTIONAL_GROUPS,
)  # fmt: skip
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or pip install python-gdcm"
_loading = threading.Lock()
_NEEDED = 'it is DICOM, which needs the package pydicom: pip install "oodcli[medical]"'


class _RefusedError(ValueError):
    """A reason that names nothing but properties of pixels."""


def decode(stream: IO[bytes], *, frame: int | None, window: Window | None) -> NDArray[np.uint8]:
    """Return a frame, uint8 ``(h, w)`` or ``(h, w, 3)``; see :func:`oodcli.medical.decode`.

    Raises
    ------
    ValueError
        If it cannot be decoded, needs a window and there is none, or has no such frame.
    """
    pydicom = _package()
    try:
        header = _header(pydicom, stream)
        at = _frame(header, frame)
        _check_size(header)
        _check_compressed(pydicom, stream, header, at)
        stored = _stored(stream, header, at)
        return _levels(header, stored, at, window)
    except _RefusedError:
        raise
    # What third-party code says of a damaged file may quote it.
    except Exception as error:  # noqa: BLE001 - a malformed file makes decoders raise anything
        raise ValueError(f"it is DICOM, and damaged ({type(error).__name__})") from None


def frame_count(stream: IO[bytes]) -> int:
    """Return the number of frames of a file; 1 if that cannot be read."""
    try:
        header = _header(_package(), stream, ("NumberOfFrames",))
        return min(max(int(header.get("NumberOfFrames") or 1), 1), MAX_FRAMES)
    except Exception:  # noqa: BLE001 - found again, with the reason, when it is decoded
        return 1


def _package() -> Any:  # noqa: ANN401 - an optional package
    with _loading:
        try:
            pydicom = import_module("pydicom")
        except ImportError:
            raise _RefusedError(_NEEDED) from None
        # Its warnings are of values that are written against the standard, and quote them.
        warnings.filterwarnings("ignore", module=r"pydicom\.")
    return pydicom


def _header(pydicom: Any, stream: IO[bytes], elements: tuple[str, ...] = _ELEMENTS) -> Any:  # noqa: ANN401
    """Read what a file says of its pixels, up to these."""
    # pydicom would unpack all of it at once, whatever its size.
    if _DEFLATED in _transfer_syntaxes(stream):
        raise _RefusedError(
            "it is deflated DICOM, which is not read; write it without: dcmconv +te"
        )
    stream.seek(0)
    return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(elements))


def _transfer_syntaxes(stream: IO[bytes]) -> list[bytes]:
    """Return every transfer syntax that the file meta information names (PS3.10, 7.1)."""
    found: list[bytes] = []
    stream.seek(132)
    for _ in range(_MAX_META_ELEMENTS):
        head = stream.read(8)
        if head[:2] != b"\2\0":
            return found
        size = int.from_bytes(stream.read(4) if head[4:6] in _LONG else head[6:8], "little")
        if head[2:4] == b"\x10\0":
            found.append(stream.read(min(size, 64)).rstrip(b"\0 "))
        else:
            stream.seek(size, 1)
    raise _RefusedError("it is DICOM, and its header is damaged")


def _frame(header: Any, frame: int | None) -> int:  # noqa: ANN401
    """Return the number of the frame that is wanted."""
    count = min(max(int(header.get("NumberOfFrames") or 1), 1), MAX_FRAMES)
    if frame is None and count > 1:
        raise _RefusedError(
            f"it has {count:,} frames; name one in a list or table, FILE[FRAME] from 0, or put "
            "it into a folder on the disk"
        )
    if frame is not None and frame >= count:
        raise _RefusedError(f"it has no frame {frame}: frames are numbered from 0 to {count - 1}")
    return frame or 0


def _check_size(header: Any) -> None:  # noqa: ANN401
    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    samples = int(header.get("SamplesPerPixel") or 1)
    if not (rows and columns):
        raise _RefusedError("it is DICOM without pixels")
    if rows * columns > MAX_PIXELS:
        raise _RefusedError(f"more than {MAX_PIXELS:,} pixels, perhaps a decompression bomb")
    if samples not in (1, 3):
        raise _RefusedError(f"it has {samples} samples per pixel; 1 and 3 are read")


def _check_compressed(pydicom: Any, stream: IO[bytes], header: Any, frame: int) -> None:  # noqa: ANN401
    """Refuse compressed pixels that nothing decodes, or that claim another size than the file.

    ``stream`` is positioned at the element of the pixels.
    """
    syntax = header.file_meta.TransferSyntaxUID
    pixels = import_module("pydicom.pixels")
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError:
        raise _RefusedError(f"its transfer syntax {syntax.name} is not read") from None
    if not syntax.is_compressed:
        return
    if not decoder.is_available:
        raise _RefusedError(
            f"its pixels are compressed as {syntax.name}, which needs a plug-in of pydicom: "
            f"{_PLUGINS}"
        )
    stream.seek(12, 1)  # tag, representation and length
    count = int(header.get("NumberOfFrames") or 1)
    encoded = pydicom.encaps.get_frame(stream, frame, number_of_frames=count)
    size = _coded_size(encoded)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise _RefusedError(f"more than {MAX_PIXELS:,} pixels, perhaps a decompression bomb")


def _coded_size(encoded: bytes) -> tuple[int, int] | None:
    """Return height and width that a JPEG, JPEG-LS or JPEG 2000 stream states; None if it is none.

    Notes
    -----
    ITU-T T.81, B.2.2 (start of frame, also of T.87); T.800, A.5.1 (SIZ).
    """
    if encoded.startswith(b"\xff\x4f\xff\x51"):
        width, height = (int.from_bytes(encoded[at : at + 4]) for at in (8, 12))
        return height, width
    at = 2
    while encoded.startswith(b"\xff\xd8") and at + 9 <= len(encoded):
        kind = encoded[at + 1]
        if (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)) or kind == 0xF7:
            return int.from_bytes(encoded[at + 5 : at + 7]), int.from_bytes(
                encoded[at + 7 : at + 9]
            )
        at += 1 if kind == 0xFF else 2 + int.from_bytes(encoded[at + 2 : at + 4])
    return None


def _stored(stream: IO[bytes], header: Any, frame: int) -> NDArray[Any]:  # noqa: ANN401
    """Return the stored values of a frame, ``(h, w)`` or ``(h, w, 3)``; YBR becomes RGB."""
    stream.seek(0)
    values = np.asarray(import_module("pydicom.pixels").pixel_array(stream, index=frame))
    size = (int(header.Rows), int(header.Columns))
    if values.shape[:2] != size or values.ndim not in (2, 3):
        raise _RefusedError("its pixels have another size than the file states")
    return values


def _levels(
    header: Any,  # noqa: ANN401
    stored: NDArray[Any],
    frame: int,
    window: Window | None,
) -> NDArray[np.uint8]:
    """Return stored values as 8 bits."""
    kind = str(header.get("PhotometricInterpretation", ""))
    bits = int(header.get("BitsStored") or header.BitsAllocated)
    if kind == "PALETTE COLOR":
        stored = import_module("pydicom.pixels").apply_color_lut(stored, header)
        bits = 8 * stored.dtype.itemsize
    if stored.ndim == 3:
        return (stored >> max(bits - 8, 0)).astype(np.uint8)
    if kind not in _MONOCHROME:
        raise _RefusedError(f"its photometric interpretation {kind[:16]!r} is not read")
    slope, intercept = _rescaling(header, frame)
    tabled = bool(header.get("ModalityLUTSequence"))
    plain = not tabled and (slope, intercept) == (1, 0) and stored.dtype.kind == "u" and bits <= 8
    if window is None and not plain:
        raise _RefusedError(_without_window(header, frame, bits))
    if window is None:
        grey = np.rint(stored * (255 / (2**bits - 1))).astype(np.uint8)
    elif tabled:
        grey = window.apply(import_module("pydicom.pixels").apply_modality_lut(stored, header))
    else:
        grey = window.apply(stored, slope=slope, intercept=intercept)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _group(header: Any, frame: int, sequence: str) -> Any:  # noqa: ANN401
    """Return what says something of a frame: its own functional group, the shared one, or all."""
    shared, each = (header.get(name) or () for name in _FUNCTIONAL_GROUPS)
    for group in (*each[frame : frame + 1], *shared):
        found = group.get(sequence)
        if found:
            return found[0]
    return header


def _rescaling(header: Any, frame: int) -> tuple[float, float]:  # noqa: ANN401
    """Return slope and intercept of a frame."""
    place = _group(header, frame, "PixelValueTransformationSequence")
    slope, intercept = place.get("RescaleSlope"), place.get("RescaleIntercept")
    return 1.0 if slope is None else float(slope), float(intercept or 0)


def _without_window(header: Any, frame: int, bits: int) -> str:  # noqa: ANN401
    """Say that a window is needed, and which one the file names."""
    place = _group(header, frame, "FrameVOILUTSequence")
    named = [_numbers(place.get(name)) for name in ("WindowCenter", "WindowWidth")]
    pairs = [f"{center:g}/{width:g}" for center, width in zip(*named, strict=False)]
    what = f"its grey values of {bits} bits need a window"
    if pairs:
        return f"{what}; the file names {', '.join(pairs[:4])}: --window {pairs[0]}"
    return f"{what}; the file names none: --window CENTER/WIDTH or --window LOW..HIGH"


def _numbers(value: Any) -> list[float]:  # noqa: ANN401
    if value is None or value == "":
        return []
    several = isinstance(value, list | tuple) or type(value).__name__ == "MultiValue"
    return [float(each) for each in (value if several else [value])]
