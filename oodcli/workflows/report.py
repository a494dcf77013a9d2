"""Tables of stored scores; no network, no torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from oodcli.data.benchmarks import BENCHMARKS, Benchmark
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
)
from oodcli.metrics import Curve, convention_named
from oodcli.results import (
    AVERAGE,
    FULL_SPECTRUM,
    GROUPS,
    Report,
    ResultRow,
    RunSummary,
    SplitUsed,
    over_runs,
    with_averages,
)
from oodcli.runs import Run, RunFolder, find_run
from oodcli.scores import ScoredSet, Scores, Scoring, read_scores, read_scorings
from oodcli.store import Store


@dataclass(frozen=True)
class _Scored:
    """A run with the scores that are shown of it."""

    folder: RunFolder
    record: Run
    scoring: Scoring
    rows: Sequence[ResultRow]


def report(
    store: Store,
    *,
    runs: Sequence[str] = (),
    convention: str | None = None,
    average: bool = False,
    limit: int | None = None,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    benchmark: str | None = None,
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
    benchmark
        Show the sets of this benchmark alone, as scored for it; by default what was scored last.

    Raises
    ------
    MissingArtifactError
        If a run has no scores.
    InvalidInputError
        If the scores cannot stand in one table.
    """
    folders = [find_run(store, name) for name in dict.fromkeys(runs)] or [find_run(store, None)]
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise UnknownNameError.among("benchmark", benchmark, BENCHMARKS)
    records = [folder.read() for folder in folders]
    wanted = None if benchmark is None else BENCHMARKS[benchmark]
    scorings = [_choose(folder, limit, wanted) for folder in folders]
    _comparable(folders, scorings)
    benchmark = benchmark or _benchmark(scorings)
    known = None if benchmark is None else BENCHMARKS.get(benchmark)
    chosen = convention_named(convention or ("neutral" if known is None else known.convention))
    each = [
        _Scored(
            folder,
            record,
            scoring,
            _rows(folder, scoring, chosen.name, methods=methods, datasets=datasets),
        )
        for folder, record, scoring in zip(folders, records, scorings, strict=True)
    ]
    for one in each:
        if not one.rows:
            raise MissingArtifactError(
                f"run {one.folder.name} has no scores of these methods and sets; "
                f"make them: ood score --run {one.folder.name}"
            )
    rows, notes = _tabulated(each, average=average)
    if known is not None:
        notes += _benchmark_notes(scorings, known)
    return Report(
        convention=chosen.name,
        description=chosen.description,
        benchmark=benchmark,
        runs=[_summary(one) for one in each],
        rows=rows,
        notes=[*_notes(each), *notes, *_tuning_notes(rows)],
        splits={
            entry.name: SplitUsed(entry.split, entry.split_sha256)
            for scoring in scorings
            for entry in (scoring.id_set, *scoring.sets)
            if entry.split
        },
    )


def _choose(folder: RunFolder, limit: int | None, benchmark: Benchmark | None) -> Scoring:
    scorings = read_scorings(folder.scores)
    if benchmark is not None:
        scorings = [s for s in (_only(s, benchmark) for s in scorings) if s.sets]
    if limit is not None:
        scorings = [scoring for scoring in scorings if scoring.limit == limit]
    if not scorings:
        what = "no scores" if limit is None else f"no scores of the first {limit} images"
        on = "" if benchmark is None else f" on {benchmark.name}"
        raise MissingArtifactError(
            f"run {folder.name} has {what}{on}; make them: ood score --run {folder.name}"
            + ("" if benchmark is None else f" --benchmark {benchmark.name}")
            + ("" if limit is None else f" --limit {limit}")
        )
    return scorings[0]


def _only(scoring: Scoring, benchmark: Benchmark) -> Scoring:
    """Keep the sets of a benchmark, in its order, if they were scored as it has them."""
    if scoring.id_set.split != benchmark.id_test_list:
        return replace(scoring, sets=())
    groups = {name: group for group, names in benchmark.groups.items() for name in names}
    groups |= dict.fromkeys(benchmark.shifted, "shifted")
    found = {
        entry.name: replace(entry, group=groups[entry.name])
        for entry in scoring.sets
        if entry.name in groups and entry.split == benchmark.lists.get(entry.name, "")
    }
    return replace(scoring, sets=tuple(found[name] for name in groups if name in found))


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
    shown = [entry for entry in scoring.sets if not datasets or entry.name in datasets]
    ood = [entry for entry in shown if entry.group != "shifted"]
    shifted = _shifted(shown)
    rows = []
    for method in wanted:
        plain = _checked_scores(folder, scoring, method, scoring.id_set)
        if plain is None:
            continue
        spectra: list[tuple[Scores, float | None, Mapping[str, str]]] = [
            (plain, scoring.id_accuracy, {})
        ]
        others = [_checked_scores(folder, scoring, method, entry) for entry in shifted]
        if shifted and all(scores is not None for scores in others):
            every = np.concatenate([plain, *(scores for scores in others if scores is not None)])
            spectra.append((every, _spectrum_accuracy(scoring, shifted), FULL_SPECTRUM))
        for entry in ood:
            ood_scores = _checked_scores(folder, scoring, method, entry)
            if ood_scores is None:
                continue
            for id_scores, accuracy, groups in spectra:
                curve = Curve.of(id_scores, ood_scores, method=method, dataset=entry.name)
                rows.append(
                    ResultRow.of(
                        curve.detection(convention_named(convention)),
                        run=folder.name,
                        method=method,
                        params=known[method],
                        dataset=entry.name,
                        group=groups.get(entry.group, entry.group),
                        id_accuracy=accuracy,
                        convention=convention,
                    )
                )
    return rows


def _checked_scores(
    folder: RunFolder, scoring: Scoring, method: str, entry: ScoredSet
) -> Scores | None:
    """Return the scores of a method on a set, one per image; None if it was not scored."""
    scores = read_scores(folder.scores, scoring, method, entry.name)
    if scores is not None and len(scores) != entry.n:
        raise CorruptArtifactError(
            f"the scores of {method} on {entry.name} are not one per image; "
            f"make them again: ood score --run {folder.name}"
        )
    return scores


def _shifted(shown: Sequence[ScoredSet]) -> list[ScoredSet]:
    """Return the covariate-shifted ID sets, if all those of the benchmark were scored."""
    found = [entry for entry in shown if entry.group == "shifted"]
    benchmarks = {entry.benchmark for entry in found}
    wanted = {name for key, b in BENCHMARKS.items() if key in benchmarks for name in b.shifted}
    return found if wanted == {entry.name for entry in found} else []


def _spectrum_accuracy(scoring: Scoring, shifted: Sequence[ScoredSet]) -> float | None:
    """Return the accuracy on ID test images and covariate-shifted ones together."""
    total, hits = scoring.id_set.n, (scoring.id_accuracy or 0.0) * scoring.id_set.n
    for entry in shifted:
        if entry.accuracy is None or scoring.id_accuracy is None:
            return None
        total, hits = total + entry.n, hits + entry.accuracy * entry.n
    return hits / total


def _notes(each: Sequence[_Scored]) -> list[str]:
    notes = []
    scorings = [one.scoring for one in each]
    if scorings[0].limit is not None:
        notes.append(f"a quick look: only the first {scorings[0].limit:,} images of each set")
    if scorings[0].precision != "float32":
        notes.append(f"activations were computed in {scorings[0].precision}")
    shown = {row.dataset for one in each for row in one.rows}
    every: list[ScoredSet] = [
        entry
        for scoring in scorings
        for entry in (scoring.id_set, *scoring.sets)
        if entry.name in shown or entry.group in ("id", "shifted")
    ]
    notes += [f"{e.name}: {e.skipped} unreadable images were left out" for e in every if e.skipped]
    shown_methods = {row.method for one in each for row in one.rows}
    for scoring in scorings:
        notes += [
            f"without {name}: {reason}"
            for name, reason in (scoring.left_out or {}).items()
            if name not in shown_methods
        ]
    train = {
        row.method for one in each for row in one.rows if row.params.get("calibration") == "train"
    }
    if train:
        notes.append(
            "calibrated on a tenth of the training images, for want of validation images: "
            + ", ".join(sorted(train))
        )
    notes += [
        f"the last layer of run {one.folder.name} is a {layer}, fitted after training"
        for one in each
        if (layer := one.record.training.get("last_layer", "trained")) != "trained"
    ]
    for one in each:
        counts = Counter(row.method for row in one.rows)
        short = [name for name, count in counts.items() if count < max(counts.values())]
        if short:
            notes.append(
                f"averages of {', '.join(short)} are over fewer sets than those of other methods"
            )
    return list(dict.fromkeys(notes))


def _tuning_notes(rows: Sequence[ResultRow]) -> list[str]:
    """Say what tuning without OOD data costs against tuning with them, where both are there."""
    average = {
        (row.run, row.method): row
        for row in rows
        if row.dataset == AVERAGE and row.group in (*GROUPS, "all")
    }
    gaps = {}
    for (run, method), row in average.items():
        name, _, tuning = method.rpartition("@")
        other = average.get((run, f"{name}@openood"))
        if tuning == "pseudo" and other is not None:
            gaps[run, name] = row.auroc - other.auroc
    if not gaps:
        return []
    worst = min(gaps, key=lambda key: gaps[key])
    mean = sum(gaps.values()) / len(gaps)
    return [
        f"tuned without OOD data (@pseudo) instead of with them (@openood): average AUROC "
        f"{100 * mean:+.2f} over {len(gaps)} methods, at worst {100 * gaps[worst]:+.2f} "
        f"({worst[1]})"
    ]


def _benchmark_notes(scorings: Sequence[Scoring], benchmark: Benchmark) -> list[str]:
    """Say which sets of the benchmark are not in the table, and what full spectrum means."""
    notes = []
    wanted = (*benchmark.near, *benchmark.far, *benchmark.ood, *benchmark.shifted)
    for scoring in scorings:
        known = {entry.name: entry for entry in scoring.sets}
        missing = [name for name in wanted if name not in known]
        if missing:
            notes.append(f"not the whole benchmark {benchmark.name}: without {', '.join(missing)}")
        if _shifted(scoring.sets):
            also = " and ".join(f"{name} ({known[name].n:,} images)" for name in benchmark.shifted)
            notes.append(f"fs (full spectrum): ID images are the test images and {also}")
    return list(dict.fromkeys(notes))


def _summary(one: _Scored) -> RunSummary:
    return RunSummary(
        name=one.folder.name,
        arch=one.record.arch,
        id_name=one.scoring.id_set.name,
        n_id=one.scoring.id_set.n,
        id_accuracy=one.scoring.id_accuracy,
        seed=one.record.seed,
    )


def _tabulated(each: Sequence[_Scored], *, average: bool) -> tuple[list[ResultRow], list[str]]:
    """Return all rows with their averages, and what the reader must know of them.

    Runs that differ by their seed alone are averaged, on request all of them.
    """
    groups: list[list[_Scored]] = []
    for one in each:
        for group in groups:
            if average or _differ_by_seed(one, group):
                group.append(one)
                break
        else:
            groups.append([one])
    rows: list[ResultRow] = []
    notes: list[str] = []
    for group in groups:
        if len(group) == 1:
            rows += with_averages(group[0].rows)
            continue
        _same_images(group)
        tables = _common(group)
        if any(len(table) < len(one.rows) for table, one in zip(tables, group, strict=True)):
            notes.append("averaged over runs is only what all of them were scored on")
        rows += over_runs([with_averages(table) for table in tables])
    return rows, notes


def _differ_by_seed(one: _Scored, group: Sequence[_Scored]) -> bool:
    return (
        one.record.origin == "trained"
        and one.record.but_for_seed() == group[0].record.but_for_seed()
        and one.record.seed not in [other.record.seed for other in group]
    )


def _same_images(group: Sequence[_Scored]) -> None:
    """Refuse to average results on different images."""
    seen: dict[str, tuple[str, str]] = {}
    for one in group:
        for entry in (one.scoring.id_set, *one.scoring.sets):
            name, digest = seen.setdefault(entry.name, (one.folder.name, entry.digest))
            if digest != entry.digest:
                raise InvalidInputError(
                    f"runs {name} and {one.folder.name} were scored on different images called "
                    f"{entry.name}; score them on the same, or report them one by one"
                )


def _place(row: ResultRow) -> tuple[str, str, str]:
    return row.method, row.dataset, row.group


def _common(group: Sequence[_Scored]) -> list[list[ResultRow]]:
    """Return of each run the rows that all runs have."""
    keys = set.intersection(*({_place(r) for r in one.rows} for one in group))
    tables = [[r for r in one.rows if _place(r) in keys] for one in group]
    if not keys:
        names = ", ".join(one.folder.name for one in group)
        raise InvalidInputError(f"runs {names} have no method and set in common to average")
    return tables
