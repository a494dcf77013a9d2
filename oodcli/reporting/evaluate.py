"""From scores to rows: metrics, intervals, paired tests, ranks and calibration; no torch."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.metrics import Convention, Curve
from oodcli.reporting.bootstrap import (
    RESAMPLED,
    Resamples,
    bootstrap,
    logit_interval,
    share_interval,
)
from oodcli.reporting.results import (
    FULL_SPECTRUM,
    GROUPS,
    Calibration,
    Comparison,
    MeanRank,
    Place,
    ResultRow,
)
from oodcli.reporting.sources import ScoredRun
from oodcli.reporting.statistics import (
    Floats,
    Placements,
    accuracy_above,
    aurc,
    auroc_difference,
    auroc_interval,
    average,
    calibration_error,
    holm,
    mean_ranks,
    placements,
    threshold_at,
)
from oodcli.store.scores import AVERAGE, ScoredSet, Scores, Scoring, full_name

_LEVELS = {"fpr80": 0.80, "fpr90": 0.90, "fpr99": 0.99}
_CONFIDENCE = "msp"  # the method whose score is that of the probability of the predicted class
_ENSEMBLE_CONFIDENCE = "mean-probability"  # the same for an ensemble of runs
_ECE_BINS = 15

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RunRows:
    """The rows of one run.

    Parameters
    ----------
    run
        Its scores.
    rows
        One row per method and OOD set.
    """

    run: ScoredRun
    rows: Sequence[ResultRow]


@dataclass(frozen=True)
class Side:
    """ID scores of a method, for the test images with or without covariate-shifted ones.

    Parameters
    ----------
    name
        Name of the ID images.
    scores
        Their scores, ``(n,)``; those of the test images first.
    accuracy
        Accuracy of the plain classifier on them; None if not known.
    groups
        Group of a row by group of the OOD set; empty without covariate-shifted images.
    """

    name: str
    scores: Scores
    accuracy: float | None
    groups: Mapping[str, str]


@dataclass(frozen=True)
class ScoredPair:
    """The scores behind one row.

    Parameters
    ----------
    side
        The ID images.
    dataset, group
        Name of the OOD set, and group of the row.
    ood_scores
        Scores of the OOD images, ``(n,)``.
    """

    side: Side
    dataset: str
    group: str
    ood_scores: Scores


def scored_pairs(run: ScoredRun, method: str) -> Iterator[ScoredPair]:
    """Yield the scores behind every row of a method."""
    scoring = run.scoring
    plain = run.read(method, scoring.id_set)
    if plain is None:
        return
    sides = [Side(scoring.id_set.name, plain, scoring.id_accuracy, {})]
    others = [run.read(method, entry) for entry in run.shifted]
    found = [scores for scores in others if scores is not None]
    if run.shifted and len(found) == len(others):
        name = "+".join([scoring.id_set.name, *(entry.name for entry in run.shifted)])
        accuracy = _spectrum_accuracy(scoring, run.shifted)
        sides.append(Side(name, np.concatenate([plain, *found]), accuracy, FULL_SPECTRUM))
    for entry in run.sets:
        ood_scores = run.read(method, entry)
        if ood_scores is not None:
            for side in sides:
                group = side.groups.get(entry.group, entry.group)
                yield ScoredPair(side, entry.name, group, ood_scores)


def _spectrum_accuracy(scoring: Scoring, shifted: Sequence[ScoredSet]) -> float | None:
    """Return the accuracy on ID test images and covariate-shifted ones together."""
    total, hits = scoring.id_set.n, (scoring.id_accuracy or 0.0) * scoring.id_set.n
    for entry in shifted:
        if entry.accuracy is None or scoring.id_accuracy is None:
            return None
        total, hits = total + entry.n, hits + entry.accuracy * entry.n
    return hits / total


def rows_of(run: ScoredRun, convention: Convention) -> list[ResultRow]:
    """Return the metrics of every method on every OOD set.

    Parameters
    ----------
    run
        The scores.
    convention
        Definition of the metrics.
    """
    return rows_by_convention(run, [convention])[0]


def rows_by_convention(run: ScoredRun, conventions: Sequence[Convention]) -> list[list[ResultRow]]:
    """Return the rows of :func:`rows_of` in every convention; the scores are sorted only once."""
    correct = run.correct()
    tables = each_in_threads(
        lambda method: _method_rows(run, method, conventions, correct), run.methods
    )
    return [[row for table in tables for row in table[at]] for at in range(len(conventions))]


def _method_rows(
    run: ScoredRun,
    method: str,
    conventions: Sequence[Convention],
    correct: NDArray[np.bool_] | None,
) -> list[list[ResultRow]]:
    rows: list[list[ResultRow]] = [[] for _ in conventions]
    of_side: dict[str, dict[str, float]] = {}
    for pair in scored_pairs(run, method):
        side = pair.side
        curve = Curve.of(side.scores, pair.ood_scores, method=method, dataset=pair.dataset)
        if side.name not in of_side:
            of_side[side.name] = _id_extras(side.scores, None if side.groups else correct)
        for own, convention in zip(rows, conventions, strict=True):
            own.append(
                ResultRow(
                    run=run.name,
                    method=method,
                    params=(run.scoring.methods or {})[method],
                    dataset=pair.dataset,
                    group=pair.group,
                    detection=curve.detection(convention),
                    id_accuracy=side.accuracy,
                    convention=convention.name,
                    extras={**_curve_extras(curve, convention), **of_side[side.name]},
                )
            )
    return rows


def _id_extras(scores: Scores, correct: NDArray[np.bool_] | None) -> dict[str, float]:
    threshold = threshold_at(scores)
    extras = {"threshold_95": threshold}
    if correct is not None:
        extras["accuracy_at_95"] = accuracy_above(scores, correct, threshold=threshold)
        extras["aurc"] = aurc(scores, correct)
    return extras


def _curve_extras(curve: Curve, convention: Convention) -> dict[str, float]:
    side = curve if convention.positive == "id" else curve.flipped()
    rates = {name: side.fpr_at(tpr, rule=convention.rule) for name, tpr in _LEVELS.items()}
    return {**rates, "tied": curve.tied, "detection_error": curve.detection_error()}


def with_intervals(
    rows: Sequence[ResultRow],
    runs: Sequence[ScoredRun],
    convention: Convention,
    *,
    bootstraps: int,
    seed: int,
) -> list[ResultRow]:
    """Return rows with 95 % confidence intervals of all metrics, averages included.

    Parameters
    ----------
    rows
        Rows of one run, or averages over ``runs``.
    runs
        The scores behind them: one run, or all those that were averaged.
    convention
        Definition of the metrics.
    bootstraps
        Number of samples behind intervals of FPR95 and AUPR.
    seed
        Their seed.

    Raises
    ------
    InvalidInputError
        If there are too few samples for an interval.

    Notes
    -----
    The networks are considered fixed; only the images are random. The interval of AUROC is that
    of :func:`oodcli.reporting.statistics.auroc_interval`, also of an average: placements are
    averaged over
    runs, which saw the same images, and ID placements over OOD sets. The others come from
    resamples, averaged sample by sample: percentiles for FPR95, for the areas their standard error
    on the logit scale.
    The same ID ranks of a method are sampled for all OOD sets, since these share the ID images.
    Runs share their images too, but rank them differently; the same ranks are sampled for all, as
    if they agreed, so the interval of an average over runs is too wide rather than too narrow.
    """
    if bootstraps < 100:
        raise InvalidInputError(
            f"{bootstraps} bootstrap samples are too few for a 95 % interval; use at least 100"
        )
    draws = _Draws(bootstraps, seed)
    methods = list(dict.fromkeys(row.method for row in rows))
    # Every draw that will be needed is made first, so that threads only read them.
    for run in runs:
        for name, n in _sizes(run):
            draws.of(name, n)
    evidence = dict(
        zip(
            methods,
            each_in_threads(
                lambda method: _intervals(rows, runs, method, convention, draws), methods
            ),
            strict=True,
        )
    )
    return [replace(row, intervals=evidence[row.method][row.place]) for row in rows]


def _sizes(run: ScoredRun) -> Iterator[tuple[str, int]]:
    id_set = run.scoring.id_set
    yield id_set.name, id_set.n
    if run.shifted:
        name = "+".join([id_set.name, *(entry.name for entry in run.shifted)])
        yield name, id_set.n + sum(entry.n for entry in run.shifted)
    for entry in run.sets:
        yield entry.name, entry.n


@dataclass
class _Draws:
    """Bootstrap samples by data set, each drawn once."""

    samples: int
    seed: int

    def __post_init__(self) -> None:
        self._drawn: dict[tuple[str, int], Resamples] = {}

    def of(self, name: str, n: int) -> Resamples:
        if (name, n) not in self._drawn:
            drawn = Resamples.draw(n, samples=self.samples, seed=self.seed, name=name)
            _ = drawn.flipped  # computed now, see with_intervals
            self._drawn[name, n] = drawn
        return self._drawn[name, n]


def _intervals(
    rows: Sequence[ResultRow],
    runs: Sequence[ScoredRun],
    method: str,
    convention: Convention,
    draws: _Draws,
) -> dict[Place, dict[str, tuple[float, float]]]:
    """Return the intervals of all rows of one method."""
    placed: dict[Place, list[Placements]] = {}
    sampled: dict[Place, list[Floats]] = {}
    for run in runs:
        for pair in scored_pairs(run, method):
            place = (method, pair.dataset, pair.group)
            rising = np.sort(pair.side.scores), np.sort(pair.ood_scores)
            placed.setdefault(place, []).append(placements(pair.side.scores, pair.ood_scores))
            sampled.setdefault(place, []).append(
                bootstrap(
                    *rising,
                    convention=convention,
                    id_resamples=draws.of(pair.side.name, len(pair.side.scores)),
                    ood_resamples=draws.of(pair.dataset, len(pair.ood_scores)),
                )
            )
    own = [row for row in rows if row.method == method]
    intervals = {}
    for row in own:
        places = [each.place for each in own if _is_part(each, row)]
        parts = [average(placed[place]) for place in places]
        samples = np.mean([np.mean(sampled[place], axis=0) for place in places], axis=0)
        by_name = dict(zip(RESAMPLED, samples, strict=True))
        n_id, n_ood = len(parts[0].id_side), sum(len(part.ood_side) for part in parts)
        intervals[row.place] = {
            "auroc": auroc_interval(parts),
            "fpr95": share_interval(row.fpr95, by_name["fpr95"], images=n_ood),
            "aupr_in": logit_interval(row.aupr_in, by_name["aupr_in"], positives=n_id),
            "aupr_out": logit_interval(row.aupr_out, by_name["aupr_out"], positives=n_ood),
        }
    return intervals


def _is_part(row: ResultRow, whole: ResultRow) -> bool:
    """Return whether a row is the other one, or is averaged in it."""
    if whole.dataset != AVERAGE:
        return row.place == whole.place
    return row.dataset != AVERAGE and (
        row.group in GROUPS if whole.group == "all" else row.group == whole.group
    )


def _spelled_out(pairs: Sequence[tuple[str, str]], known: Sequence[str]) -> list[tuple[str, str]]:
    """Replace ``"all"`` by every other method, and drop pairs that are listed in reverse."""
    spelled: dict[frozenset[str], tuple[str, str]] = {}
    for first, second in pairs:
        firsts, seconds = (known if name == "all" else [name] for name in (first, second))
        for pair in itertools.product(firsts, seconds):
            if pair[0] != pair[1] or "all" not in (first, second):
                spelled.setdefault(frozenset(pair), pair)
    return list(spelled.values())


def comparisons(
    groups: Sequence[Sequence[ScoredRun]], pairs: Sequence[tuple[str, str]]
) -> list[Comparison]:
    """Test whether methods differ in AUROC, on every OOD set that both were scored on.

    Parameters
    ----------
    groups
        The runs of the table, those that are averaged together.
    pairs
        Pairs of methods; ``"all"`` stands for every other one.

    Raises
    ------
    UnknownNameError
        If a method has no scores.
    InvalidInputError
        If a method is to be compared with itself, or two have no OOD set in common.

    Notes
    -----
    Holm's correction is for all tests of the report together. Full-spectrum rows are not tested.
    """
    known = list(dict.fromkeys(m for group in groups for run in group for m in run.methods))
    pairs = _spelled_out([(full_name(a, known), full_name(b, known)) for a, b in pairs], known)
    for pair in pairs:
        for method in pair:
            if method not in known:
                raise UnknownNameError.among("method with scores", method, known)
        if pair[0] == pair[1]:
            raise InvalidInputError(f"{pair[0]} cannot be compared with itself; name another")
    found = []
    for group in groups:
        placed = each_in_threads(
            lambda method, group=group: placed_scores(group, method),  # type: ignore[misc]
            list(dict.fromkeys(method for pair in pairs for method in pair)),
        )
        by_place = {place: parts for each in placed for place, parts in each.items()}
        for first, second in pairs:
            for entry in group[0].sets:
                one, other = (by_place.get((m, entry.name, entry.group)) for m in (first, second))
                if one is not None and other is not None:
                    difference = auroc_difference(one, other)
                    found.append(((group, first, second, entry), difference))
    if pairs and not found:
        raise InvalidInputError(
            "the methods to compare have no OOD set in common; score both: ood score"
        )
    corrected = holm([difference.p for _, difference in found])
    return [
        Comparison(
            run=", ".join(run.name for run in group),
            method_a=first,
            method_b=second,
            dataset=entry.name,
            group=entry.group,
            delta=difference.value,
            interval=difference.interval(low=-1.0, high=1.0),
            p=difference.p,
            p_holm=p_holm,
            n_compared=len(found),
        )
        for ((group, first, second, entry), difference), p_holm in zip(
            found, corrected, strict=True
        )
    ]


def placed_scores(group: Sequence[ScoredRun], method: str) -> dict[Place, Placements]:
    """Return placements of a method on the OOD sets that all runs have, averaged over the runs.

    Parameters
    ----------
    group
        Runs that are averaged together, at least one.
    method
        Canonical name of the method.
    """
    placed: dict[Place, list[Placements]] = {}
    for run in group:
        for pair in scored_pairs(run, method):
            if not pair.side.groups:
                place = (method, pair.dataset, pair.group)
                placed.setdefault(place, []).append(placements(pair.side.scores, pair.ood_scores))
    return {place: average(parts) for place, parts in placed.items() if len(parts) == len(group)}


def ranks_of(rows: Sequence[ResultRow]) -> list[MeanRank]:
    """Return the mean rank of every method over the OOD sets that all methods of its run have."""
    ranks = []
    for run in dict.fromkeys(row.run for row in rows):
        own = [r for r in rows if r.run == run and r.dataset != AVERAGE and r.group in GROUPS]
        methods = list(dict.fromkeys(row.method for row in own))
        cells = {(row.dataset, row.method): row for row in own}
        shared = [
            dataset
            for dataset in dict.fromkeys(row.dataset for row in own)
            if all((dataset, method) in cells for method in methods)
        ]
        if len(methods) < 2 or not shared:
            continue
        by_fpr, by_auroc = (
            mean_ranks([[sign * getattr(cells[d, m], name) for m in methods] for d in shared])
            for name, sign in (("fpr95", 1), ("auroc", -1))
        )
        ranks += [
            MeanRank(run, method, len(methods), len(shared), float(fpr), float(auroc))
            for method, fpr, auroc in zip(methods, by_fpr, by_auroc, strict=True)
        ]
    return ranks


def calibration_of(run: ScoredRun) -> Calibration | None:
    """Return the calibration of a run's classifier on the ID images, if its confidence is known.

    Notes
    -----
    The confidence is the probability of the predicted class, whose log-odds are the score of
    ``msp``; scores of other programs are that probability itself. An ensemble predicts by the mean
    probabilities of its members, whose log-odds are the score of ``mean-probability``.
    """
    name = _ENSEMBLE_CONFIDENCE if run.is_ensemble else _CONFIDENCE
    params = (run.scoring.methods or {}).get(name)
    if params is None:
        return None
    confidence, correct = run.read(name, run.scoring.id_set), run.correct()
    if confidence is None or correct is None:
        return None
    if run.is_ensemble or params.get("scale") == "log-odds":
        confidence = 1 / (1 + np.exp(-confidence.astype(np.float64).clip(min=-700)))
    if confidence.min() < 0 or confidence.max() > 1.00001:
        return None
    return Calibration(
        run=run.name,
        ece=calibration_error(confidence, correct, n_bins=_ECE_BINS),
        n_bins=_ECE_BINS,
        confidence=float(np.mean(confidence, dtype=np.float64)),
        accuracy=float(np.mean(correct)),
        n=len(correct),
    )


def each_in_threads(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Apply a function to all items in several threads; NumPy releases the interpreter's lock."""
    threads = min(len(items), os.cpu_count() or 1, 4)
    if threads < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="ood-report") as pool:
        return list(pool.map(work, items))
