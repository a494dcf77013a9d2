"""Notes below a table: facts needed to interpret its values, one sentence each; no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from oodcli.data.benchmarks import BENCHMARKS, Benchmark
from oodcli.data.class_order import logits_line
from oodcli.metrics import MOSTLY_TIED
from oodcli.reporting.evaluate import RunRows
from oodcli.reporting.results import GROUPS, ResultRow, common_sets
from oodcli.reporting.sources import ScoredRun, Sources, benchmark_in
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.runs import NO_CLASSIFIER
from oodcli.store.scores import AVERAGE, NO_LOGITS, ResizedAs, ScoredSet
from oodcli.text import counted, printable


def run_notes(tables: Sequence[RunRows], *, named: bool) -> list[str]:
    """Return notes on all rows of a run or of several runs.

    Parameters
    ----------
    tables
        The rows of every run.
    named
        Whether the methods were requested by name, so that no others are expected.
    """
    notes = []
    scorings = [table.run.scoring for table in tables]
    if scorings[0].limit is not None:
        notes.append(
            f"a quick look: {counted(scorings[0].limit, 'image')} of each set, evenly spaced"
        )
    if scorings[0].precision != "float32":
        notes.append(f"activations were computed in {scorings[0].precision}")
    rows = [row for table in tables for row in table.rows]
    shown = {row.dataset for row in rows}
    every: list[ScoredSet] = [
        entry
        for scoring in scorings
        for entry in (scoring.id_set, *scoring.sets)
        if entry.name in shown or entry.group in ("id", "shifted")
    ]
    notes += [
        f"{entry.name}: {counted(entry.skipped, 'unreadable image')} skipped"
        for entry in every
        if entry.skipped
    ]
    notes += [note for entry in every for note in _duplicate_notes(entry)]
    for scoring in scorings:
        notes += method_notes(rows, {} if named else scoring.left_out or {})
    for table in tables:
        stored = table.run.stored
        made = {} if stored is None else {**stored.record.training, **stored.record.imported}
        layer = made.get("last_layer", "trained")
        if layer == NO_CLASSIFIER:
            notes.append(f"run {table.run.name} has no classifier: its features alone are scored")
        elif layer != "trained":
            notes.append(
                f"the last layer of run {table.run.name} is a {layer}, fitted after training"
            )
        notes += _outlier_notes(table.run)
        if table.run.summary.mixing is not None:
            notes.append(
                f"run {table.run.name} was trained by PixMix with the mixing set "
                f"{table.run.summary.mixing.of_mixing}"
            )
        asked = {} if stored is None else stored.record.zero_shot
        if asked:
            notes.append(f"run {table.run.name} is {_zero_shot(asked)}")
        logits = {} if stored is None else stored.record.imported.get("logits", {})
        if logits:
            notes.append(f"logits of run {table.run.name}: {logits_line(logits)}")
    notes += [note for table in tables if (note := _resized_note(table.run)) is not None]
    notes += [note for table in tables if (note := _sign_note(table)) is not None]
    return list(dict.fromkeys(notes))


def _outlier_notes(run: ScoredRun) -> list[str]:
    """Name the outliers that a run was trained with."""
    members = ((each.name, OutlierSource.of(each.outliers)) for each in run.summary.members)
    notes = [
        f"member {name} of {run.name} was trained with outliers: {outliers.text}"
        for name, outliers in members
        if outliers is not None
    ]
    outliers = run.summary.outliers
    if outliers is None or run.stored is None:
        return notes
    shared = run.stored.record.training.get("outliers_in_training", 0)
    also = f"; {shared:,} of them are also among its training images"
    return [f"run {run.name} was trained with outliers: {outliers.text}" + (also if shared else "")]


def _zero_shot(asked: Mapping[str, Any]) -> str:
    """Return a note on the prompts of a zero-shot classifier."""
    templates = asked["templates"]
    if len(templates) == 1:
        how = f"the template {printable(templates[0])!r}"
    else:
        how = f"{len(templates)} templates ({printable(asked['templates_from'])})"
    return f"a zero-shot classifier: its last layer is the text embeddings of class names in {how}"


def _resized_note(run: ScoredRun) -> str | None:
    """Return a note on the resizing of images if benchmark and network differ."""
    scoring, stored = run.scoring, run.stored
    known = BENCHMARKS.get(benchmark_in([scoring]) or "")
    if scoring.resized_as is None or stored is None or known is None:
        return None
    (height, width), own = known.size, stored.record.preprocess
    ways = {
        "benchmark": f"benchmark {known.name} has it ({known.resize} to {height} x {width})",
        "network": f"the network has it ({own.resize} to {own.size[0]} x {own.size[1]})",
    }
    other: ResizedAs = "network" if scoring.resized_as == "benchmark" else "benchmark"
    note = f"{run.name}: images are resized as {ways[scoring.resized_as]}, not as {ways[other]}"
    return note if own.size != known.size else f"{note}; to change that: ood score --resize {other}"


def _duplicate_notes(entry: ScoredSet) -> list[str]:
    """Report images of a set with the same pixels as others that results assume to be different."""
    texts = {
        "itself": "with the same pixels as an earlier image of the set",
        "labels": "with more than one label",
        "train": "also among the training images, which makes results optimistic",
        "test": "also among the ID test images",
        "outliers": "also among the outliers of the training, which makes results optimistic",
        "train_itself": "with the same pixels as an earlier one",
        "train_labels": "with more than one label",
    }
    return [
        f"{entry.name}: {counted(count, _kind_of_image(kind))} {text}"
        for kind, text in texts.items()
        if (count := entry.duplicates.get(kind, 0))
    ]


def _kind_of_image(kind: str) -> str:
    return "training image" if kind.startswith("train_") else "image"


def _sign_note(table: RunRows) -> str | None:
    """Name the methods of score files whose every AUROC is below that of chance."""
    if table.run.stored is not None or table.run.is_ensemble:
        return None
    best: dict[str, float] = {}
    for row in table.rows:
        best[row.method] = max(row.auroc, best.get(row.method, 0.0))
    below = [method for method, auroc in best.items() if auroc < 0.5]
    if not below:
        return None
    return (
        f"every AUROC of {', '.join(below)} is below 50; if larger scores in the file are of OOD "
        "images: --higher-is-ood"
    )


def source_notes(sources: Sources) -> list[str]:
    """Report deviations from the benchmark, or what score files do not specify."""
    known = sources.known_benchmark
    if sources.query.files:
        return _file_notes(sources, known)
    notes = [] if known is None else _benchmark_notes(sources.runs, known)
    return [*notes, *_spectrum_notes(sources.runs)]


def _file_notes(sources: Sources, known: Benchmark | None) -> list[str]:
    notes = []
    if known is not None:
        notes.append(
            f"the images are assumed to be those of benchmark {known.name} because of the names of "
            "the sets; the files do not record it"
        )
    if sources.query.higher_is_ood:
        notes.append("larger scores in the files are of OOD images: their signs were changed")
    known_accuracy = any(run.scoring.id_accuracy is not None for run in sources.runs)
    if sources.layout_convention is not None and known_accuracy and not sources.plain:
        notes.append("ID accuracy is of the predictions in the files, which some methods change")
    return notes


def _benchmark_notes(runs: Sequence[ScoredRun], benchmark: Benchmark) -> list[str]:
    """Report which sets of the benchmark are not in the table."""
    notes = []
    wanted = (*benchmark.near, *benchmark.far, *benchmark.ood, *benchmark.shifted)
    for run in runs:
        scoring = run.scoring
        known = {entry.name: entry for entry in scoring.sets}
        missing = [name for name in wanted if name not in known]
        if missing:
            notes.append(f"not the whole benchmark {benchmark.name}: without {', '.join(missing)}")
    return list(dict.fromkeys(notes))


def _spectrum_notes(runs: Sequence[ScoredRun]) -> list[str]:
    """Report which images full-spectrum rows count as ID."""
    notes = []
    for run in runs:
        also = " and ".join(f"{entry.name} ({entry.n:,} images)" for entry in run.shifted)
        if also:
            notes.append(f"fs (full spectrum): ID images are the test images and {also}")
    return list(dict.fromkeys(notes))


def method_notes(rows: Sequence[ResultRow], left_out: Mapping[str, str]) -> list[str]:
    """Say which methods were skipped and why, are calibrated on training images, or mostly tie."""
    shown = {row.method for row in rows}
    notes = _without({name: why for name, why in left_out.items() if name not in shown})
    train = {row.method for row in rows if row.params.get("calibration") == "train"}
    if train:
        notes.append(
            "calibrated on a tenth of the training images, because there are no validation images: "
            + ", ".join(sorted(train))
        )
    return [*notes, *_ties(rows)]


def _without(left_out: Mapping[str, str]) -> list[str]:
    """Say why methods were skipped, those that need a classifier in one line."""
    others = [f"without {name}: {why}" for name, why in left_out.items() if why != NO_LOGITS]
    bare = [name for name, why in left_out.items() if why == NO_LOGITS]
    if not bare:
        return others
    return [
        f"{counted(len(bare), 'method')} skipped, which need logits, as the network has no "
        f"classifier (ood import --probe fits one): {', '.join(bare)}",
        *others,
    ]


def _ties(rows: Sequence[ResultRow]) -> list[str]:
    """Name the methods with mostly tied scores, each with the set with the most ties."""
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
        "most images have the same score as another image, so these images are not ranked among "
        "each other: " + ", ".join(shares)
    ]


def tuning_notes(rows: Sequence[ResultRow]) -> list[str]:
    """Report the validation images of tuned methods, and the cost of tuning without OOD data."""
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


def average_notes(tables: Sequence[RunRows], *, apart: bool) -> list[str]:
    """Report which sets averages omit, and where those of runs apart are over different sets."""
    notes = []
    averaged: dict[str, frozenset[str]] = {}
    for table in tables:
        plain = [row for row in table.rows if row.group in GROUPS]
        common = common_sets(plain)
        averaged[table.run.name] = frozenset(common)
        left_out = list(dict.fromkeys(row.dataset for row in plain if row.dataset not in common))
        if left_out and common:
            notes.append(
                f"averages of {table.run.name} are over the sets that all methods were scored on, "
                f"without {', '.join(left_out)}"
            )
        elif left_out:
            notes.append(
                f"averages of {table.run.name} are over different sets, since no set was scored by "
                "all methods, and cannot be compared"
            )
    if apart and len(set(averaged.values())) > 1:
        over = "; ".join(
            f"{name}: {', '.join(sorted(sets)) or 'no common set'}"
            for name, sets in averaged.items()
        )
        notes.append(
            f"averages of these runs are over different sets and cannot be compared ({over})"
        )
    return notes
