"""Pictures of the stored results of runs, or of score files; needs no network and no torch."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, InvalidInputError, UnknownNameError
from oodcli.files import expanded
from oodcli.metrics import Curve
from oodcli.progress import SILENT, Progress
from oodcli.reporting.activation_maps import activation_maps, maps_of_block
from oodcli.reporting.embedding import stored_embedding
from oodcli.reporting.neighbour_sheet import neighbour_sheet
from oodcli.reporting.plots import (
    FORMATS,
    MAX_LINES,
    Picture,
    block_auroc,
    curves,
    encoded,
    histograms,
    normratio_bars,
    training_history,
    without_glyphs,
)
from oodcli.reporting.plots_of_features import Classes, TopSums, sums_scatter, tsne_map
from oodcli.reporting.plots_of_methods import (
    MAX_METHODS,
    auroc_dots,
    correlation_map,
    dot_plot,
    rank_correlations,
    rank_diagram,
    ranks_of,
)
from oodcli.reporting.plots_of_norms import (
    MAX_PANELS,
    NormPanel,
    mean_norms,
    norm_by_depth,
    norm_histograms,
    normratio_and_auroc,
)
from oodcli.reporting.plots_of_tuning import tuning_curves, tuning_lines
from oodcli.reporting.sources import ScoredRun, Sources, StoredRun
from oodcli.reporting.stored_images import StoredImages
from oodcli.store.runs import RunFolder
from oodcli.store.scores import LABELS, Scores
from oodcli.store.searches import Search, read_searches
from oodcli.store.store import (
    Store,
    atomic_write,
    check_output_folder,
    digest_of_file,
    read_json,
)
from oodcli.text import printable

__all__ = ["Picture", "encoded", "pictures", "write_plots"]

_SCALE_PERCENTILE = 85.0
_NAMED = 5  # names in a note
_BLOCK = re.compile(r"featurenorm:block=(\d+)")


def pictures(sources: Sources, *, progress: Progress = SILENT) -> list[Picture]:
    """Draw everything that is known about the first run, or of the first network of score files.

    Histograms, ROC and precision-recall curves are drawn of the methods that are named, or of the
    :data:`~oodcli.reporting.plots.MAX_LINES` with the highest mean AUROC; the
    contact sheet is of the best.
    NormRatio, norms and AUROC of blocks, training history and images appear where the store has
    them.

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
    drawn += _comparisons(run, shown if named else ranking[:MAX_METHODS], progress)
    if sources.store is not None and run.stored is not None:
        drawn += _of_stored(sources.store, run, run.stored, best=ranking[0], progress=progress)
    else:
        norms = _stored_block_scores(run)
        drawn += _blocks(run, norms, selected=None)
        drawn += _norms(run, norms, None, None)
    drawn += _feature_norms(sources, progress)
    _note_glyphs(run, progress)
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


def _note_glyphs(run: ScoredRun, progress: Progress) -> None:
    """Say which names have characters that no installed font has."""
    classes = () if run.stored is None else run.stored.record.class_names
    sets = [entry.name for entry in (run.scoring.id_set, *run.sets)]
    lacking = without_glyphs(dict.fromkeys([run.name, *sets, *classes]))
    if lacking:
        named = ", ".join(printable(name) for name in lacking[:_NAMED])
        more = f" and {len(lacking) - _NAMED:,} more" if len(lacking) > _NAMED else ""
        progress.note(
            f"no installed font has all characters of {named}{more}, which are drawn as boxes; "
            "install one that has them, such as Noto Sans CJK"
        )


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


def _comparisons(run: ScoredRun, methods: Sequence[str], progress: Progress) -> Iterator[Picture]:
    """Yield pictures that compare methods: AUROC, mean ranks and correlation of scores."""
    scores = {method: _scores(run, method) for method in methods}
    dots = auroc_dots(scores)
    yield dot_plot(run.name, dots)
    everywhere = {
        method: found for method, found in scores.items() if found[1].keys() == dots.keys()
    }
    if len(everywhere) < 2:
        return
    if len(dots) > 1:
        values = {method: [dots[name][method].value for name in dots] for method in everywhere}
        yield rank_diagram(run.name, ranks_of(values))
    else:
        progress.note("no picture of mean ranks: they need two OOD sets or more")
    yield correlation_map(run.name, list(everywhere), rank_correlations(everywhere))


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
            *_ratios_of(chosen),
            selected=chosen["selected"],
        )
        yield from _activation_maps(run, stored, chosen, progress)
    images = StoredImages(store, run, stored, progress)
    norms = images.block_norms() or _stored_block_scores(run)
    selected = None if chosen is None else chosen["selected"]
    yield from _blocks(run, norms, selected=selected)
    yield from _norms(run, norms, chosen, images)
    searches = read_searches(stored.folder.scores)
    features = images.features()
    yield from _features(run, images, features, searches, progress)
    yield from _tuning(run, searches)
    history = _history(stored)
    if history:
        yield training_history(run.name, history)
    yield from images.contact_sheet(best)
    yield from images.verdict_sheet(best)
    last_map = None if chosen is None else tuple(chosen["blocks"][-1]["shape"][1:])
    yield from neighbour_sheet(
        images, best, features, last_map if last_map and len(last_map) == 2 else None, progress
    )


def _normratio(folder: RunFolder) -> dict[str, Any] | None:
    """Return the stored NormRatio with the most images, preferably of normalised images."""
    if not folder.normratio.is_dir():
        return None
    results = [
        {**read_json(path), "stem": path.stem} for path in sorted(folder.normratio.glob("*.json"))
    ]
    return max(results, key=lambda each: (each["n_images"], each["normalised"]), default=None)


def _activation_maps(
    run: ScoredRun, stored: StoredRun, chosen: dict[str, Any], progress: Progress
) -> Iterator[Picture]:
    """Draw the maps that ``ood normratio`` stored with its result."""
    block = chosen["selected"]
    maps = maps_of_block(stored.folder, chosen["stem"], block)
    if maps is None:
        progress.note(
            f"no activation maps: none of block {block} are stored; compute them: "
            f"ood normratio --run {stored.folder.name}"
        )
    else:
        yield activation_maps(run.name, chosen["blocks"][block]["name"], maps)


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


def _norms(
    run: ScoredRun,
    norms: Mapping[str, Sequence[Scores | None]],
    chosen: dict[str, Any] | None,
    images: StoredImages | None,
) -> Iterator[Picture]:
    """Draw what the paper of FeatureNorm shows, from the norms of every block by data set."""
    id_name = run.scoring.id_set.name
    names = [id_name, *(entry.name for entry in run.sets if entry.name in norms)]
    if id_name not in norms or len(names) < 2:
        return
    ordered = {name: norms[name] for name in names}
    panels = _last_and_selected(ordered, chosen)
    if panels:
        yield norm_histograms(
            "norms", f"FeatureNorm of {run.name}", panels, x="FeatureNorm (units of activation)"
        )
    # Norms of images that are not normalised are of other pixels, and not comparable.
    jigsaw = (
        images.jigsaw_norms(chosen["n_images"], of_images=chosen["of_images"])
        if images is not None and chosen is not None and chosen["normalised"]
        else None
    )
    yield norm_by_depth(run.name, mean_norms(ordered, jigsaw))
    auroc = _auroc_of_blocks(run, norms)
    if chosen is not None and len(chosen["blocks"]) == len(ordered[id_name]) and auroc:
        yield normratio_and_auroc(
            run.name,
            *_ratios_of(chosen),
            auroc,
            selected=chosen["selected"],
        )


def _features(
    run: ScoredRun,
    images: StoredImages,
    found: Mapping[str, NDArray[np.float32]],
    searches: Sequence[Search],
    progress: Progress,
) -> Iterator[Picture]:
    """Draw stored features: t-SNE, and the sum of the largest against the sum of all."""
    names = [run.scoring.id_set.name, *(entry.name for entry in run.sets)]
    features = {name: found[name] for name in names if name in found}
    if list(features)[:1] != names[:1] or len(features) < 2:
        return
    read = run.read(LABELS, run.scoring.id_set)
    labels = None if read is None else read.astype(np.int64)
    try:
        with progress.task("t-SNE of features", total=1, unit="pictures") as task:
            folder = images.stored.folder.embeddings
            points = stored_embedding(images.store, folder, features, labels)
            task.advance(1)
    except InvalidInputError as error:
        progress.note(f"no t-SNE of features: {error}")
    else:
        known = None if labels is None else Classes(labels, images.stored.record.class_names)
        yield tsne_map(run.name, points, known)
    smallest = min(float(values.min()) for values in features.values())
    if smallest < 0:
        progress.note(f"no sums of features: there are features below 0 (smallest: {smallest:.2g})")
        return
    percentile = _scale_percentile(searches)
    sums = {name: TopSums.of(values, percentile) for name, values in features.items()}
    yield sums_scatter(run.name, sums, percentile)


def _scale_percentile(searches: Sequence[Search]) -> float:
    """Return the percentile that was chosen for SCALE; its default if it was not tuned."""
    values = [
        value
        for search in searches
        for each in search.candidates
        if search.method.startswith("scale") and each.method == search.chosen
        for name, value in each.parameters.items()
        if name == "scale.percentile"
    ]
    return float(values[0]) if values else _SCALE_PERCENTILE


def _tuning(run: ScoredRun, searches: Sequence[Search]) -> Iterator[Picture]:
    """Draw metrics against tuned parameters, for each protocol and its images."""
    alike: dict[tuple[str, ...], list[Search]] = {}
    for search in searches:
        alike.setdefault((search.tuning, search.id_set, search.ood_set), []).append(search)
    for group in alike.values():
        for name, lines in tuning_lines(group).items():
            yield tuning_curves(run.name, group[0], name, lines)


def _feature_norms(sources: Sources, progress: Progress) -> list[Picture]:
    """Draw feature norms of two or three runs side by side, from stored activations."""
    if sources.store is None or len(sources.runs) < 2:
        return []
    if len(sources.runs) > MAX_PANELS:
        progress.note(f"feature norms are of the first {MAX_PANELS} of {len(sources.runs)} runs")
    panels: list[NormPanel] = []
    for run in sources.runs[:MAX_PANELS]:
        if run.stored is None:
            continue
        features = StoredImages(sources.store, run, run.stored, progress).features()
        norms = {
            name: np.linalg.norm(rows.astype(np.float64), axis=1) for name, rows in features.items()
        }
        if run.scoring.id_set.name in norms:
            panels.append(NormPanel(run.name, run.scoring.id_set.name, norms))
    sets = [list(panel.norms) for panel in panels]
    if len(panels) < 2 or len(sets[0]) < 2 or any(names != sets[0] for names in sets):
        progress.note("no feature norms: the runs have no stored activations of the same sets")
        return []
    title = "Feature norms of " + " and ".join(panel.title for panel in panels)
    x = "L2 norm of the features (units of activation)"
    return [norm_histograms("feature-norms", title, panels, x=x, ratios=True)]


def _last_and_selected(
    norms: Mapping[str, Sequence[Scores | None]], chosen: dict[str, Any] | None
) -> list[NormPanel]:
    """Return the panels of the last block and of the selected one, where they are known."""
    id_name = next(iter(norms))
    last = len(norms[id_name]) - 1
    selected = last if chosen is None else chosen["selected"]
    titles = {last: f"last block ({last})"}
    if chosen is not None and selected == last:
        titles[last] = f"block {last}, the last and the selected one"
    titles.setdefault(selected, f"block {selected}, selected by NormRatio")
    panels = []
    for block, title in titles.items():
        found = {name: blocks[block] for name, blocks in norms.items() if block < len(blocks)}
        known = {name: values for name, values in found.items() if values is not None}
        if id_name in known and len(known) > 1:
            panels.append(NormPanel(title, id_name, known))
    return panels


def _ratios_of(chosen: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return NormRatio of every block and its standard error; NaN where it has none."""
    ratios, stderrs = (
        [math.nan if block[name] is None else block[name] for block in chosen["blocks"]]
        for name in ("ratio", "stderr")
    )
    return ratios, stderrs


def _auroc_of_blocks(
    run: ScoredRun, norms: Mapping[str, Sequence[Scores | None]]
) -> dict[str, list[float]]:
    """Return AUROC of FeatureNorm of every block by OOD set; NaN where it is not known."""
    id_norms = norms.get(run.scoring.id_set.name, ())
    return {
        entry.name: [
            math.nan if a is None or b is None else Curve.of(a, b).auroc()
            for a, b in zip(id_norms, norms[entry.name], strict=True)
        ]
        for entry in run.sets
        if entry.name in norms and id_norms
    }


def _blocks(
    run: ScoredRun, norms: Mapping[str, Sequence[Scores | None]], *, selected: int | None
) -> list[Picture]:
    """Draw AUROC of every block from the norms of every block, by data set."""
    auroc = _auroc_of_blocks(run, norms)
    return [block_auroc(run.name, auroc, selected=selected)] if auroc else []
