"""Time from the CIFAR-10 archive to one tensor of 50,000 images, ours against torchvision's class.

    python tests/bench/reading.py ARCHIVE [--repeat N]

``ARCHIVE`` is ``cifar-10-python.tar.gz``; any archive of that layout will do, since neither side's
checksums are looked at. Both begin with the archive and end with normalised float32 pixels,
``(50000, 3, 32, 32)``, in memory, in one process. ``torchvision`` unpacks the archive and reads its
class image by image through a DataLoader without workers. ``ood`` is timed twice: when it decodes
into its store, and again, from the store.
"""

import argparse
import hashlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from oodcli.data import prepare
from oodcli.data.formats import cifar
from oodcli.store.store import Store

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
TRAIN_IMAGES = 50_000


def accept(archive: Path) -> None:
    """Let an archive of the same layout pass for the published one."""
    with tarfile.open(archive) as tar:
        sums = {
            name: hashlib.md5(
                tar.extractfile(f"{cifar.CIFAR10.folder}/{name}").read(), usedforsecurity=False
            ).hexdigest()
            for name in cifar.CIFAR10.members
        }
    object.__setattr__(cifar.CIFAR10, "members", sums)
    datasets.CIFAR10._check_integrity = lambda _self: True
    datasets.CIFAR10.meta = {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]}


def ours(archive: Path, store: Store) -> torch.Tensor:
    """Read the training images as the tool does."""
    dataset = cifar.open_cifar(
        archive, store, release=cifar.CIFAR10, name="cifar10", spec="cifar10"
    )
    pixels = torch.from_numpy(prepare(dataset.parts["train"], store, name="cifar10").pixels())
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return pixels.float().div_(255).sub_(mean).div_(std)


def torchvisions(archive: Path, folder: Path) -> torch.Tensor:
    """Read the training images one by one, through a DataLoader."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    dataset = datasets.CIFAR10(
        str(folder),
        train=True,
        transform=transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
    )
    return torch.cat([images for images, _ in DataLoader(dataset, batch_size=256)])


def timed(
    read: Callable[[Path, Any], torch.Tensor], archive: Path, into: Path | Store
) -> tuple[float, torch.Tensor]:
    """Return seconds and what was read."""
    start = time.perf_counter()
    images = read(archive, into)
    return time.perf_counter() - start, images


def main() -> None:
    """Print the times and check that both sides read the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    accept(options.archive)
    seconds: dict[str, list[float]] = {"ood, first": [], "ood, again": [], "torchvision": []}
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory() as work:
            store = Store(Path(work) / "store")
            first, images = timed(ours, options.archive, store)
            again, _ = timed(ours, options.archive, store)
            theirs, wanted = timed(torchvisions, options.archive, Path(work) / "tv")
            assert len(images) == TRAIN_IMAGES
            assert torch.allclose(images, wanted, atol=1e-6)
            for name, value in zip(seconds, (first, again, theirs), strict=True):
                seconds[name].append(value)
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:12s} {middle:7.2f} s  {TRAIN_IMAGES / middle:10,.0f} images/s")  # noqa: T201 - the result


if __name__ == "__main__":
    main()
