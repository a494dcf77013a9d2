"""Plausibility check of an imported network on labelled images.

The network classifies a few hundred labelled images. Their accuracy is compared with the accuracy
stored in the weight file, with chance, with the accuracy under other common normalisations if the
right one is not known, and with the accuracy for other orders of the classes.
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
from oodcli.store.preprocess import Preprocess

# The standard error of the accuracy is at most 2.2 % for 500 images, and 3.1 % for 256.
_IMAGES = 500
_LARGE_IMAGES = 256
_LARGE_PIXELS = 96 * 96
_SHARD_ROWS = 64
# Significance levels, and the smallest differences of accuracy, that cause a warning.
_CHANCE_LEVEL = 0.01
_LEVEL = 1e-3
# Less than this fraction of the way from chance to 100 % is "hardly better than chance".
_LEAST_SKILL = 0.05
_LEAST_LOSS = 0.02
_LEAST_GAIN_OF_ORDER = 0.05
# The assignment problem of this many classes takes about a second.
_MAX_ASSIGNED = 2000

Three = tuple[float, float, float]
Labels = NDArray[np.int64]
# Common normalisations of published classifiers: mean and standard deviation of each channel.
_COMMON_NORMALISATIONS: Mapping[str, tuple[Three, Three]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "Inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "pixels from 0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Plausibility:
    """Accuracy of a network on some labelled images, and what looks wrong.

    Parameters
    ----------
    part
        Part of the data that the images belong to.
    images
        Number of images.
    accuracy
        Accuracy on these images, from 0 to 1.
    chance
        Accuracy of guessing: 1 / number of classes, or the fraction of the most frequent class if
        that is larger.
    stored
        Accuracy stored in the weight file, from 0 to 1; None if there is none.
    stored_name
        Its name in the weight file.
    warnings
        One line per warning.
    """

    part: str
    images: int
    accuracy: float
    chance: float
    stored: float | None
    stored_name: str
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as they are stored in the record of a run."""
        return {**as_json(self), "warnings": list(self.warnings)}

    @property
    def line(self) -> str:
        """The accuracy as a line of text."""
        against = f"chance {_percent(self.chance)}"
        if self.stored is not None:
            against += f"; {self.stored_name} in the file: {_percent(self.stored)}"
        return f"accuracy {_percent(self.accuracy)} on {self.images} {self.part} images ({against})"


@dataclass(frozen=True)
class Order:
    """An order of the classes other than that of the data set.

    Parameters
    ----------
    predictions
        Predicted class of every image in that order, int64 ``(n,)``.
    description
        How the order was found, for a message.
    """

    predictions: Labels
    description: str


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
    """Classify a few hundred labelled images, and report what looks wrong.

    Parameters
    ----------
    network
        The network.
    dataset
        The data that the network was trained on, with the classes in the order of its outputs.
    preprocess
        Resizing and normalisation of images.
    checkpoint
        The weights, with the accuracy stored beside them.
    assumed
        Whether the normalisation is an assumption.
    device
        Device of the forward pass.
    progress
        Receives progress of the pass.

    Returns
    -------
    Plausibility
        None if no labelled image can be read.

    Raises
    ------
    OodError
        If the network cannot compute on the device, or its outputs are not finite.
    """
    name = dataset.test_name if {"test", "val"} & set(dataset.parts) else "train"
    pixels, labels = _images(dataset, name, Resizing(preprocess.size, preprocess.resize))
    if not len(labels):
        return None

    def predicted(mean: Three, std: Three) -> Labels:
        return _predicted(network, pixels, mean, std, device=device, progress=progress)

    predictions = predicted(preprocess.mean, preprocess.std)
    names = dataset.class_names
    accuracy, n = float((predictions == labels).mean()), len(labels)
    all_labels = dataset.parts[name].labels
    assert all_labels is not None  # the data set has classes
    # From the whole part: in a sample of 256 images of 1,000 classes, a class has one or none.
    chance = max(1 / len(names), float(np.bincount(all_labels).max()) / len(all_labels))
    warnings = [
        *_below_stored(checkpoint, accuracy, n),
        *_near_chance(accuracy, n, chance),
    ]
    order = better_order(predictions, labels, names)
    if order is not None:
        option = "--classes" if network.head().scale is None else "--class-names"
        warnings.append(_order_warning(order, predictions, labels, names, option))
    elif assumed or warnings:
        warnings += _better_normalisation(predictions, labels, preprocess, predicted)
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
    """Read a stratified sample of a part: pixels uint8 ``(n, 3, h, w)`` and labels ``(n,)``."""
    part = dataset.parts[name]
    assert part.labels is not None  # the data set has classes
    large = resizing.size[0] * resizing.size[1] > _LARGE_PIXELS
    count = min(len(part), _LARGE_IMAGES if large else _IMAGES)
    chosen = take(part, stratified(part.labels, count, seed=CALIBRATION_SEED))
    assert chosen.labels is not None
    pixels, labels = [], []
    with open_pools() as pools:
        images = resized(pools, chosen.source, 0, count, resizing)
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
        progress.task(
            "checking the network", total=len(pixels), unit="images", passing=True
        ) as task,
        explain_out_of_memory(device, "use another device: --device cpu"),
    ):
        passes = extract(network, shards, mean=mean, std=std, device=device, advance=task.advance)
        return np.concatenate([batch.predictions.cpu().numpy() for batch in passes])


def _below_stored(checkpoint: Checkpoint, accuracy: float, n: int) -> Iterator[str]:
    stored = checkpoint.accuracy
    if stored is None or stored - accuracy < _LEAST_LOSS:
        return
    if binom.cdf(round(accuracy * n), n, stored) < _LEVEL:
        yield (
            f"accuracy was {_percent(accuracy)}, but {checkpoint.accuracy_name} in the file is "
            f"{_percent(stored)}: check normalisation, image size, and the order of the classes"
        )


def _near_chance(accuracy: float, n: int, chance: float) -> Iterator[str]:
    if chance == 1:  # the accuracy on images of a single class means nothing
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


def _better_normalisation(
    predictions: Labels,
    labels: Labels,
    preprocess: Preprocess,
    predicted: Callable[[Three, Three], Labels],
) -> Iterator[str]:
    """Try the other common normalisations, and list the best and those not significantly worse."""
    right = predictions == labels
    tried = {
        name: predicted(mean, std) == labels
        for name, (mean, std) in _COMMON_NORMALISATIONS.items()
        if (mean, std) != (preprocess.mean, preprocess.std)
    }
    best = max(tried.values(), key=lambda each: int(each.sum()))
    if best.mean() - right.mean() < _LEAST_LOSS or not _is_better(best, right):
        return
    alike = [
        f"{_percent(float(each.mean()))} with that of {name} "
        f"(--mean {_numbers(_COMMON_NORMALISATIONS[name][0])} "
        f"--std {_numbers(_COMMON_NORMALISATIONS[name][1])})"
        for name, each in tried.items()
        if _is_better(each, right) and not _is_better(best, each)
    ]
    yield (
        f"accuracy was {_percent(float(right.mean()))}, but with another normalisation "
        f"{', or '.join(alike)}: specify the one that it was trained with"
    )


def better_order(predictions: Labels, labels: Labels, names: Sequence[str]) -> Order | None:
    """Return an order of the classes that classifies many more images correctly.

    Parameters
    ----------
    predictions
        Predicted class of every image, int64 ``(n,)``.
    labels
        Class of every image in the data set, int64 ``(n,)``.
    names
        Names of the classes.

    Returns
    -------
    Order
        The best such order; None if there is none.

    Notes
    -----
    Candidates are: all cyclic shifts, which need only one image per class; the class names sorted
    as numbers, and sorted without regard to case; and the assignment of outputs to classes that
    maximises the trace of the confusion matrix. The assignment is fitted on each half of the images
    of a class and evaluated on the other half, because with few images per class some assignment
    always looks good. An order is accepted if it raises the accuracy by at least 5 percentage
    points, and if a sign test against the present order rejects chance at 0.001. A shift must also
    pass a binomial test against 1 / number of classes at 0.001 / number of classes.
    """
    count, n = len(names), len(labels)
    orders = [*_known_orders(predictions, names)]
    shifts = np.bincount((predictions - labels) % count, minlength=count)
    shift = int(shifts.argmax())
    if shift and binom.sf(shifts[shift] - 1, n, 1 / count) < _LEVEL / count:
        moved = (predictions - shift) % count
        orders.append(
            Order(moved, f"the outputs are shifted by {min(shift, shift - count, key=abs)}")
        )
    if 1 < count <= _MAX_ASSIGNED and np.bincount(labels).max() > 1:
        orders.append(Order(_assigned(predictions, labels, count), "by the confusion matrix"))
    right = predictions == labels
    better = [
        order
        for order in orders
        if (order.predictions == labels).mean() - right.mean() >= _LEAST_GAIN_OF_ORDER
        and _is_better(order.predictions == labels, right)
    ]
    return max(better, key=lambda order: int((order.predictions == labels).sum()), default=None)


def _known_orders(predictions: Labels, names: Sequence[str]) -> Iterator[Order]:
    """Yield the orders in which other programs sort class names."""
    ways: list[tuple[str, list[int]]] = []
    if all(name.isascii() and name.isdigit() for name in names):
        ways.append(("as numbers", sorted(range(len(names)), key=lambda k: int(names[k]))))
    ways.append(
        ("without regard to case", sorted(range(len(names)), key=lambda k: names[k].casefold()))
    )
    for how, order in ways:
        if order != list(range(len(names))):
            moved = np.array(order, dtype=np.int64)[predictions]
            yield Order(moved, f"their names are sorted {how}")


def _assigned(predictions: Labels, labels: Labels, count: int) -> Labels:
    """Assign outputs to classes by each half of the images, and apply it to the other half."""
    order = np.argsort(labels, kind="stable")
    half = np.empty(len(labels), dtype=np.int64)
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    half[order] = (np.arange(len(labels)) - np.repeat(starts, sizes)) % 2
    moved = np.empty_like(predictions)
    for side in (0, 1):
        seen = half == side
        confusion = np.zeros((count, count))
        np.add.at(confusion, (predictions[seen], labels[seen]), 1)
        confusion[np.diag_indices(count)] += 0.5  # an output that never occurs keeps its class
        _, assigned = linear_sum_assignment(confusion, maximize=True)
        moved[~seen] = assigned[predictions[~seen]]
    return moved


def _order_warning(
    order: Order, predictions: Labels, labels: Labels, names: Sequence[str], option: str
) -> str:
    """Describe a better order, with the output that it corrects most often as an example."""
    before, after = predictions == labels, order.predictions == labels
    output = int(np.bincount(predictions[after & ~before]).argmax())
    true = int(labels[after & ~before & (predictions == output)][0])
    return (
        f"accuracy was {_percent(float(before.mean()))}, but {_percent(float(after.mean()))} with "
        f"the classes in another order ({order.description}; output {output}, here "
        f"{names[output]!r}, is {names[true]!r}): list them in the order of the outputs, one per "
        f"line: {option} FILE"
    )


def _is_better(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Return whether ``one`` is right significantly more often than ``other``, by a sign test."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained > lost and binom.sf(gained - 1, gained + lost, 0.5) < _LEVEL


def _numbers(values: Three) -> str:
    return ",".join(f"{value:g}" for value in values)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
