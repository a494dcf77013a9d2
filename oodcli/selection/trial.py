"""Evaluate every candidate on ID images and on corrupted versions of them."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from oodcli.activations import Activations, ActivationSet, Reference
from oodcli.data.views import View
from oodcli.errors import (
    InvalidInputError,
    UndefinedMethodError,
)
from oodcli.images import ImageSet
from oodcli.methods import Fitted, MethodSpec, group, parse_method, parse_methods
from oodcli.methods._blocks import BLOCK_MEANS
from oodcli.methods.base import score_many
from oodcli.methods.ensemble import EnsembleSpec, rank_scale
from oodcli.progress import Progress
from oodcli.scoring.fitting import (
    combined_reasons,
    learns_from_train,
    puzzle_views,
    without_logits,
)
from oodcli.scoring.open_run import OpenRun
from oodcli.scoring.tune import parameter_settings
from oodcli.selection.contrasts import Contrast, Floats, greedy_ensemble, merits
from oodcli.selection.recommendation import family_of, same_scores
from oodcli.selection.validation import corrupted_activations

_TRIO = ("knn", "energy", "featurenorm")
# Number of methods, each with its best setting, among which an ensemble is selected.
_POOL = 12


@dataclass(frozen=True)
class TrialResult:
    """Results of all candidates on ID images and on corrupted versions of them.

    Parameters
    ----------
    specs
        The evaluated candidates.
    contrasts
        Their scores, by corruption.
    families
        Family of each corruption, by its name.
    left_out
        Why others could not be evaluated, by name.
    """

    specs: tuple[MethodSpec, ...]
    contrasts: tuple[Contrast, ...]
    families: Mapping[str, str]
    left_out: Mapping[str, str]


def evaluate_candidates(
    run: OpenRun, images: ImageSet, *, methods: Sequence[str] = (), seed: int
) -> TrialResult:
    """Score ID images and corrupted versions of them with every candidate.

    Parameters
    ----------
    run
        The run.
    images
        The ID images to choose on.
    methods
        The methods to choose from; all if empty.
    seed
        Seed of the corruptions.

    Raises
    ------
    InvalidInputError
        If no candidate can be evaluated, or no corruption can be applied to the images.
    """
    reference = run.reference()
    specs = candidates(
        len(run.record.blocks),
        methods,
        zero_shot=bool(run.record.zero_shot),
        kept=run.record.kept_heads,
        classifier=run.record.outputs > 0,
        blocks=not methods and _keeps_blocks(run),
    )
    probes = [BLOCK_MEANS] if any("blocks" in spec.inputs for spec in specs) else []
    if methods and not run.record.outputs:
        specs = list(without_logits(run.name, specs)[0])
    if learns_from_train(specs) and "train" in run.data.dataset.parts:
        run.decode_train(puzzles=puzzle_views(specs), observed=bool(probes))
        if run.calibration_part == "train":
            # The selection images are among them; their activations are then not computed again.
            reference.train  # noqa: B018 - a cached property, which computes the activations
    sets, ways = corrupted_activations(run, images, seed, probes=probes)
    ready, left_out = _fitted(specs, reference, run.progress)
    tables = {
        view: _scores([fitted for _, fitted in ready], activations, name, run.progress)
        for view, (name, activations) in sets.items()
    }
    usable, reasons = _usable([fitted.canonical for _, fitted in ready], tables)
    left_out |= reasons
    ready = [ready[index] for index in usable]
    tables = {view: table[:, usable] for view, table in tables.items()}
    if not ready:
        raise InvalidInputError(combined_reasons(left_out) or "there is no method to choose from")
    size = run.record.preprocess.size
    contrasts = tuple(
        Contrast(way.name, way.family, tables[way.id_view(size)], tables[way.view]) for way in ways
    )
    if not methods:
        contrasts, ready = _with_ensembles(contrasts, ready, reference)
    return TrialResult(
        tuple(spec for spec, _ in ready),
        contrasts,
        {way.name: way.family for way in ways},
        left_out,
    )


def candidates(
    n_blocks: int,
    methods: Sequence[str] = (),
    *,
    zero_shot: bool = False,
    kept: Collection[str] = (),
    classifier: bool = True,
    blocks: bool = False,
) -> list[MethodSpec]:
    """Return methods with all values of their grids, defaults first, and all blocks.

    Parameters
    ----------
    n_blocks
        Number of blocks of the network.
    methods
        Methods, as on the command line; if empty, all that need only stored activations.
    zero_shot
        Whether the network is a zero-shot classifier.
    kept
        Names of the kept heads of the network.
    classifier
        Whether the network has a classifier; if not, all methods are those that need none.
    blocks
        Whether all methods are also those that use the pooled maps of all blocks.
    """
    found: dict[str, MethodSpec] = {}
    named = list(methods or group(probes=False, zero_shot=zero_shot, kept=kept, blocks=blocks))
    for spec in parse_methods(named, zero_shot=zero_shot, kept=kept):
        # Among settings with equal scores, the one with the shortest name comes first and is used.
        each = [spec, *sorted(parameter_settings(spec), key=lambda one: len(one.canonical))]
        if spec.canonical == "featurenorm":
            each += [parse_method(f"featurenorm:block={block}") for block in range(n_blocks)]
        for one in each:
            found.setdefault(one.canonical, one)
    return [spec for spec in found.values() if methods or classifier or not spec.needs_classifier]


def _fitted(
    specs: Sequence[MethodSpec], reference: Reference, progress: Progress
) -> tuple[list[tuple[MethodSpec, Fitted]], dict[str, str]]:
    ready: list[tuple[MethodSpec, Fitted]] = []
    left_out: dict[str, str] = {}
    with progress.task("fitting candidates", total=len(specs), unit="candidates") as task:
        for spec in specs:
            try:
                ready.append((spec, spec.fit(reference)))
            except InvalidInputError as error:  # not defined, or its fitting data is missing
                left_out[spec.canonical] = str(error)
            task.advance(1)
    probing = [spec.canonical for spec, fitted in ready if _observes_more(fitted)]
    left_out |= dict.fromkeys(probing, "it needs more than one forward pass")
    return [each for each in ready if each[0].canonical not in probing], left_out


def _observes_more(fitted: Fitted) -> bool:
    """Return whether a method needs probes other than the pooled maps of all blocks."""
    return any(probe.key != BLOCK_MEANS.key for probe in fitted.probes)


def _keeps_blocks(run: OpenRun) -> bool:
    """Return whether the pooled maps of the images that methods are fitted on are stored."""
    if "train" not in run.data.dataset.parts:
        return False
    parts = (run.train(), run.calibration())
    return not any(run.activator.plan(each, probes=[BLOCK_MEANS]).missing for each in parts)


def _scores(
    fitted: Sequence[Fitted], activations: ActivationSet, name: str, progress: Progress
) -> Floats:
    """Return the scores of every candidate, ``(n, c)``; NaN if it is not defined."""
    table = np.full((len(activations), len(fitted)), np.nan)
    # Adjacent detectors of one class share work, and are either all defined or all undefined.
    groups = [
        [index for index, _ in run]
        for _, run in itertools.groupby(enumerate(fitted), key=lambda each: type(each[1].detector))
    ]
    row = 0
    with (
        torch.inference_mode(),
        progress.task(f"scoring candidates on {name}", total=len(table), unit="images") as task,
    ):
        for chunk in activations.chunks():
            for group in groups:
                for part in _chunk_scores([fitted[index] for index in group], chunk):
                    table[row : row + len(chunk), [group[i] for i in part[0]]] = part[1]
            row += len(chunk)
            task.advance(len(chunk))
    return table


def _chunk_scores(
    fitted: Sequence[Fitted], chunk: Activations
) -> Iterator[tuple[list[int], Floats]]:
    detectors = [each.detector for each in fitted]
    try:
        yield list(range(len(fitted))), score_many(detectors, chunk).cpu().numpy()
    except UndefinedMethodError:
        for index, detector in enumerate(detectors):
            try:
                yield [index], score_many([detector], chunk).cpu().numpy()
            except UndefinedMethodError:
                continue


def _usable(
    names: Sequence[str], tables: Mapping[View, Floats]
) -> tuple[list[int], dict[str, str]]:
    """Return the candidates with finite scores that differ from those of earlier candidates."""
    usable: list[int] = []
    reasons: dict[str, str] = {}
    seen: dict[bytes, str] = {}
    for index, name in enumerate(names):
        columns = [table[:, index] for table in tables.values()]
        if not all(np.isfinite(column).all() for column in columns):
            reasons[name] = f"{name} gives scores that are not finite"
            continue
        same = seen.setdefault(b"".join(column.tobytes() for column in columns[:3]), name)
        if same == name:
            usable.append(index)
        else:
            reasons[name] = same_scores(name, same)
    return usable, reasons


def _with_ensembles(
    contrasts: tuple[Contrast, ...],
    ready: list[tuple[MethodSpec, Fitted]],
    reference: Reference,
) -> tuple[tuple[Contrast, ...], list[tuple[MethodSpec, Fitted]]]:
    """Add the ensemble of three methods of different kinds, and one selected greedily."""
    families = [each.family for each in contrasts]
    merit = merits(np.stack([each.auroc for each in contrasts]), families)
    best: dict[str, int] = {}
    for index in np.argsort(-merit, kind="stable"):
        best.setdefault(family_of(ready[index][0]), int(index))
    names = [spec.canonical for spec, _ in ready]
    pool = list(best.values())[:_POOL]
    trio = [names.index(name) for name in _TRIO if name in names]
    scales = {}
    for index in dict.fromkeys((*pool, *trio)):
        try:
            scales[index] = rank_scale(ready[index][1], reference)
        except InvalidInputError:  # no calibration images, or nothing to rank
            continue
    ranked = {
        index: [
            [scale.ranks(torch.from_numpy(table[:, index]).to(scale.scores.device)).cpu().numpy()
             for table in (each.id_scores, each.pseudo_scores)]
            for each in contrasts
        ]
        for index, scale in scales.items()
    }  # fmt: skip
    pool = [index for index in pool if index in scales]
    groups: dict[str, list[int]] = {}
    if len(trio) == len(_TRIO) and all(index in scales for index in trio):
        groups["trio"] = trio
    if len(pool) > 1:
        ranks = [
            Contrast(
                each.kind,
                each.family,
                np.column_stack([ranked[index][at][0] for index in pool]),
                np.column_stack([ranked[index][at][1] for index in pool]),
            )
            for at, each in enumerate(contrasts)
        ]
        chosen = greedy_ensemble(ranks)
        if len(chosen) > 1 and sorted(pool[c] for c in chosen) != sorted(trio):
            groups["greedy"] = [pool[column] for column in chosen]
    for members in groups.values():
        spec = EnsembleSpec.of(*(ready[index][0] for index in members))
        contrasts = tuple(
            replace(
                each,
                id_scores=_appended(each.id_scores, [ranked[i][at][0] for i in members]),
                pseudo_scores=_appended(each.pseudo_scores, [ranked[i][at][1] for i in members]),
            )
            for at, each in enumerate(contrasts)
        )
        # Its scores are known here; the ensemble itself is fitted when it is used.
        ready = [*ready, (spec, ready[members[0]][1])]
    return contrasts, ready


def _appended(table: Floats, ranks: Sequence[Floats]) -> Floats:
    return np.column_stack([table, np.mean(ranks, axis=0)])
