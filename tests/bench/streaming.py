"""Training images a second from files of ImageNet's size, ours against torchvision's ImageFolder.

    python tests/bench/streaming.py FOLDER [--workers N] [--size 224] [--batch 64] [--repeat N]
                                           [--grow SIDE] [--model NAME]

``FOLDER`` holds a folder of images for every class. Both sides begin with the files, in random
order, and end with normalised float32 batches on the CPU: a random resized crop of each image,
mirrored with probability one half. ``torchvision`` is ``ImageFolder`` behind a ``DataLoader`` whose
workers persist. Epochs of both take turns; the first one of each, in which workers start, does not
count. ``--grow`` first writes the images anew with a shorter side of that many pixels and some
noise, as JPEG of quality 90, where those of a small set are to stand for large ones. On Linux the
time that workers were on a processor is told too, which other programs disturb less. ``--model``
also trains that network of torchvision for an epoch on either side.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from oodcli.data.decoding.random_access import Decoders
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.formats.folders import open_folder
from oodcli.training.augment import augmented
from oodcli.training.recipe_choice import recipe_named
from oodcli.training.streaming import StreamedImages, after_crop

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
RECIPE = recipe_named("t2fnorm-imagenet200")


def grown(folder: Path, side: int, into: Path) -> None:
    """Write larger copies of all images, with noise that makes files as large as photographs'."""
    chance = np.random.default_rng(0)
    for file in sorted(folder.glob("*/*")):
        image = Image.open(file).convert("RGB")
        factor = side / min(image.size)
        image = image.resize([round(n * factor) for n in image.size], Image.Resampling.BICUBIC)
        noisy = np.asarray(image) + chance.normal(0, 6, (image.height, image.width, 1))
        target = into / file.parent.name / f"{file.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target, quality=90)


def ours(folder: Path, decoders: Decoders, size: int, batch: int) -> Callable[[int], Batches]:
    """Return what reads an epoch as the tool does."""
    dataset = open_folder(folder, name="bench", spec="", role="id")
    part = dataset.parts["train"]
    stream = StreamedImages(
        part.source,
        np.arange(len(part)),
        torch.from_numpy(part.labels),
        resizing=Resizing((size, size), "shorter-crop"),
        decoders=decoders,
        crop_scale=RECIPE.crop_scale,
    )
    rest = replace(RECIPE, augmentation=after_crop(RECIPE))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (RECIPE.mean, RECIPE.std))

    def epoch(number: int) -> Batches:
        chance = torch.Generator().manual_seed(number)
        rows = torch.randperm(len(part), generator=chance).split(batch)
        arriving = stream.arriving(rows, epoch=number, views=1, share=torch.arange)
        for at, (pixels,) in zip(rows, arriving, strict=True):
            seen = augmented(pixels, chance, rest)
            yield seen.float().div_(255).sub_(mean).div_(std), stream.labels[at]

    return epoch


def torchvisions(folder: Path, workers: int, size: int, batch: int) -> Callable[[int], Batches]:
    """Return what reads an epoch as torchvision does."""
    images = datasets.ImageFolder(
        str(folder / "train"),
        transform=transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=RECIPE.crop_scale),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(RECIPE.mean, RECIPE.std),
            ]
        ),
    )
    loader = DataLoader(
        images, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda _number: iter(loader)


def worker_seconds() -> float:
    """Return how long the processes that this one started have been on a processor."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    ticks = 0
    for child in children.read_text().split() if children.exists() else ():
        after_name = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def read(batches: Batches) -> tuple[float, int]:
    """Return seconds and images of an epoch that only reads."""
    start = time.perf_counter()
    count = sum(len(labels) for _, labels in batches)
    return time.perf_counter() - start, count


def trained(batches: Batches, name: str, classes: int) -> tuple[float, int]:
    """Return seconds and images of an epoch that trains a network."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=classes)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    start, count = time.perf_counter(), 0
    for images, labels in batches:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
        count += len(labels)
    return time.perf_counter() - start, count


def main() -> None:
    """Print images a second of both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--grow", type=int)
    parser.add_argument("--model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, Decoders(options.workers) as decoders:
        root = Path(work)
        if options.grow:
            grown(options.folder, options.grow, root / "train")
        else:
            (root / "train").symlink_to(options.folder.resolve())
        files = list((root / "train").glob("*/*"))
        kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
        print(f"{len(files)} files of {kilobytes:.0f} kB, {options.workers} workers")  # noqa: T201
        sides = {
            "ood": ours(root, decoders, options.size, options.batch),
            "torchvision": torchvisions(root, options.workers, options.size, options.batch),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        costs = dict.fromkeys(sides, 0.0)
        for number in range(options.repeat + 1):
            for name, epoch in sides.items():
                before = worker_seconds()
                seconds, count = read(epoch(number))
                if number:
                    rates[name].append(count / seconds)
                    costs[name] += (worker_seconds() - before) / count / options.repeat
        for name, values in rates.items():
            spread = ", ".join(f"{value:.0f}" for value in values)
            print(  # noqa: T201
                f"{name:12s} {statistics.median(values):8.1f} images/s ({spread}), "
                f"{1000 * costs[name]:.1f} ms of a worker each"
            )
        if options.model:
            classes = len({file.parent.name for file in files})
            for name, epoch in sides.items():
                seconds, count = trained(epoch(99), options.model, classes)
                print(f"{name:12s} {count / seconds:8.1f} images/s, training {options.model}")  # noqa: T201


if __name__ == "__main__":
    main()
