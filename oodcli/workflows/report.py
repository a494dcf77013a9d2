"""Tables of stored scores, and of score files from elsewhere; no network, no torch."""

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
    over_runs,
    with_averages,
)
from oodcli.reporting.sources import Sources


@dataclass(frozen=True)
class Statistics:
    """What is said of a table beside its values.

    Parameters
    ----------
    ci
        Whether to give 95 % confidence intervals.
    bootstraps, seed
        Number of bootstrap samples behind intervals of FPR95 and AUPR, and their seed.
    compare
        Pairs of methods whose AUROC is compared on every OOD set; ``all`` as the second stands for
        every other method.
    """

    ci: bool = False
    bootstraps: int = 1000
    seed: int = 0
    compare: Sequence[tuple[str, str]] = ()


VALUES_ALONE = Statistics()


def report(
    sources: Sources,
    convention: str | None = None,
    statistics: Statistics = VALUES_ALONE,
    *,
    average: bool = False,
) -> Report:
    """Tabulate scores.

    Runs that differ by their seed alone are averaged; so are score files with the same methods.

    Parameters
    ----------
    sources
        The scores, opened by :meth:`oodcli.reporting.sources.Sources.open`.
    convention
        Name of the metric convention; by default that of the benchmark or of the layout of score
        files, else ``neutral``.
    statistics
        Intervals and tests beside the values.
    average
        Whether to average all runs.

    Raises
    ------
    MissingArtifactError
        If a run has no scores of the methods and sets that are asked for.
    InvalidInputError
        If the scores cannot be averaged or compared.
    """
    chosen = convention_named(convention or sources.convention)
    tables = [RunRows(run, rows_of(run, chosen)) for run in sources.runs]
    for table in tables:
        _check_any(table)
    groups = _grouped(tables, average=average)
    runs = [[table.run for table in group] for group in groups]
    rows: list[ResultRow] = []
    notes = run_notes(tables, named=bool(sources.query.methods))
    for group, own in zip(groups, runs, strict=True):
        merged, note = _averaged(group)
        if statistics.ci:
            merged = with_intervals(
                merged, own, chosen, bootstraps=statistics.bootstraps, seed=statistics.seed
            )
        rows += merged
        notes += note
    notes += average_notes(tables, apart=len(groups) == len(tables))
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
    )


def _check_any(table: RunRows) -> None:
    """Refuse a run of which the table would be empty."""
    if not table.rows:
        what = f"{table.run.name} has no scores of these methods and sets"
        raise MissingArtifactError(
            what
            if table.run.stored is None
            else f"run {what}; compute them: ood score --run {table.run.name}"
        )


def _interval_notes(statistics: Statistics) -> list[str]:
    if not statistics.ci:
        return []
    return [
        "95 % intervals are over images, for these networks: for AUROC a score interval with "
        f"DeLong's variance, the others from {statistics.bootstraps:,} bootstrap samples "
        f"(seed {statistics.seed})"
    ]


def _grouped(tables: Sequence[RunRows], *, average: bool) -> list[list[RunRows]]:
    """Put together what is averaged: seeds of one training, on request all runs."""
    groups: list[list[RunRows]] = []
    for table in tables:
        for group in groups:
            if average or _is_another_seed(table, group):
                group.append(table)
                break
        else:
            groups.append([table])
    return groups


def _is_another_seed(table: RunRows, group: Sequence[RunRows]) -> bool:
    """Return whether a run differs from others by its seed alone; of files, the methods decide."""
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


def _averaged(group: Sequence[RunRows]) -> tuple[list[ResultRow], list[str]]:
    """Return the rows of runs averaged together, and what the reader must know of them."""
    if len(group) == 1:
        return with_averages(group[0].rows), []
    _same_images(group)
    common = _common(group)
    notes = []
    if any(len(rows) < len(table.rows) for rows, table in zip(common, group, strict=True)):
        notes.append("averages over runs include only what all of them were scored on")
    return over_runs([with_averages(rows) for rows in common]), notes


def _same_images(group: Sequence[RunRows]) -> None:
    """Refuse to average results on different images."""
    seen: dict[str, tuple[str, str]] = {}
    for table in group:
        for entry in (table.run.scoring.id_set, *table.run.scoring.sets):
            name, digest = seen.setdefault(entry.name, (table.run.name, entry.digest))
            if digest != entry.digest:
                raise InvalidInputError(
                    f"runs {name} and {table.run.name} were scored on different images called "
                    f"{entry.name}; score them on the same images, or report them separately"
                )


def _common(group: Sequence[RunRows]) -> list[list[ResultRow]]:
    """Return of each run the rows that all runs have."""
    keys = set.intersection(*({r.place for r in table.rows} for table in group))
    common = [[r for r in table.rows if r.place in keys] for table in group]
    if not keys:
        names = ", ".join(table.run.name for table in group)
        raise InvalidInputError(f"runs {names} have no method and set in common to average")
    return common
