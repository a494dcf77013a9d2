"""The picture of nearest training images, whole and by region, as the paper of MODE shows it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from oodcli.data.formats.ilsvrc2012 import readable_class
from oodcli.errors import OodError
from oodcli.progress import Progress
from oodcli.regions import NEIGHBOUR, REGIONS, region_box
from oodcli.reporting.bands import CROSS, Sheet, Tile, cut_end, heading, paragraphs, row
from oodcli.reporting.explanation_picture import neighbour_tiles
from oodcli.reporting.explanations import Neighbour, Pixels, RegionMatch
from oodcli.reporting.neighbours import nearest
from oodcli.reporting.plots import Picture, drawing
from oodcli.reporting.stored_images import ShownSet, StoredImages, TrainingImages
from oodcli.store.scores import PREDICTIONS, Scores
from oodcli.text import counted, printable

# Rows of images on a sheet, and neighbours of an image with its regions or without them.
_ROWS = 8
_WITH_REGIONS, _WHOLE = 3, 6
_APART = 0.16  # inches between the two kinds of neighbours
_LONGEST = 40


@dataclass(frozen=True, eq=False)
class _Query:
    """An image with its neighbours."""

    heading: str
    pixels: Pixels
    predicted: str | None
    whole: tuple[Neighbour, ...]
    region: RegionMatch | None = None


def neighbour_sheet(
    images: StoredImages,
    method: str,
    features: dict[str, NDArray[np.float32]],
    last_map: tuple[int, int] | None,
    progress: Progress,
) -> list[Picture]:
    """Show the most ID-like images of every OOD set beside their nearest training images.

    Parameters
    ----------
    images
        The scored images of a run.
    method
        The method by whose scores the images are chosen.
    features
        The stored features by data set, ``(n, d)``.
    last_map
        Height and width of the output of the last block; None if it is not known.
    progress
        Receives the reason if there is no picture.

    Notes
    -----
    Distances are squared distances of features divided by their lengths, as of ``knn`` and ``csd``.
    The region of an image is that whose 10th nearest region of training images is nearest, as in
    ``csd``. Regions are compared if those of the images and of all training images are stored.
    """
    shown = [each for each in images.sets if each.entry.group != "id"]
    shown = [each for each in shown if each.entry.name in features][:_ROWS]
    training = images.training() if shown else None
    if training is None:
        return []
    chosen = [pair for each in shown for pair in _most_id_like(images, each, method, len(shown))]
    if not chosen:
        return []
    try:
        queries = _whole(images, chosen, features, training)
        found = None if last_map is None else _regions(images, chosen, queries, training, last_map)
        return [_sheet(method, found or queries, training)]
    except (OodError, FileNotFoundError) as error:
        progress.note(f"no picture of nearest training images: {error}")
        return []


def _most_id_like(
    images: StoredImages, shown: ShownSet, method: str, sets: int
) -> list[tuple[ShownSet, int, Scores]]:
    """Return the most ID-like images of a set: as many as there is room for, two at most."""
    scores = images.run.read(method, shown.entry)
    if scores is None:
        return []
    best = np.argsort(-scores, kind="stable")[: 2 if 2 * sets <= _ROWS else 1]
    return [(shown, int(at), scores) for at in best]


def _whole(
    images: StoredImages,
    chosen: Sequence[tuple[ShownSet, int, Scores]],
    features: dict[str, NDArray[np.float32]],
    training: TrainingImages,
) -> list[_Query]:
    names = images.stored.record.class_names
    rows = np.stack([features[shown.entry.name][at] for shown, at, _ in chosen])
    near = nearest(rows, training.features(), _WHOLE)
    queries = []
    for number, (shown, at, scores) in enumerate(chosen):
        predictions = images.run.read(PREDICTIONS, shown.entry)
        predicted = None if predictions is None else names[int(predictions[at])]
        seen = "" if predicted is None else f", seen as {readable_class(printable(predicted))}"
        file = cut_end(printable(shown.name(at).replace("\\", "/").rpartition("/")[2]), _LONGEST)
        queries.append(
            _Query(
                f"{printable(shown.entry.name)}: {file}, score {scores[at]:.4g}{seen}",
                shown.pixels(np.array([at]))[0],
                predicted,
                tuple(
                    _neighbour(training, names, int(row), float(distance))
                    for row, distance in zip(near.rows[number], near.distances[number], strict=True)
                ),
            )
        )
    return queries


def _neighbour(
    training: TrainingImages, names: Sequence[str], row: int, distance: float
) -> Neighbour:
    labels = training.images.labels
    label = None if labels is None else names[int(labels[row])]
    return Neighbour(training.name(row), label, distance, row)


def _regions(
    images: StoredImages,
    chosen: Sequence[tuple[ShownSet, int, Scores]],
    queries: Sequence[_Query],
    training: TrainingImages,
    last_map: tuple[int, int],
) -> list[_Query] | None:
    """Return the images with their nearest regions; None if these are not stored."""
    stored = {shown.entry.name: images.regions(shown) for shown, _, _ in chosen}
    known = {name: each for name, each in stored.items() if each is not None}
    if known.keys() != stored.keys() or min(last_map) < 2:
        return None
    own = np.stack([known[shown.entry.name][at] for shown, at, _ in chosen])
    n, count, width = own.shape
    try:
        near = nearest(
            own.reshape(-1, width),
            (each.reshape(-1, width) for each in training.regions()),
            NEIGHBOUR,
        )
    except FileNotFoundError:
        return None
    votes = near.distances[:, -1].reshape(n, count).astype(np.float64)
    votes[(own == 0).all(axis=2)] = np.inf  # a region without activation has no vote
    names = images.stored.record.class_names
    found = []
    for number, query in enumerate(queries):
        if np.isinf(votes[number]).all():  # its last map is zero everywhere
            found.append(query)
            continue
        region = int(votes[number].argmin())
        at = number * count + region
        height, across = query.pixels.shape[:2]
        boxes = [region_box(each, last_map, (height, across)) for each in range(count)]
        others = tuple(
            replace(
                _neighbour(training, names, int(row) // count, float(distance)),
                region=REGIONS[int(row) % count],
                box=boxes[int(row) % count],
            )
            for row, distance in zip(
                near.rows[at, :_WITH_REGIONS], near.distances[at, :_WITH_REGIONS], strict=True
            )
        )
        found.append(
            replace(
                query,
                whole=query.whole[:_WITH_REGIONS],
                region=RegionMatch(REGIONS[region], boxes[region], others),
            )
        )
    return found


def _sheet(method: str, queries: Sequence[_Query], training: TrainingImages) -> Picture:
    """Draw a row for every image: the image, its neighbours, and those of its region."""
    with_regions = any(query.region is not None for query in queries)
    title = f"OOD images that {method} finds most ID-like, and the nearest training images"
    with drawing():
        sheet = Sheet()
        sheet.add(*heading(title))
        what = (
            f"Left: the {_WITH_REGIONS} nearest by their features; right: the {_WITH_REGIONS} "
            "regions (framed) nearest to the framed region of the image"
            if with_regions
            else f"The {_WHOLE} nearest by their features"
        )
        what += ". Numbers: squared distances of unit vectors"
        shown = _tiles(queries, training)
        if any(tile.other_class for tiles in shown for tile in tiles):
            what += f". {CROSS} and dashed: another class than predicted"
        sheet.add(*paragraphs([f"{what}."]))
        for query, tiles in zip(queries, shown, strict=True):
            sheet.add(*paragraphs([query.heading]))
            own = Tile(
                query.pixels,
                () if query.region is None else (query.region.region,),
                box=None if query.region is None else query.region.box,
            )
            extra = 0.0 if query.region is None else _APART
            sheet.add(*row([own, *tiles], extra=extra, after=1 + len(query.whole)))
        figure = sheet.figure()
    return Picture(
        "neighbours",
        title,
        f"{counted(len(queries), 'image')} with the nearest of {len(training.images):,} training "
        "images" + (", whole and by region" if with_regions else ""),
        figure,
        many_colours=True,
    )


def _tiles(queries: Sequence[_Query], training: TrainingImages) -> list[list[Tile]]:
    """Return the neighbours of every image, whose pixels are read together."""
    every = [
        [*query.whole, *(() if query.region is None else query.region.neighbours)]
        for query in queries
    ]
    pixels = iter(training.pixels(np.array([each.row for near in every for each in near])))
    return [
        neighbour_tiles(near, [next(pixels) for _ in near], query.predicted)
        for query, near in zip(queries, every, strict=True)
    ]
