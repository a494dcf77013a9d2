"""``ood score --activations``: scores of activations in a file, written by any program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from oodcli.activations import ActivationSet, Reference
from oodcli.compute.compute import Compute
from oodcli.data.dataset import CALIBRATION_ROWS, CALIBRATION_SEED, stratified
from oodcli.errors import UndefinedMethodError
from oodcli.methods import MethodSpec, parse_methods
from oodcli.metrics import Curve, convention_named, near_chance
from oodcli.progress import SILENT, Progress
from oodcli.reporting.notes import method_notes
from oodcli.reporting.results import Report, ResultRow, RunSummary, with_averages
from oodcli.scoring.activation_file import (
    JIGSAW,
    TEST,
    TRAIN,
    VAL,
    ActivationFile,
    read_activations,
)
from oodcli.scoring.fitting import FittedMethods, expand_blocks, fit_all
from oodcli.scoring.plan import SCORE_SCHEMA
from oodcli.store.scores import LABELS, PREDICTIONS, Scores, export_scores

CONVENTION = "neutral"


@dataclass(frozen=True)
class FileRequest:
    """What to score, and how.

    Parameters
    ----------
    path
        File of activations, see :mod:`oodcli.scoring.activation_file` for the layout.
    methods
        Methods, as on the command line; every method that works from activations if empty.
    compute
        Device.
    export
        File to write all scores of this call to.
    """

    path: Path
    methods: Sequence[str] = ()
    compute: Compute = field(default_factory=Compute.of)
    export: Path | None = None


@dataclass(frozen=True)
class FileScores:
    """The result of scoring a file of activations.

    Parameters
    ----------
    report
        The table of its methods and sets.
    left_out
        Why a method is not in the table, by its name.
    undefined
        Methods in ``left_out`` that were requested by name, not as part of a group.
    """

    report: Report
    left_out: Mapping[str, str]
    undefined: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints, without forward passes."""
        return {
            **self.report.to_json(),
            "schema": SCORE_SCHEMA,
            "passes": [],
            "left_out": dict(self.left_out),
            "undefined": list(self.undefined),
        }


def score_file(request: FileRequest, *, progress: Progress = SILENT) -> FileScores:
    """Score the ID test images and the OOD sets of a file with every method.

    Nothing is stored in the store; ``export`` writes the scores to a file.

    Parameters
    ----------
    request
        What to score, and how.
    progress
        Receives the progress of long work.

    Raises
    ------
    OodError
        If the file, a method or the device cannot be used.
    """
    # Wrong names are reported before the file is opened.
    parse_methods(expand_blocks(request.methods, range(1)))
    device = request.compute.device
    file = read_activations(request.path, progress=progress)
    named = parse_methods(
        expand_blocks(request.methods, range(max(1, file.n_blocks))),
        zero_shot=file.head.scale is not None,
        kept=file.head.kept,
    )
    specs, left_out = _usable(named, file)
    if VAL not in file.sets and TRAIN in file.sets:
        progress.note(
            f"{file.path.name} has no set {VAL}: methods are calibrated on a fixed tenth of {TRAIN}"
        )
    methods = fit_all(
        specs,
        _reference(file, device),
        progress=progress,
        calibrated_on="val" if VAL in file.sets else "train",
    )
    optional = {spec.canonical for spec in named if spec.optional}
    methods, scores = _scores(
        file, methods.plus(left_out=left_out, optional=optional), device, progress
    )
    methods.require_one()
    labels = file.sets[TEST].labels
    predictions = file.sets[TEST].activations(device).predictions.cpu()
    accuracy = None if labels is None else float(np.mean(predictions.numpy() == labels.numpy()))
    if request.export is not None:
        extra: dict[tuple[str, str], Scores] = {(PREDICTIONS, TEST): predictions.numpy()}
        if labels is not None:
            extra[LABELS, TEST] = labels.numpy()
        export_scores(request.export, {**extra, **scores})
    found = _report(file, methods, scores, accuracy)
    return FileScores(found, dict(methods.left_out), methods.undefined)


def _usable(
    specs: Sequence[MethodSpec], file: ActivationFile
) -> tuple[list[MethodSpec], dict[str, str]]:
    """Return the methods that a file has the arrays for, and why others cannot be scored.

    Whether the sets ``train``, ``jigsaw`` and ``val`` are needed is known only during fitting.
    """
    usable: list[MethodSpec] = []
    left_out: dict[str, str] = {}
    for spec in specs:
        reason = None
        if spec.needs_network:
            reason = "it needs the network itself, which a file of activations does not contain"
        elif "block norms" in spec.inputs and not file.n_blocks:
            reason = (
                f"it needs block norms, and {file.path.name} has none of "
                f"{', '.join(file.without_norms)}"
            )
        if reason is None:
            usable.append(spec)
        else:
            left_out[spec.canonical] = reason
    return usable, left_out


def _reference(file: ActivationFile, device: torch.device) -> Reference:
    """Return the sets that methods are fitted on; a missing set is reported on first access."""

    def missing(name: str) -> Callable[..., NoReturn]:
        def load(*_: object) -> NoReturn:
            raise UndefinedMethodError(f"it needs {name}, and {file.path.name} has none")

        return load

    def activations(name: str, rows: NDArray[np.int64] | None = None) -> ActivationSet:
        if name not in file.sets:
            missing(f"a set {name!r}")()
        return file.sets[name].activations(device, rows)

    def labels(name: str) -> torch.Tensor:
        found = file.sets[name].labels if name in file.sets else None
        return missing(f"a set {name!r}")() if found is None else found.to(device)

    def tenth() -> NDArray[np.int64]:
        classes = labels(TRAIN).cpu().numpy()
        wanted = min(max(1, round(len(classes) / 10)), CALIBRATION_ROWS)
        return stratified(classes, wanted, seed=CALIBRATION_SEED)

    def puzzles() -> ActivationSet:
        found = activations(JIGSAW)
        if len(found) and not next(found.chunks(rows=1)).features.shape[1]:
            missing("features of jigsaw puzzles")()
        return found

    has_val = VAL in file.sets
    return Reference(
        head=file.head.to(device),
        load_train=lambda: activations(TRAIN),
        load_labels=lambda: labels(TRAIN),
        load_jigsaw=lambda: activations(JIGSAW),
        load_jigsaw_features=puzzles,
        load_calibration=lambda: activations(VAL) if has_val else activations(TRAIN, tenth()),
        load_calibration_labels=lambda: (
            labels(VAL) if has_val else labels(TRAIN)[torch.from_numpy(tenth()).to(device)]
        ),
        load_probed=missing("the network itself"),
        load_state=missing("the network itself"),
        load_words=lambda: None if file.words is None else file.words.to(device),
        n_blocks=file.n_blocks,
    )


def _scores(
    file: ActivationFile, methods: FittedMethods, device: torch.device, progress: Progress
) -> tuple[FittedMethods, dict[tuple[str, str], Scores]]:
    """Return the methods that are defined for all sets, and their scores by method and set."""
    scores: dict[tuple[str, str], Scores] = {}
    for name in (TEST, *file.ood):
        activations = file.sets[name].activations(device)
        methods, found = methods.score(activations, name, progress=progress)
        scores |= {(method, name): values for method, values in found.items()}
    if (slow := methods.slow()) is not None:
        progress.note(slow)
    complete = {key: each for key, each in scores.items() if key[0] not in methods.left_out}
    return methods, complete


def _report(
    file: ActivationFile,
    methods: FittedMethods,
    scores: Mapping[tuple[str, str], Scores],
    accuracy: float | None,
) -> Report:
    convention = convention_named(CONVENTION)
    run, labels = file.path.stem, file.sets[TEST].labels
    curves = {
        (each.canonical, name): Curve.of(
            scores[each.canonical, TEST],
            scores[each.canonical, name],
            method=each.canonical,
            dataset=name,
        )
        for each in methods.fitted
        for name in file.ood
    }
    rows = [
        ResultRow(
            run=run,
            method=each.canonical,
            params=dict(each.params),
            dataset=name,
            group="ood",
            detection=curves[each.canonical, name].detection(convention),
            id_accuracy=accuracy,
            convention=convention.name,
            extras={"tied": curves[each.canonical, name].tied},
        )
        for each in methods.fitted
        for name in file.ood
    ]
    classes, width = file.head.weight.shape
    return Report(
        convention=convention.name,
        description=convention.description,
        benchmark=None,
        runs=[
            RunSummary(
                name=run,
                arch=f"{width} features, {classes} classes",
                id_name=TEST,
                n_id=len(file.sets[TEST]),
                id_accuracy=accuracy,
                seed=None,
                chance=None
                if accuracy is None or labels is None
                else near_chance(accuracy, labels.numpy()),
            )
        ],
        rows=with_averages(rows),
        notes=method_notes(rows, methods.left_out),
    )
