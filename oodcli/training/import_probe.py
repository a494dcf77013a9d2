"""A linear probe as the last layer of an imported encoder, which has no classifier of its own."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from oodcli.compute.devices import explain_out_of_memory
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.decoding.workers import resized
from oodcli.errors import InvalidInputError, UnreadableImageError
from oodcli.models import Network
from oodcli.models.extraction import extract
from oodcli.pools import Pools, open_pools
from oodcli.progress import Progress
from oodcli.store.preprocess import Preprocess
from oodcli.training.linear_probe import fit_probe

_SHARD_ROWS = 64


def check_probe_data(dataset: Dataset) -> None:
    """Refuse data without training images, on which no linear probe can be fitted.

    Raises
    ------
    InvalidInputError
        If there are no training images.
    """
    if "train" not in dataset.parts or not len(dataset.parts["train"]):
        raise InvalidInputError(
            f"{dataset.name} has no training images to fit a linear probe on; split it into "
            "training and test images: --test-fraction 0.2"
        )


def with_probe(
    network: Network,
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    device: torch.device,
    progress: Progress,
) -> Network:
    """Fit a linear probe, and make it the last layer of a network.

    Parameters
    ----------
    network
        The network, with any last layer; changed in place.
    dataset
        The data; the probe is fitted on all readable training images, without augmentation.
    preprocess
        Resizing and normalisation of images.
    device
        Device of the forward pass.
    progress
        Receives progress of the pass.

    Returns
    -------
    Network
        The network with the probe as its last layer.

    Raises
    ------
    OodError
        If the network cannot compute on the device, or its features are not finite.
    """
    labels: list[int] = []
    count = len(dataset.parts["train"])
    with (
        open_pools() as pools,
        progress.task("probe features", total=count, unit="images", passing=True) as task,
        explain_out_of_memory(device, "use another device: --device cpu"),
    ):
        passes = extract(
            network,
            _shards(pools, dataset, Resizing(preprocess.size, preprocess.resize), labels),
            mean=preprocess.mean,
            std=preprocess.std,
            device=device,
            advance=task.advance,
        )
        features = torch.cat([batch.features for batch in passes])  # (n, d)
    progress.note("fitting a linear probe, which becomes the last layer")
    weight, bias = fit_probe(features, torch.tensor(labels), len(dataset.class_names))
    return network.with_last_layer(weight, bias)


def _shards(
    pools: Pools, dataset: Dataset, resizing: Resizing, labels: list[int]
) -> Iterator[NDArray[np.uint8]]:
    """Yield readable training images, uint8 ``(n, 3, h, w)``, and append their labels to a list."""
    part = dataset.parts["train"]
    assert part.labels is not None  # the data set has classes
    waiting: list[NDArray[np.uint8]] = []
    images = resized(pools, part.source, 0, len(part), resizing)
    for image, label in zip(images, part.labels, strict=True):
        if isinstance(image, UnreadableImageError):
            continue
        waiting.append(image.transpose(2, 0, 1))
        labels.append(int(label))
        if len(waiting) == _SHARD_ROWS:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
