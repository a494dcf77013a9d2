"""A store with a small trained run, made once, copied for every test that wants one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Ood = Callable[..., tuple[int, str, str]]


def tree(root: Path, *, parts: tuple[str, ...] = ("train", "test"), n: int = 12) -> Path:
    """Write a class-folder data set of two colours."""
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
    """Write a flat folder of noise."""
    from PIL import Image

    root.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for index in range(n):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(
            root / f"{index}.png"
        )
    return root


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train a tiny network on two colours once; return its store and its images."""
    from oodcli.store import Store
    from oodcli.workflows.train import TrainRequest, train

    root = tmp_path_factory.mktemp("trained")
    images = tree(root / "colours")
    train(
        Store(root / "store"),
        TrainRequest(
            data=str(images), arch="resnet18:width=2", name="tiny", epochs=2, batch_size=8
        ),
    )
    return root / "store", images


@pytest.fixture
def tiny(trained_store: tuple[Path, Path], tmp_path: Path) -> Path:
    """Copy the store with the tiny run for this test; return the folder of the run's images."""
    store, images = trained_store
    shutil.copytree(store, tmp_path / "store")
    return images
