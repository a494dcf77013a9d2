"""The scored images of a run and their stored activations, as far as they still exist; no torch."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from oodcli.data import DATASETS, open_dataset
from oodcli.data.benchmarks import BENCHMARKS, Benchmark
from oodcli.data.dataset import Dataset, take
from oodcli.data.decoding.drafts import drafted
from oodcli.data.decoding.prepare import are_stored
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.decoding.shards import UNDECODED
from oodcli.data.opening import is_here
from oodcli.data.run_data import RunData
from oodcli.data.splits import split
from oodcli.data.views import View
from oodcli.errors import CorruptArtifactError, InvalidInputError, OodError, UnreadableImageError
from oodcli.images import ImageSet, ImageShard, Part, image_name
from oodcli.progress import SILENT, Progress
from oodcli.regions import REGIONS_KEY
from oodcli.reporting.plots import Picture, clipped
from oodcli.reporting.projections import equal_counts
from oodcli.reporting.sheets import ACROSS, Quadrant, Thumbnail, picture_sheet, verdict_sheet
from oodcli.reporting.sources import ScoredRun, StoredRun
from oodcli.reporting.statistics import threshold_at
from oodcli.store.activations import ActivationFolder
from oodcli.store.scores import PREDICTIONS, ScoredSet, Scores
from oodcli.store.store import Store
from oodcli.text import printable

_FEW_SETS = 5  # of which two lines of images are shown each
_CAPTION = 18
_PER_VERDICT = 8
_SHORT = 12


Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class FoundImages:
    """Images that were found again, with their source.

    Parameters
    ----------
    images
        The images at the size of the run.
    part
        Their source.
    resizing
        How they were resized.
    """

    images: ImageSet
    part: Part
    resizing: Resizing

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Row in the source of every image, ``(n,)``."""
        return np.concatenate([shard.indices for shard in self.images.shards])

    def name(self, row: int) -> str:
        """Return the name of an image: its file, or ``image N``."""
        return image_name(self.part.source, int(self.places[row]))

    def pixels(self, rows: NDArray[np.int64]) -> list[Pixels]:
        """Return the given images in the given order, each ``(h, w, 3)``.

        Of a set that is too large to be stored, or of which only some are scored, only these images
        are decoded.

        Raises
        ------
        OodError
            If one cannot be read any more.
        """
        if not len(rows):
            return []
        ascending, places = np.unique(rows, return_inverse=True)
        if are_stored(len(self.part), self.resizing.size) and not _are_undecoded(self.images):
            pixels = list(self.images.take(ascending).pixels().transpose(0, 2, 3, 1))
        else:
            pixels = list(self._decoded(ascending))
        return [pixels[at] for at in places]

    def _decoded(self, rows: NDArray[np.int64]) -> Iterator[Pixels]:
        source = drafted(take(self.part, self.places[rows]).source, self.resizing)
        for image in source.read(0, len(rows)):
            if isinstance(image, UnreadableImageError):
                raise image
            yield self.resizing.apply(image)


@dataclass(frozen=True)
class ShownSet(FoundImages):
    """A scored set with its images."""

    entry: ScoredSet


@dataclass(frozen=True)
class TrainingImages(FoundImages):
    """The training images of a run, with their stored features.

    Parameters
    ----------
    folder
        Stored activations.
    """

    folder: ActivationFolder = field(repr=False)

    def features(self) -> Iterator[NDArray[np.float32]]:
        """Yield the inputs of the last layer, ``(m, d)``, shard by shard.

        Raises
        ------
        FileNotFoundError
            If those of a shard are not stored.
        CorruptArtifactError
            If a file is damaged.
        """
        for shard in self.images.shards:
            yield _rows_of((shard,), self.folder, "features")

    def regions(self) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors of the regions of the last map, ``(m, 6, c)``, shard by shard.

        Raises
        ------
        FileNotFoundError, CorruptArtifactError
            As for :meth:`features`.
        """
        for shard in self.images.shards:
            yield _probed((shard,), self.folder, REGIONS_KEY)


@dataclass(frozen=True)
class StoredImages:
    """The scored images of a run, as far as they still exist.

    Nothing is downloaded, and a set whose images differ from the scored ones is skipped.
    """

    store: Store
    run: ScoredRun
    stored: StoredRun
    progress: Progress

    def block_norms(self) -> dict[str, list[Scores | None]]:
        """Return FeatureNorm of every block by data set, from stored activations."""
        return {name: list(norms.T) for name, norms in self._activations("block_norms").items()}

    def features(self) -> dict[str, NDArray[np.float32]]:
        """Return the input of the last layer by data set, ``(n, d)``, from stored activations."""
        return self._activations("features")

    def regions(self, shown: ShownSet) -> NDArray[np.float32] | None:
        """Return the vectors of the regions of the last map, ``(n, 6, c)``; None if not stored."""
        with contextlib.suppress(FileNotFoundError):
            return _probed(shown.images.shards, self._folder(View()), REGIONS_KEY)
        return None

    def jigsaw_norms(self, n_images: int, *, of_images: int) -> NDArray[np.float32] | None:
        """Return FeatureNorm of the jigsaw puzzles of training images, ``(n, blocks)``, if stored.

        Parameters
        ----------
        n_images, of_images
            Number of training images that NormRatio was computed on, and of all.
        """
        folder = self._folder(View("jigsaw"), norms_only=True)
        if self._data is None or not any(place.stored() for place in folder.places):
            return None
        try:
            images = self._data.train(limit=None if n_images == of_images else n_images)
            return _rows_of(images.shards, folder, "block_norms")
        except OodError as error:
            self.progress.note(f"no norms of jigsaw puzzles: {error}")
        except FileNotFoundError:
            self.progress.note("no norms of jigsaw puzzles: they are not stored")
        return None

    def training(self) -> TrainingImages | None:
        """Return the training images that methods were fitted on, if their features are stored.

        None, with a note, if they are not, or the images have changed; no image is decoded.
        """
        folder = self._folder(View())
        if self._scored is None:
            return None
        data = replace(self._scored[0], decode=False)
        try:
            images = data.train(limit=self.run.scoring.limit)
        except OodError as error:
            self.progress.note(f"no training images: {error}")
            return None
        if folder.missing(images.shards):
            self.progress.note("no training images: their features are not stored")
            return None
        return TrainingImages(images, data.dataset.parts["train"], _resizing(data), folder)

    def _activations(self, name: str) -> dict[str, NDArray[np.float32]]:
        """Return an array of the stored activations by data set, ``(n, …)``."""
        folder = self._folder(View())
        if not any(place.stored() for place in folder.places):
            return {}
        found: dict[str, NDArray[np.float32]] = {}
        for each in self.sets:
            with contextlib.suppress(FileNotFoundError):
                found[each.entry.name] = _rows_of(each.images.shards, folder, name)
        return found

    def _folder(self, view: View, *, norms_only: bool = False) -> ActivationFolder:
        return ActivationFolder.of(
            self.store,
            self.stored.record,
            precision=self.run.scoring.precision,
            view=view,
            norms_only=norms_only,
        )

    def contact_sheet(self, method: str) -> list[Picture]:
        """Show the errors of a method at the threshold that accepts 95 % of the ID images.

        Errors are ID images below the threshold and OOD images at or above it; the worst first.
        """
        id_scores = self.run.read(method, self.run.scoring.id_set)
        if id_scores is None:
            return []
        threshold = threshold_at(id_scores)
        rows: dict[str, list[Thumbnail]] = {}
        most = ACROSS * (2 if len(self.sets) <= _FEW_SETS else 1)
        for each in self.sets:
            scores = self.run.read(method, each.entry)
            if scores is None:
                continue
            is_id = each.entry.group == "id"
            order = np.argsort(scores if is_id else -scores, kind="stable")
            wrong = order[scores[order] < threshold] if is_id else order[scores[order] >= threshold]
            what = (
                f"{each.entry.name} (ID): {len(wrong):,} of {len(scores):,} misjudged as OOD, "
                "least ID-like first"
                if is_id
                else (
                    f"{each.entry.name} (OOD): {len(wrong):,} of {len(scores):,} misjudged as ID, "
                    "most ID-like first"
                )
            )
            rows[what] = self._thumbnails(each, scores, wrong[:most])
        if any(rows.values()):
            return [picture_sheet(method, rows)]
        if rows:
            self.progress.note(f"no pictures of errors: {method} makes none on these images")
        return []

    def verdict_sheet(self, method: str) -> list[Picture]:
        """Show right and wrong verdicts at the threshold that accepts 95 % of the ID images.

        The surest of each kind: highest scores of accepted images, lowest of rejected ones. OOD
        sets take turns, so that a large one does not hide the others.
        """
        id_scores = self.run.read(method, self.run.scoring.id_set)
        if id_scores is None:
            return []
        threshold = threshold_at(id_scores)
        found = [(each, self.run.read(method, each.entry)) for each in self.sets]
        known = [(each, scores) for each, scores in found if scores is not None]
        quadrants = []
        for is_id, accepted in itertools.product((True, False), repeat=2):
            sets = [pair for pair in known if (pair[0].entry.group == "id") is is_id]
            rows = [_surest(scores, threshold, accepted=accepted) for _, scores in sets]
            total = sum(len(scores) for _, scores in sets)
            count = sum(map(len, rows))
            heading = (
                f"{'ID' if is_id else 'OOD'} {'accepted' if accepted else 'rejected'} "
                f"({'right' if is_id is accepted else 'wrong'}): {count:,} of {total:,}"
            )
            shares = equal_counts([len(each) for each in rows], _PER_VERDICT)
            thumbnails = [
                thumbnail
                for (shown, scores), chosen, share in zip(sets, rows, shares, strict=True)
                for thumbnail in self._captioned(shown, scores, chosen[:share])
            ]
            quadrants.append(Quadrant(heading, is_id is accepted, thumbnails))
        return [verdict_sheet(method, quadrants)] if len(known) > 1 else []

    def _captioned(
        self, shown: ShownSet, scores: Scores, rows: NDArray[np.int64]
    ) -> list[Thumbnail]:
        """Return images with short captions: class or set, predicted class, and score."""
        if not len(rows):
            return []
        entry, labels, names = shown.entry, shown.images.labels, self.stored.record.class_names
        predictions = self.run.read(PREDICTIONS, entry)
        thumbnails = []
        for row, pixels in zip(rows, shown.pixels(rows), strict=True):
            is_class = entry.group == "id" and labels is not None
            lines = [names[int(labels[row])] if is_class and labels is not None else entry.name]
            if predictions is not None:
                lines.append(f"→ {names[int(predictions[row])]}")
            short = [clipped(printable(each), _SHORT, 1) for each in lines]
            thumbnails.append(Thumbnail(pixels, "\n".join([*short, f"{scores[row]:.4g}"])))
        return thumbnails

    def _thumbnails(
        self, shown: ShownSet, scores: Scores, rows: NDArray[np.int64]
    ) -> list[Thumbnail]:
        """Return images with captions: file, true and predicted class, and score."""
        if not len(rows):
            return []
        entry, images = shown.entry, shown.images
        predictions = self.run.read(PREDICTIONS, entry)
        names = self.stored.record.class_names
        thumbnails = []
        for row, pixels in zip(rows, shown.pixels(rows), strict=True):
            lines = [shown.name(int(row)).replace("\\", "/").rpartition("/")[2]]
            if entry.group == "id" and images.labels is not None:
                lines.append(f"is {names[int(images.labels[row])]}")
            if predictions is not None:
                lines.append(f"seen as {names[int(predictions[row])]}")
            caption = [*(_shortened(printable(line)) for line in lines), f"{scores[row]:.4g}"]
            thumbnails.append(Thumbnail(pixels, "\n".join(caption)))
        return thumbnails

    @cached_property
    def sets(self) -> list[ShownSet]:
        """The sets whose images exist and are the scored ones."""
        return list(self._found())

    @cached_property
    def _data(self) -> RunData | None:
        """The ID data set of the run; None, with a note, if it cannot be opened."""
        try:
            return RunData.of(
                self.store,
                self.stored.folder,
                self.stored.record,
                skip_unreadable=True,
                progress=SILENT,
            )
        except OodError as error:
            self.progress.note(f"no pictures of images: {error}")
            return None

    @cached_property
    def _scored(self) -> tuple[RunData, Benchmark | None] | None:
        """The ID data set as it was scored, and its benchmark; None, with a note, if not found."""
        data, scoring = self._data, self.run.scoring
        names = {entry.benchmark for entry in scoring.sets}
        benchmark = BENCHMARKS.get(names.pop() or "") if len(names) == 1 else None
        if data is None or benchmark is None:
            return None if data is None else (data, None)
        try:
            return data.on(benchmark, scoring.resized_as)[0], benchmark
        except OodError as error:
            self.progress.note(f"no pictures of images: {error}")
            return None

    def _found(self) -> Iterator[ShownSet]:
        if self._scored is None:
            return
        data, benchmark = self._scored
        scoring = self.run.scoring
        for entry in (scoring.id_set, *self.run.sets):
            is_id = entry.group == "id"
            try:
                part = data.dataset.id_test if is_id else self._opened(entry, benchmark).ood_part
                images = data.prepared(part, name=entry.name, limit=scoring.limit)
            except OodError as error:
                if is_id:
                    self.progress.note(f"no pictures of images: {error}")
                    return
                self.progress.note(f"no pictures of {entry.name}: {error}")
                continue
            if images.digest == entry.digest:
                yield ShownSet(images, part, _resizing(data), entry)
            else:
                self.progress.note(
                    f"no pictures of {entry.name}: its images differ from those that were scored"
                )

    def _opened(self, entry: ScoredSet, benchmark: Benchmark | None) -> Dataset:
        spec = entry.data or entry.name
        if spec in DATASETS and not is_here(spec, self.store):
            raise InvalidInputError("it is no longer in the store")
        window = self.stored.record.preprocess.medical
        dataset = open_dataset(spec, self.store, role="ood", window=window)
        if benchmark is not None and entry.name in benchmark.lists:
            part = split(dataset, benchmark.lists[entry.name], self.store).part
            return replace(dataset, parts={"test": part})
        return dataset


def _are_undecoded(images: ImageSet) -> bool:
    """Return whether shards stand for images whose pixels were not decoded as a whole."""
    shards = [(shard, *(piece.shard for piece in shard.pieces)) for shard in images.shards]
    return any(each.known_digest == UNDECODED for every in shards for each in every)


def _surest(scores: Scores, threshold: float, *, accepted: bool) -> NDArray[np.int64]:
    """Return the rows that are accepted or rejected, the surest first."""
    order = np.argsort(-scores if accepted else scores, kind="stable")
    return order[(scores[order] >= threshold) == accepted]


def _shortened(text: str) -> str:
    """Return a line shortened to the width of a thumbnail; the end of a name is kept."""
    return text if len(text) <= _CAPTION else f"…{text[1 - _CAPTION :]}"


def _resizing(data: RunData) -> Resizing:
    """Return how the images of a run are resized."""
    return Resizing(data.run.preprocess.size, data.run.preprocess.resize)


def _rows_of(
    shards: Sequence[ImageShard], folder: ActivationFolder, name: str
) -> NDArray[np.float32]:
    """Return a stored array of the activations of images, ``(n, …)``.

    Raises
    ------
    FileNotFoundError
        If a shard is not stored.
    CorruptArtifactError
        If its file is damaged.
    """

    def read(key: str) -> dict[str, NDArray[np.float32]]:
        for place in folder.places:
            with contextlib.suppress(FileNotFoundError):
                return {name: place.arrays(key)[name]}
        raise FileNotFoundError(key)

    return np.concatenate([_of_shard(shard, folder, name, read) for shard in shards])


def _probed(
    shards: Sequence[ImageShard], folder: ActivationFolder, probe: str
) -> NDArray[np.float32]:
    """Return the stored array of a probe, ``(n, …)``; errors as for :func:`_rows_of`."""
    read = folder.probe_arrays(probe).arrays
    return np.concatenate([_of_shard(shard, folder, probe, read) for shard in shards])


def _of_shard(
    shard: ImageShard,
    folder: ActivationFolder,
    name: str,
    read: Callable[[str], dict[str, NDArray[np.float32]]],
) -> NDArray[np.float32]:
    try:
        return folder.rows_of(shard, read, np.concatenate)[name]
    except KeyError:
        what = name.replace("_", " ")
        raise CorruptArtifactError(
            f"shard {folder.shard_key(shard)} in {folder.path} has no {what}; remove it"
        ) from None
