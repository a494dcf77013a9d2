"""The steps of one call of ``ood score``: forward passes, fitting, scoring and storing."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodcli.activations import ActivationSet, Reference
from oodcli.compute.processes import Processes
from oodcli.data.splits import Split
from oodcli.data.views import View
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.images import ImageSet, ImageShard
from oodcli.methods import Fitted, MethodSpec
from oodcli.methods._blocks import BLOCK_MEANS
from oodcli.methods.csd import REGIONS_PROBE
from oodcli.methods.ensemble import AUTO
from oodcli.methods.featurenorm import selection
from oodcli.metrics import near_chance
from oodcli.probes import Probe
from oodcli.scoring.activation_file import (
    JIGSAW,
    TEST,
    TRAIN,
    VAL,
    check_names,
    write_activations,
)
from oodcli.scoring.block_ratios import NormRatioResult, describe, write_normratio
from oodcli.scoring.duplicates import duplicates
from oodcli.scoring.fitting import FittedMethods, fit_all, recommend_again
from oodcli.scoring.open_run import OpenRun
from oodcli.scoring.plan import Work
from oodcli.scoring.sets import validation_sets
from oodcli.scoring.tune import parameter_settings, tune
from oodcli.store.runs import RunFolder
from oodcli.store.scores import LABELS, PREDICTIONS, ScoredSet, Scores, Scoring, add_scores
from oodcli.store.searches import Search, Tuning, write_search
from oodcli.text import counted


@dataclass(frozen=True)
class OpenedWork:
    """The work of a call with its opened images.

    Parameters
    ----------
    work
        The data sets to score and the methods.
    test
        The ID test images.
    others
        The images of the other sets, in the order of ``work.sets``.
    """

    work: Work
    test: ImageSet
    others: tuple[ImageSet, ...]

    @property
    def run(self) -> OpenRun:
        """The run."""
        return self.work.run

    @property
    def images(self) -> tuple[ImageSet, ...]:
        """All images to score, the ID test images first."""
        return self.test, *self.others

    @cached_property
    def reference(self) -> Reference:
        """The data that methods are fitted on."""
        return self.run.reference()


@contextlib.contextmanager
def compute_activations(
    begin: Callable[[contextlib.ExitStack], Work],
    processes: Processes,
    fit: Callable[[OpenedWork], FittedMethods],
) -> Iterator[tuple[OpenedWork, FittedMethods]]:
    """Compute the activations for fitting and for scoring with all processes.

    All processes call this function, so that they do the same steps in the same order.

    Parameters
    ----------
    begin
        Opens the run and the sets, and locks the run until the stack is closed. The first process
        downloads and decodes before the others start.
    processes
        The processes; they share the store.
    fit
        Called between both computations: the first process fits the methods, whose probes are then
        computed by all processes; the others need no methods.

    Yields
    ------
    opened
        The work with its images.
    methods
        The result of ``fit``.

    Raises
    ------
    OodError
        If the run, a data set or a method cannot be used, or another process has ended.
    """
    with contextlib.ExitStack() as held:
        opened = processes.in_turn(lambda: open_images(begin(held), computes=processes.first))
        if processes.first:
            opened.work.report_cost(opened.images)
        _compute_fitting_data(opened.work, processes)
        methods = fit(opened)
        if processes.distributed:
            probes = processes.broadcast(probes_of_call(opened.work, methods))
            for images in opened.images:
                opened.run.activator.compute_together(images, processes, probes=probes)
        yield opened, methods


def probes_of_call(work: Work, methods: FittedMethods) -> Sequence[Probe]:
    """Return the probes to run on scored images: those of the methods, and what is kept."""
    kept = [BLOCK_MEANS] if work.keep_blocks else []
    return list({probe.key: probe for probe in (*methods.probes, *kept)}.values())


def open_images(work: Work, *, computes: bool = True) -> OpenedWork:
    """Open the images; the first process computes activations while decoding them for all.

    Parameters
    ----------
    work
        The data sets to score and the methods.
    computes
        Whether this is the first process of the job.

    Raises
    ------
    OodError
        If a data set cannot be used.
    """
    run = work.run
    if work.exports:
        check_names([each.dataset.name for each in work.sets])

    def seen(name: str) -> Callable[[ImageShard], None] | None:
        if not computes or work.observes:
            return None
        return run.activator.while_decoding(name, {View(): False})

    test = run.test(seen(run.data_name))
    others = tuple(each.images(run, seen(each.dataset.name)) for each in work.sets)
    if test.labels is None:
        raise InvalidInputError(f"the test images of {run.data_name} have no labels")
    return OpenedWork(work, test, others)


def _compute_fitting_data(work: Work, processes: Processes) -> None:
    """Compute the activations for fitting; each process computes some of the shards."""
    run = work.run
    if work.needs_train and "train" in run.data.dataset.parts:
        processes.in_turn(lambda: run.decode_train(puzzles=work.puzzles, observed=work.observes))
    if not processes.distributed:
        return
    if work.needs_train:
        run.activator.compute_together(run.train(), processes)
    for view, norms_only in work.puzzles.items():
        run.activator.compute_together(run.train(), processes, view=view, norms_only=norms_only)
    if work.calibrates:
        run.activator.compute_together(run.calibration(), processes)


def fit_methods(opened: OpenedWork) -> FittedMethods:
    """Fit every method with its given parameters, or with those chosen by a search."""
    work, run = opened.work, opened.run
    tuned = [
        spec
        for spec in work.specs
        if work.tune and len(parameter_settings(spec)) > 1 and spec.canonical != work.auto
    ]
    if tuned:
        count = sum(len(parameter_settings(spec)) for spec in tuned)
        run.progress.note(
            f"tuning tries {counted(count, 'setting')} of {counted(len(tuned), 'method')}"
        )
    plain = [spec for spec in work.specs if spec not in tuned]
    part = run.calibration_part if work.calibrates else "val"
    _compute_kept(opened)
    # Opened before the fitting, so that missing validation images are reported first.
    validation = {
        each: validation_sets(run, each, work.tune_ood, work.sets, observes=work.observes)
        for each in work.tune
    }
    methods = fit_all(plain, opened.reference, progress=run.progress, calibrated_on=part)
    for tuning, (id_val, ood_val) in validation.items():
        found = tune(
            tuned, opened.reference,
            tuning=tuning, id_val=id_val, ood_val=ood_val, progress=run.progress,
        )  # fmt: skip
        for spec, *outcome in found:
            methods = _with_tuned(methods, spec, tuning, outcome, run)
    methods = methods.marked(work.auto, chosen=AUTO)
    methods = methods.plus(left_out=work.skipped, optional=work.skipped)
    methods = methods.with_defined_probes(run.activator.try_probes)
    if work.auto is not None and work.auto in methods.left_out:
        again = recommend_again(methods.left_out[work.auto], work.auto, run.name)
        methods = methods.plus(left_out={work.auto: again})
    methods.require_one()
    return methods


def _compute_kept(opened: OpenedWork) -> None:
    """Compute what is stored of the images for fitting beyond ordinary activations, in one pass."""
    work, reference = opened.work, opened.reference
    trained = "train" in work.run.data.dataset.parts
    if work.needs_jigsaw_features and trained:
        reference.jigsaw_features  # noqa: B018 - a cached property, which computes them
    inputs = {name for spec in work.specs for name in spec.inputs}
    probes: list[Probe] = [BLOCK_MEANS] if work.needs_blocks else []
    probes += [REGIONS_PROBE] if "regions" in inputs else []
    if trained and (work.keep_blocks or len(probes) > 1):
        # If one is not defined for the network, its methods say so when they are fitted.
        with contextlib.suppress(UndefinedMethodError):
            work.run.activator.activations(work.run.train(), probes=probes)
    if work.keep_blocks:
        reference.probed("calibration", BLOCK_MEANS)


def _with_tuned(
    methods: FittedMethods,
    spec: MethodSpec,
    tuning: Tuning,
    outcome: Sequence[object],
    run: OpenRun,
) -> FittedMethods:
    """Add the result of a search to the methods: the best setting, or why there is none."""
    name = f"{spec.canonical}@{tuning}"
    optional = [name] if spec.optional else []
    if len(outcome) == 1:
        return methods.plus(left_out={name: str(outcome[0])}, optional=optional)
    search, winner = outcome
    assert isinstance(search, Search)
    assert isinstance(winner, Fitted)
    write_search(run.folder.scores, search)
    return methods.plus([winner], optional=optional)


def store_normratio(opened: OpenedWork) -> NormRatioResult:
    """Store NormRatio and the selected block; all activations are already computed."""
    run = opened.run
    result = describe(run, selection(opened.reference), of=run.train(), normalised=True)
    write_normratio(run.folder, result, precision=run.compute.precision)
    return result


def score_images(
    opened: OpenedWork,
    methods: FittedMethods,
    activations_of: Callable[[ImageSet], ActivationSet] | None = None,
) -> tuple[FittedMethods, dict[tuple[str, str], Scores], dict[str, float]]:
    """Score all images with all methods.

    Parameters
    ----------
    opened
        The images.
    methods
        The fitted methods.
    activations_of
        Function that returns the activations of a set; by default those of the run, with the arrays
        of the methods' probes.

    Returns
    -------
    methods
        The methods that are defined for all images.
    scores
        Their scores, by method and set, with the labels of the ID test images and all predictions.
    accuracies
        Accuracy on the sets with labels, by name; empty without a classifier.
    """
    run = opened.run
    labels = opened.test.labels
    assert labels is not None  # ensured by open_images
    scores: dict[tuple[str, str], Scores] = {(LABELS, run.data_name): labels}
    accuracies: dict[str, float] = {}
    for images in opened.images:
        if activations_of is None:
            probes = probes_of_call(opened.work, methods)
            activations = run.activator.activations(images, probes=probes)
        else:
            activations = activations_of(images)
        if run.record.outputs:
            predictions = activations.predictions.cpu().numpy()
            scores[PREDICTIONS, images.name] = predictions
            if images.labels is not None:
                accuracies[images.name] = float(np.mean(predictions == images.labels))
            if images is opened.test and activations_of is None:
                _warn_near_chance(run, accuracies[images.name], labels)
        methods, found = methods.score(activations, images.name, progress=run.progress)
        scores |= {(method, images.name): values for method, values in found.items()}
    methods.require_one()
    if (slow := methods.slow()) is not None:
        run.progress.note(slow)
    complete = {key: each for key, each in scores.items() if key[0] not in methods.left_out}
    return methods, complete, accuracies


def _warn_near_chance(run: OpenRun, right: float, labels: NDArray[np.int64]) -> None:
    if near_chance(right, labels) is not None:
        run.progress.note(
            f"warning: {run.name} classifies {100 * right:.2f} % of {len(labels):,} test "
            "images correctly, hardly better than chance"
        )


def store_scores(
    opened: OpenedWork,
    methods: FittedMethods,
    scores: Mapping[tuple[str, str], Scores],
    accuracies: Mapping[str, float],
    *,
    withdrawn: frozenset[str],
    folder: RunFolder | None = None,
) -> None:
    """Store the scores with the run, with the information on their sets.

    Parameters
    ----------
    opened
        The images.
    methods, scores, accuracies
        As returned by :func:`score_images`.
    withdrawn
        Methods whose earlier scores are removed.
    folder
        Where the scores are stored; None for the run.
    """
    run = opened.run
    repeated = duplicates(run.data, opened.test, opened.others)
    scoring = Scoring(
        limit=opened.work.limit(),
        precision=run.compute.precision,
        id_set=replace(
            _scored_set(opened.test, "id", None, run.test_split, data=run.data.dataset.spec),
            duplicates=repeated.get(run.data_name, {}),
        ),
        id_accuracy=accuracies.get(run.data_name),
        sets=tuple(
            replace(
                _scored_set(images, each.group, each.benchmark, each.split, data=each.dataset.spec),
                accuracy=accuracies.get(images.name) if each.group == "shifted" else None,
                duplicates=repeated.get(images.name, {}),
            )
            for each, images in zip(opened.work.sets, opened.others, strict=True)
        ),
        methods={each.canonical: dict(each.params) for each in methods.fitted},
        left_out=dict(methods.left_out),
        resize=run.record.preprocess.resize,
        resized_as=run.resized_as,
    )
    place = (folder or run.folder).scores
    add_scores(run.store, place, scoring, scores, withdrawn=withdrawn)


def _scored_set(
    images: ImageSet, group: str, benchmark: str | None, chosen: Split | None, *, data: str
) -> ScoredSet:
    return ScoredSet(
        name=images.name,
        group=group,
        n=len(images),
        digest=images.digest,
        skipped=len(images.skipped),
        benchmark=benchmark,
        split="" if chosen is None else chosen.key,
        split_sha256="" if chosen is None else chosen.sha256,
        data=data,
    )


def export_activations(opened: OpenedWork, path: Path) -> None:
    """Write the activations of this call, and those of the images that methods are fitted on.

    Covariate-shifted ID sets are omitted: in the file, every set without a reserved name is OOD.
    """
    run, reference = opened.run, opened.reference
    id_images, train = run.test(), run.train()
    sets = {TRAIN: (reference.train, train.labels)}
    if run.calibration_part == "val":
        sets[VAL] = (reference.calibration, run.calibration().labels)
    sets[TEST] = (run.activator.activations(id_images), id_images.labels)
    for each, images in zip(opened.work.sets, opened.others, strict=True):
        if each.group != "shifted":
            sets[images.name] = (run.activator.activations(images), images.labels)
    if opened.work.needs_jigsaw_features:
        sets[JIGSAW] = (reference.jigsaw_features, None)
    elif opened.work.needs_block:
        sets[JIGSAW] = (reference.jigsaw, None)
    write_activations(path, reference.head, sets, reference.words)
