"""The only access to pydicom and nibabel: single frames and slices of DICOM and NIfTI files.

No other module of the package may import them; a rule of the linter (``banned-api``) enforces this.
Sizes are checked before pixels are decoded, and messages never contain what a file says of a
patient: only elements that describe pixels are read.
"""

import re
import zlib
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.files import regular
from oodcli.windows import Window, axis_of

Kind = Literal["DICOM", "NIfTI"]

ENDINGS = (".dcm", ".dicom", ".nii", ".nii.gz")
"""Endings of names of medical images, in lower case."""

HEAD_BYTES = 1024
"""How many bytes of a file :func:`kind_of` needs."""

_UID_ENDING = re.compile(r"\.[0-9]+|")
_GZIP = b"\x1f\x8b"


def kind_of(head: bytes) -> Kind | None:
    """Return which kind of medical image a file is by its first bytes; None if it is none.

    Parameters
    ----------
    head
        The first :data:`HEAD_BYTES` of the file.
    """
    if head[128:132] == b"DICM":
        return "DICOM"
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
        except zlib.error:
            return None
    magic = {348: head[344:348], 540: head[4:8]}.get(_header_bytes(head))
    return "NIfTI" if magic in (b"n+1\0", b"n+2\0") else None


def _header_bytes(head: bytes) -> int:
    """Return the number that a NIfTI file begins with, in either byte order."""
    little, big = (int.from_bytes(head[:4], order) for order in ("little", "big"))
    return little if little in (348, 540) else big


def may_be_unnamed(ending: str) -> bool:
    """Return whether DICOM files have names with such an ending: none, or a number as in a UID."""
    return _UID_ENDING.fullmatch(ending) is not None


def is_dicom(path: str) -> bool:
    """Return whether a file begins as DICOM files do; not so if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - a million files
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def decode(
    stream: IO[bytes], kind: Kind | None, *, frame: int | None = None, window: Window | None = None
) -> NDArray[np.uint8]:
    """Return one frame or slice as an image, uint8 ``(h, w, 3)``.

    Parameters
    ----------
    stream
        The file, which can be read at any position.
    kind
        What it is; None of any other file, which has no numbered frames.
    frame
        Number of the frame of a DICOM file, or of the slice of a volume, from 0; None for the only
        one.
    window
        Which values are black and white, and how volumes are sliced.

    Raises
    ------
    ValueError
        If it cannot be decoded, needs a window and there is none, or has no such frame.
    """
    from oodcli.medical import dicom, nifti

    if kind is None:
        raise ValueError("only frames of DICOM files and slices of NIfTI volumes have numbers")
    one = dicom.decode if kind == "DICOM" else nifti.decode
    grey = one(stream, frame=frame, window=window)
    return np.repeat(grey[:, :, None], 3, axis=2) if grey.ndim == 2 else grey


def frame_count(path: Path, window: Window | None = None) -> int:
    """Return the number of frames of a DICOM file, or of slices of a volume.

    Parameters
    ----------
    path
        The file.
    window
        How volumes are sliced.

    Returns
    -------
    count
        1 of a file that is no medical image or cannot be read; the reason is found when it is
        decoded.
    """
    from oodcli.medical import dicom, nifti

    try:
        with regular(path).open("rb") as stream:
            kind = kind_of(stream.read(HEAD_BYTES))
            stream.seek(0)
            if kind == "DICOM":
                return dicom.frame_count(stream)
            return 1 if kind is None else nifti.slice_count(stream, axis_of(window))
    except (OSError, ValueError):
        return 1
