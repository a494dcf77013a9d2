"""Tables of stored scores, and of score files from elsewhere; no network, no torch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from oodcli.data.benchmarks import BENCHMARKS, Benchmark
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
)
from oodcli.files import expanded
from oodcli.foreign import ForeignRun, joined, read_score_file
from oodcli.metrics import MOSTLY_TIED, Convention, convention_named, near_chance
from oodcli.results import (
    AVERAGE,
    GROUPS,
    Report,
    ResultRow,
    RunSummary,
    SplitUsed,
    common_sets,
    over_runs,
    with_averages,
)
from oodcli.runs import Run, RunFolder, find_run, using_runs
from oodcli.scores import (
    LABELS,
    PREDICTIONS,
    ScoredSet,
    Scores,
    Scoring,
    full_name,
    read_scores,
    read_scorings,
)
from oodcli.store import Store
from oodcli.workflows.evaluate import (
    Source,
    calibration_of,
    comparisons,
    ranks_of,
    rows_of,
    with_intervals,
)


@dataclass(frozen=True)
class _Scored:
    """A run with the scores that are shown of it.

    Parameters
    ----------
    source
        The run.
    rows
        Its rows of the table.
    named
        Whether the methods were named, so that none of the others is missed.
    """

    source: Source
    rows: Sequence[ResultRow]
    named: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def scoring(self) -> Scoring:
        return self.source.scoring


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
        Pairs of methods whose AUROC is compared on every OOD set.
    """

    ci: bool = False
    bootstraps: int = 1000
    seed: int = 0
    compare: Sequence[tuple[str, str]] = ()


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
    ci: bool = False,
    bootstraps: int = 1000,
    seed: int = 0,
    compare: Sequence[tuple[str, str]] = (),
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
        Show the scores of ``limit`` images of each set; by default what was scored last in full, or
        if nothing was, what was scored last.
    methods, datasets
        Show only these, in this order; by default all.
    benchmark
        Show the sets of this benchmark alone, as scored for it; by default what was scored last.
    ci
        Whether to give 95 % confidence intervals.
    bootstraps, seed
        Number of bootstrap samples behind intervals of FPR95 and AUPR, and their seed.
    compare
        Pairs of methods whose AUROC is compared on every OOD set; ``all`` as the second stands for
        every other method.

    Raises
    ------
    MissingArtifactError
        If a run has no scores.
    InvalidInputError
        If the scores cannot stand in one table.
    """
    with using_runs(store, runs) as folders:
        sources, known = stored_sources(
            store,
            runs=[folder.name for folder in folders],
            limit=limit,
            methods=methods,
            datasets=datasets,
            benchmark=benchmark,
        )
        chosen = convention_named(convention or ("neutral" if known is None else known.convention))
        each = [_Scored(source, rows_of(source, chosen), named=bool(methods)) for source in sources]
        for one in each:
            if not one.rows:
                raise MissingArtifactError(
                    f"run {one.name} has no scores of these methods and sets; "
                    f"make them: ood score --run {one.name}"
                )
        scorings = [source.scoring for source in sources]
        return _report(
            each,
            _by_seed(each, average=average),
            chosen,
            benchmark=benchmark or _benchmark(scorings),
            notes=[] if known is None else _benchmark_notes(scorings, known),
            statistics=Statistics(ci, bootstraps, seed, compare),
        )


def report_files(
    files: Sequence[str | Path],
    *,
    id_name: str | None = None,
    convention: str | None = None,
    average: bool = False,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    benchmark: str | None = None,
    ci: bool = False,
    bootstraps: int = 1000,
    seed: int = 0,
    compare: Sequence[tuple[str, str]] = (),
) -> Report:
    """Tabulate scores from files, see :data:`oodcli.foreign.LAYOUTS`.

    Files with different methods for the same images go into one table; the same methods again are
    another seed, and seeds are averaged.

    Parameters
    ----------
    files
        Score files, or ``NAME=FILE`` to name the method of a file that does not say.
    id_name
        Name of the ID test set, where a file does not say.
    convention
        Name of the metric convention; by default that of the benchmark or layout, else ``neutral``.
    average
        Whether to average even files that differ in their methods or sets.
    methods, datasets
        Show only these, in this order; by default all.
    benchmark
        Show the sets of this benchmark alone, in its groups.
    ci, bootstraps, seed, compare
        As in :func:`report`.

    Raises
    ------
    OodError
        If a file cannot be read, or the scores cannot stand in one table.
    """
    sources, known, layout = foreign_sources(
        files, id_name=id_name, methods=methods, datasets=datasets, benchmark=benchmark
    )
    by_default = layout if known is None else known.convention
    chosen = convention_named(convention or by_default or "neutral")
    each = [_Scored(source, rows_of(source, chosen)) for source in sources]
    for one in each:
        if not one.rows:
            raise MissingArtifactError(f"{one.name} has no scores of these methods and sets")
    notes = []
    if known is not None:
        notes.append(
            f"that the images are those of benchmark {known.name} is taken from the names of the "
            "sets; the files do not tell"
        )
    if layout is not None and any(source.scoring.id_accuracy is not None for source in sources):
        notes.append("ID accuracy is of the predictions in the files, which some methods change")
    groups: list[list[_Scored]] = []
    for one in each:
        for group in groups:
            if average or one.source.methods == group[0].source.methods:
                group.append(one)
                break
        else:
            groups.append([one])
    return _report(
        each,
        groups,
        chosen,
        benchmark=None if known is None else known.name,
        notes=notes,
        statistics=Statistics(ci, bootstraps, seed, compare),
    )


def _report(
    each: Sequence[_Scored],
    groups: Sequence[Sequence[_Scored]],
    convention: Convention,
    *,
    benchmark: str | None,
    notes: Sequence[str],
    statistics: Statistics,
) -> Report:
    """Put together what all tables have; ``groups`` are the runs that are averaged together."""
    rows: list[ResultRow] = []
    said = _notes(each)
    sources = [[one.source for one in group] for group in groups]
    for group, own in zip(groups, sources, strict=True):
        table, note = _averaged(group)
        if statistics.ci:
            table = with_intervals(
                table, own, convention, bootstraps=statistics.bootstraps, seed=statistics.seed
            )
        rows += table
        said += note
    said += _average_notes(each, apart=len(groups) == len(each))
    said += [*notes, *_tuning_notes(rows)]
    if statistics.ci:
        said.append(
            "95 % intervals are over images, for these networks: DeLong's on the logit scale for "
            "AUROC, the others "
            f"from {statistics.bootstraps:,} bootstrap samples (seed {statistics.seed})"
        )
    calibrations = [calibration_of(one.source) for one in each]
    return Report(
        convention=convention.name,
        description=convention.description,
        benchmark=benchmark,
        runs=[_with_chance(one.source) for one in each],
        rows=rows,
        notes=list(dict.fromkeys(said)),
        splits={
            entry.name: SplitUsed(entry.split, entry.split_sha256)
            for one in each
            for entry in (one.scoring.id_set, *one.scoring.sets)
            if entry.split
        },
        comparisons=comparisons(sources, statistics.compare) if statistics.compare else (),
        mean_ranks=ranks_of(rows),
        calibration=[found for found in calibrations if found is not None],
    )


def _with_chance(source: Source) -> RunSummary:
    """Return what is said of a run, and whether its classifier hardly classifies."""
    labels = source.read(LABELS, source.scoring.id_set)
    accuracy = source.scoring.id_accuracy
    if labels is None or accuracy is None:
        return source.summary
    chance = near_chance(accuracy, np.asarray(labels, dtype=np.int64))
    return replace(source.summary, chance=chance)


def stored_sources(
    store: Store,
    *,
    runs: Sequence[str] = (),
    limit: int | None = None,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    benchmark: str | None = None,
) -> tuple[list[Source], Benchmark | None]:
    """Find the stored scores of runs, as :func:`report` shows them.

    Returns
    -------
    tuple
        The scores of every run, and the benchmark that they are of.

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
    there = {name for scoring in scorings for name in scoring.methods or {}}
    methods = [full_name(method, there) for method in methods]
    _check_known(scorings, methods, datasets)
    name = benchmark or _benchmark(scorings)
    sources = [
        _source(
            RunSummary(
                name=folder.name,
                arch=record.arch,
                id_name=scoring.id_set.name,
                n_id=scoring.id_set.n,
                id_accuracy=scoring.id_accuracy,
                seed=record.seed,
                versions=record.versions,
                training=_training(record),
            ),
            scoring,
            lambda method, entry, folder=folder, scoring=scoring: _checked_scores(  # type: ignore[misc]
                folder, scoring, method, entry
            ),
            methods=methods,
            datasets=datasets,
        )
        for folder, record, scoring in zip(folders, records, scorings, strict=True)
    ]
    sources = [
        replace(source, record=record) for source, record in zip(sources, records, strict=True)
    ]
    return sources, None if name is None else BENCHMARKS.get(name)


def foreign_sources(
    files: Sequence[str | Path],
    *,
    id_name: str | None = None,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    benchmark: str | None = None,
) -> tuple[list[Source], Benchmark | None, str | None]:
    """Read score files, as :func:`report_files` shows them.

    Returns
    -------
    tuple
        The scores of every network, the benchmark whose sets they are by name, and the convention
        that their layout belongs to.

    Raises
    ------
    OodError
        If a file cannot be read, or a benchmark is unknown or has other sets.
    """
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise UnknownNameError.among("benchmark", benchmark, BENCHMARKS)
    read: list[ForeignRun] = []
    for file in files:
        method, path = _named_file(file)
        read += read_score_file(path, id_name=id_name, method=method)
    networks = joined(read)
    known = _benchmark_of(networks) if benchmark is None else BENCHMARKS[benchmark]
    sources = [
        _foreign_source(run, known, methods=methods, datasets=datasets, only=benchmark is not None)
        for run in networks
    ]
    conventions = {run.convention for run in networks}
    return sources, known, conventions.pop() if len(conventions) == 1 else None


def _named_file(file: str | Path) -> tuple[str | None, Path]:
    """Split ``NAME=FILE``; a file that is called so is taken as it is."""
    name, equals, rest = str(file).partition("=")
    if not equals or not name or expanded(Path(file)).exists() or "/" in name:
        return None, expanded(Path(file))
    return name, expanded(Path(rest))


def _benchmark_of(networks: Sequence[ForeignRun]) -> Benchmark | None:
    """Return the benchmark that has the ID set and all OOD sets of the files by name."""
    for known in BENCHMARKS.values():
        names = {known.id_set, *known.near, *known.far, *known.ood, *known.shifted}
        if all(run.id_name == known.id_set and names.issuperset(run.sizes) for run in networks):
            return known
    return None


def _foreign_source(
    run: ForeignRun,
    benchmark: Benchmark | None,
    *,
    methods: Sequence[str],
    datasets: Sequence[str],
    only: bool,
) -> Source:
    sizes = run.sizes
    groups = dict(run.groups)
    order = [name for name in sizes if name != run.id_name]
    if benchmark is not None:
        ours = {name: group for group, names in benchmark.groups.items() for name in names}
        ours |= dict.fromkeys(benchmark.shifted, "shifted")
        groups |= ours
        order = [name for name in ours if name in order] + (
            [] if only else [name for name in order if name not in ours]
        )
    sets = tuple(
        ScoredSet(
            name=name,
            group=groups.get(name, "ood"),
            n=sizes[name],
            digest=f"{sizes[name]} images",
            accuracy=run.shifted_accuracy.get(name),
        )
        for name in order
    )
    id_set = ScoredSet(run.id_name, "id", sizes[run.id_name], f"{sizes[run.id_name]} images")
    scoring = Scoring(
        limit=None,
        precision="float32",
        id_set=id_set,
        id_accuracy=run.id_accuracy,
        sets=sets,
        methods={method: {} for method in run.scores},
    )

    def read(method: str, entry: ScoredSet) -> Scores | None:
        if method in (LABELS, PREDICTIONS):
            return run.labels if method == LABELS else run.predictions
        return run.scores.get(method, {}).get(entry.name)

    summary = RunSummary(
        name=run.name,
        arch="",
        id_name=run.id_name,
        n_id=id_set.n,
        id_accuracy=run.id_accuracy,
        seed=None,
    )
    return _source(summary, scoring, read, methods=methods, datasets=datasets)


def _source(
    summary: RunSummary,
    scoring: Scoring,
    read: Callable[[str, ScoredSet], Scores | None],
    *,
    methods: Sequence[str],
    datasets: Sequence[str],
) -> Source:
    known = scoring.methods or {}
    shown = [entry for entry in scoring.sets if not datasets or entry.name in datasets]
    return Source(
        summary=summary,
        scoring=scoring,
        methods=[name for name in methods if name in known] if methods else list(known),
        sets=[entry for entry in shown if entry.group != "shifted"],
        shifted=_shifted(shown),
        read=read,
    )


def _choose(folder: RunFolder, limit: int | None, benchmark: Benchmark | None) -> Scoring:
    scorings = read_scorings(folder.scores)
    if benchmark is not None:
        scorings = [s for s in (_only(s, benchmark) for s in scorings) if s.sets]
    if limit is not None:
        scorings = [scoring for scoring in scorings if scoring.limit == limit]
    if not scorings:
        what = "no scores" if limit is None else f"no scores of {limit} images of each set"
        on = "" if benchmark is None else f" on {benchmark.name}"
        raise MissingArtifactError(
            f"run {folder.name} has {what}{on}; make them: ood score --run {folder.name}"
            + ("" if benchmark is None else f" --benchmark {benchmark.name}")
            + ("" if limit is None else f" --limit {limit}")
        )
    # A quick look must not hide what was scored in full.
    whole = [scoring for scoring in scorings if scoring.limit is None]
    return (whole or scorings)[0]


def _training(record: Run) -> str:
    """Return what the literature calls the training of a run; empty for an imported network."""
    objective = str(record.recipe.get("objective", "")).partition(":")[0]
    if objective == "alpa":
        return ""  # its name depends on what it started from
    return "contrastive" if objective == "supcon" else objective


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


def _check_known(
    scorings: Sequence[Scoring], methods: Sequence[str], datasets: Sequence[str]
) -> None:
    """Refuse a name that no run has scores of, which would be missing from the table unnoticed."""
    limit = scorings[0].limit
    of = "with scores" if limit is None else f"with scores of {limit:,} images of each set"
    known = {
        "method": (methods, {name for scoring in scorings for name in scoring.methods or {}}),
        "OOD set": (datasets, {entry.name for scoring in scorings for entry in scoring.sets}),
    }
    for kind, (names, there) in known.items():
        for name in names:
            if name not in there:
                raise UnknownNameError.among(f"{kind} {of}", name, there)


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
    if benchmarks == {None}:  # from elsewhere: what the file has is all there is
        return found
    wanted = {name for key, b in BENCHMARKS.items() if key in benchmarks for name in b.shifted}
    return found if wanted == {entry.name for entry in found} else []


def _notes(each: Sequence[_Scored]) -> list[str]:
    notes = []
    scorings = [one.scoring for one in each]
    if scorings[0].limit is not None:
        notes.append(f"a quick look: {scorings[0].limit:,} images of each set, spread evenly")
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
    rows = [row for one in each for row in one.rows]
    for one in each:
        notes += method_notes(rows, {} if one.named else one.scoring.left_out or {})
    for one in each:
        record = one.source.record
        layer = "trained" if record is None else record.training.get("last_layer", "trained")
        if layer != "trained":
            notes.append(
                f"the last layer of run {one.source.summary.name} is a {layer}, fitted after "
                "training"
            )
    for one in each:
        counts = Counter(row.method for row in one.rows)
        short = [name for name, count in counts.items() if count < max(counts.values())]
        if short:
            notes.append(
                f"averages of {', '.join(short)} are over fewer sets than those of other methods"
            )
    return list(dict.fromkeys(notes))


def method_notes(rows: Sequence[ResultRow], left_out: Mapping[str, str]) -> list[str]:
    """Say which methods were left out and why, are calibrated on training images, or mostly tie."""
    shown = {row.method for row in rows}
    notes = [f"without {name}: {reason}" for name, reason in left_out.items() if name not in shown]
    train = {row.method for row in rows if row.params.get("calibration") == "train"}
    if train:
        notes.append(
            "calibrated on a tenth of the training images, for want of validation images: "
            + ", ".join(sorted(train))
        )
    return [*notes, *_ties(rows)]


def _ties(rows: Sequence[ResultRow]) -> list[str]:
    """Name the methods most of whose scores tie, each with the set where that is worst."""
    worst: dict[str, ResultRow] = {}
    for row in rows:
        tied = row.extras.get("tied", 0.0)
        if row.dataset != AVERAGE and tied > MOSTLY_TIED:
            known = worst.setdefault(row.method, row)
            worst[row.method] = row if tied > known.extras["tied"] else known
    if not worst:
        return []
    shares = [
        f"{method} ({100 * row.extras['tied']:.0f} % on {row.dataset})"
        for method, row in worst.items()
    ]
    return [
        "most images share their score with another image, and are not ranked among those: "
        + ", ".join(shares)
    ]


def _tuning_notes(rows: Sequence[ResultRow]) -> list[str]:
    """Say what parameters were chosen on, and what tuning without OOD data costs."""
    chosen_on = {
        (str(row.params["tuned"]), str(row.params["tuned_on"]))
        for row in rows
        if "tuned_on" in row.params and isinstance(row.params["tuned_on"], str)
    }
    notes = [f"@{tuning}: parameters chosen against {name}" for tuning, name in sorted(chosen_on)]
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
        return notes
    worst = min(gaps, key=lambda key: gaps[key])
    mean = sum(gaps.values()) / len(gaps)
    return [
        *notes,
        f"tuned without OOD data (@pseudo) instead of with them (@openood): average AUROC "
        f"{100 * mean:+.2f} over {len(gaps)} methods, at worst {100 * gaps[worst]:+.2f} "
        f"({worst[1]})",
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


def _by_seed(each: Sequence[_Scored], *, average: bool) -> list[list[_Scored]]:
    """Put together runs that differ by their seed alone, on request all of them."""
    groups: list[list[_Scored]] = []
    for one in each:
        for group in groups:
            if average or _differ_by_seed(one, group):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _average_notes(each: Sequence[_Scored], *, apart: bool) -> list[str]:
    """Say which sets averages leave out, and where those of runs apart are over different sets."""
    notes = []
    averaged: dict[str, frozenset[str]] = {}
    for one in each:
        plain = [row for row in one.rows if row.group in GROUPS]
        common = common_sets(plain)
        averaged[one.name] = frozenset(common)
        left_out = list(dict.fromkeys(row.dataset for row in plain if row.dataset not in common))
        if left_out and common:
            notes.append(
                f"averages of {one.name} are over the sets that all methods were scored on, "
                f"without {', '.join(left_out)}"
            )
        elif left_out:
            notes.append(
                f"averages of {one.name} are over different sets, since no set was scored by all "
                "methods, and cannot be compared"
            )
    if apart and len(set(averaged.values())) > 1:
        over = "; ".join(
            f"{name}: {', '.join(sorted(sets)) or 'no common set'}"
            for name, sets in averaged.items()
        )
        notes.append(f"averages of these runs are over different sets, not to be compared ({over})")
    return notes


def _averaged(group: Sequence[_Scored]) -> tuple[list[ResultRow], list[str]]:
    """Return the rows of runs averaged together, and what the reader must know of them."""
    if len(group) == 1:
        return with_averages(group[0].rows), []
    _same_images(group)
    tables = _common(group)
    notes = []
    if any(len(table) < len(one.rows) for table, one in zip(tables, group, strict=True)):
        notes.append("averaged over runs is only what all of them were scored on")
    return over_runs([with_averages(table) for table in tables]), notes


def _differ_by_seed(one: _Scored, group: Sequence[_Scored]) -> bool:
    own, first = one.source.record, group[0].source.record
    if own is None or first is None or own.origin != "trained":
        return False
    others = [other.source.summary.seed for other in group]
    return own.but_for_seed() == first.but_for_seed() and own.seed not in others


def _same_images(group: Sequence[_Scored]) -> None:
    """Refuse to average results on different images."""
    seen: dict[str, tuple[str, str]] = {}
    for one in group:
        for entry in (one.scoring.id_set, *one.scoring.sets):
            name, digest = seen.setdefault(entry.name, (one.name, entry.digest))
            if digest != entry.digest:
                raise InvalidInputError(
                    f"runs {name} and {one.name} were scored on different images called "
                    f"{entry.name}; score them on the same, or report them one by one"
                )


def _place(row: ResultRow) -> tuple[str, str, str]:
    return row.method, row.dataset, row.group


def _common(group: Sequence[_Scored]) -> list[list[ResultRow]]:
    """Return of each run the rows that all runs have."""
    keys = set.intersection(*({_place(r) for r in one.rows} for one in group))
    tables = [[r for r in one.rows if _place(r) in keys] for one in group]
    if not keys:
        names = ", ".join(one.name for one in group)
        raise InvalidInputError(f"runs {names} have no method and set in common to average")
    return tables
