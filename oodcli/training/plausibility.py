"""Whether a network from elsewhere does on labelled images what it should.

A few hundred labelled images go through it. Their accuracy is held against the one that stands in
the file, against chance, against other usual normalisations where nothing says which one is right,
and against what it would be with the classes in another order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from oodcli.compute.devices import explain_out_of_memory
from oodcli.data.dataset import CALIBRATION_SEED, Dataset, stratified, take
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.decoding.workers import resized
from oodcli.errors import UnreadableImageError
from oodcli.models import Checkpoint, Network
from oodcli.models.extraction import extract
from oodcli.pools import open_pools
from oodcli.progress import Progress
from oodcli.records import as_json
from oodcli.store.runs import Preprocess

# The accuracy of so many images has a standard error of 2.2 %, or 3.1 %, at most.
_IMAGES = 500
_LARGE_IMAGES = 256
_LARGE_PIXELS = 96 * 96
_SHARD_ROWS = 64
# How unlikely a result has to be, and how large a difference, before it is a warning.
_CHANCE_LEVEL = 0.01
_LEVEL = 1e-3
# Of the way from chance to 100 %, so much is hardly better than chance.
_LEAST_SKILL = 0.05
_LEAST_LOSS = 0.02
_LEAST_GAIN_OF_ORDER = 0.05
# An assignment of so many classes takes a second.
_MOST_ASSIGNED = 2000

Three = tuple[float, float, float]
Labels = NDArray[np.int64]
# Normalisations that published classifiers were trained with.
_USUAL: Mapping[str, tuple[Three, Three]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "Inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "pixels from 0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Plausibility:
    """How a network did on some labelled images.

    Parameters
    ----------
    part
        The part of the data that they are of.
    images
        How many they are.
    accuracy
        Share of them that it classifies correctly.
    chance
        The share that guessing gets: one class of all, or the share of the most frequent class.
    stored
        Accuracy that stands in the file, from 0 to 1; None if none does.
    stored_name
        What it is called there.
    warnings
        What looks wrong, a line each.
    """

    part: str
    images: int
    accuracy: float
    chance: float
    stored: float | None
    stored_name: str
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as a run's record has it."""
        return {**as_json(self), "warnings": list(self.warnings)}

    @property
    def line(self) -> str:
        """The accuracy in words."""
        against = f"chance {_percent(self.chance)}"
        if self.stored is not None:
            against += f"; {self.stored_name} in the file: {_percent(self.stored)}"
        return f"accuracy {_percent(self.accuracy)} on {self.images} {self.part} images ({against})"


@dataclass(frozen=True)
class Order:
    """Classes in another order than that of the data set.

    Parameters
    ----------
    predictions
        Class of every image in that order, ``(n,)``.
    found
        How it was found, for people to read.
    """

    predictions: Labels
    found: str


def plausibility(
    network: Network,
    dataset: Dataset,
    preprocess: Preprocess,
    checkpoint: Checkpoint,
    *,
    assumed: bool,
    device: torch.device,
    progress: Progress,
) -> Plausibility | None:
    """Classify a few hundred labelled images, and say what looks wrong.

    Parameters
    ----------
    network
        The network.
    dataset
        The data that it was trained on, with the classes in the order of its outputs.
    preprocess
        What happens to an image before.
    checkpoint
        The weights, with the accuracy that stands beside them.
    assumed
        Whether nothing says that the normalisation is right.
    device
        Where to compute.
    progress
        Told of the pass.

    Returns
    -------
    Plausibility
        None if no labelled image can be read.

    Raises
    ------
    OodError
        If the network cannot compute on the device, or gives values that are not finite.
    """
    name = dataset.test_name if {"test", "val"} & set(dataset.parts) else "train"
    pixels, labels = _images(dataset, name, Resizing(preprocess.size, preprocess.resize))
    if not len(labels):
        return None

    def predicted(mean: Three, std: Three) -> Labels:
        return _predicted(network, pixels, mean, std, device=device, progress=progress)

    found = predicted(preprocess.mean, preprocess.std)
    names = dataset.class_names
    accuracy, n = float((found == labels).mean()), len(labels)
    every = dataset.parts[name].labels
    assert every is not None  # the data set has classes
    # Of all of the part: of 256 images in 1,000 classes every class has one, or none.
    chance = max(1 / len(names), float(np.bincount(every).max()) / len(every))
    warnings = [
        *_against_stored(checkpoint, accuracy, n),
        *_against_chance(accuracy, n, chance),
    ]
    order = better_order(found, labels, names)
    if order is not None:
        warnings.append(_said(order, found, labels, names))
    elif assumed or warnings:
        warnings += _against_usual(found, labels, preprocess, predicted)
    return Plausibility(
        name,
        n,
        accuracy,
        chance,
        checkpoint.accuracy,
        checkpoint.accuracy_name,
        tuple(warnings),
    )


def _images(dataset: Dataset, name: str, resizing: Resizing) -> tuple[NDArray[np.uint8], Labels]:
    """Read some images of a part at their size, every class in proportion."""
    part = dataset.parts[name]
    assert part.labels is not None  # the data set has classes
    large = resizing.size[0] * resizing.size[1] > _LARGE_PIXELS
    count = min(len(part), _LARGE_IMAGES if large else _IMAGES)
    chosen = take(part, stratified(part.labels, count, seed=CALIBRATION_SEED))
    assert chosen.labels is not None
    pixels, labels = [], []
    with open_pools() as pools:
        images = resized(pools, chosen.source, 0, count, resizing.apply)
        for image, label in zip(images, chosen.labels, strict=True):
            if not isinstance(image, UnreadableImageError):
                pixels.append(image.transpose(2, 0, 1))
                labels.append(label)
    empty = np.empty((0, 3, *resizing.size), dtype=np.uint8)
    return np.stack(pixels) if pixels else empty, np.array(labels, dtype=np.int64)


def _predicted(
    network: Network,
    pixels: NDArray[np.uint8],
    mean: Three,
    std: Three,
    *,
    device: torch.device,
    progress: Progress,
) -> Labels:
    """Return the predicted class of every image, ``(n,)``."""
    shards = (pixels[at : at + _SHARD_ROWS] for at in range(0, len(pixels), _SHARD_ROWS))
    with (
        progress.task("trying the network", total=len(pixels), unit="images", passing=True) as task,
        explain_out_of_memory(device, "use another: --device cpu"),
    ):
        passes = extract(network, shards, mean=mean, std=std, device=device, advance=task.advance)
        return np.concatenate([batch.predictions.cpu().numpy() for batch in passes])


def _against_stored(checkpoint: Checkpoint, accuracy: float, n: int) -> Iterator[str]:
    stored = checkpoint.accuracy
    if stored is None or stored - accuracy < _LEAST_LOSS:
        return
    if binom.cdf(round(accuracy * n), n, stored) < _LEVEL:
        yield (
            f"accuracy was {_percent(accuracy)}, and {checkpoint.accuracy_name} in the file is "
            f"{_percent(stored)}: check normalisation, size, and the order of the classes"
        )


def _against_chance(accuracy: float, n: int, chance: float) -> Iterator[str]:
    if chance == 1:  # images of one class tell nothing
        return
    if binom.sf(round(accuracy * n) - 1, n, chance) > _CHANCE_LEVEL:
        better = "no better"
    elif accuracy - chance < _LEAST_SKILL * (1 - chance):
        better = "hardly better"
    else:
        return
    yield (
        f"accuracy was {_percent(accuracy)}, {better} than chance ({_percent(chance)}): the "
        "network, the size or normalisation of its images, or the order of its classes is wrong"
    )


def _against_usual(
    found: Labels,
    labels: Labels,
    preprocess: Preprocess,
    predicted: Callable[[Three, Three], Labels],
) -> Iterator[str]:
    """Try the other usual normalisations, and name all that are better and as good as the best."""
    right = found == labels
    tried = {
        name: predicted(mean, std) == labels
        for name, (mean, std) in _USUAL.items()
        if (mean, std) != (preprocess.mean, preprocess.std)
    }
    best = max(tried.values(), key=lambda each: int(each.sum()))
    if best.mean() - right.mean() < _LEAST_LOSS or not _is_better(best, right):
        return
    alike = [
        f"{_percent(float(each.mean()))} with that of {name} (--mean {_numbers(_USUAL[name][0])} "
        f"--std {_numbers(_USUAL[name][1])})"
        for name, each in tried.items()
        if _is_better(each, right) and not _is_better(best, each)
    ]
    yield (
        f"accuracy was {_percent(float(right.mean()))}, but with another normalisation "
        f"{', or '.join(alike)}: name the one that it was trained with"
    )


def better_order(found: Labels, labels: Labels, names: Sequence[str]) -> Order | None:
    """Return an order of the classes in which many more images are classified correctly.

    Parameters
    ----------
    found
        Predicted class of every image, ``(n,)``.
    labels
        Its class in the data set, ``(n,)``.
    names
        Names of the classes.

    Returns
    -------
    Order
        None if there is none.

    Notes
    -----
    Tried are all cyclic shifts, which need one image of a class; the names in numerical order, and
    in that of letters without regard to case; and the assignment of outputs to classes that makes
    the trace of the confusion matrix largest. It is fitted on each half of the images of a class
    and judged on the other half, for with few images a class some assignment always looks good. An
    order counts if it is right on 5 % more of the images, and if as many were by chance less often
    than once in 1,000 times (binomial; of shifts once in 1,000 times the number of classes; where
    it and the present order disagree, a sign test).
    """
    count, n = len(names), len(labels)
    orders = [*_known_orders(found, names)]
    shifts = np.bincount((found - labels) % count, minlength=count)
    shift = int(shifts.argmax())
    if shift and binom.sf(shifts[shift] - 1, n, 1 / count) < _LEVEL / count:
        moved = (found - shift) % count
        orders.append(
            Order(moved, f"the outputs are shifted by {min(shift, shift - count, key=abs)}")
        )
    if 1 < count <= _MOST_ASSIGNED and np.bincount(labels).max() > 1:
        orders.append(Order(_assigned(found, labels, count), "by the confusion matrix"))
    right = found == labels
    better = [
        order
        for order in orders
        if (order.predictions == labels).mean() - right.mean() >= _LEAST_GAIN_OF_ORDER
        and _is_better(order.predictions == labels, right)
    ]
    return max(better, key=lambda order: int((order.predictions == labels).sum()), default=None)


def _known_orders(found: Labels, names: Sequence[str]) -> Iterator[Order]:
    """Put the classes into orders in which other programs sort names."""
    ways: list[tuple[str, list[int]]] = []
    if all(name.isascii() and name.isdigit() for name in names):
        ways.append(("as numbers", sorted(range(len(names)), key=lambda k: int(names[k]))))
    ways.append(
        ("without regard to case", sorted(range(len(names)), key=lambda k: names[k].casefold()))
    )
    for how, order in ways:
        if order != list(range(len(names))):
            yield Order(np.array(order, dtype=np.int64)[found], f"their names are sorted {how}")


def _assigned(found: Labels, labels: Labels, count: int) -> Labels:
    """Assign outputs to classes on half of the images of each class, and apply it to the others."""
    order = np.argsort(labels, kind="stable")
    half = np.empty(len(labels), dtype=np.int64)
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    half[order] = (np.arange(len(labels)) - np.repeat(starts, sizes)) % 2
    moved = np.empty_like(found)
    for side in (0, 1):
        seen = half == side
        confusion = np.zeros((count, count))
        np.add.at(confusion, (found[seen], labels[seen]), 1)
        confusion[np.diag_indices(count)] += 0.5  # what was never seen stays where it is
        _, assigned = linear_sum_assignment(confusion, maximize=True)
        moved[~seen] = assigned[found[~seen]]
    return moved


def _said(order: Order, found: Labels, labels: Labels, names: Sequence[str]) -> str:
    """Describe a better order with the output that shows it most often."""
    before, after = found == labels, order.predictions == labels
    output = int(np.bincount(found[after & ~before]).argmax())
    true = int(labels[after & ~before & (found == output)][0])
    return (
        f"accuracy was {_percent(float(before.mean()))}, but {_percent(float(after.mean()))} with "
        f"the classes in another order ({order.found}; output {output}, here {names[output]!r}, "
        f"is {names[true]!r}): name them in the order of the outputs, one per line: --classes FILE"
    )


def _is_better(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Tell by a sign test whether one set of answers is right more often than another."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained > lost and binom.sf(gained - 1, gained + lost, 0.5) < _LEVEL


def _numbers(values: Three) -> str:
    return ",".join(f"{value:g}" for value in values)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
