"""Image files: find them, identify their format, decode them to 8-bit RGB."""

import contextlib
import io
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.data.compact import Texts, chosen_texts
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.identity import identity_of
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.files import reason_of, regular
from oodcli.medical import ENDINGS as MEDICAL_ENDINGS
from oodcli.medical import HEAD_BYTES, Kind, is_dicom, kind_of, may_be_unnamed
from oodcli.medical import decode as decode_medical
from oodcli.pillow import EXTENSIONS, MAX_PIXELS, check_opened, open_image
from oodcli.remote.addresses import is_address
from oodcli.remote.errors import RemoteError
from oodcli.remote.files import RemoteEntry, RemotePath, path_of, row_problem
from oodcli.store.store import digest_of_json
from oodcli.text import printable
from oodcli.windows import Window

_TRANSPARENT_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})

# Larger images are decoded one at a time, so that threads do not hold several of 2 GB.
_LARGE_PIXELS = 2**25
_one_large = threading.Lock()

# A camera's previews beside the picture are no frames.
_SEVERAL_OF_ONE = frozenset({"MPO"})
_DRAFTED = frozenset({"JPEG", "MPO"})
_seen = threading.local()
_MAX_PROFILE_BYTES = 1 << 24

# What turns an image upright, by the orientation that its metadata name.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED_BY_90 = frozenset(
    {
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    }
)
_ORIENTATION = 0x0112
_FRAME = re.compile(r"(.+)\[([0-9]{1,7})\]", re.DOTALL)


def decode(
    path: Path,
    *,
    as_published: bool = False,
    window: Window | None = None,
    to: Resizing | None = None,
) -> NDArray[np.uint8]:
    """Decode the first frame of an image file to RGB, uint8 ``(h, w, 3)``.

    Parameters
    ----------
    path
        The file; of a medical image with several frames or slices, with the number of one of them
        behind it, ``FILE[NUMBER]``.
    as_published
        Whether to ignore what the code behind published numbers ignores: the orientation in
        EXIF metadata, and transparency.
    window
        Which values of medical images are black and white.
    to
        How the image will be resized; only what asks for drafts matters.

    Raises
    ------
    UnreadableImageError
        If the file is missing, cut short, not an image, or of a kind that has no 8-bit meaning.

    Notes
    -----
    The picture is what an image viewer shows: turned upright by its EXIF orientation, laid over
    white where it is transparent, and CMYK converted by its ICC profile, where it has a valid one.
    Greyscale of 16 bits is divided by 257 and rounded, where Pillow would clip it at 255; of colour
    of 16 bits Pillow takes the upper 8. Floating-point pixels are read from 0 (black) to 1 (white);
    values outside of that are an error. Of several frames or pages the first is used, and
    :func:`several_frames` counts such files. Medical images: see :mod:`oodcli.medical`.

    A JPEG file that will be resized with drafts is decoded at the smallest of 1/2, 1/4 and 1/8 of
    its size whose sides are both at least twice those it will be scaled to (before a crop), by
    Pillow's ``Image.draft``: libjpeg then inverts only the low frequencies of each block.
    """
    with _opened(path) as (file, frame):
        return decode_stream(
            file,
            where=printable(str(path)),
            as_published=as_published,
            window=window,
            frame=frame,
            to=to,
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """Open an image file; the number is that of the frame that the path names.

    Raises
    ------
    UnreadableImageError
        If it cannot be opened or read.
    """
    whole, frame = frame_of(str(path))
    try:
        with regular(path_of(whole)).open("rb") as file:
            yield file, frame
    except RemoteError as error:
        reason = row_problem(error, within=False)
        raise UnreadableImageError(printable(str(path)), reason) from None
    except (OSError, ValueError) as error:  # a path with a zero byte is a wrong value
        gone = isinstance(error, FileNotFoundError)
        reason = "the file no longer exists" if gone else reason_of(error)
        raise UnreadableImageError(printable(str(path)), reason) from None


def decode_stream(
    stream: IO[bytes],
    *,
    where: str,
    as_published: bool = False,
    window: Window | None = None,
    frame: int | None = None,
    to: Resizing | None = None,
) -> NDArray[np.uint8]:
    """Decode an image as `decode` does.

    Parameters
    ----------
    stream
        The bytes of the image file, at its first byte.
    where
        How to call it in an error.
    as_published, window, to
        As for `decode`.
    frame
        Number of a frame or slice of a medical image, from 0; None for the only one.

    Raises
    ------
    UnreadableImageError
        If it cannot be decoded.
    """
    with _readable(where):
        kind = _medical_kind(stream)
        if kind is not None or frame is not None:
            return decode_medical(stream, kind, frame=frame, window=window)
    with _readable(where), open_image(stream) as image:
        # All coefficients of a progressive file are held, whatever size they are decoded at.
        whole = image.width * image.height if image.info.get("progressive") else 0
        if to is not None and to.way.draft:
            _draft(image, to, as_published=as_published)
        large = max(whole, image.width * image.height) > _LARGE_PIXELS
        with _one_large if large else contextlib.nullcontext():
            image.load()
            if getattr(image, "n_frames", 1) > 1 and image.format not in _SEVERAL_OF_ONE:
                _seen.frames = several_frames() + 1
            if as_published:
                return _to_rgb(image, opaque=True)
            return _to_rgb(_upright(image), opaque=False)


def _draft(image: Image.Image, to: Resizing, *, as_published: bool) -> None:
    """Have an opened image decoded at a reduced size, if it is a JPEG that is large enough."""
    if image.format not in _DRAFTED:
        return
    turned = not as_published and _turn_of(image) in _TURNED_BY_90
    before = (image.width, image.height) if turned else (image.height, image.width)
    (height, width), _ = to.plan(before)
    least = (2 * height, 2 * width) if turned else (2 * width, 2 * height)
    if min(image.width // least[0], image.height // least[1]) >= 2:
        image.draft(None, least)


def _medical_kind(stream: IO[bytes]) -> Kind | None:
    kind = kind_of(stream.read(HEAD_BYTES))
    stream.seek(0)
    return kind


def size_in_header(
    stream: IO[bytes],
    *,
    where: str,
    as_published: bool = False,
    window: Window | None = None,
    frame: int | None = None,
) -> tuple[int, int]:
    """Return the height and width of an image as `decode` gives them, without decoding its pixels.

    Parameters
    ----------
    stream, where, as_published, window, frame
        As for `decode_stream`.

    Raises
    ------
    UnreadableImageError
        If the header cannot be read.

    Notes
    -----
    An orientation that stands behind the pixels of a PNG file is not seen. Medical images are
    decoded.
    """
    with _readable(where):
        kind = _medical_kind(stream)
        if kind is not None or frame is not None:
            height, width, _ = decode_medical(stream, kind, frame=frame, window=window).shape
            return height, width
    with _readable(where), open_image(stream) as image:
        if image.format == "TIFF":  # turned upright by Pillow when it is loaded
            image.load()
        ahead = image.format != "PNG" or "exif" in image.info  # else Pillow decodes to look for it
        turned = not as_published and ahead and _turn_of(image) in _TURNED_BY_90
        return (image.width, image.height) if turned else (image.height, image.width)


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn what decoders raise into :class:`UnreadableImageError`."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"more than {MAX_PIXELS:,} pixels, perhaps a decompression bomb"
        raise UnreadableImageError(where, reason) from None
    except Exception as error:  # noqa: BLE001 - a malformed file makes decoders raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImageError(where, " ".join(reason.split())) from None


def frame_of(path: str) -> tuple[str, int | None]:
    """Divide ``FILE[NUMBER]``, a frame or slice of a medical image; a file is called so itself.

    Parameters
    ----------
    path
        A path or an address.

    Returns
    -------
    file, frame
        The frame is None where the path is that of a file, or has no number.
    """
    if not path.endswith("]"):
        return path, None
    found = _FRAME.fullmatch(path)
    if found is None:
        return path, None
    # A server is not asked whether it has a file of this name.
    is_whole = not is_medical_name(found[1]) if is_address(path) else os.path.lexists(path)
    return (path, None) if is_whole else (found[1], int(found[2]))


def several_frames() -> int:
    """Return how many files of several frames or pages this thread has decoded."""
    return getattr(_seen, "frames", 0)


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return what turns an image upright, by its metadata; None if it is."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged metadata raise anything, and no pixel depends on them
        return None


def _upright(image: Image.Image) -> Image.Image:
    """Return an image as it is meant to be seen; TIFF files are upright once they are loaded."""
    turn = _turn_of(image)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info.update(image.info)
    return turned


def _to_rgb(image: Image.Image, *, opaque: bool) -> NDArray[np.uint8]:
    if image.mode in SIXTEEN_BIT_MODES:
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its grey values do not fit 16 bits")
        narrow = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(narrow[:, :, None], 3, axis=2)  # (h, w, 3)
    if image.mode == "F":
        return _of_floats(np.asarray(image))
    if image.mode == "CMYK" and not opaque:
        image = _by_profile(image)
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        layer = image.convert("RGBA")
        if opaque:
            return np.asarray(layer.convert("RGB"))
        return np.asarray(
            Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _of_floats(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return floating-point pixels ``(h, w)`` from 0 to 1 as ``(h, w, 3)``."""
    low, high = float(grey.min()), float(grey.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"its pixels are floating-point numbers from {low:.4g} to {high:.4g}; they are read "
            "from 0 (black) to 1 (white), so scale them"
        )
    scaled = np.rint(grey * np.float32(255)).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _by_profile(image: Image.Image) -> Image.Image:
    """Return a CMYK image in sRGB by its own ICC profile; as it is if there is no valid one."""
    profile = image.info.get("icc_profile")
    if not profile or len(profile) > _MAX_PROFILE_BYTES:
        return image
    try:
        from PIL import ImageCms

        source, target = (
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
        )
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except Exception:  # noqa: BLE001 - damaged profiles raise anything, and Pillow may lack the library
        return image
    return image if converted is None else converted


def rgb_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of a Pillow image as `decode` gives those of a file, uint8 ``(h, w, 3)``.

    Raises
    ------
    InvalidInputError
        If it is of a kind that has no 8-bit meaning.
    """
    try:
        check_opened(image)
        image.load()
        return _to_rgb(_upright(image), opaque=False)
    except Exception as error:  # noqa: BLE001 - a file that is read only now makes decoders raise
        raise InvalidInputError(
            f"a Pillow image of mode {image.mode} cannot be read: {error}; convert it to RGB"
        ) from None


def find_images(folder: Path) -> Texts:
    """Return all image files below a folder, as paths relative to it, sorted folder by folder.

    Hidden files and folders are skipped; links are followed, but not in circles.

    Raises
    ------
    InvalidInputError
        If a folder cannot be listed.
    """
    if isinstance(folder, RemotePath):
        below = folder.files_below()
        return Texts.of(file for file in below if _is_shown(file) and is_image_name(file))
    return Texts.of(_walk(str(folder), "", ()))


def _is_shown(file: str) -> bool:
    return not any(part.startswith(".") for part in file.split("/"))


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return
    names, folders = [], set()
    for entry in _entries(folder):  # an entry is larger than its name
        if entry.is_dir():
            folders.add(entry.name)
            names.append(entry.name)
        # A link to nothing is kept, so that it is reported when read; pipes and devices are not.
        elif is_image_entry(entry):
            names.append(entry.name)
    names.sort()
    for name in names:
        if name in folders:
            yield from _walk(os.path.join(folder, name), f"{prefix}{name}/", (*above, real))  # noqa: PTH118
        else:
            yield prefix + name


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million files
    return ending in EXTENSIONS or is_medical_name(name)


def is_medical_name(name: str) -> bool:
    """Return whether a file name has the extension of a medical image."""
    return name.lower().endswith(MEDICAL_ENDINGS)


def is_image_entry(entry: os.DirEntry[str] | RemoteEntry) -> bool:
    """Return whether an entry of a folder is taken as an image file.

    Notes
    -----
    It has the extension of one; or none, or a number as UIDs end in, and begins as DICOM does.
    """
    if is_image_name(entry.name):
        return entry.is_file() or entry.is_symlink()
    return _is_unnamed(entry.name) and entry.is_file() and is_dicom(entry.path)


def _is_unnamed(name: str) -> bool:
    """Return whether a DICOM file may have a name; an index of such files, DICOMDIR, is none."""
    return may_be_unnamed(os.path.splitext(name)[1]) and name != "DICOMDIR"  # noqa: PTH122


def list_folder(folder: Path | str) -> Sequence[os.DirEntry[str] | RemoteEntry]:
    """Return the entries of a folder that are not hidden, sorted by name.

    Raises
    ------
    InvalidInputError
        If the folder cannot be listed.
    """
    if isinstance(folder, RemotePath):
        return [entry for entry in folder.entries() if not entry.name.startswith(".")]
    return sorted(_entries(folder), key=lambda entry: entry.name)


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise InvalidInputError(f"cannot list folder {folder}: {error.strerror}") from None


def _identity(root: Path, files: Sequence[str]) -> str:
    """Return the identity of files; those of frames once for all of their frames."""
    if not any(file.endswith("]") for file in files):
        return identity_of(root, files)
    paths = [frame_of(os.path.join(root, file)) for file in files]  # noqa: PTH118
    whole = list(dict.fromkeys(os.path.relpath(path, root) for path, _ in paths))
    return digest_of_json([identity_of(root, whole), list(files)])


@dataclass(frozen=True)
class FileSource:
    """Image files, decoded one at a time as they are read.

    Parameters
    ----------
    root
        Folder that holds them all.
    files
        Paths relative to ``root``, in order.
    as_published, window, to
        As for `decode`.
    """

    root: Path
    files: Sequence[str]
    as_published: bool = False
    window: Window | None = field(default=None, kw_only=True)
    to: Resizing | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the files, see :mod:`oodcli.data.identity`, and of how they are decoded."""
        key = [_identity(self.root, self.files), self.as_published]
        return digest_of_json(key if self.window is None else [*key, str(self.window)])

    @property
    def is_folder(self) -> bool:
        """Whether the files are all images of a folder, not chosen ones that something lists."""
        return not self.as_published

    def key_of(self, row: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, self.files[row])  # noqa: PTH118 - a million files

    def name_of(self, row: int) -> str:
        """Return the path of an image in the folder."""
        return self.files[row]

    def problem_of(self, row: int) -> str | None:  # noqa: ARG002 - of lists
        """Return why a row has no image, where that is known before its file is opened."""
        return None

    def take(self, rows: NDArray[np.int64], /) -> "FileSource":
        """Return a source of chosen files."""
        return replace(self, files=chosen_texts(self.files, rows))

    def read(self, start: int, stop: int, /) -> Iterator[NDArray[np.uint8] | UnreadableImageError]:
        """Yield images ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.
        """
        for file in self.files[start:stop]:
            try:
                image = self.decoded(file)
            except UnreadableImageError as error:
                yield error
            else:
                yield image

    def decoded(self, file: str) -> NDArray[np.uint8]:
        """Return the pixels of one of the files, see `decode`.

        Raises
        ------
        UnreadableImageError
            If it cannot be read.
        """
        path = self.root / file
        return decode(path, as_published=self.as_published, window=self.window, to=self.to)

    def size_of(self, row: int) -> tuple[int, int]:
        """Return the height and width of an image, by its header.

        Raises
        ------
        UnreadableImageError
            If it cannot be read.
        """
        path, problem = self.root / self.files[row], self.problem_of(row)
        if problem is not None:
            raise UnreadableImageError(printable(self.key_of(row)), problem)
        with _opened(path) as (file, frame):
            return size_in_header(
                file,
                where=printable(str(path)),
                as_published=self.as_published,
                window=self.window,
                frame=frame,
            )
