"""Support for tests of commands: the type of the runner, and small folders of images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Ood = Callable[..., tuple[int, str, str]]


def tree(root: Path, *, parts: tuple[str, ...] = ("train", "test"), n: int = 12) -> Path:
    """Write a data set of class folders with images of two colours; return its folder."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part in parts:
        for label, name in enumerate(("blue", "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(n):
                pixels = rng.integers(0, 90, (20, 24, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * label] += 150
                Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return root


def flat(root: Path, *, n: int = 7) -> Path:
    """Write a folder of images of noise, without classes; return it."""
    from PIL import Image

    root.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for index in range(n):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(
            root / f"{index}.png"
        )
    return root
