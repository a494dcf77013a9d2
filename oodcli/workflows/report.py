"""``ood report``: tables of stored scores and of score files; needs no network and no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from oodcli.errors import InvalidInputError, MissingArtifactError
from oodcli.metrics import convention_named
from oodcli.reporting.evaluate import (
    RunRows,
    calibration_of,
    comparisons,
    ranks_of,
    rows_of,
    with_intervals,
)
from oodcli.reporting.notes import average_notes, run_notes, source_notes, tuning_notes
from oodcli.reporting.results import (
    Report,
    ResultRow,
    SplitUsed,
    Summary,
    over_runs,
    with_averages,
)
from oodcli.reporting.sources import Sources
from oodcli.reporting.summary import recommended_method, summary_of
from oodcli.store.ensembles import score_command_of


@dataclass(frozen=True)
class Statistics:
    """Statistics of a table in addition to its values.

    Parameters
    ----------
    ci
        Whether to compute 95 % confidence intervals.
    bootstraps, seed
        Number of bootstrap samples for intervals of FPR95 and AUPR, and their seed.
    compare
        Pairs of methods whose AUROC is compared on every OOD set; ``all`` as the second name means
        every other method.
    """

    ci: bool = False
    bootstraps: int = 1000
    seed: int = 0
    compare: Sequence[tuple[str, str]] = ()


NO_STATISTICS = Statistics()


def report(
    sources: Sources,
    convention: str | None = None,
    statistics: Statistics = NO_STATISTICS,
    *,
    average: bool = False,
) -> Report:
    """Tabulate scores.

    Runs that differ only by their seed are averaged, and so are score files of the same methods.

    Parameters
    ----------
    sources
        The scores, opened by :meth:`oodcli.reporting.sources.Sources.open`.
    convention
        Name of the metric convention; if None, that of the benchmark or of the layout of the score
        files, or ``neutral``.
    statistics
        Intervals and tests to compute.
    average
        Whether to average all runs.

    Raises
    ------
    MissingArtifactError
        If a run has no scores of the requested methods and sets.
    InvalidInputError
        If the scores cannot be averaged or compared.
    """
    chosen = convention_named(convention or sources.convention)
    tables = [RunRows(run, rows_of(run, chosen)) for run in sources.runs]
    for table in tables:
        check_not_empty(table)
    groups = grouped(tables, average=average)
    runs = [[table.run for table in group] for group in groups]
    rows: list[ResultRow] = []
    summaries: list[Summary] = []
    notes = run_notes(tables, named=bool(sources.query.methods))
    for group, own in zip(groups, runs, strict=True):
        merged, note = averaged(group)
        if statistics.ci:
            merged = with_intervals(
                merged, own, chosen, bootstraps=statistics.bootstraps, seed=statistics.seed
            )
        rows += merged
        summaries.append(summary_of(own, merged))
        notes += note
    notes += average_notes(tables, apart=len(groups) == len(tables))
    notes += [why for run in sources.runs if (why := recommended_method(run)[1]) is not None]
    notes += [*source_notes(sources), *tuning_notes(rows), *_interval_notes(statistics)]
    calibrations = [calibration_of(run) for run in sources.runs]
    return Report(
        convention=chosen.name,
        description=chosen.description,
        benchmark=sources.benchmark,
        runs=[run.with_chance() for run in sources.runs],
        rows=rows,
        notes=list(dict.fromkeys(notes)),
        splits={
            entry.name: SplitUsed(entry.split, entry.split_sha256)
            for run in sources.runs
            for entry in (run.scoring.id_set, *run.scoring.sets)
            if entry.split
        },
        comparisons=comparisons(runs, statistics.compare) if statistics.compare else (),
        mean_ranks=ranks_of(rows),
        calibration=[found for found in calibrations if found is not None],
        summaries=summaries,
    )


def check_not_empty(table: RunRows) -> None:
    """Raise an error if the table of a run is empty."""
    if not table.rows:
        what = f"{table.run.name} has no scores of these methods and sets"
        raise MissingArtifactError(
            what
            if table.run.stored is None and not table.run.is_ensemble
            else f"run {what}; compute them: {_score_command(table)}"
        )


def _score_command(table: RunRows) -> str:
    summary = table.run.summary
    return score_command_of([each.name for each in summary.members] or [summary.name])


def _interval_notes(statistics: Statistics) -> list[str]:
    if not statistics.ci:
        return []
    return [
        "95 % intervals are over images, for these networks: for AUROC a score interval with "
        f"DeLong's variance, the others from {statistics.bootstraps:,} bootstrap samples "
        f"(seed {statistics.seed})"
    ]


def grouped(tables: Sequence[RunRows], *, average: bool) -> list[list[RunRows]]:
    """Group the tables to average: seeds of the same training or, on request, all runs.

    An ensemble of runs is never averaged with others: it is no further run.
    """
    groups: list[list[RunRows]] = []
    for table in tables:
        for group in groups:
            if table.run.is_ensemble or group[0].run.is_ensemble:
                continue
            if average or _differs_by_seed(table, group):
                group.append(table)
                break
        else:
            groups.append([table])
    return groups


def _differs_by_seed(table: RunRows, group: Sequence[RunRows]) -> bool:
    """Return whether a run differs from a group only by its seed (files: has its methods)."""
    own, first = table.run.stored, group[0].run.stored
    if own is None or first is None:
        return table.run.methods == group[0].run.methods
    if own.record.origin != "trained":
        return False
    seeds = [other.run.summary.seed for other in group]
    return (
        own.record.job.without_seed() == first.record.job.without_seed()
        and own.record.seed not in seeds
    )


def averaged(group: Sequence[RunRows]) -> tuple[list[ResultRow], list[str]]:
    """Return the averaged rows of runs, and notes on them."""
    if len(group) == 1:
        return with_averages(group[0].rows), []
    _same_images(group)
    common = _common_rows(group)
    notes = []
    if any(len(rows) < len(table.rows) for rows, table in zip(common, group, strict=True)):
        notes.append("averages over runs include only methods and sets scored in all of them")
    return over_runs([with_averages(rows) for rows in common]), notes


def _same_images(group: Sequence[RunRows]) -> None:
    """Raise an error if results on different images would be averaged."""
    seen: dict[str, tuple[str, str]] = {}
    for table in group:
        for entry in (table.run.scoring.id_set, *table.run.scoring.sets):
            name, digest = seen.setdefault(entry.name, (table.run.name, entry.digest))
            if digest != entry.digest:
                raise InvalidInputError(
                    f"runs {name} and {table.run.name} were scored on different images of "
                    f"{entry.name}; score them on the same images, or report them separately"
                )


def _common_rows(group: Sequence[RunRows]) -> list[list[ResultRow]]:
    """Return the rows of each run that all runs have."""
    keys = set.intersection(*({r.place for r in table.rows} for table in group))
    common = [[r for r in table.rows if r.place in keys] for table in group]
    if not keys:
        names = ", ".join(table.run.name for table in group)
        raise InvalidInputError(f"runs {names} have no method and set in common to average")
    return common
