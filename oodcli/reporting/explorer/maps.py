"""Features of ID and OOD images in two dimensions, and their norms; no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError, OodError
from oodcli.metrics import Curve
from oodcli.reporting.embedding import shown_rows, stored_embedding
from oodcli.reporting.explorer.extremes import Place
from oodcli.reporting.explorer.image_payload import (
    FeatureMap,
    FeatureNorms,
    MapView,
    NormsOfSet,
    Projection,
)
from oodcli.reporting.explorer.images import FoundRun, Notes, listed, pixels_of, sources_of
from oodcli.reporting.explorer.packing import Packed, packed_counts
from oodcli.reporting.explorer.thumbnails import sheets
from oodcli.reporting.projections import ITERATIONS, PERPLEXITY, Points, principal_plane
from oodcli.reporting.stored_images import ShownSet
from oodcli.store.scores import LABELS
from oodcli.text import counted, printable

NORM_BINS = 60
SEED = 0
_SIDES = (96, 64, 48, 40, 32, 28, 24)
_GRID = 65_535
_NO_SCORE = 255
_SHARE_OF_PERCENTILES = 0.15


def map_of(found: Sequence[FoundRun], characters: int, notes: Notes) -> FeatureMap | None:
    """Return maps of the same images by the features of one run, or of two.

    Parameters
    ----------
    found
        One run, or two.
    characters
        How many characters of the page the map may take.
    notes
        Receives what is left out, and why.

    Returns
    -------
    map
        None, with a note, if the features of ID images are not stored or an image cannot be read.
    """
    with_features = [each for each in found if each.sets[0].entry.name in each.features]
    if not with_features:
        notes.note("no map: the features of ID images are not stored")
        return None
    shown, sets = _shared(with_features, notes)
    first, places = shown[0], _sampled(shown[0], sets)
    # Percentiles of one method take 4/3 characters of an image, and points, names and so on 40.
    most = max(1, int(_SHARE_OF_PERCENTILES * characters * 3 / 4 / len(shown) / len(places)))
    views = [_view(each, sets, places, most, notes) for each in shown]
    numbers = sum(len(each.methods) * 4 / 3 + 40 for each in views)
    try:
        room = characters - round(numbers * len(places))
        made = sheets(pixels_of(sets, places), _SIDES, room)
    except OodError as error:
        notes.note(f"no map: {error}")
        return None
    _note(places, sets, notes)
    if made.count < len(places):
        notes.note(
            f"{made.count:,} of the {len(places):,} images of the map have a picture; for more "
            "there is no room in a page of 8 MB"
        )
    methods = len(first.scored.methods)
    if len(views[0].methods) < methods:
        notes.note(
            f"the map has percentiles of the {len(views[0].methods)} of {methods} methods of the "
            "highest mean AUROC; for more there is no room in a page of 8 MB"
        )
    return FeatureMap(
        sets=sources_of(sets),
        images=listed(sets, places, made),
        views=tuple(views),
    )


def _shared(found: Sequence[FoundRun], notes: Notes) -> tuple[Sequence[FoundRun], list[ShownSet]]:
    """Return the runs to show side by side, and the sets whose images are the same in both."""
    first = found[0]
    own = [each for each in first.sets if each.entry.name in first.features]
    for other in found[1:]:
        theirs = {each.entry.name: each for each in other.sets if each.entry.name in other.features}
        both = [each for each in own if _same(each, theirs.get(each.entry.name))]
        if both and both[0] is own[0]:
            left_out = [each.entry.name for each in own if each not in both]
            if left_out:
                notes.note(
                    f"the map of two runs leaves out {', '.join(left_out)}, of which they were not "
                    "scored on the same images"
                )
            return (first, other), both
        notes.note(
            f"the map is of {first.run.name} alone: {other.run.name} was scored on other ID images"
        )
    return (first,), own


def _same(one: ShownSet, other: ShownSet | None) -> bool:
    """Return whether two runs were scored on the same images, whatever their size."""
    return other is not None and (
        one.entry.digest == other.entry.digest
        or (
            one.part.source.fingerprint == other.part.source.fingerprint
            and np.array_equal(one.places, other.places)
        )
    )


def _sampled(found: FoundRun, sets: Sequence[ShownSet]) -> list[Place]:
    """Choose the images of a map, in an order in which no set lies above the others."""
    counts = {each.entry.name: len(each.images) for each in sets}
    rows = shown_rows(counts, _labels(found), seed=SEED)
    places = [(at, int(row)) for at, own in enumerate(rows.values()) for row in own]
    order = np.random.default_rng(SEED).permutation(len(places))
    return [places[at] for at in order]


def _labels(found: FoundRun) -> NDArray[np.int64] | None:
    known = found.run.read(LABELS, found.sets[0].entry)
    return None if known is None else np.asarray(known, np.int64)


def _neighbours(
    found: FoundRun, sets: Sequence[ShownSet], places: Sequence[Place], notes: Notes
) -> Points | None:
    """Return images by t-SNE, ``(n, 2)``; None, with a note, where that is not possible.

    It is computed once, also for ``ood report --plots``.
    """
    features = {each.entry.name: found.features[each.entry.name] for each in sets}
    folder = found.images.stored.folder.embeddings
    try:
        made = stored_embedding(found.images.store, folder, features, _labels(found), seed=SEED)
    except InvalidInputError as error:
        notes.note(f"no t-SNE of features of {found.run.name}: {error}")
        return None
    where = {
        (at, int(row)): point
        for at, name in enumerate(features)
        for row, point in zip(made.rows[name], made.points[name], strict=True)
    }
    return np.stack([where[place] for place in places])


def _note(places: Sequence[Place], sets: Sequence[ShownSet], notes: Notes) -> None:
    total = sum(len(each.images) for each in sets)
    if len(places) < total:
        notes.note(
            f"the map has {len(places):,} of {counted(total, 'image')}, drawn at random (seed "
            f"{SEED}): as many of every class and of every OOD set as of the others, and as many "
            "OOD as ID images or 500, where there are so many"
        )
    notes.note(
        "t-SNE is scikit-learn's, of the first 50 principal components of the features, with "
        f"perplexity {PERPLEXITY:g} (less for under 90 images), {ITERATIONS} iterations and seed "
        f"{SEED}; distances between groups and their sizes have no meaning in it"
    )


def _view(
    found: FoundRun, sets: Sequence[ShownSet], places: Sequence[Place], most: int, notes: Notes
) -> MapView:
    """Return the maps of one run, with percentiles of so many methods at most."""
    order = {each.entry.name: at for at, each in enumerate(found.sets)}
    own = [(order[sets[at].entry.name], row) for at, row in places]
    features = np.stack([found.features[sets[at].entry.name][row] for at, row in places])
    plane = principal_plane(features)
    projections = [Projection("pca", on_grid(plane.points), plane.shares)]
    neighbours = _neighbours(found, sets, places, notes)
    if neighbours is not None:
        projections.append(Projection("tsne", on_grid(neighbours), ()))
    scored = found.scored.best(most)
    percentiles = scored.of(own).percentiles
    halves = np.where(np.isnan(percentiles), _NO_SCORE, np.rint(200 * np.nan_to_num(percentiles)))
    predicted = found.predicted(own)
    return MapView(
        network=found.network,
        projections=tuple(projections),
        predicted=None if predicted is None else packed_counts(predicted),
        methods=tuple(scored.methods),
        percentiles=packed_counts(halves.astype(np.int64)),
    )


def on_grid(points: NDArray[np.floating[Any]]) -> Packed:
    """Return points in the square that encloses them, see :class:`Projection`."""
    low, high = points.min(axis=0), points.max(axis=0)
    extent = float((high - low).max()) or 1.0
    corner = (low + high - extent) / 2
    return packed_counts(np.rint(_GRID * (points - corner) / extent).clip(0, _GRID))


def norms_of(found: FoundRun) -> FeatureNorms | None:
    """Return the norms of the features of a run; None without those of ID images."""
    norms = {
        each.entry.name: np.linalg.norm(found.features[each.entry.name].astype(np.float64), axis=1)
        for each in found.sets
        if each.entry.name in found.features
    }
    id_name = found.sets[0].entry.name
    if id_name not in norms:
        return None
    high = max(float(np.quantile(each, 0.999)) for each in norms.values()) or 1.0
    edges = np.linspace(0, high, NORM_BINS + 1)
    return FeatureNorms(
        network=found.network,
        high=high,
        sets=tuple(
            NormsOfSet(
                name=printable(name),
                mean=float(own.mean()),
                auroc=None if name == id_name else float(Curve.of(norms[id_name], own).auroc()),
                counts=packed_counts(np.histogram(own.clip(0, high), edges)[0]),
            )
            for name, own in norms.items()
        ),
    )
