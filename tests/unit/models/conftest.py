"""A small network, random images, and the real CIFAR images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oodcli.models import Network, network_of, parse_architecture


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """Return a builder of networks whose batch normalisations have been given something to do."""

    def make(arch: str = "resnet18:width=4", *, num_classes: int = 10) -> Network:
        torch.manual_seed(0)
        spec = parse_architecture(arch)
        module = spec.build(num_classes)
        for name, tensor in module.state_dict().items():
            if name.endswith("running_mean"):
                tensor.uniform_(-0.2, 0.2)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
        return network_of(spec, module)

    return make


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network()


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """Return twenty images of 16 x 16."""
    return np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="session")
def cifar_test(shared: Path) -> Callable[[str], tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Return a reader of the test images ``(10000, 3, 32, 32)`` and labels of a CIFAR."""
    from PIL import Image

    def read(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        grid = np.asarray(Image.open(shared / "data" / name / "test.webp").convert("RGB"))
        rows, columns = grid.shape[0] // 32, grid.shape[1] // 32
        tiles = grid.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3)
        with np.load(shared / "data" / name / "test_labels.npz", allow_pickle=False) as labels:
            return tiles.reshape(-1, 3, 32, 32), labels["labels"]

    return read
