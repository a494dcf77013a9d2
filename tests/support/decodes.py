"""Counts of decoded images, by the content of their files."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import IO

import pytest
from PIL import Image

from oodcli.data.decoding import files


class Decodes:
    """Counts how often the pixels of each image file are decoded, whatever the file lies in.

    Parameters
    ----------
    monkeypatch
        Undoes the counting after the test.

    Notes
    -----
    Every reader decodes through :func:`oodcli.data.decoding.files.decode_stream`. Only images of
    this process are counted: small ones are decoded by its threads, and training needs
    ``--data-workers 0``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._counts: Counter[str] = Counter()
        open_image = files.open_image

        def opened(stream: IO[bytes]) -> Image.Image:
            start = stream.tell()
            digest = hashlib.sha256(stream.read()).hexdigest()
            stream.seek(start)
            image = open_image(stream)
            load = image.load

            def counted() -> object:
                if image.tile:  # empty once it is decoded
                    self._counts[digest] += 1
                return load()

            image.load = counted  # type: ignore[method-assign]
            return image

        monkeypatch.setattr(files, "open_image", opened)

    def of(self, folder: Path) -> set[int]:
        """Return how often the images below a folder were decoded: the numbers that occur."""
        return set(self.each(folder))

    def each(self, folder: Path) -> list[int]:
        """Return how often each image below a folder was decoded."""
        found = [file for file in folder.rglob("*") if file.is_file()]
        assert found
        return [self._counts[hashlib.sha256(file.read_bytes()).hexdigest()] for file in found]

    def clear(self) -> None:
        """Count from zero."""
        self._counts.clear()
