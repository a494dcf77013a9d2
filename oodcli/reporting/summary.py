"""The main results of a report: the best method of every group, and the set that is hardest."""

from collections.abc import Sequence

from oodcli.errors import OodError
from oodcli.reporting.evaluate import placed_scores
from oodcli.reporting.results import (
    GROUPS,
    HardestSet,
    Leader,
    ResultRow,
    Summary,
    common_sets,
)
from oodcli.reporting.sources import ScoredRun
from oodcli.reporting.statistics import mean_auroc_difference
from oodcli.store.scores import AVERAGE
from oodcli.store.store import read_json


def summary_of(runs: Sequence[ScoredRun], rows: Sequence[ResultRow]) -> Summary:
    """Return the main results of a run, or of runs that are averaged.

    Parameters
    ----------
    runs
        The scores behind the rows, at least one run.
    rows
        The rows of the run with their averages, see
        :func:`oodcli.reporting.results.with_averages`; at least one.
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    plain = [row for row in rows if row.group in GROUPS]
    leaders = [_leader(runs, [row for row in plain if row.group == name]) for name in GROUPS]
    return Summary(
        run=rows[0].run,
        n_methods=len(methods),
        leaders=tuple(each for each in leaders if each is not None),
        hardest=_hardest([row for row in plain if row.dataset != AVERAGE]),
        baseline=_named("msp", methods),
        featurenorm=_named("featurenorm", methods),
        recommended=recommended_method(runs[0])[0] if len(runs) == 1 else None,
    )


def _named(name: str, methods: Sequence[str]) -> str | None:
    """Return the first method of a name, with or without parameters."""
    return next((each for each in methods if each.partition(":")[0] == name), None)


def _leader(runs: Sequence[ScoredRun], rows: Sequence[ResultRow]) -> Leader | None:
    """Return the best method on the sets of one group; None without any."""
    means = sorted((row for row in rows if row.dataset == AVERAGE), key=lambda row: -row.auroc)
    if not means:
        return None
    single = [row for row in rows if row.dataset != AVERAGE]
    common = common_sets(single) or {row.dataset for row in single if row.method == means[0].method}
    datasets = tuple(
        name for name in dict.fromkeys(row.dataset for row in single) if name in common
    )
    best = means[0]
    lead = Leader(best.group, datasets, best.method, best.fpr95, best.auroc)
    if len(means) == 1 or not common_sets(single):
        return lead
    placed = [placed_scores(runs, each.method) for each in means[:2]]
    firsts, seconds = (
        [parts[each.method, name, best.group] for name in datasets]
        for each, parts in zip(means[:2], placed, strict=True)
    )
    difference = mean_auroc_difference(firsts, seconds)
    return Leader(
        best.group,
        datasets,
        best.method,
        best.fpr95,
        best.auroc,
        runner_up=means[1].method,
        delta=best.auroc - means[1].auroc,
        interval=difference.interval(low=-1.0, high=1.0),
    )


def _hardest(rows: Sequence[ResultRow]) -> HardestSet | None:
    """Return the set whose highest AUROC is lowest; None if there are not several."""
    best: dict[tuple[str, str], ResultRow] = {}
    for row in rows:
        place = row.dataset, row.group
        if place not in best or row.auroc > best[place].auroc:
            best[place] = row
    if len(best) < 2:
        return None
    row = min(best.values(), key=lambda each: each.auroc)
    return HardestSet(row.dataset, row.group, row.method, row.fpr95, row.auroc)


def recommended_method(run: ScoredRun) -> tuple[str | None, str | None]:
    """Return the method that was recommended for the weights of a run, and why it is not known.

    Returns
    -------
    tuple
        Canonical name, or None; and a note if there is a recommendation that cannot be used.
    """
    if run.stored is None:
        return None, None
    try:
        found = read_json(run.stored.folder.recommendation)
    except FileNotFoundError:
        return None, None
    except OodError as error:
        return None, f"the recommendation of run {run.name} is not used: {error}"
    method = found.get("method")
    fits = found.get("weights") == run.stored.record.weights
    return (method if fits and isinstance(method, str) else None), None
