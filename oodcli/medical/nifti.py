"""Slices of NIfTI volumes as pixels of 8 bits, turned as radiologists look at them.

The affine of the header says which axis of the file leads to the right, anterior and superior of
the patient. Slices are numbered from the left, posterior or inferior end on. In a slice, the right
of the patient (of sagittal slices the anterior side) is on the left, and superior (of axial slices
anterior) is on top, as in DICOM.
"""

import gzip
import io
import math
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from oodcli.pillow import MAX_PIXELS
from oodcli.windows import AXES, Window, axis_of

MAX_UNPACKED_BYTES = 2**29
"""Largest compressed volume that is read, unpacked: 512 x 512 x 1024 voxels of 16 bits."""

_MAX_HELD = 2
# Right, anterior and superior, as nibabel numbers them.
_ACROSS = dict(zip(AXES, (2, 1, 0), strict=True))
_NEEDED = 'it is NIfTI, which needs the package nibabel: pip install "oodcli[medical]"'
_held: "OrderedDict[tuple[int, ...], bytes]" = OrderedDict()
_holding = threading.Lock()


class _RefusedError(ValueError):
    """A reason that names nothing but properties of voxels."""


@dataclass(frozen=True)
class _Volume:
    """What the header of a file says of its voxels.

    Parameters
    ----------
    shape
        Voxels along each axis of the file.
    dtype
        Type of a voxel.
    offset
        Position of the first voxel.
    slope, intercept
        What makes values of stored ones.
    axes
        For each axis of the file, the axis of the patient (right, anterior, superior) and its sign,
        ``(3, 2)``.
    shown
        The range of display that the header names; None if it names none.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    axes: NDArray[np.float64]
    shown: tuple[float, float] | None

    @property
    def nbytes(self) -> int:
        """Bytes of the file up to the last voxel."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def axis(self, name: str) -> int:
        """Return the axis of the file that slices of a direction are cut across."""
        return int(np.flatnonzero(self.axes[:, 0] == _ACROSS[name])[0])


def decode(stream: IO[bytes], *, frame: int | None, window: Window | None) -> NDArray[np.uint8]:
    """Return a slice, uint8 ``(h, w)`` or ``(h, w, 3)``; see :func:`oodcli.medical.decode`.

    Raises
    ------
    ValueError
        If it cannot be decoded, needs a window and there is none, or has no such slice.
    """
    try:
        volume = _volume(stream)
        across = volume.axis(axis_of(window))
        at = _slice_number(volume.shape[across], frame)
        plane = _plane(volume, _voxels(stream, volume), across, at)
        return _levels(volume, plane, window)
    except _RefusedError:
        raise
    except Exception as error:  # noqa: BLE001 - a malformed file makes decoders raise anything
        raise ValueError(f"it is NIfTI, and damaged ({type(error).__name__})") from None


def slice_count(stream: IO[bytes], axis: str) -> int:
    """Return the number of slices of a volume in a direction; 1 if that cannot be read."""
    try:
        volume = _volume(stream)
        return volume.shape[volume.axis(axis)]
    except Exception:  # noqa: BLE001 - found again, with the reason, when it is decoded
        return 1


def _volume(stream: IO[bytes]) -> _Volume:
    """Read the header, and refuse what is no volume of numbers or colours."""
    try:
        nibabel = import_module("nibabel")
    except ImportError:
        raise _RefusedError(_NEEDED) from None
    head = _first(stream, 540)
    second = 540 in (int.from_bytes(head[:4], order) for order in ("little", "big"))
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    header = kind(head if second else head[:348], check=False)
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or min(shape) < 1:
        raise _RefusedError(
            f"it has {len(shape)} dimensions, {' x '.join(map(str, shape))}; volumes of 3 are read"
        )
    if math.prod(sorted(shape)[1:]) > MAX_PIXELS:
        raise _RefusedError(f"more than {MAX_PIXELS:,} pixels, perhaps a decompression bomb")
    axes = nibabel.io_orientation(header.get_best_affine())
    if not np.isfinite(axes).all():
        raise _RefusedError("its affine does not say where the patient is")
    slope, intercept = header.get_slope_inter()
    low, high = float(header["cal_min"]), float(header["cal_max"])
    return _Volume(
        shape,
        header.get_data_dtype(),
        int(header["vox_offset"]) or (544 if second else 352),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        axes,
        (low, high) if low < high else None,
    )


def _first(stream: IO[bytes], count: int) -> bytes:
    """Return the first bytes of a file, unpacked."""
    stream.seek(0)
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream).read(count) if packed else stream.read(count)


def _slice_number(count: int, frame: int | None) -> int:
    if frame is None and count > 1:
        raise _RefusedError(
            f"it has {count:,} slices; name one in a list or table, FILE[SLICE] from 0, or put "
            "it into a folder on the disk"
        )
    if frame is not None and frame >= count:
        raise _RefusedError(f"it has no slice {frame}: slices are numbered from 0 to {count - 1}")
    return frame or 0


def _voxels(stream: IO[bytes], volume: _Volume) -> NDArray[Any]:
    """Return the stored voxels; those of a plain file are not read yet.

    Notes
    -----
    Compressed files are unpacked as a whole, because slices of some directions lie all over them;
    the last two are held for the next slices.
    """
    stream.seek(0)
    if stream.read(2) == b"\x1f\x8b":
        content = _unpacked(stream, volume)
    elif isinstance(stream, io.BytesIO):
        content = stream.getvalue()
    else:
        return np.memmap(
            stream, volume.dtype, mode="r", offset=volume.offset, shape=volume.shape, order="F"
        )
    found = np.frombuffer(content, volume.dtype, math.prod(volume.shape), volume.offset)
    return found.reshape(volume.shape, order="F")


def _unpacked(stream: IO[bytes], volume: _Volume) -> bytes:
    if volume.nbytes > MAX_UNPACKED_BYTES:
        raise _RefusedError(
            f"it is a compressed volume of {volume.nbytes:,} bytes, more than "
            f"{MAX_UNPACKED_BYTES:,}; unpack it: gunzip"
        )
    key = _identity(stream)
    with _holding:
        content = None if key is None else _held.get(key)
        if content is None:
            stream.seek(0)
            content = gzip.GzipFile(fileobj=stream).read(volume.nbytes)
            if key is not None:
                _held[key] = content
                while len(_held) > _MAX_HELD:
                    _held.popitem(last=False)
    return content


def _identity(stream: IO[bytes]) -> tuple[int, ...] | None:
    """Return what tells a file from others; None if it is none."""
    if isinstance(stream, io.BytesIO):
        return None
    status = os.fstat(stream.fileno())
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _plane(volume: _Volume, voxels: NDArray[Any], across: int, at: int) -> NDArray[Any]:
    """Return a slice as it is looked at, ``(h, w)``."""
    number = at if volume.axes[across, 1] > 0 else volume.shape[across] - 1 - at
    plane = voxels[tuple(number if axis == across else slice(None) for axis in range(3))]
    others = np.delete(volume.axes, across, axis=0)
    for axis, sign in enumerate(others[:, 1]):
        if sign < 0:
            plane = np.flip(plane, axis)
    if others[0, 0] > others[1, 0]:
        plane = plane.T
    return plane.T[::-1, ::-1]


def _levels(volume: _Volume, plane: NDArray[Any], window: Window | None) -> NDArray[np.uint8]:
    """Return stored voxels as 8 bits."""
    if plane.dtype.names is not None:
        return np.stack([plane[name] for name in plane.dtype.names[:3]], axis=-1)
    if plane.dtype.kind not in "iuf":
        raise _RefusedError(f"its voxels are of type {plane.dtype}; numbers and RGB are read")
    plain = plane.dtype == np.uint8 and (volume.slope, volume.intercept) == (1, 0)
    if window is not None:
        return window.apply(plane, slope=volume.slope, intercept=volume.intercept)
    if plain:
        return np.ascontiguousarray(plane)
    what = f"its voxels of type {plane.dtype} need a window"
    if volume.shown is None:
        named = "the file names none: --window LOW..HIGH or --window CENTER/WIDTH"
    else:
        low, high = volume.shown
        named = f"the file names {low:g}..{high:g}: --window {low:g}..{high:g}"
    raise _RefusedError(f"{what}; {named}")
