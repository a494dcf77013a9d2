"""Pictures of the stored results of runs, or of score files; needs no network and no torch."""

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data import DATASETS, open_dataset
from oodcli.data.benchmarks import BENCHMARKS, Benchmark
from oodcli.data.dataset import Dataset
from oodcli.data.opening import is_here
from oodcli.data.run_data import RunData
from oodcli.data.splits import split
from oodcli.data.views import View
from oodcli.errors import CorruptArtifactError, InvalidInputError, OodError, UnknownNameError
from oodcli.files import expanded
from oodcli.images import ImageSet, ImageShard, Part, image_name
from oodcli.metrics import Curve
from oodcli.progress import SILENT, Progress
from oodcli.reporting.plots import (
    FORMATS,
    MAX_LINES,
    Picture,
    Thumbnail,
    block_auroc,
    curves,
    encoded,
    histograms,
    normratio_bars,
    picture_sheet,
    training_history,
)
from oodcli.reporting.sources import ScoredRun, Sources, StoredRun
from oodcli.reporting.statistics import threshold_at
from oodcli.store.activations import ActivationFolder
from oodcli.store.runs import RunFolder
from oodcli.store.scores import PREDICTIONS, ScoredSet, Scores
from oodcli.store.store import (
    Store,
    atomic_write,
    check_output_folder,
    digest_of_file,
    read_json,
)
from oodcli.text import printable

__all__ = ["Picture", "encoded", "pictures", "write_plots"]

_BLOCK = re.compile(r"featurenorm:block=(\d+)")
_THUMBNAILS = 10
_CAPTION = 17


def pictures(sources: Sources, *, progress: Progress = SILENT) -> list[Picture]:
    """Draw everything that is known about the first run, or of the first network of score files.

    Histograms, ROC and precision-recall curves are drawn of the methods that are named, or of the
    :data:`~oodcli.reporting.plots.MAX_LINES` with the highest mean AUROC; the
    contact sheet is of the best.
    NormRatio, AUROC of blocks, training history and images appear where the store has them.

    Parameters
    ----------
    sources
        The scores, opened by :meth:`oodcli.reporting.sources.Sources.open`.
    progress
        Receives notes on pictures that cannot be drawn, with the reason.

    Raises
    ------
    OodError
        If there are no such scores.
    """
    run, named = sources.runs[0], sources.query.methods
    if len(sources.runs) > 1:
        progress.note(f"pictures are of {run.name}, the first of {len(sources.runs)}")
    ranking = _ranked(run)
    if not ranking:
        raise InvalidInputError(f"{run.name} has no scores of these methods and sets to draw")
    left_out = [] if named else ranking[MAX_LINES:]
    shown = [name for name in run.methods if name in ranking and name not in left_out]
    if left_out:
        progress.note(
            f"pictures show the {MAX_LINES} methods of highest mean AUROC; others: --method NAME"
        )
    id_set = run.scoring.id_set
    scores = {method: _scores(run, method) for method in shown}
    drawn = [
        histograms(method, id_set.name, *scores[method]) for method in shown if scores[method][1]
    ]
    for at in range(0, len(shown), MAX_LINES):
        few = {method: scores[method] for method in shown[at : at + MAX_LINES]}
        for kind in ("roc", "pr"):
            picture = curves(kind, id_set.name, few)
            drawn.append(picture if at == 0 else replace(picture, name=f"{kind}-{at + 1}"))
    if sources.store is not None and run.stored is not None:
        drawn += _of_stored(sources.store, run, run.stored, best=ranking[0], progress=progress)
    else:
        drawn += _blocks(run, _stored_block_scores(run), selected=None)
    return drawn


def write_plots(
    drawn: Sequence[Picture], folder: Path, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Write pictures to a folder, which is created, and return their paths.

    Parameters
    ----------
    drawn
        The result of :func:`pictures`.
    folder
        Folder to write to; files of the same name are replaced.
    formats
        ``png``, ``svg`` or ``pdf``.

    Raises
    ------
    UnknownNameError
        If there is no such format.
    InvalidInputError
        If the folder is a file.
    """
    for how in formats:
        if how not in FORMATS:
            raise UnknownNameError.among("picture format", how, FORMATS)
    check_output_folder(folder, option="--plots")
    target = expanded(folder)
    names: list[str] = []
    for picture in drawn:
        name = file_name(picture.name)
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    paths = []
    for (name, picture), how in itertools.product(zip(names, drawn, strict=True), formats):
        path = target / f"{name}.{how}"
        with atomic_write(path, cure="choose another folder: --plots DIR") as stream:
            stream.write(encoded(picture, how))
        paths.append(path)
    return paths


def file_name(name: str) -> str:
    """Return a name that is a valid file name on every system."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", name).strip("-.")[:100] or "picture"


def _ranked(run: ScoredRun) -> list[str]:
    """Return the methods that have scores, the one of highest mean AUROC first."""
    means = {}
    for method in run.methods:
        id_scores, sets = _scores(run, method)
        values = [Curve.of(id_scores, scores).auroc() for scores in sets.values()]
        if values:
            means[method] = float(np.mean(values))
    return sorted(means, key=lambda method: -means[method])


def _scores(run: ScoredRun, method: str) -> tuple[Scores, dict[str, Scores]]:
    """Return the scores of the ID test images and of every OOD set that has any."""
    id_scores = run.read(method, run.scoring.id_set)
    if id_scores is None:
        return np.empty(0), {}
    found = {entry.name: run.read(method, entry) for entry in run.sets}
    return id_scores, {name: scores for name, scores in found.items() if scores is not None}


def _of_stored(
    store: Store, run: ScoredRun, stored: StoredRun, *, best: str, progress: Progress
) -> Iterator[Picture]:
    """Yield the pictures of a run other than those of its scores."""
    chosen = _normratio(stored.folder)
    if chosen is not None:
        blocks = chosen["blocks"]
        yield normratio_bars(
            run.name,
            [block["name"] for block in blocks],
            [math.nan if block["ratio"] is None else block["ratio"] for block in blocks],
            [math.nan if block["stderr"] is None else block["stderr"] for block in blocks],
            selected=chosen["selected"],
        )
    images = _Images(store, run, stored, progress)
    norms = images.block_norms() or _stored_block_scores(run)
    yield from _blocks(run, norms, selected=None if chosen is None else chosen["selected"])
    history = _history(stored)
    if history:
        yield training_history(run.name, history)
    yield from images.contact_sheet(best)


def _normratio(folder: RunFolder) -> dict[str, Any] | None:
    """Return the stored NormRatio with the most images, preferably of normalised images."""
    if not folder.normratio.is_dir():
        return None
    results = [read_json(path) for path in sorted(folder.normratio.glob("*.json"))]
    return max(results, key=lambda each: (each["n_images"], each["normalised"]), default=None)


def _history(stored: StoredRun) -> list[dict[str, Any]]:
    """Return one entry per epoch; none for a network that was not trained here."""
    folder, record = stored.folder, stored.record
    if not folder.history.is_file() or record.origin != "trained":
        return []
    if digest_of_file(folder.history) != record.training.get("history"):
        raise CorruptArtifactError(
            f"{folder.history} is damaged or was edited: it is not what training wrote; restore "
            "it, or remove it to omit the plot of the training"
        )
    return [json.loads(line) for line in folder.history.read_text().splitlines()]


def _stored_block_scores(run: ScoredRun) -> dict[str, list[Scores | None]]:
    """Return the scores of ``featurenorm:block=N`` by data set, in the order of blocks."""
    known = {
        int(found[1]): method
        for method in run.scoring.methods or {}
        if (found := _BLOCK.fullmatch(method))
    }
    if len(known) < 2:
        return {}
    return {
        entry.name: [
            run.read(known[block], entry) if block in known else None
            for block in range(max(known) + 1)
        ]
        for entry in (run.scoring.id_set, *run.sets)
    }


def _blocks(
    run: ScoredRun, norms: Mapping[str, Sequence[Scores | None]], *, selected: int | None
) -> list[Picture]:
    """Draw AUROC of every block from the norms of every block, by data set."""
    id_norms = norms.get(run.scoring.id_set.name)
    if id_norms is None:
        return []
    auroc = {
        entry.name: [
            math.nan if a is None or b is None else Curve.of(a, b).auroc()
            for a, b in zip(id_norms, norms[entry.name], strict=True)
        ]
        for entry in run.sets
        if entry.name in norms
    }
    return [block_auroc(run.name, auroc, selected=selected)] if auroc else []


@dataclass(frozen=True)
class _ShownSet:
    """A scored set with its images and their source."""

    entry: ScoredSet
    images: ImageSet
    part: Part


@dataclass(frozen=True)
class _Images:
    """The scored images of a run, as far as they still exist.

    Nothing is downloaded, and a set whose images differ from the scored ones is skipped.
    """

    store: Store
    run: ScoredRun
    stored: StoredRun
    progress: Progress

    def block_norms(self) -> dict[str, list[Scores | None]]:
        """Return FeatureNorm of every block by data set, from stored activations."""
        precision = self.run.scoring.precision
        folder = ActivationFolder.of(
            self.store, self.stored.record, precision=precision, view=View()
        )
        if not any(place.stored() for place in folder.places):
            return {}
        norms: dict[str, list[Scores | None]] = {}
        for each in self._sets:
            with contextlib.suppress(FileNotFoundError):
                rows = [_block_norms_of(shard, folder) for shard in each.images.shards]
                norms[each.entry.name] = list(np.concatenate(rows).T)
        return norms

    def contact_sheet(self, method: str) -> list[Picture]:
        """Show the errors of a method at the threshold that accepts 95 % of the ID images.

        Errors are ID images below the threshold and OOD images at or above it; the worst first.
        """
        id_scores = self.run.read(method, self.run.scoring.id_set)
        if id_scores is None:
            return []
        threshold = threshold_at(id_scores)
        rows: dict[str, list[Thumbnail]] = {}
        for each in self._sets:
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
            rows[what] = self._thumbnails(each, scores, wrong[:_THUMBNAILS])
        if any(rows.values()):
            return [picture_sheet(method, rows)]
        if rows:
            self.progress.note(f"no pictures of errors: {method} makes none on these images")
        return []

    def _thumbnails(
        self, shown: "_ShownSet", scores: Scores, rows: NDArray[np.int64]
    ) -> list[Thumbnail]:
        """Return images with captions: file, true and predicted class, and score."""
        if not len(rows):
            return []
        entry, images = shown.entry, shown.images
        places = np.concatenate([shard.indices for shard in images.shards])
        predictions = self.run.read(PREDICTIONS, entry)
        names = self.stored.record.class_names
        thumbnails = []
        for row, pixels in zip(rows, _pixels(images, rows), strict=True):
            name = image_name(shown.part.source, int(places[row]))
            lines = [name.replace("\\", "/").rpartition("/")[2]]
            if entry.group == "id" and images.labels is not None:
                lines.append(f"is {names[int(images.labels[row])]}")
            if predictions is not None:
                lines.append(f"seen as {names[int(predictions[row])]}")
            caption = [*(_shortened(printable(line)) for line in lines), f"{scores[row]:.4g}"]
            thumbnails.append(Thumbnail(pixels, "\n".join(caption)))
        return thumbnails

    @cached_property
    def _sets(self) -> list["_ShownSet"]:
        """The sets whose images exist and are the scored ones."""
        return list(self._found())

    def _found(self) -> Iterator["_ShownSet"]:
        try:
            data = RunData.of(
                self.store,
                self.stored.folder,
                self.stored.record,
                skip_unreadable=True,
                progress=SILENT,
            )
        except OodError as error:
            self.progress.note(f"no pictures of images: {error}")
            return
        scoring = self.run.scoring
        names = {entry.benchmark for entry in scoring.sets}
        benchmark = BENCHMARKS.get(names.pop() or "") if len(names) == 1 else None
        try:
            if benchmark is not None:
                data, _ = data.on(benchmark, scoring.resized_as)
            part = data.dataset.id_test
            images = data.prepared(part, name=scoring.id_set.name, limit=scoring.limit)
        except OodError as error:
            self.progress.note(f"no pictures of images: {error}")
            return
        for entry in (scoring.id_set, *self.run.sets):
            try:
                if entry.group != "id":
                    part = self._opened(entry, benchmark).ood_part
                    images = data.prepared(part, name=entry.name, limit=scoring.limit)
            except OodError as error:
                self.progress.note(f"no pictures of {entry.name}: {error}")
                continue
            if images.digest == entry.digest:
                yield _ShownSet(entry, images, part)
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


def _shortened(text: str) -> str:
    """Return a line shortened to the width of a thumbnail; the end of a name is kept."""
    return text if len(text) <= _CAPTION else f"…{text[1 - _CAPTION :]}"


def _block_norms_of(shard: ImageShard, folder: ActivationFolder) -> NDArray[np.float32]:
    """Return the stored norms of a shard, or of the shards its images come from, ``(n, blocks)``.

    Raises
    ------
    FileNotFoundError
        If there are none.
    CorruptArtifactError
        If they are damaged.
    """

    def read(key: str) -> dict[str, NDArray[np.float32]]:
        for place in folder.places:
            with contextlib.suppress(FileNotFoundError):
                return {"block_norms": place.arrays(key)["block_norms"]}
        raise FileNotFoundError(key)

    try:
        return folder.rows_of(shard, read, np.concatenate)["block_norms"]
    except KeyError:
        raise CorruptArtifactError(
            f"shard {folder.shard_key(shard)} in {folder.path} has no block norms; remove it"
        ) from None


def _pixels(images: ImageSet, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Return the given images in the given order, each ``(h, w, 3)``."""
    ascending = np.sort(rows)
    pixels = images.take(ascending).pixels()
    places = np.searchsorted(ascending, rows)
    return [pixels[at].transpose(1, 2, 0) for at in places]
