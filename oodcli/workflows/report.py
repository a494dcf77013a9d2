"""Tables of stored scores; no network, no torch."""

from collections import Counter
from collections.abc import Sequence

from oodcli.data.benchmarks import BENCHMARKS
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.metrics import Curve, convention_named
from oodcli.results import Report, ResultRow, RunSummary, over_runs, with_averages
from oodcli.runs import Run, RunFolder, find_run
from oodcli.scores import ScoredSet, Scoring, read_scores, read_scorings
from oodcli.store import Store


def report(
    store: Store,
    *,
    runs: Sequence[str] = (),
    convention: str | None = None,
    average: bool = False,
    limit: int | None = None,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> Report:
    """Tabulate the stored scores of runs.

    Parameters
    ----------
    store
        Where the runs are.
    runs
        Their names; the finished run created last if none is given.
    convention
        Name of the metric convention; by default that of the benchmark, else ``neutral``.
    average
        Whether to average runs that are not known to differ by their seed alone.
    limit
        Show the scores of the first ``limit`` images of each set; by default what was scored last.
    methods, datasets
        Show only these, in this order; by default all.

    Raises
    ------
    MissingArtifactError
        If a run has no scores.
    InvalidInputError
        If the scores cannot stand in one table.
    """
    folders = [find_run(store, name) for name in dict.fromkeys(runs)] or [find_run(store, None)]
    records = [folder.read() for folder in folders]
    scorings = [_choose(folder, limit) for folder in folders]
    _comparable(folders, scorings)
    benchmark = _benchmark(scorings)
    known = None if benchmark is None else BENCHMARKS.get(benchmark)
    chosen = convention_named(convention or ("neutral" if known is None else known.convention))
    tables = [
        _rows(folder, scoring, chosen.name, methods=methods, datasets=datasets)
        for folder, scoring in zip(folders, scorings, strict=True)
    ]
    for folder, table in zip(folders, tables, strict=True):
        if not table:
            raise MissingArtifactError(
                f"run {folder.name} has no scores of these methods and sets; "
                f"make them: ood score --run {folder.name}"
            )
    notes = _notes(scorings, tables)
    return Report(
        convention=chosen.name,
        description=chosen.description,
        benchmark=benchmark,
        runs=[_summary(*each) for each in zip(folders, records, scorings, strict=True)],
        rows=_grouped(records, [with_averages(rows) for rows in tables], average=average),
        notes=notes,
    )


def _choose(folder: RunFolder, limit: int | None) -> Scoring:
    scorings = read_scorings(folder.scores)
    if limit is not None:
        scorings = [scoring for scoring in scorings if scoring.limit == limit]
    if not scorings:
        what = "no scores" if limit is None else f"no scores of the first {limit} images"
        raise MissingArtifactError(
            f"run {folder.name} has {what}; make them: ood score --run {folder.name}"
            + ("" if limit is None else f" --limit {limit}")
        )
    return scorings[0]


def _comparable(folders: Sequence[RunFolder], scorings: Sequence[Scoring]) -> None:
    first = scorings[0]
    for folder, scoring in zip(folders, scorings, strict=True):
        if scoring.limit != first.limit:
            raise InvalidInputError(
                f"runs {folders[0].name} and {folder.name} were scored on different numbers of "
                f"images ({first.limit or 'all'} and {scoring.limit or 'all'} of each set); "
                "score them alike, or report them one by one"
            )


def _benchmark(scorings: Sequence[Scoring]) -> str | None:
    names = {entry.benchmark for scoring in scorings for entry in scoring.sets}
    return names.pop() if len(names) == 1 else None


def _rows(
    folder: RunFolder,
    scoring: Scoring,
    convention: str,
    *,
    methods: Sequence[str],
    datasets: Sequence[str],
) -> list[ResultRow]:
    known = scoring.methods or {}
    wanted = [name for name in methods if name in known] if methods else list(known)
    sets = [entry for entry in scoring.sets if not datasets or entry.name in datasets]
    rows = []
    for method in wanted:
        id_scores = read_scores(folder.scores, scoring, method, scoring.id_set.name)
        if id_scores is None:
            continue
        for entry in sets:
            ood_scores = read_scores(folder.scores, scoring, method, entry.name)
            if ood_scores is None:
                continue
            if len(ood_scores) != entry.n or len(id_scores) != scoring.id_set.n:
                raise CorruptArtifactError(
                    f"the scores of {method} on {entry.name} are not one per image; "
                    f"make them again: ood score --run {folder.name}"
                )
            curve = Curve.of(id_scores, ood_scores, method=method, dataset=entry.name)
            rows.append(
                ResultRow.of(
                    curve.detection(convention_named(convention)),
                    run=folder.name,
                    method=method,
                    params=known[method],
                    dataset=entry.name,
                    group=entry.group,
                    id_accuracy=scoring.id_accuracy,
                    convention=convention,
                )
            )
    return rows


def _notes(scorings: Sequence[Scoring], tables: Sequence[Sequence[ResultRow]]) -> list[str]:
    notes = []
    if scorings[0].limit is not None:
        notes.append(f"a quick look: only the first {scorings[0].limit} images of each set")
    if scorings[0].precision != "float32":
        notes.append(f"activations were computed in {scorings[0].precision}")
    every: list[ScoredSet] = [e for s in scorings for e in (s.id_set, *s.sets)]
    notes += [f"{e.name}: {e.skipped} unreadable images were left out" for e in every if e.skipped]
    for table in tables:
        counts = Counter(row.method for row in table)
        short = [name for name, count in counts.items() if count < max(counts.values())]
        if short:
            notes.append(
                f"averages of {', '.join(short)} are over fewer sets than those of other methods"
            )
    return list(dict.fromkeys(notes))


def _summary(folder: RunFolder, run: Run, scoring: Scoring) -> RunSummary:
    return RunSummary(
        name=folder.name,
        arch=run.arch,
        id_name=scoring.id_set.name,
        n_id=scoring.id_set.n,
        id_accuracy=scoring.id_accuracy,
        seed=run.seed,
    )


def _grouped(
    records: Sequence[Run], tables: Sequence[list[ResultRow]], *, average: bool
) -> list[ResultRow]:
    """Average runs that differ by their seed alone, or all of them on request."""
    groups: list[tuple[Run, list[list[ResultRow]]]] = []
    for record, rows in zip(records, tables, strict=True):
        for first, members in groups:
            alike = record.origin == "trained" and record.but_for_seed() == first.but_for_seed()
            if average or alike:
                members.append(rows)
                break
        else:
            groups.append((record, [rows]))
    out: list[ResultRow] = []
    for _, members in groups:
        out += over_runs(members) if len(members) > 1 else members[0]
    return out
