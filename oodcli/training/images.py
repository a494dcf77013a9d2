"""The images of a training run: prepared, checked, and held in memory or streamed."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from oodcli.compute.memory import free_memory
from oodcli.compute.processes import Processes
from oodcli.data.benchmarks import BENCHMARKS, given_name
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.gathering import Gathering
from oodcli.data.decoding.prepare import are_stored, prepare, stored_pixels
from oodcli.data.decoding.random_access import Decoders
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.originals import OriginalSizes
from oodcli.data.splits import split
from oodcli.errors import InvalidInputError, OodError
from oodcli.images import ImageSet, ImageShard
from oodcli.progress import Progress
from oodcli.store.preprocess import Preprocess
from oodcli.store.store import Store
from oodcli.text import counted
from oodcli.training.loop import LabelledPixels
from oodcli.training.recipes import Recipe
from oodcli.training.streaming import StreamedImages, TrainingImages, crops_originals, fits


def with_published_val(store: Store, dataset: Dataset, progress: Progress) -> Dataset:
    """Add published validation images to a data set that has none.

    Parameters
    ----------
    store
        Holds the lists of benchmarks.
    dataset
        The data.
    progress
        Reports the images that are used.

    Returns
    -------
    Dataset
        The data with a ``val`` part from the list of a benchmark; unchanged if it has one already,
        or if no list is published or can be read.
    """
    if "val" in dataset.parts or "test" not in dataset.parts:
        return dataset
    name = given_name(dataset.spec)
    published = [b for b in BENCHMARKS.values() if b.id_set == name and b.id_val_list]
    for benchmark in published:
        with contextlib.suppress(OodError):
            val = split(dataset, benchmark.id_val_list, store).part
            progress.note(
                f"validation images: {len(val)} of the test images, listed by {benchmark.name}"
            )
            return replace(dataset, parts={**dataset.parts, "val": val})
    return dataset


@dataclass(frozen=True)
class Placement:
    """How the images of a training run are read.

    Parameters
    ----------
    cropped
        Whether training images are cropped from their originals at random.
    held
        Names of the parts that are held in memory; the others are streamed.
    prepared
        Names of the parts that are decoded and stored before training. The others are decoded
        while they are needed, and the pixels of training images that can be stored are gathered on
        the way.

    Notes
    -----
    Whether training images are cropped from their originals depends only on the recipe and the
    images; it affects the weights. Whether images are held in memory or streamed depends on the
    free memory; it does not affect the weights.
    """

    cropped: bool
    held: frozenset[str]
    prepared: frozenset[str]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        recipe: Recipe,
        size: tuple[int, int],
        *,
        free: int | None,
        check: bool,
    ) -> "Placement":
        """Decide how the images are read, before any is decoded.

        Parameters
        ----------
        dataset
            The data.
        recipe
            Recipe with the augmentation of training images.
        size
            Height and width of the images of the run.
        free
            Free memory in bytes; None if unknown.
        check
            Whether all images must have been decoded before training, to find unreadable ones.
        """
        counts = {name: len(part) for name, part in dataset.parts.items() if name != "test"}
        if "test" not in dataset.parts:
            counts.pop("val", None)
        cropped = crops_originals(recipe) and OriginalSizes.of(
            dataset.parts["train"].source
        ).differ_from(size)
        held = {name for name in counts if not (name == "train" and cropped)}
        if not fits(sum(counts[name] for name in held), size, free):
            held = {name for name in held if name != "train" and fits(counts[name], size, free)}
        prepared = {
            name
            for name, part in dataset.parts.items()
            if check or name in held or (name != "train" and are_stored(len(part), size))
        }
        return cls(cropped, frozenset(held), frozenset(prepared))


def labelled_images(
    store: Store,
    dataset: Dataset,
    part: str,
    preprocess: Preprocess,
    *,
    skip_unreadable: bool,
    progress: Progress,
    decode: bool = True,
    seen: Callable[[ImageShard], None] | None = None,
) -> ImageSet:
    """Decode and resize a part of the data, or read it from the store.

    Parameters
    ----------
    store
        Where prepared images are stored.
    dataset
        The data.
    part
        Name of the part.
    preprocess
        Size of the images, and how they are resized to it.
    skip_unreadable
        Whether images that cannot be decoded are skipped.
    progress
        Reports the images decoded and skipped.
    decode, seen
        As for :func:`oodcli.data.decoding.prepare.prepare`.

    Raises
    ------
    OodError
        If an image cannot be decoded, or no image has a label.
    """
    images = prepare(
        dataset.parts[part],
        store,
        name=f"{dataset.name} {part}",
        size=preprocess.size,
        resize=preprocess.resize,
        progress=progress,
        skip_unreadable=skip_unreadable,
        decode=decode,
        seen=seen,
    )
    if images.skipped:
        progress.note(f"{images.name}: {counted(len(images.skipped), 'unreadable image')} skipped")
    if images.labels is None or len(images) == 0:
        raise InvalidInputError(f"the {part} part of {dataset.name} has no labelled images")
    return images


def check_class_count(dataset: Dataset) -> None:
    """Refuse data with a single class, before any image is decoded.

    Raises
    ------
    InvalidInputError
        If the data has fewer than two classes.
    """
    if len(dataset.class_names) < 2:
        raise InvalidInputError(f"{dataset.name} has one class; a classifier needs at least two")


def check_classes(train: ImageSet, dataset: Dataset) -> None:
    """Refuse training images that lack a class.

    Parameters
    ----------
    train
        The training images, with labels.
    dataset
        The data.

    Raises
    ------
    InvalidInputError
        If a class has no training images.
    """
    names = dataset.class_names
    assert train.labels is not None  # ensured by labelled_images
    seen = np.bincount(train.labels, minlength=len(names))
    if not seen.all():
        name = names[int(seen.argmin())]
        # Published lists `path label` count from 0, other tables from 1 if 1 is the smallest.
        counted = "; if the classes of a list count from 1, write it as CSV: path,label"
        raise InvalidInputError(
            f"class {name} of {dataset.name} has no training images left; add some, or remove it"
            f"{counted if name == '0' else ''}"
        )


def place_images(
    store: Store,
    dataset: Dataset,
    parts: Mapping[str, ImageSet],
    placement: Placement,
    *,
    recipe: Recipe,
    resizing: Resizing,
    seed: int,
    device: torch.device,
    decoders: Decoders,
    progress: Progress,
    processes: Processes,
) -> dict[str, TrainingImages]:
    """Hold the images on the device if they fit, and stream the others.

    Parameters
    ----------
    store
        Where prepared images are stored.
    dataset
        The data.
    parts
        The images, by name of the part; of parts that are held, prepared.
    placement
        How they are read.
    recipe
        Recipe with the augmentation of training images.
    resizing
        Size of the images, and how they are resized to it.
    seed
        Seed of the run.
    device
        The device that trains.
    decoders
        The processes that decode streamed images.
    progress
        Reports that training images are streamed, and why.
    processes
        The processes that train together.

    Returns
    -------
    dict
        The images by name of the part.
    """
    images: dict[str, TrainingImages] = {}
    for name, part in parts.items():
        assert part.labels is not None  # ensured by labelled_images
        labels = torch.from_numpy(part.labels).to(device)
        if name in placement.held:
            pixels = torch.from_numpy(np.ascontiguousarray(part.pixels()))
            images[name] = LabelledPixels(pixels.to(device), labels)
            continue
        originals = dataset.parts[name]
        how: dict[str, Any] = {"name": part.name, "resizing": resizing, "progress": progress}
        # Each of several processes decodes a share of the images only.
        gathers = (
            name == "train"
            and are_stored(len(originals), resizing.size)
            and not processes.distributed
        )
        images[name] = StreamedImages(
            originals.source,
            np.concatenate([shard.indices for shard in part.shards]),
            labels,
            resizing=resizing,
            decoders=decoders,
            crop_scale=recipe.crop_scale if name == "train" and placement.cropped else None,
            seed=seed,
            stored=partial(stored_pixels, originals, store, **how),
            gathering=partial(Gathering.of, originals, store, **how) if gathers else _nothing,
        )
    if "train" not in placement.held:
        workers = f"{decoders.workers} processes" if decoders.workers else "this process"
        progress.note(
            f"training images are decoded on the fly by {workers}: "
            + (
                "random crops are taken from the original images"
                if placement.cropped
                else "they do not fit in memory"
            )
        )
    return images


def _nothing() -> None:
    """Gather nothing."""


def free_for_images(device: torch.device, processes: Processes) -> int | None:
    """Return the free memory in bytes for the images of one process; equal in all processes.

    Parameters
    ----------
    device
        The device that trains.
    processes
        The processes that train together.
    """
    free = free_memory(device)
    if free is not None and device.type != "cuda":
        free //= processes.local_size  # all processes of a host share its memory
    return processes.broadcast(free)
