"""Images of a report that one looks at: a strip of what methods misjudge, and maps; no torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, OodError
from oodcli.progress import Silent
from oodcli.reporting.explorer.extremes import Extremes, Place, ScoredSets
from oodcli.reporting.explorer.image_payload import (
    ImageSource,
    ImageStrip,
    ListedImages,
    Sheets,
    TrainingImages,
)
from oodcli.reporting.explorer.packing import packed_counts, packed_reals
from oodcli.reporting.explorer.thumbnails import Tile, estimated, sheets
from oodcli.reporting.neighbours import Nearest, nearest
from oodcli.reporting.sources import ScoredRun
from oodcli.reporting.stored_images import FoundImages, Pixels, ShownSet, StoredImages
from oodcli.store.scores import PREDICTIONS
from oodcli.store.store import Store
from oodcli.text import counted, printable

# Images of each method and set, and longer side of their pictures: the first that has room.
_PLANS = (
    (12, 224), (12, 160), (10, 128), (8, 128), (8, 96), (7, 96), (6, 96), (6, 64), (5, 64), (4, 64),
    (3, 64), (2, 48), (1, 48),
)  # fmt: skip
_SIDES = (224, 160, 128, 96, 64, 48, 32)
_NEIGHBOURS = (3, 2, 1)
_NEIGHBOUR_SIDES = (96, 64, 48, 32, 24)
_NEIGHBOUR_CHARACTERS = 40  # name and class, indices and distances


class Notes(Silent):
    """Progress that collects its notes, each once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str, /) -> None:
        """Add a note."""
        if message not in self.lines:
            self.lines.append(message)


@dataclass(frozen=True)
class FoundRun:
    """A run whose images were found again, at least those of its ID test set.

    Parameters
    ----------
    network
        Its index among the runs of the report.
    run
        Its scores.
    images
        Its images and stored activations.
    """

    network: int
    run: ScoredRun
    images: StoredImages = field(repr=False)

    @classmethod
    def of(cls, network: int, run: ScoredRun, store: Store, notes: Notes) -> "FoundRun | None":
        """Return the run; None, with a note, if its images are not found."""
        if run.stored is None:
            return None
        found = cls(network, run, StoredImages(store, run, run.stored, notes))
        if not found.sets or found.sets[0].entry.group != "id":
            return None
        return found if found.scored.methods else None

    @property
    def sets(self) -> list[ShownSet]:
        """The sets whose images were found, ID test images first."""
        return self.images.sets

    @cached_property
    def scored(self) -> ScoredSets:
        """Scores of all methods on these sets."""
        known = {
            (method, at): np.asarray(scores, np.float64)
            for method in self.run.methods
            for at, each in enumerate(self.sets)
            if (scores := self.run.read(method, each.entry)) is not None
        }
        methods = [method for method in self.run.methods if (method, 0) in known]
        return ScoredSets(methods, [len(each.images) for each in self.sets], known)

    @cached_property
    def features(self) -> dict[str, NDArray[np.float32]]:
        """Stored inputs of the last layer by set, ``(n, d)``; empty without any."""
        return self.images.features()

    def predicted(self, places: Sequence[Place]) -> NDArray[np.int64] | None:
        """Return predicted classes, ``(n,)``; None if those of a set are not known."""
        known = {at: self.run.read(PREDICTIONS, self.sets[at].entry) for at, _ in places}
        found = [None if (of := known[at]) is None else int(of[row]) for at, row in places]
        if None in found or min((each for each in found if each is not None), default=0) < 0:
            return None
        return np.array(found, np.int64)


def pixels_of(sets: Sequence[FoundImages], places: Sequence[Place]) -> list[Pixels]:
    """Return the pixels of images of several sets, in the given order."""
    numbers: dict[int, list[int]] = {}
    for number, (at, _) in enumerate(places):
        numbers.setdefault(at, []).append(number)
    found: dict[int, Pixels] = {}
    for at, own in numbers.items():
        rows = np.array([places[number][1] for number in own], np.int64)
        found.update(zip(own, sets[at].pixels(rows), strict=True))
    return [found[number] for number in range(len(places))]


def sources_of(sets: Iterable[ShownSet]) -> tuple[ImageSource, ...]:
    """Return what the page says of sets."""
    return tuple(
        ImageSource(printable(each.entry.name), each.entry.group, len(each.images)) for each in sets
    )


def listed(sets: Sequence[ShownSet], places: Sequence[Place], made: Sheets) -> ListedImages:
    """Return images as the page lists them."""
    return ListedImages(
        sets=packed_counts(np.array([at for at, _ in places], np.int64)),
        rows=packed_counts(np.array([row for _, row in places], np.int64)),
        names=tuple(printable(sets[at].name(row)) for at, row in places),
        labels=packed_counts(
            np.array([_label(sets[at], row) if at == 0 else 0 for at, row in places], np.int64)
        ),
        pictures=made,
    )


def _label(found: FoundImages, row: int) -> int:
    """Return the class of an image plus 1; 0 without labels."""
    labels = found.images.labels
    return 0 if labels is None else int(labels[row]) + 1


def strip_of(found: FoundRun, characters: int, notes: Notes) -> ImageStrip | None:
    """Return the images of a run that methods judge most wrongly.

    Parameters
    ----------
    found
        The run.
    characters
        How many characters of the page the strip may take.
    notes
        Receives what is left out, and why.

    Returns
    -------
    strip
        None, with a note, if an image cannot be read any more.
    """
    scored = found.scored
    every = Extremes.of(scored, _PLANS[0][0])
    per_image = 8 * len(scored.methods) + 40  # scores, percentiles, row and name
    own, for_training = round(0.6 * characters), round(0.4 * characters)
    try:
        sample = pixels_of(found.sets, [*every.first(1).places][::8])
        count, side = _planned(every, sample, own, per_image)
        extremes = every.first(count)
        places = [*extremes.places]
        pixels = pixels_of(found.sets, places)
        smaller = [each for each in _SIDES if each <= side]
        made = sheets(pixels, smaller, own - per_image * len(places))
        training = _training(found, places, for_training, notes)
    except OodError as error:
        notes.note(f"no image strip of {found.run.name}: {error}")
        return None
    which = "the most ID-like image" if count == 1 else f"the {count} most ID-like images"
    notes.note(
        f"image strip of {found.run.name}: {which} of every OOD set and as many ID images, of each "
        f"of {counted(len(scored.methods), 'method')}, and {len(extremes.odd)} odd ID images "
        f"({counted(len(places), 'image')} of {made.width} × {made.height} pixels); for more there "
        "is no room in a page of 8 MB"
    )
    values = scored.of(places)
    hundredths = np.rint(10_000 * np.nan_to_num(values.percentiles)).astype(np.int64)
    predicted = found.predicted(places)
    rejected_by = scored.rejected_by()
    return ImageStrip(
        network=found.network,
        methods=tuple(scored.methods),
        thresholds=packed_reals(
            np.array([scored.thresholds[method] for method in scored.methods]), exact=True
        ),
        sets=sources_of(found.sets),
        images=listed(found.sets, places, made),
        predicted=None if predicted is None else packed_counts(predicted),
        scores=packed_reals(values.scores),
        percentiles=packed_counts(hundredths),
        id_images=tuple(packed_counts(extremes.numbers(0, rows)) for rows in extremes.id_rows),
        ood_images=tuple(
            tuple(packed_counts(extremes.numbers(at, rows)) for at, rows in enumerate(sets, 1))
            for sets in extremes.ood_rows
        ),
        odd=packed_counts(extremes.numbers(0, extremes.odd)),
        rejected_by=packed_counts(rejected_by[extremes.odd]),
        n_odd=int(np.count_nonzero(2 * rejected_by >= len(scored.methods))),
        training=training,
    )


def _planned(
    every: Extremes, sample: Sequence[Pixels], characters: int, per_image: int
) -> tuple[int, int]:
    """Return how many images of each method and set have room, and the side of their pictures."""
    for count, side in _PLANS:
        picture = estimated(sample, Tile.of(sample[0], side)) / len(sample)
        if len(every.first(count).places) * (picture + per_image) <= characters:
            return count, side
    return _PLANS[-1]


def _training(
    found: FoundRun, places: Sequence[Place], characters: int, notes: Notes
) -> TrainingImages | None:
    """Return the nearest training images of the images of a strip; None, with a note, without."""
    training = found.images.training()
    names = [each.entry.name for each in found.sets]
    if training is None:
        return None
    if not all(names[at] in found.features for at, _ in places):
        notes.note(f"no nearest training images of {found.run.name}: features are not stored")
        return None
    features = np.stack([found.features[names[at]][row] for at, row in places])
    try:
        most = nearest(features, training.features(), _NEIGHBOURS[0])
    except (FileNotFoundError, CorruptArtifactError) as error:
        notes.note(f"no nearest training images of {found.run.name}: {error}")
        return None
    rows, at, made = _with_room(training, most, characters)
    labels = np.array([_label(training, int(row)) for row in rows], np.int64)
    return TrainingImages(
        n=len(training.images),
        names=tuple(printable(training.name(int(row))) for row in rows),
        labels=packed_counts(labels),
        pictures=made,
        nearest=packed_counts(at),
        distances=packed_reals(most.distances[:, : at.shape[1]]),
    )


def _with_room(
    training: FoundImages, most: Nearest, characters: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Sheets]:
    """Choose how many neighbours an image has, so that all have a picture.

    Returns
    -------
    rows
        Rows of the training images, ``(t,)``.
    at
        For every image, which of them are nearest, ``(n, k)``.
    made
        Their pictures.
    """
    smallest = _NEIGHBOUR_SIDES[-1]
    for k in _NEIGHBOURS:
        rows, at = np.unique(most.rows[:, :k], return_inverse=True)
        left = characters - _NEIGHBOUR_CHARACTERS * len(rows)
        few = training.pixels(rows[:: -(-len(rows) // 24)])
        each = estimated(few, Tile.of(few[0], smallest)) / len(few)
        room = len(rows) * each <= left
        if room or k == _NEIGHBOURS[-1]:
            break
    made = sheets(training.pixels(rows), _NEIGHBOUR_SIDES, left)
    return rows, at.reshape(most.rows[:, :k].shape), made


def found_runs(runs: Sequence[ScoredRun], store: Store, notes: Notes) -> Iterator[FoundRun]:
    """Yield the first two runs whose images are found again."""
    count = 0
    for network, run in enumerate(runs):
        if count == 2:
            notes.note(f"images and features are of the first 2 of {len(runs)} runs")
            return
        found = FoundRun.of(network, run, store, notes)
        if found is not None:
            count += 1
            yield found
