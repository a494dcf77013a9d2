"""Images a second of training, beside the loop that papers publish.

::

    python tests/bench/training.py --images 512 --data cifar10.npz
    python tests/bench/training.py --device cuda --images 50000 --compile
    python tests/bench/training.py --recipe mode-finetune --steps 3
    python tests/bench/training.py --augmentations --data cifar10.npz --arch resnet18:width=16
    python tests/bench/training.py --objectives oe,rotpred --images 256

The published-style loop has a DataLoader with 4 workers, torchvision's transforms of each image,
float32, and looks at the loss after every step. The ways take turns in one process, so that other
work on the machine slows all of them alike; ratios are of the same turn, and the median counts.
Where other work never ends, processor time tells more than the clock; it is that of this process
and its workers, and wants ``OMP_WAIT_POLICY=passive``, so that waiting takes none.
With ``--objectives`` (names, or ``all``) each objective takes turns with the published-style loop
of cross-entropy, with the same augmentation and batch size, and those with outliers with as many
random images as outliers. With ``--steps`` a recipe takes some full steps instead, and its memory
is told. With ``--augmentations`` the recipes of all augmentations take turns with the one without
them, and each augmentation of a batch alone with that of torchvision image by image.

``--data`` names an ``.npz`` file with uint8 ``train_images`` ``(n, 32, 32, 3)`` and
``train_labels``; images are random without it.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from oodcli.data.formats.fractals import FractalSource
from oodcli.models import network_of, parse_architecture
from oodcli.progress import Silent
from oodcli.training.augment import augmented, augmixed
from oodcli.training.augmentations.mixtures import View, mixed
from oodcli.training.loop import LabelledPixels, Trainer
from oodcli.training.objectives.base import OutlierObjective
from oodcli.training.objectives.registry import OBJECTIVES, parse_objective
from oodcli.training.objectives.training_module import LastBlock
from oodcli.training.outliers import Outliers, SetOutliers
from oodcli.training.recipe_choice import recipe_for, recipe_named
from oodcli.training.recipes import Recipe

CLASSES = 10
FULL_SET = 50_000  # training images of CIFAR, for the time of a whole recipe


class Published(Dataset[tuple[torch.Tensor, int]]):
    """Images that torchvision changes one by one, as they are asked for."""

    def __init__(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], recipe: Recipe
    ) -> None:
        known = {
            "flip": transforms.RandomHorizontalFlip(),
            "crop": transforms.RandomCrop(pixels.shape[1], padding=recipe.crop_padding),
        }
        self._change = transforms.Compose(
            [
                transforms.ToPILImage(),
                *(known[step] for step in recipe.augmentation),
                transforms.ToTensor(),
                transforms.Normalize(recipe.mean, recipe.std),
            ]
        )
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return self._change(self._pixels[at]), int(self._labels[at])


def loaded(path: str | None, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return uint8 images ``(count, 32, 32, 3)`` and their labels."""
    random = np.random.default_rng(0)
    if path is None:
        pixels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return pixels, random.integers(0, CLASSES, count)
    with np.load(path) as arrays:
        pixels, labels = arrays["train_images"], arrays["train_labels"].astype(np.int64)
    rows = random.permutation(len(labels))[:count]
    return pixels[rows], labels[rows]


def set_cudnn(*, deterministic: bool) -> None:
    """Choose kernels of a GPU as ``ood train`` does, or the fastest as most published code."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def published(
    arch: str, recipe: Recipe, data: tuple[NDArray[np.uint8], NDArray[np.int64]], device: str
) -> Iterator[None]:
    """Train epoch by epoch as published code does."""
    torch.manual_seed(0)
    module = parse_architecture(arch).build(CLASSES).to(device)
    loader = DataLoader(
        Published(*data, recipe),
        recipe.batch_size,
        shuffle=True,
        num_workers=4,
        pin_memory=device != "cpu",
        persistent_workers=True,  # so that an epoch of a few images starts no processes
    )
    optimiser = torch.optim.SGD(
        module.parameters(),
        recipe.lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    module.train()
    while True:
        set_cudnn(deterministic=False)
        for images, labels in loader:
            loss = nn.functional.cross_entropy(module(images.to(device)), labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
        yield


def trainer_of(arch: str, recipe: Recipe, device: str, *, amp: bool, compiled: bool) -> Trainer:
    """Make a network and what trains it, as ``ood train`` does."""
    torch.manual_seed(0)
    spec = parse_architecture(arch)
    module = spec.build(CLASSES)
    network = network_of(spec, module)
    objective = parse_objective(recipe.objective).objective
    last_block = None
    if "maps" in objective.needs:
        name, (channels, _, _) = list(network.block_shapes((32, 32)).items())[-1]
        last_block = LastBlock(network.blocks[name], channels, network.layout(name).maps)
    objective.attach(module, spec.architecture.head)
    return Trainer(
        module,
        recipe,
        seed=0,
        device=torch.device(device),
        amp=amp,
        objective=objective,
        head=spec.architecture.head,
        last_block=last_block,
        channels_last=spec.architecture.channels_last,
        compiled=compiled,
    )


def ours(
    of: Trainer,
    images: LabelledPixels,
    *,
    pictures: torch.Tensor | None = None,
    outliers: Outliers | None = None,
) -> Iterator[None]:
    """Train epoch by epoch with ``of``."""
    with Silent().task("training", total=None, unit="images") as task:
        epochs = of.epochs(images, None, done=0, task=task, pictures=pictures, outliers=outliers)
        while True:
            set_cudnn(deterministic=True)
            if next(epochs, None) is None:
                return
            yield


def wanted_objectives(text: str) -> list[str]:
    """Return the names of objectives: those with commas, or all that need no minutes per step."""
    if text != "all":
        return text.split(",")
    return [name for name in OBJECTIVES if name != "alpa"]


def with_objective(name: str, arch: str, recipe: Recipe, images: LabelledPixels) -> Iterator[None]:
    """Train epoch by epoch with an objective, and with as many outliers if it is one of these."""
    objective = parse_objective(name).objective
    # So small that an objective with its own schedule stays finite.
    own = replace(recipe, objective=name, lr=0.001)
    outliers = None
    if isinstance(objective, OutlierObjective):
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, images.pixels.shape, dtype=torch.uint8, generator=generator)
        others = LabelledPixels(pixels.to(images.pixels.device), images.labels)
        outliers = SetOutliers(others, own, seed=0)
    device = str(images.pixels.device)
    return ours(trainer_of(arch, own, device, amp=False, compiled=False), images, outliers=outliers)


def on_device(data: tuple[NDArray[np.uint8], NDArray[np.int64]], device: str) -> LabelledPixels:
    """Put images where they are trained on."""
    pixels, labels = data
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return LabelledPixels(torch.from_numpy(planes).to(device), torch.from_numpy(labels).to(device))


def processor_time() -> float:
    """Return the processor time of this process and its workers, in seconds; 0 without /proc."""
    ticks = 0
    for process in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def seconds(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Return the time that one call takes to the end of its work, by clock and processors."""
    started, used = time.perf_counter(), processor_time()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started, processor_time() - used


def compare(options: argparse.Namespace, recipe: Recipe) -> None:
    """Let all ways take turns, and print their rates."""
    device, write = options.device, sys.stdout.write
    data = loaded(options.data, options.images)
    epochs, recipe = recipe.epochs, recipe.changed(epochs=options.turns + 1)
    images = on_device(data, device)
    choices = {"ours, float32": (False, False), "ours, --amp": (True, False)}
    if options.compile:
        choices["ours, --amp --compile"] = (True, True)
    common = (options.arch, recipe)
    ways = {"published-style": published(*common, data, device)}
    if options.objectives:
        ways |= {
            name: with_objective(name, options.arch, recipe, images)
            for name in wanted_objectives(options.objectives)
        }
    else:
        for name, (amp, compiled) in choices.items():
            ways[name] = ours(trainer_of(*common, device, amp=amp, compiled=compiled), images)
    write(
        f"torch {torch.__version__}, {options.arch}, {recipe.name}, batch {recipe.batch_size}, "
        f"{options.images} images a turn, {device}, {torch.get_num_threads()} threads\n"
    )
    times = taken_in_turns(ways, options)
    for name in ways:
        rate = rates(name, times, options, of="published-style")
        whole = epochs * FULL_SET / rate
        write(f"; {epochs} epochs of {FULL_SET:,} images would take {whole:,.0f} s\n")


def taken_in_turns(
    ways: Mapping[str, Iterator[None]], options: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Let all ways take turns, and return the times of each turn by clock and processors."""
    device, write = options.device, sys.stdout.write
    for name, way in ways.items():
        first, _ = seconds(partial(next, way), device)
        write(f"{name:24s}first turn {first:6.1f} s\n")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(1, options.turns + 1):
        for name, way in ways.items():
            times[name].append(seconds(partial(next, way), device))
        lasts = [
            f"{name} {every[-1][0]:.1f} s ({every[-1][1]:.1f} s)" for name, every in times.items()
        ]
        write(f"turn {turn}: {', '.join(lasts)}\n")
        sys.stdout.flush()
    return times


def rates(
    name: str,
    times: Mapping[str, list[tuple[float, float]]],
    options: argparse.Namespace,
    *,
    of: str,
) -> float:
    """Print the rate of one way and its ratios to that of another; return it in images a second."""
    taken = times[name]
    ratios = [
        [a[kind] / b[kind] for a, b in zip(times[of], taken, strict=True)] for kind in range(2)
    ]
    clock, used = (
        f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in ratios
    )
    rate = options.images / statistics.median(each for each, _ in taken)
    sys.stdout.write(
        f"{name:24s}{rate:9.1f} images/s, times {of}: {clock} by the clock, {used} by processor "
        "time"
    )
    return rate


def augmentations(options: argparse.Namespace) -> None:
    """Let the recipes of all augmentations take turns, and time each augmentation alone."""
    device, write = options.device, sys.stdout.write
    data = loaded(options.data, options.images)
    images = on_device(data, device)
    pictures = torch.from_numpy(
        np.stack([*FractalSource(64, 36).read(0, 64)]).transpose(0, 3, 1, 2).copy()
    ).to(device)
    names = ("openood", "randaugment", "cutout", "pixmix", "mixup", "cutmix", "regmixup", "augmix")
    recipes = {name: recipe_named(f"{name}-cifar", "cifar10") for name in names}
    ways = {}
    for name, recipe in recipes.items():
        short = recipe.changed(epochs=options.turns + 1, batch_size=options.batch_size)
        of = trainer_of(options.arch, short, device, amp=options.amp, compiled=False)
        ways[name] = ours(of, images, pictures=pictures)
    write(
        f"torch {torch.__version__}, {options.arch}, batch {short.batch_size}, {options.images} "
        f"images a turn, {device}, {torch.get_num_threads()} threads\n"
    )
    times = taken_in_turns(ways, options)
    for name in ways:
        rates(name, times, options, of="openood")
        write("\n")
    alone(images.pixels[:128], recipes, pictures, options)


def alone(
    pixels: torch.Tensor,
    recipes: Mapping[str, Recipe],
    pictures: torch.Tensor,
    options: argparse.Namespace,
) -> None:
    """Print the processor time of each augmentation of a batch, and of torchvision's."""
    generator = torch.Generator(options.device).manual_seed(0)
    drawn = np.random.default_rng(0)
    own = [transforms.functional.to_pil_image(each) for each in pixels.cpu()]
    known: dict[str, Callable[[object], object]] = {
        "randaugment": transforms.RandAugment(
            1, 14, interpolation=transforms.InterpolationMode.BILINEAR
        ),
        "augmix": transforms.AugMix(severity=1, mixture_width=3),
    }
    for name, recipe in recipes.items():
        words = tuple(step for step in recipe.augmentation if step not in ("flip", "crop"))
        of_word = replace(recipe, augmentation=words)

        def run(of_word: Recipe = of_word) -> None:
            for _ in range(5):
                changed = augmented(pixels, generator, of_word, pictures)
                mixed(View(changed, torch.zeros(len(pixels), dtype=torch.int64)), drawn, of_word)
                if of_word.compares_views:
                    augmixed(pixels, generator, of_word)

        run()
        used = min(seconds(run, options.device)[1] for _ in range(options.turns)) / 5
        line = f"{name:24s}{1e3 * used:9.1f} ms of processor time per {len(pixels)} images"
        if name in known:
            change = known[name]

            def published_style(change: Callable[[object], object] = change) -> None:
                for image in own:
                    change(image)

            theirs = min(seconds(published_style, "cpu")[1] for _ in range(options.turns))
            line += f", torchvision one by one {1e3 * theirs:.1f} ms"
        sys.stdout.write(f"{line}\n")


def full_steps(options: argparse.Namespace, recipe: Recipe) -> None:
    """Take steps with all of a batch, and print their time and memory."""
    device, write = options.device, sys.stdout.write
    data = loaded(options.data, recipe.batch_size)
    recipe = recipe.changed(epochs=options.steps)  # an epoch of one step
    of = trainer_of(options.arch, recipe, device, amp=options.amp, compiled=options.compile)
    way = ours(of, on_device(data, device))
    views = parse_objective(recipe.objective).objective.views
    write(f"{options.arch}, {recipe.name}, {recipe.objective}, {views * recipe.batch_size} views\n")
    for step in itertools.count(1):
        try:
            taken, _ = seconds(partial(next, way), device)
        except StopIteration:
            break
        peak = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            if device == "cpu"
            else torch.cuda.max_memory_reserved() / 2**30
        )
        write(f"step {step}: {taken:.1f} s, at most {peak:.2f} GiB so far\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure images a second of training.")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--recipe", help="a published recipe [default: that of the network]")
    parser.add_argument("--data", help=".npz file with train_images and train_labels")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--amp", action="store_true", help="with --steps: in bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--augmentations", action="store_true", help="compare augmentations")
    parser.add_argument("--objectives", help="names with commas, or all")
    parser.add_argument("--steps", type=int, help="take full steps, and tell the memory")
    options = parser.parse_args()
    arch = parse_architecture(options.arch).name
    recipe = (
        recipe_named(options.recipe, "cifar10")
        if options.recipe
        else recipe_for(arch, "cifar10", "cross-entropy")
    )
    if options.batch_size:
        recipe = replace(recipe, batch_size=options.batch_size)
    if options.augmentations:
        augmentations(options)
    elif options.steps:
        full_steps(options, recipe)
    else:
        compare(options, recipe)


if __name__ == "__main__":
    main()
