"""t-SNE of the features of several data sets, computed once and stored; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors

from oodcli.errors import InvalidInputError
from oodcli.images import digest_of
from oodcli.reporting.projections import MAX_POINTS, equal_counts, neighbour_map, sampled_rows
from oodcli.store.activations import ArrayFolder
from oodcli.store.store import Store, digest_of_json

# Part of the key: incremented whenever the same features give other points.
_SCHEMA = 1
_LEAST_OOD = 500


@dataclass(frozen=True, eq=False)
class Embedding:
    """Images of several data sets in two dimensions.

    Parameters
    ----------
    rows
        Rows of the images that are shown, ``(m,)``, by data set.
    points
        Their positions, ``(m, 2)``, by data set; without a unit.
    """

    rows: Mapping[str, NDArray[np.int64]]
    points: Mapping[str, NDArray[np.float32]]

    @property
    def n_points(self) -> int:
        """Number of images of all data sets."""
        return sum(map(len, self.rows.values()))


def shown_rows(
    counts: Mapping[str, int],
    labels: NDArray[np.int64] | None,
    limit: int | None = None,
    *,
    seed: int = 0,
) -> dict[str, NDArray[np.int64]]:
    """Return rows of every data set: half are ID, with classes and OOD sets sampled alike.

    There are at most as many OOD as ID images, or 500: more would hide a few ID images, and take
    longer than all other pictures of such a run together.

    Parameters
    ----------
    counts
        Number of images by data set; the ID set comes first.
    labels
        Class of every ID image, ``(n,)``; None where they are not known.
    limit
        Maximum number of rows; ``MAX_POINTS`` if None.
    seed
        Seed of the sample.

    Examples
    --------
    >>> [len(rows) for rows in shown_rows({"id": 90, "a": 90, "b": 5}, None, 60).values()]
    [30, 25, 5]
    """
    first, *others = counts
    classes = np.zeros(counts[first], np.int64) if labels is None else labels
    ood = [np.zeros(counts[name], np.int64) for name in others]
    most = min(sum(map(len, ood)), max(len(classes), _LEAST_OOD))
    n_id, n_ood = equal_counts([len(classes), most], MAX_POINTS if limit is None else limit)
    rows = [*sampled_rows([classes], n_id, seed=seed), *sampled_rows(ood, n_ood, seed=seed)]
    return dict(zip(counts, rows, strict=True))


def stored_embedding(
    store: Store,
    folder: Path,
    features: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.int64] | None = None,
    *,
    seed: int = 0,
) -> Embedding:
    """Return images in two dimensions by t-SNE of their features, computed once.

    Parameters
    ----------
    store
        The store; nothing is written if it is not writable.
    folder
        Folder of embeddings in it, such as that of a run.
    features
        Input of the last layer, ``(n, d)``, by data set; the ID set comes first.
    labels
        As for :func:`shown_rows`.
    seed
        Seed of the sample and of t-SNE, see :func:`oodcli.reporting.projections.neighbour_map`.

    Raises
    ------
    InvalidInputError
        If there are fewer than four images, or features that are not finite.
    CorruptArtifactError
        If the stored file is damaged.
    """
    counts = {name: len(values) for name, values in features.items()}
    rows = shown_rows(counts, labels, seed=seed)
    shown = {name: np.asarray(features[name][at]) for name, at in rows.items()}
    key = digest_of_json([_SCHEMA, seed, [[name, digest_of(each)] for name, each in shown.items()]])
    place = ArrayFolder(folder)
    try:
        stored = place.arrays(key)
        return Embedding(rows, {name: stored[str(at)] for at, name in enumerate(rows)})
    except FileNotFoundError:
        pass
    joined = np.concatenate(list(shown.values()))
    if not np.isfinite(joined).all():
        raise InvalidInputError("t-SNE needs features that are finite numbers")
    found = neighbour_map(joined, seed=seed)
    if found is None:
        raise InvalidInputError(f"t-SNE needs at least four images, not {len(joined)}")
    parts = np.split(found, np.cumsum([len(at) for at in rows.values()])[:-1])
    if store.is_writable:
        place.write(
            key, safetensors({str(at): np.ascontiguousarray(p) for at, p in enumerate(parts)})
        )
    return Embedding(rows, dict(zip(rows, parts, strict=True)))
