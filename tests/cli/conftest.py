"""A store with a small trained run, made once, copied for every test that wants one."""

import shutil
from pathlib import Path

import pytest

from tests.support.browser import chromium  # noqa: F401 - a fixture of all tests of pages
from tests.support.cli import tree


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train a tiny network on two colours once; return its store and its images."""
    from oodcli.store.store import Store
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
