"""``ood score --ensemble``: scores of an ensemble of runs, from the logits of its members."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from oodcli.activations import ActivationSet, Reference
from oodcli.compute.devices import versions
from oodcli.compute.processes import Processes
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.images import ImageSet
from oodcli.methods import MethodSpec, parse_methods
from oodcli.methods.ensemble import AUTO
from oodcli.methods.members import (
    ENSEMBLE_INPUTS,
    ENSEMBLE_METHODS,
    ensemble_spec,
    head_without_features,
    mean_of_members,
)
from oodcli.progress import SILENT, Progress
from oodcli.reporting.notes import method_notes
from oodcli.reporting.sources import ScoreQuery, Sources
from oodcli.scoring.call import (
    OpenedWork,
    compute_activations,
    fit_methods,
    open_images,
    score_images,
    store_scores,
)
from oodcli.scoring.fitting import FittedMethods, fit_all
from oodcli.scoring.open_run import OpenRun
from oodcli.scoring.sets import NamedSets
from oodcli.store.ensembles import Ensemble, Member, begin_ensemble, check_ensemble_name
from oodcli.store.run_names import check_name
from oodcli.store.runs import RunFolder, utc_now
from oodcli.store.scores import PREDICTIONS, Scores, export_scores, first_duplicate
from oodcli.store.store import Store
from oodcli.workflows.report import report
from oodcli.workflows.score import Pass, ScoreRequest, ScoreResult, check_request, opened_work


@dataclass(frozen=True)
class EnsembleRequest:
    """The runs of an ensemble, and what to score.

    Parameters
    ----------
    runs
        Names of the members, at least two.
    name
        Name of the ensemble; None for that of the stored ensemble of the same networks, or else a
        new one.
    score
        What to score, and how; its run is not used. Methods are scorers of logits, which are scored
        for the members as well, and those for ensembles alone; all of both if there is none.
    """

    runs: Sequence[str]
    name: str | None = None
    score: ScoreRequest = field(default_factory=ScoreRequest)


def score_ensemble(
    store: Store, request: EnsembleRequest, *, progress: Progress = SILENT
) -> ScoreResult:
    """Score an ensemble of runs and its members, and store the scores of each.

    The logits of an ensemble are the mean of those of its members, and its predictions are those of
    the mean class probabilities. Each member sees each image once, and not at all if its
    activations are stored.

    Parameters
    ----------
    store
        The store that contains the runs.
    request
        The runs, and what to score.
    progress
        Receives the progress of long work.

    Returns
    -------
    ScoreResult
        The table has the members and the ensemble.

    Raises
    ------
    OodError
        If the runs have different classes, test images or sets, a run, a data set, a method or the
        device cannot be used, or no method is defined.
    """
    ensemble_only, ordinary = _methods(request.score.methods)
    _check(request)
    with contextlib.ExitStack() as held:
        runs = [held.enter_context(_open(store, request, name, progress)) for name in request.runs]
        _check_members(runs)
        ensemble = _record(runs)
        check_ensemble_name(store, ensemble.networks, request.name)
        single = replace(request.score, methods=[], run=None)
        works = [replace(opened_work(run, single), specs=tuple(ordinary)) for run in runs]
        runs = [work.run for work in works]
        opened = [open_images(work) for work in works]
        _check_same_images(opened)
        for each in opened if ordinary else ():
            _score_member(each)
        passes = _passes(runs) if ordinary else None
        methods = fit_all(
            [*ensemble_only, *ordinary],
            _reference(runs),
            progress=progress,
            calibrated_on=runs[0].calibration_part,
        )
        methods.require_one()
        found, scores, accuracies = score_images(opened[0], methods, partial(_activations, runs))
        folder = begin_ensemble(store, ensemble, request.name)
        store_scores(
            opened[0], found, scores, accuracies,
            withdrawn=frozenset(methods.left_out), folder=folder,
        )  # fmt: skip
        _export(request, opened[0], scores)
        return replace(
            _tabulated(store, request, opened[0], found, folder),
            passes=_passes(runs) if passes is None else passes,
            seconds=sum(run.activator.passes.seconds for run in runs),
        )


def _methods(texts: Sequence[str]) -> tuple[list[MethodSpec], list[MethodSpec]]:
    """Return the methods for ensembles alone, and the scorers of logits.

    Raises
    ------
    InvalidInputError
        If a method that is named needs more than logits.
    """
    if AUTO in texts:
        raise InvalidInputError(
            f"{AUTO} is the method recommended for one run, and an ensemble has none; name a "
            "scorer of logits, such as energy"
        )
    names = [name for name in ENSEMBLE_METHODS if name in texts or not texts or "all" in texts]
    others = [text for text in texts if text not in ENSEMBLE_METHODS]
    specs = parse_methods(others) if others or not texts else []
    for spec in specs:
        lacking = [name for name in spec.inputs if name not in ENSEMBLE_INPUTS]
        if lacking and not spec.optional:
            raise InvalidInputError(
                f"{spec.canonical} is not defined for an ensemble: it needs {', '.join(lacking)}, "
                "and an ensemble has the mean logits of its members; use scorers of logits "
                f"(msp, energy, gen, …) or {', '.join(ENSEMBLE_METHODS)}"
            )
    fit = [spec for spec in specs if ENSEMBLE_INPUTS.issuperset(spec.inputs)]
    return [ensemble_spec(name) for name in names], fit


def _check(request: EnsembleRequest) -> None:
    """Check a request as far as possible without the runs."""
    check_request(request.score)
    if request.name is not None:
        check_name(request.name)
    if len(request.runs) < 2:
        raise InvalidInputError(
            f"an ensemble needs two or more runs, and {len(request.runs) or 'none'} is named: "
            "--run A --run B --ensemble"
        )
    twice = first_duplicate(request.runs)
    if twice is not None:
        raise InvalidInputError(f"run {twice} is named twice; an ensemble has each run once")
    for option, given in (
        ("--tune", request.score.tune),
        ("--tune-ood", request.score.tune_ood),
        ("--export-activations", request.score.export_activations),
    ):
        if given:
            raise InvalidInputError(f"{option} is for one run, not for an ensemble; omit it")


def _open(
    store: Store, request: EnsembleRequest, name: str, progress: Progress
) -> contextlib.AbstractContextManager[OpenRun]:
    return OpenRun.open(
        store,
        name,
        request.score.compute,
        limit=request.score.limit,
        skip_unreadable=request.score.skip_unreadable,
        progress=progress,
    )


def _check_members(runs: Sequence[OpenRun]) -> None:
    """Check that members have the same classes in the same order, and different networks."""
    first = runs[0]
    for run in runs:
        if not run.record.outputs:
            raise InvalidInputError(
                f"run {run.name} has no classifier, and an ensemble is made of logits; fit a "
                "linear layer: ood import --probe"
            )
        ours, theirs = first.record.class_names, run.record.class_names
        if len(ours) != len(theirs):
            difference = f"{len(ours)} and {len(theirs)} classes"
        elif ours != theirs:
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            difference = f"different classes: class {at} is {ours[at]!r} and {theirs[at]!r}"
        else:
            continue
        raise InvalidInputError(
            f"runs {first.name} and {run.name} have {difference}; an ensemble needs the same "
            "classes in the same order"
        )
    names: dict[str, str] = {}
    for run in runs:
        other = names.setdefault(run.record.network, run.name)
        if other != run.name:
            raise InvalidInputError(
                f"runs {other} and {run.name} have the same network; an ensemble needs different "
                "ones (ood train --seeds 0,1,2 trains some)"
            )


def _check_same_images(opened: Sequence[OpenedWork]) -> None:
    """Check that all members are scored on the same images, at the same size."""
    first = opened[0]
    for each in opened[1:]:
        for ours, theirs in zip(first.images, each.images, strict=True):
            if (ours.name, ours.digest) != (theirs.name, theirs.digest):
                raise InvalidInputError(
                    f"runs {first.run.name} and {each.run.name} do not have the same images of "
                    f"{ours.name} (images resized by {_resizing(first.run)}, and by "
                    f"{_resizing(each.run)}); an ensemble needs the same test images"
                )


def _resizing(run: OpenRun) -> str:
    pre = run.record.preprocess
    return f"{pre.resize} to {pre.size[0]} x {pre.size[1]}"


def _record(runs: Sequence[OpenRun]) -> Ensemble:
    members = (
        Member(
            run.name,
            run.record.network,
            run.record.weights,
            run.record.arch,
            run.record.seed,
            run.record.job.outliers,
        )
        for run in runs
    )
    record = runs[0].record
    return Ensemble(utc_now(), tuple(members), record.data_name, record.class_names, versions())


def _score_member(opened: OpenedWork) -> None:
    """Score a member by the scorers of logits, and store the scores with its run."""
    with compute_activations(lambda _held: opened.work, Processes(), fit_methods) as (
        images,
        methods,
    ):
        found, scores, accuracies = score_images(images, methods)
        withdrawn = frozenset(methods.left_out)
        store_scores(images, found, scores, accuracies, withdrawn=withdrawn)


def _activations(runs: Sequence[OpenRun], images: ImageSet) -> ActivationSet:
    """Return the activations of an ensemble for images that all members have."""
    return ActivationSet.joined(
        [run.activator.activations(images) for run in runs], mean_of_members
    )


def _reference(runs: Sequence[OpenRun]) -> Reference:
    """Return the data that methods are fitted on: mean logits of images that all members have."""
    reference = runs[0].reference()

    def load(part: str) -> ActivationSet:
        images = [run.train() if part == "train" else run.calibration() for run in runs]
        if len({each.digest for each in images}) > 1:
            raise UndefinedMethodError(
                f"the members of the ensemble do not have the same {part} images to fit it on; "
                "train them with the same data and --val-fraction"
            )
        return _activations(runs, images[0])

    return Reference(
        head=head_without_features(runs[0].record.outputs, runs[0].activator.device),
        load_train=partial(load, "train"),
        load_labels=lambda: reference.labels,
        load_calibration=partial(load, "calibration"),
        load_calibration_labels=lambda: reference.calibration_labels,
    )


def _passes(runs: Sequence[OpenRun]) -> tuple[Pass, ...]:
    """Return the forward passes of all members together."""
    counts = [run.activator.passes for run in runs]
    names = dict.fromkeys(name for each in counts for name in each.computed)
    return tuple(
        Pass(
            name,
            sum(each.computed.get(name, 0) for each in counts),
            sum(each.cached.get(name, 0) for each in counts),
        )
        for name in names
    )


def _export(
    request: EnsembleRequest, opened: OpenedWork, scores: Mapping[tuple[str, str], Scores]
) -> None:
    """Write the scores of the ensemble to the requested file."""
    if request.score.export is not None:
        others = {(PREDICTIONS, images.name) for images in opened.others}
        export_scores(
            request.score.export, {key: s for key, s in scores.items() if key not in others}
        )


def _tabulated(
    store: Store,
    request: EnsembleRequest,
    opened: OpenedWork,
    methods: FittedMethods,
    folder: RunFolder,
) -> ScoreResult:
    """Tabulate the stored scores of the members and of the ensemble."""
    run, named = opened.run, request.score.sets
    query = ScoreQuery(
        runs=[*request.runs, folder.name],
        limit=opened.work.limit(),
        methods=[each.canonical for each in methods.fitted],
        datasets=[each.dataset.name for each in opened.work.sets],
        benchmark=(run.benchmark.name or None) if run.benchmark and named == NamedSets() else None,
    )
    with Sources.open(store, query) as sources:
        # Methods for ensembles alone leave nothing to show of a member.
        shown = [each for each in sources.runs if each.methods]
        found = report(replace(sources, runs=shown))
    notes = (*found.notes, *method_notes(found.rows, methods.left_out))
    return ScoreResult(
        report=replace(found, notes=list(dict.fromkeys(notes))),
        passes=(),
        seconds=0.0,
        normratio=None,
        left_out=methods.left_out,
        undefined=methods.undefined,
    )
