"""Pixels of a shard in a file: written image by image, checked and read in chunks.

The file is what ``numpy.save`` writes of an array ``(n, 3, h, w)`` of uint8. However many images it
holds, no more than a chunk of them is in memory.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError
from oodcli.images import Digest, chunk_rows, image_digest


@dataclass(frozen=True)
class PixelFile:
    """Images in an open file, which is read wherever it stands.

    Parameters
    ----------
    file
        The file; whoever opened it closes it.
    start
        Where in it the first pixel is.
    shape
        Number of images, 3, height and width.
    """

    file: IO[bytes]
    start: int
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, file: IO[bytes]) -> "PixelFile":
        """Read what stands at the head of a file.

        Raises
        ------
        CorruptArtifactError
            If it is not a file of pixels.
        """
        file.seek(0)
        try:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except (ValueError, EOFError) as error:
            raise CorruptArtifactError(f"not a file of pixels: {error}") from None
        start = file.tell()
        if fortran or dtype != np.uint8 or len(shape) != 4 or min(shape[1:]) < 1:
            raise CorruptArtifactError(f"not a file of pixels but of {dtype} {shape}")
        if file.seek(0, os.SEEK_END) != start + math.prod(shape):
            raise CorruptArtifactError(f"the file is cut short: it has not {shape} pixels")
        return cls(file, start, shape)

    @cached_property
    def digest(self) -> str:
        """Digest of the pixels, as :func:`oodcli.images.digest_of` gives it of the array."""
        digest = Digest(np.dtype(np.uint8), self.shape)
        for pixels in self.chunks():
            digest.update(pixels)
        return digest.hexdigest()

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels in order, uint8 ``(m, 3, h, w)``.

        Raises
        ------
        CorruptArtifactError
            If the file ends before the last of them.
        """
        count, channels, height, width = self.shape
        image = channels * height * width
        rows = chunk_rows(height, width)
        for at in range(0, count, rows):
            pixels = np.empty((min(rows, count - at), channels, height, width), np.uint8)
            self.file.seek(self.start + at * image)
            # Binary files have it, if not their type.
            if self.file.readinto(pixels.data) != pixels.nbytes:  # type: ignore[attr-defined]
                raise CorruptArtifactError("the file is cut short")
            yield pixels


class PixelWriter:
    """Writes images to a file, one after the other.

    Parameters
    ----------
    file
        An empty file that can be read, too.
    size
        Height and width of the images.

    Attributes
    ----------
    image_digests
        Those of the images so far, 8 bytes each; see :func:`oodcli.images.image_digest`.
    """

    def __init__(self, file: IO[bytes], size: tuple[int, int]) -> None:
        self._file = file
        self._size = size
        self._count = 0
        self.image_digests = bytearray()
        self._start = self._write_header()

    def add(self, image: NDArray[np.uint8]) -> None:
        """Write an image, uint8 ``(h, w, 3)`` of the size."""
        assert image.shape == (*self._size, 3)
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        self._file.write(pixels.data)
        self.image_digests += image_digest(pixels)
        self._count += 1

    def finished(self) -> PixelFile:
        """Return the file with all images that were added; it stays open."""
        self._file.seek(0)
        # NumPy leaves room in a header for any number of rows.
        assert self._write_header() == self._start
        self._file.flush()
        return PixelFile(self._file, self._start, (self._count, 3, *self._size))

    def _write_header(self) -> int:
        """Write the header of all images so far, and return where the first of them is."""
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": "|u1", "fortran_order": False, "shape": (self._count, 3, *self._size)},
        )
        return self._file.tell()
