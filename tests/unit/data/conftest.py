"""Small images and data sets that the tests of this package share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from oodcli.progress import Task
from oodcli.store.store import Store

Pixels = NDArray[np.uint8]


class Recorder:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[tuple[str, int | None, str]] = []
        self.advanced = 0

    def note(self, message: str, /) -> None:
        self.notes.append(message)

    def task(
        self, description: str, /, *, total: int | None, unit: str, passing: bool = False
    ) -> "Recorder":
        self.tasks.append((description, total, unit))
        self.advanced = 0
        return self

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def advance(self, amount: int, /, **fields: str) -> None:
        self.advanced += amount


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(tmp_path / "store")


@pytest.fixture
def random_images() -> Callable[..., Pixels]:
    """Return a function that makes random images of a shape, ``(n, h, w, 3)`` by default."""

    def make(*shape: int, seed: int = 0) -> Pixels:
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def write_images() -> Callable[[Path, Pixels], list[Path]]:
    """Return a function that writes images as 00000.png, 00001.png, … into a folder."""

    def write(folder: Path, images: Pixels) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{row:05d}.png" for row in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path, compress_level=1)
        return paths

    return write
