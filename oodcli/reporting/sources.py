"""The scores of a query: of runs in the store, or in score files; imports no torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.data.benchmarks import BENCHMARKS, Benchmark
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
)
from oodcli.files import expanded
from oodcli.metrics import near_chance
from oodcli.reporting.results import RunSummary
from oodcli.reporting.score_files import ForeignRun, joined, read_score_file
from oodcli.store.ensembles import Ensemble, read_ensemble, score_command
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.run_locks import locked_runs
from oodcli.store.runs import Run, RunFolder
from oodcli.store.scores import (
    LABELS,
    PREDICTIONS,
    ScoredSet,
    Scores,
    Scoring,
    full_name,
    read_scores,
    read_scorings,
)
from oodcli.store.store import Store
from oodcli.text import counted

_NAMES_IN_PAPERS = {"supcon": "contrastive", "conf-branch": "confbranch"}
# Augmentation steps of ordinary training, which no published training is called after.
_COMMON_STEPS = ("flip", "crop", "resized-crop", "jitter", "grey")


@dataclass(frozen=True)
class ScoreQuery:
    """The scores for a report or its pictures.

    Parameters
    ----------
    runs
        Names of runs; the default run if there is none, and no file.
    files
        Score files instead of runs, see :data:`oodcli.reporting.score_files.LAYOUTS`, or
        ``NAME=FILE`` to name the method of a file that does not say.
    id_name
        Name of the ID test set, where a score file does not say.
    higher_is_ood
        Whether larger scores in the files are of OOD images.
    benchmark
        Only the sets of this benchmark, in its groups; of a run as they were scored for it. By
        default what was scored last.
    methods, datasets
        Only these, in this order; by default all.
    limit
        The scores of ``limit`` images of each set; by default what was scored last in full, or if
        nothing was, what was scored last.
    """

    runs: Sequence[str] = ()
    files: Sequence[str | Path] = ()
    id_name: str | None = None
    higher_is_ood: bool = False
    benchmark: str | None = None
    methods: Sequence[str] = ()
    datasets: Sequence[str] = ()
    limit: int | None = None


@dataclass(frozen=True)
class StoredRun:
    """Where a run is stored, and its record."""

    folder: RunFolder
    record: Run


@dataclass(frozen=True)
class ScoredRun:
    """The scores of one network: those of a run, or in files from elsewhere.

    Parameters
    ----------
    summary
        Summary for the title of a table.
    scoring
        Its sets and methods, before any choice.
    methods
        Methods to show, in order.
    sets
        OOD sets to show, in order.
    shifted
        Covariate-shifted ID sets that full-spectrum rows add to the ID images; empty for none.
    read
        Returns the scores by method and data set, one per image, ``(n,)``; None where there are
        none. Each file is read once.
    stored
        The run; None for an ensemble of runs, and for scores from elsewhere.
    """

    summary: RunSummary
    scoring: Scoring
    methods: Sequence[str]
    sets: Sequence[ScoredSet]
    shifted: Sequence[ScoredSet]
    read: Callable[[str, ScoredSet], Scores | None]
    stored: StoredRun | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.summary.name

    @property
    def is_ensemble(self) -> bool:
        """Whether it is an ensemble of runs."""
        return bool(self.summary.members)

    def correct(self) -> NDArray[np.bool_] | None:
        """Return whether the classifier was right on each ID image; None where not known."""
        labels = self.read(LABELS, self.scoring.id_set)
        predictions = self.read(PREDICTIONS, self.scoring.id_set)
        return None if labels is None or predictions is None else labels == predictions

    def with_chance(self) -> RunSummary:
        """Return what a table says of the run, and whether its classifier hardly classifies."""
        labels = self.read(LABELS, self.scoring.id_set)
        accuracy = self.scoring.id_accuracy
        if labels is None or accuracy is None:
            return self.summary
        chance = near_chance(accuracy, np.asarray(labels, dtype=np.int64))
        return replace(self.summary, chance=chance)


@dataclass(frozen=True)
class Sources:
    """The opened scores of a query.

    Everything is opened once and every score file read once, when it is first needed; tables by
    several conventions and pictures are made from the same arrays, which stay in memory.

    Parameters
    ----------
    query
        What was asked for.
    runs
        The runs, or the networks of score files; at least one.
    benchmark
        Name of the benchmark that they were scored on, or whose sets they are by name; or None.
    layout_convention
        Name of the convention that the layout of the score files belongs to, or None.
    plain
        Whether all predictions are known to be those of the plain classifiers.
    store
        Where the runs are; None for score files.
    """

    query: ScoreQuery
    runs: Sequence[ScoredRun]
    benchmark: str | None = None
    layout_convention: str | None = None
    plain: bool = True
    store: Store | None = field(default=None, repr=False)

    @classmethod
    @contextmanager
    def open(cls, store: Store | None, query: ScoreQuery) -> Iterator["Sources"]:
        """Open the scores, with the runs locked against removal while the context lasts.

        Parameters
        ----------
        store
            Where the runs are; may be None for score files.
        query
            Which scores.

        Raises
        ------
        OodError
            If a run has no such scores, a file cannot be read, a name is unknown, or the scores
            cannot stand in one table.
        """
        if query.files:
            yield cls._of_files(query)
            return
        assert store is not None
        with locked_runs(store, query.runs) as folders:
            yield cls._of_store(store, folders, query)

    @property
    def known_benchmark(self) -> Benchmark | None:
        """The benchmark, if it is one that this version has."""
        return None if self.benchmark is None else BENCHMARKS.get(self.benchmark)

    @property
    def convention(self) -> str:
        """Name of the convention that the metrics have if none is asked for."""
        known = self.known_benchmark
        return (self.layout_convention if known is None else known.convention) or "neutral"

    @classmethod
    def _of_store(cls, store: Store, folders: Sequence[RunFolder], query: ScoreQuery) -> "Sources":
        wanted = _benchmark_asked(query)
        stored = [_opened(folder) for folder in folders]
        scorings = [_choose(folder, query.limit, wanted) for folder in folders]
        _comparable(folders, scorings)
        there = {name for scoring in scorings for name in scoring.methods or {}}
        methods = [full_name(method, there) for method in query.methods]
        _check_known(scorings, methods, query.datasets)
        runs = [
            _shown(
                _summary(folder.name, run, scoring),
                scoring,
                cache(_reader(folder, scoring)),
                methods=methods,
                datasets=query.datasets,
                stored=run if isinstance(run, StoredRun) else None,
            )
            for folder, run, scoring in zip(folders, stored, scorings, strict=True)
        ]
        return cls(query, runs, benchmark=query.benchmark or benchmark_in(scorings), store=store)

    @classmethod
    def _of_files(cls, query: ScoreQuery) -> "Sources":
        known = _benchmark_asked(query)
        read: list[ForeignRun] = []
        for file in query.files:
            method, path = _named_file(file)
            found = read_score_file(path, id_name=query.id_name, method=method)
            read += [run.negated() for run in found] if query.higher_is_ood else found
        networks = joined(read)
        known = known or _benchmark_of(networks)
        conventions = {run.convention for run in networks}
        return cls(
            query,
            [_of_network(run, known, query) for run in networks],
            benchmark=None if known is None else known.name,
            layout_convention=conventions.pop() if len(conventions) == 1 else None,
            plain=all(run.plain for run in networks),
        )


def _benchmark_asked(query: ScoreQuery) -> Benchmark | None:
    """Return the benchmark that a query names; an unknown name is refused."""
    if query.benchmark is None:
        return None
    if query.benchmark not in BENCHMARKS:
        raise UnknownNameError.among("benchmark", query.benchmark, BENCHMARKS)
    return BENCHMARKS[query.benchmark]


def _named_file(file: str | Path) -> tuple[str | None, Path]:
    """Split ``NAME=FILE``; an existing file with this whole name takes precedence."""
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


def _of_network(run: ForeignRun, benchmark: Benchmark | None, query: ScoreQuery) -> ScoredRun:
    """Return the scores of one network of score files; a benchmark gives groups and order."""
    sizes = run.sizes
    groups = dict(run.groups)
    order = [name for name in sizes if name != run.id_name]
    if benchmark is not None:
        ours = {name: group for group, names in benchmark.groups.items() for name in names}
        ours |= dict.fromkeys(benchmark.shifted, "shifted")
        groups |= ours
        order = [name for name in ours if name in order] + (
            [] if query.benchmark is not None else [name for name in order if name not in ours]
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
            known = run.labels if method == LABELS else run.predictions
            return known if entry.group == "id" else None
        return run.scores.get(method, {}).get(entry.name)

    summary = RunSummary(
        name=run.name,
        arch="",
        id_name=run.id_name,
        n_id=id_set.n,
        id_accuracy=run.id_accuracy,
        seed=None,
    )
    return _shown(summary, scoring, read, methods=query.methods, datasets=query.datasets)


def _opened(folder: RunFolder) -> StoredRun | Ensemble:
    return read_ensemble(folder) if folder.is_ensemble else StoredRun(folder, folder.read())


def _summary(name: str, run: StoredRun | Ensemble, scoring: Scoring) -> RunSummary:
    """Return what a table says of a run, or of an ensemble of runs."""
    single = run.record if isinstance(run, StoredRun) else None
    about = run.record if isinstance(run, StoredRun) else run
    return RunSummary(
        name=name,
        arch=about.arch,
        id_name=scoring.id_set.name,
        n_id=scoring.id_set.n,
        id_accuracy=scoring.id_accuracy,
        seed=None if single is None else single.seed,
        versions=about.versions,
        training="" if single is None else _training(single),
        resize=scoring.resize,
        resized_as=scoring.resized_as,
        outliers=None if single is None else OutlierSource.of(single.job.outliers),
        mixing=None if single is None else OutlierSource.of(single.job.mixing),
        members=run.members if isinstance(run, Ensemble) else (),
    )


def _shown(
    summary: RunSummary,
    scoring: Scoring,
    read: Callable[[str, ScoredSet], Scores | None],
    *,
    methods: Sequence[str],
    datasets: Sequence[str],
    stored: StoredRun | None = None,
) -> ScoredRun:
    """Return the scores of a network with the methods and sets that are asked for."""
    known = scoring.methods or {}
    chosen = [entry for entry in scoring.sets if not datasets or entry.name in datasets]
    return ScoredRun(
        summary=summary,
        scoring=scoring,
        methods=[name for name in methods if name in known] if methods else list(known),
        sets=[entry for entry in chosen if entry.group != "shifted"],
        shifted=complete_shift(chosen),
        read=read,
        stored=stored,
    )


def _choose(folder: RunFolder, limit: int | None, benchmark: Benchmark | None) -> Scoring:
    scorings = read_scorings(folder.scores)
    if benchmark is not None:
        scorings = [s for s in (_only(s, benchmark) for s in scorings) if s.sets]
    there = scorings
    if limit is not None:
        scorings = [scoring for scoring in scorings if scoring.limit == limit]
    if not scorings:
        raise _none_there(folder, there, limit, benchmark)
    # A quick look must not hide what was scored in full.
    whole = [scoring for scoring in scorings if scoring.limit is None]
    return (whole or scorings)[0]


def _none_there(
    folder: RunFolder, there: Sequence[Scoring], limit: int | None, benchmark: Benchmark | None
) -> MissingArtifactError:
    """Return what to raise where a run has no such scores, with a cure that gives some."""
    what = "no scores" if limit is None else f"no scores of {limit:,} images of each set"
    on = "" if benchmark is None else f" on {benchmark.name}"
    full = [scoring for scoring in there if scoring.limit is None]
    largest = max((entry.n for s in full for entry in (s.id_set, *s.sets)), default=0)
    if limit is not None and full and largest <= limit:  # scored with it, they would be in full too
        return MissingArtifactError(
            f"run {folder.name} has {what}{on}, but of all images: its largest set has "
            f"{counted(largest, 'image')}; omit --limit"
        )
    return MissingArtifactError(
        f"run {folder.name} has {what}{on}; compute them: {score_command(folder)}"
        + ("" if benchmark is None else f" --benchmark {benchmark.name}")
        + ("" if limit is None else f" --limit {limit}")
    )


def _training(record: Run) -> str:
    """Return the name of a run's training in the literature; empty for an imported network."""
    recipe = record.job.recipe
    objective = str(recipe.get("objective", "")).partition(":")[0]
    if not objective or objective == "alpa":
        return ""  # the name of ALPA depends on what it started from
    name = _NAMES_IN_PAPERS.get(objective, objective)
    # Words such as ``mixup``: published trainings are called after them.
    words = [each for each in recipe.get("augmentation", ()) if each not in _COMMON_STEPS]
    parts = [*([] if words and name == "cross-entropy" else [name]), *words]
    return "+".join(parts)


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
    """Raise an error for a name without scores in any run."""
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
                f"images ({first.limit or 'all'} and {scoring.limit or 'all'} of each set); score "
                "them on the same number, or report them separately"
            )


def benchmark_in(scorings: Sequence[Scoring]) -> str | None:
    """Return the name of the benchmark that all sets were scored for, or None."""
    names = {entry.benchmark for scoring in scorings for entry in scoring.sets}
    return names.pop() if len(names) == 1 else None


def _reader(folder: RunFolder, scoring: Scoring) -> Callable[[str, ScoredSet], Scores | None]:
    """Return a function that reads the scores of a method on a set; None if not scored."""

    def read(method: str, entry: ScoredSet) -> Scores | None:
        scores = read_scores(folder.scores, scoring, method, entry.name)
        if scores is None:
            return None
        if len(scores) != entry.n:
            raise CorruptArtifactError(
                f"the scores of {method} on {entry.name} are not one per image; compute them "
                f"again: {score_command(folder)}"
            )
        scores.setflags(write=False)  # whoever reads them again gets the same array
        return scores

    return read


def complete_shift(sets: Sequence[ScoredSet]) -> list[ScoredSet]:
    """Return the covariate-shifted ID sets, if all those of their benchmarks were scored."""
    found = [entry for entry in sets if entry.group == "shifted"]
    benchmarks = {entry.benchmark for entry in found}
    wanted = {name for key, b in BENCHMARKS.items() if key in benchmarks for name in b.shifted}
    return found if wanted <= {entry.name for entry in found} else []
