"""Duplicate images: repeated within one set, or shared by sets that must be disjoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from oodcli.data.opening import open_dataset
from oodcli.data.run_data import RunData
from oodcli.errors import OodError
from oodcli.images import ImageSet
from oodcli.store.outlier_source import OutlierSource

Digests = NDArray[np.uint64]


def duplicates(
    data: RunData, test: ImageSet, others: Sequence[ImageSet]
) -> dict[str, Mapping[str, int]]:
    """Count images with the same pixels, from the digests that are stored when images are decoded.

    Parameters
    ----------
    data
        The data of the run; training images are compared if they were decoded before.
    test
        ID test images.
    others
        OOD sets and covariate-shifted ID sets.

    Returns
    -------
    counts
        By name of the set, only what is not 0: ``itself``, images that repeat an earlier image of
        the set; ``labels``, different images that have more than one label; ``train``, ID test
        images that are also training images; ``test``, images of another set that are also ID test
        images; of the ID test images also ``train_itself`` and ``train_labels``, the first two of
        the training images. A set whose digests are not stored has none.
    """
    trained = _train_images(data)
    tested, train = test.image_digests(), None if trained is None else trained.image_digests()
    exposed = _outliers(data)
    found: dict[str, Mapping[str, int]] = {}
    for images in (test, *others):
        digests = images.image_digests()
        if digests is None:
            continue
        rivals = {"train": train} if images is test else {"test": tested}
        counts = {
            "itself": len(digests) - len(np.unique(digests)),
            "labels": _under_several_labels(digests, images.labels),
            **{name: _shared(digests, rival) for name, rival in rivals.items()},
            "outliers": _shared(digests, exposed),
        }
        if images is test and trained is not None and train is not None:
            counts["train_itself"] = len(train) - len(np.unique(train))
            counts["train_labels"] = _under_several_labels(train, trained.labels)
        found[images.name] = {name: count for name, count in counts.items() if count}
    return found


def _train_images(data: RunData) -> ImageSet | None:
    if "train" not in data.dataset.parts:
        return None
    return replace(data, decode=False).images("train")


def _outliers(data: RunData) -> Digests | None:
    """Return the digests of the outliers of the run, if they are those of a set and are stored."""
    source = OutlierSource.of(data.run.job.outliers)
    if source is None or source.made:
        return None
    try:
        window = data.run.preprocess.medical
        part = open_dataset(source.source, data.store, role="ood", window=window).parts[source.part]
    except (OodError, KeyError):
        return None  # the set is no longer where it was
    name = f"{source.name} {source.part}"
    return replace(data, decode=False).prepared(part, name=name).image_digests()


def _under_several_labels(digests: Digests, labels: NDArray[np.int64] | None) -> int:
    if labels is None:
        return 0
    pairs = np.unique(np.stack([digests, labels.astype(np.uint64)]), axis=1)
    _, counts = np.unique(pairs[0], return_counts=True)
    return int((counts > 1).sum())


def _shared(digests: Digests, rival: Digests | None) -> int:
    return 0 if rival is None else int(np.isin(digests, rival).sum())
