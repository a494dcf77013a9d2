"""The data of the explorer, computed from stored scores; no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.data.formats.ilsvrc2012 import readable_class
from oodcli.metrics import CONVENTIONS, Convention
from oodcli.reporting.evaluate import ScoredPair, each_in_threads, scored_pairs
from oodcli.reporting.explorer.classes import (
    CLASSES_OF_A_SET,
    Classes,
    class_counts,
    places_of,
)
from oodcli.reporting.explorer.curves import (
    BINS,
    MethodScores,
    accepted,
    finite,
    fpr95_scores,
    histogram,
    thresholds_of,
)
from oodcli.reporting.explorer.packing import packed_counts, packed_reals
from oodcli.reporting.explorer.payload import (
    PAYLOAD_SCHEMA,
    EvaluatedSet,
    Evaluation,
    MethodCurve,
    Network,
    Payload,
    ResultTable,
    ShownConvention,
)
from oodcli.reporting.sources import ScoredRun
from oodcli.store.scores import LABELS, PREDICTIONS, Scores
from oodcli.text import printable

_MOST_THRESHOLDS, _LEAST_THRESHOLDS = 1000, 200
_CURVE_CELLS = 400_000  # counts of images at thresholds in a page, 3 to 5 bytes each
_CLASS_CELLS = 300_000  # the same by class


@dataclass(frozen=True)
class Budget:
    """How many thresholds of a method a page can have, and how many of these by class.

    Parameters
    ----------
    thresholds
        Number of thresholds of a method.
    by_class
        At how many of them images are counted by class.
    """

    thresholds: int
    by_class: int

    @classmethod
    def of(cls, runs: Sequence[ScoredRun]) -> "Budget":
        """Return the budget of a page with these runs."""
        cells = by_class = 0
        for run in runs:
            classes = len(class_names(run))
            sides = 2 if run.shifted else 1
            cells += sides * len(run.methods) * (len(run.sets) + 4)
            shown = classes + len(run.sets) * min(classes, CLASSES_OF_A_SET)
            by_class += len(run.methods) * shown
        most = _CURVE_CELLS // max(cells, 1)
        return cls(
            thresholds=max(_LEAST_THRESHOLDS, min(_MOST_THRESHOLDS, most)),
            by_class=max(8, min(_MOST_THRESHOLDS, _CLASS_CELLS // max(by_class, 1))),
        )


def payload_of(
    runs: Sequence[ScoredRun],
    results: Sequence[ResultTable],
    *,
    convention: str,
    digits: int,
) -> Payload:
    """Return everything that the explorer of a report knows.

    Parameters
    ----------
    runs
        The runs of the report.
    results
        Their results, see :func:`oodcli.reporting.explorer.overview.result_table`.
    convention
        Name of the convention that is shown first.
    digits
        Digits after the decimal point of a percentage.
    """
    budget = Budget.of(runs)
    networks = tuple(_network(run, budget) for run in runs)
    return Payload(
        schema=PAYLOAD_SCHEMA,
        digits=digits,
        convention=convention,
        conventions=tuple(
            ShownConvention(each.name, each.description, each.positive)
            for each in CONVENTIONS.values()
        ),
        results=tuple(results),
        networks=networks,
        limits=tuple(_limits(networks, budget)),
    )


def _limits(networks: Sequence[Network], budget: Budget) -> Iterator[str]:
    """Yield what the page leaves out."""
    every = [
        curve for network in networks for each in network.evaluations for curve in each.methods
    ]
    if not all(curve.every for curve in every):
        yield (
            f"thresholds move through about {budget.thresholds:,} of the scores of each method; at "
            "each of them all numbers are exact, and curves and presets use these points"
        )
        if budget.by_class < budget.thresholds:
            yield (
                f"images are counted by class at {budget.by_class:,} of the thresholds of each "
                "method; the nearest one is shown"
            )
    if any(len(network.classes) > CLASSES_OF_A_SET for network in networks):
        yield (
            f"of every OOD set, the {CLASSES_OF_A_SET} classes that most images are taken for are "
            "counted"
        )
    yield (
        f"histograms have {BINS} bins; scores beyond the ends of the axis, the outermost 0.2 % of "
        "ID or OOD images, are in the outer bins"
    )


def class_names(run: ScoredRun) -> tuple[str, ...]:
    """Return the names of the classes of a run, in one printable line; empty if not known.

    A wnid of ImageNet stands behind the readable name of its class.
    """
    if run.stored is not None:
        return tuple(printable(readable_class(name)) for name in run.stored.record.class_names)
    found = [run.read(name, run.scoring.id_set) for name in (LABELS, PREDICTIONS)]
    largest = max((int(each.max(initial=-1)) for each in found if each is not None), default=-1)
    return tuple(f"class {index}" for index in range(largest + 1))


def _network(run: ScoredRun, budget: Budget) -> Network:
    evaluations = [_evaluation(run, budget, full=False)]
    if run.shifted:
        evaluations.append(_evaluation(run, budget, full=True))
    return Network(
        name=printable(run.name),
        arch=printable(run.summary.arch),
        training=_training(run),
        classes=class_names(run),
        evaluations=tuple(each for each in evaluations if each.methods),
    )


def _training(run: ScoredRun) -> str:
    """Return the name of the training of a run; of an objective without one, its own."""
    recipe = {} if run.stored is None else run.stored.record.job.recipe
    return printable(run.summary.training or str(recipe.get("objective", "")))


def _classes(run: ScoredRun, *, full: bool) -> Classes:
    names = class_names(run)
    nothing = tuple(None for _ in run.sets)
    if full or not names:
        return Classes(len(names), None, None, nothing, nothing)
    of_id = _indices(run.read(LABELS, run.scoring.id_set), len(names))
    if of_id is None:
        of_id = _indices(run.read(PREDICTIONS, run.scoring.id_set), len(names))
    of_ood = tuple(_indices(run.read(PREDICTIONS, entry), len(names)) for entry in run.sets)
    return Classes(
        len(names),
        run.correct(),
        of_id,
        of_ood,
        tuple(None if each is None else _most_frequent(each, len(names)) for each in of_ood),
    )


def _indices(classes: Scores | None, n: int) -> NDArray[np.int64] | None:
    """Return classes as indices of ``n`` names; None if one has no name, as -1 for unknown."""
    if classes is None or (len(classes) and not (classes.min() >= 0 and classes.max() < n)):
        return None
    return np.asarray(classes, np.int64)


def _most_frequent(classes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the classes that occur, the most frequent first."""
    counts = np.bincount(classes, minlength=n)
    order = np.argsort(-counts, kind="stable")[:CLASSES_OF_A_SET]
    return order[counts[order] > 0]


def _evaluation(run: ScoredRun, budget: Budget, *, full: bool) -> Evaluation:
    """Return ID images against all OOD sets, for every method."""
    classes = _classes(run, full=full)
    conventions = tuple(CONVENTIONS.values())

    def of(method: str) -> tuple[str, MethodCurve] | None:
        found = {
            pair.dataset: pair
            for pair in scored_pairs(run, method)
            if bool(pair.side.groups) is full
        }
        if not found:
            return None
        return next(iter(found.values())).side.name, _curve(
            method, _scores(run, found), classes, conventions, budget
        )

    curves = [each for each in each_in_threads(of, run.methods) if each is not None]
    scoring = run.scoring
    n_id = scoring.id_set.n + (sum(entry.n for entry in run.shifted) if full else 0)
    labelled = _indices(run.read(LABELS, scoring.id_set), classes.n) is not None
    return Evaluation(
        spectrum="full" if full else "plain",
        id_name=printable(curves[0][0] if curves else scoring.id_set.name),
        n_id=n_id,
        n_correct=None if classes.correct is None else int(classes.correct.sum()),
        id_by=None if classes.of_id is None else "label" if labelled else "prediction",
        id_classes=None
        if classes.of_id is None
        else tuple(np.bincount(classes.of_id, minlength=classes.n).tolist()),
        sets=tuple(
            EvaluatedSet(
                printable(entry.name),
                entry.group,
                entry.n,
                None if shown is None else tuple(shown.tolist()),
                None
                if shown is None or taken is None
                else tuple(np.bincount(taken, minlength=classes.n)[shown].tolist()),
            )
            for entry, shown, taken in zip(run.sets, classes.shown, classes.of_ood, strict=True)
        ),
        methods=tuple(curve for _, curve in curves),
    )


def _scores(run: ScoredRun, found: Mapping[str, ScoredPair]) -> MethodScores:
    side = next(iter(found.values())).side
    return MethodScores(
        np.asarray(side.scores, np.float64),
        tuple(
            np.asarray(found[entry.name].ood_scores, np.float64) if entry.name in found else None
            for entry in run.sets
        ),
    )


def _curve(
    method: str,
    scores: MethodScores,
    classes: Classes,
    conventions: Sequence[Convention],
    budget: Budget,
) -> MethodCurve:
    at_95 = fpr95_scores(scores, conventions)
    thresholds, every = thresholds_of(scores, list(finite(at_95)), limit=budget.thresholds)
    correct = classes.correct
    id_accepted = accepted(scores.id_sorted, thresholds)
    places = places_of(id_accepted, at_most=budget.by_class)
    return MethodCurve(
        method=method,
        every=every,
        thresholds=packed_reals(thresholds, exact=True),
        id_accepted=packed_counts(id_accepted),
        correct_accepted=None
        if correct is None
        else packed_counts(accepted(np.sort(scores.id_scores[correct]), thresholds)),
        ood_accepted=tuple(
            None if each is None else packed_counts(accepted(np.sort(each), thresholds))
            for each in scores.ood_scores
        ),
        histograms=tuple(
            None if each is None else histogram(scores.id_scores, each)
            for each in scores.ood_scores
        ),
        fpr95_at={
            name: tuple(
                None if value is None else int(np.searchsorted(thresholds, value))
                for value in values
            )
            for name, values in at_95.items()
        },
        classes=class_counts(scores, classes, thresholds, places),
    )
