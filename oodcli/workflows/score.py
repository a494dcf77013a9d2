"""``ood score``: scores of images by all requested methods, from one forward pass."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from oodcli.compute.compute import Compute
from oodcli.compute.processes import Processes
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_methods
from oodcli.methods.ensemble import AUTO
from oodcli.progress import SILENT, Progress
from oodcli.records import as_json
from oodcli.reporting.notes import method_notes
from oodcli.reporting.results import Report
from oodcli.reporting.sources import ScoreQuery, Sources
from oodcli.scoring.block_ratios import NormRatioResult
from oodcli.scoring.call import (
    OpenedWork,
    compute_activations,
    export_activations,
    fit_methods,
    score_images,
    store_normratio,
    store_scores,
)
from oodcli.scoring.fitting import FittedMethods, expand_blocks, without_logits
from oodcli.scoring.open_run import OpenRun
from oodcli.scoring.plan import BLOCKS_LIMIT_GB, SCORE_SCHEMA, Plan, Work, make_plan
from oodcli.scoring.sets import NamedSets, benchmark_to_score, check_validation, wanted_sets
from oodcli.store.scores import PREDICTIONS, ResizedAs, Scores, export_scores, read_scorings
from oodcli.store.searches import Tuning
from oodcli.store.store import Store, check_output_file
from oodcli.workflows.recommend import recommended_for_images, stored_for_images
from oodcli.workflows.report import report


@dataclass(frozen=True)
class Pass:
    """The forward pass over one image set.

    Parameters
    ----------
    dataset
        Name of the set.
    computed
        Number of images that went through the network.
    cached
        Number of images whose activations were already stored.
    """

    dataset: str
    computed: int
    cached: int


@dataclass(frozen=True)
class ScoreResult:
    """The result of one call of ``score``.

    Parameters
    ----------
    report
        The table of the methods and sets of this call.
    passes
        The forward passes.
    seconds
        Time spent in forward passes, in seconds.
    normratio
        NormRatio of all blocks, if a method needed the selected block; otherwise None.
    left_out
        Why a method is not in the table, by its name.
    undefined
        Methods in ``left_out`` that were requested by name, not as part of a group.
    """

    report: Report
    passes: tuple[Pass, ...]
    seconds: float
    normratio: NormRatioResult | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    undefined: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {
            **self.report.to_json(),
            "schema": SCORE_SCHEMA,
            "passes": [as_json(each) for each in self.passes],
            "left_out": dict(self.left_out),
            "undefined": list(self.undefined),
        }


# One field per option of the command, with its name.
@dataclass(frozen=True)
class ScoreRequest:
    """What to score, and how.

    Parameters
    ----------
    run
        Name of the run; the default run if None.
    methods
        Methods, as on the command line; if empty, every method that works from stored activations.
        ``auto`` is the method recommended for the run.
    ood, near, far
        OOD sets, not divided or of a group: names, folders, files, or ``NAME=PATH``.
    shifted_id
        Covariate-shifted ID sets, for full-spectrum results.
    benchmark
        Name of a benchmark.
    allow_missing
        Whether to go on without those of its sets that are not here.
    tune
        How to choose parameters: ``openood``, ``pseudo``, or both; defaults if empty.
    tune_ood
        OOD validation images for ``openood`` in place of the benchmark's.
    limit
        Take that many images of each set only, spread evenly over it.
    compute
        Where and how to compute.
    skip_unreadable
        Whether to leave out images that cannot be decoded.
    window
        Which values of medical images are black and white, where the run does not say so.
    jpeg_draft
        Whether it is expected that JPEG files are decoded at a reduced size; refused if the run
        does not say so.
    resize
        Whose resizing images get on a benchmark, ``benchmark`` or ``network``; None for that of its
        published numbers.
    export
        File that gets all scores of this call.
    export_activations
        File that gets the activations, and those of the training images.
    keep_blocks
        Whether the pooled maps of all blocks are stored, for methods of several layers.
    blocks_limit
        Largest size of pooled maps that are computed, in GB.
    """

    run: str | None = None
    methods: Sequence[str] = ()
    ood: Sequence[str] = ()
    near: Sequence[str] = ()
    far: Sequence[str] = ()
    shifted_id: Sequence[str] = ()
    benchmark: str | None = None
    allow_missing: bool = False
    tune: Sequence[Tuning] = ()
    tune_ood: str | None = None
    limit: int | None = None
    compute: Compute = field(default_factory=Compute.of)
    skip_unreadable: bool = False
    window: str | None = None
    jpeg_draft: bool = False
    resize: ResizedAs | None = None
    export: Path | None = None
    export_activations: Path | None = None
    keep_blocks: bool = False
    blocks_limit: float = BLOCKS_LIMIT_GB

    @property
    def sets(self) -> NamedSets:
        """The data sets that are named."""
        return NamedSets(self.near, self.far, self.ood, self.shifted_id)


def plan(store: Store, request: ScoreRequest, *, progress: Progress = SILENT) -> Plan:
    """Return what :func:`score` would do, without a forward pass over any data.

    No images are decoded, except for a few to detect whether they are grey. A network that has not
    run on this device before is timed on a few batches of noise.

    Raises
    ------
    OodError
        If the run, a data set or the device cannot be used.
    """
    with _open_run(store, request, progress) as run:
        return make_plan(opened_work(run.without_decoding(), request))


def score_as_worker(store: Store, request: ScoreRequest, *, processes: Processes) -> None:
    """Compute this process's share of the activations that the first process scores.

    Parameters
    ----------
    store, request
        As for :func:`score`, which the first process calls at the same time.
    processes
        The processes; this one is not the first.

    Raises
    ------
    OodError
        As for :func:`score`.
    """
    begin = partial(_begin, store, request, SILENT)
    with compute_activations(begin, processes, lambda _: FittedMethods()):
        pass


def score(
    store: Store,
    request: ScoreRequest,
    *,
    progress: Progress = SILENT,
    processes: Processes | None = None,
) -> ScoreResult:
    """Score the ID test images and OOD sets with every method, and store one score per image.

    A method that is not defined for the network or data is skipped, with the reason; the others are
    scored. The network sees each image once, and not at all if its activations are stored.

    Parameters
    ----------
    store
        The store that contains the run.
    request
        What to score, and how.
    progress
        Receives the progress of long work.
    processes
        The processes, if there are several; this one is the first, the others call
        :func:`score_as_worker`, and all share the store.

    Raises
    ------
    OodError
        If the run, a data set, a method or the device cannot be used, no method is defined, or
        another process has ended.

    Notes
    -----
    Several processes share the computation of the ordinary activations of training, calibration and
    scored images, and of the probes on scored images. The first process alone computes probes and
    states of learners on training images, and the validation images of a search.
    """
    processes = processes or Processes()
    begin = partial(_begin, store, request, progress)
    with compute_activations(begin, processes, fit_methods) as (opened, methods):
        chosen = store_normratio(opened) if opened.work.needs_block else None
        found, scores, accuracies = score_images(opened, methods)
        withdrawn = frozenset(methods.left_out)
        store_scores(opened, found, scores, accuracies, withdrawn=withdrawn)
        _export(opened, request, scores)
        return _result(opened, found, chosen, of_benchmark=request.sets == NamedSets())


def _begin(
    store: Store, request: ScoreRequest, progress: Progress, held: contextlib.ExitStack
) -> Work:
    return opened_work(held.enter_context(_open_run(store, request, progress)), request)


def _open_run(
    store: Store, request: ScoreRequest, progress: Progress
) -> contextlib.AbstractContextManager[OpenRun]:
    """Check the request as far as possible without the run, and open the run."""
    check_request(request)
    named = [text for text in request.methods if text != AUTO]
    parse_methods(expand_blocks(named, range(1)))
    return OpenRun.open(
        store,
        request.run,
        request.compute,
        limit=request.limit,
        skip_unreadable=request.skip_unreadable,
        progress=progress,
    )


def check_request(request: ScoreRequest) -> None:
    """Check the limit and the output files of a request.

    Raises
    ------
    InvalidInputError
        If the limit is not positive, or a file cannot be written.
    """
    if request.limit is not None and request.limit < 1:
        raise InvalidInputError(f"--limit must be at least 1, not {request.limit}")
    if not 0 < request.blocks_limit < math.inf:
        raise InvalidInputError(f"--blocks-limit must be above 0, not {request.blocks_limit:g}")
    for path in (request.export, request.export_activations):
        if path is not None:
            check_output_file(path)


def opened_work(run: OpenRun, request: ScoreRequest) -> Work:
    """Open the sets and parse the methods; errors are reported before any forward pass.

    Parameters
    ----------
    run
        The run.
    request
        What to score, and how.

    Raises
    ------
    OodError
        If a data set or a method cannot be used.
    """
    run = run.through(request.window, jpeg_draft=request.jpeg_draft)
    read_scorings(run.folder.scores)  # raises an error if the index to be extended is damaged
    run.data  # noqa: B018 - a cached property, which opens the data
    benchmark = benchmark_to_score(
        run, request.benchmark, request.sets, allow_missing=request.allow_missing
    )
    if benchmark is not None:
        run = run.on(benchmark, request.resize)
    elif request.resize == "benchmark":
        raise InvalidInputError(
            "--resize benchmark: no benchmark is scored here; name one (--benchmark), or leave it "
            "out"
        )
    check_validation(run, request.tune, request.tune_ood)
    if request.export_activations is not None and "train" not in run.data.dataset.parts:
        raise InvalidInputError(
            f"--export-activations also writes those of training images, and {run.data_name} has "
            "none; omit it"
        )
    if request.export_activations is not None and not run.record.outputs:
        raise InvalidInputError(
            f"--export-activations also writes the last layer, and run {run.name} has none; omit it"
        )
    auto = _recommended(run) if AUTO in request.methods else None
    methods = [auto if text == AUTO else text for text in request.methods]
    blocks = range(len(run.record.blocks))
    specs = parse_methods(
        expand_blocks([text for text in methods if text], blocks),
        zero_shot=bool(run.record.zero_shot),
        kept=run.record.kept_heads,
        blocks=request.keep_blocks,
    )
    kept, skipped = (specs, {}) if run.record.outputs else without_logits(run.name, specs)
    return Work(
        run,
        wanted_sets(run, request.sets),
        tuple(kept),
        auto,
        skipped=skipped,
        tune=tuple(request.tune),
        tune_ood=request.tune_ood,
        exports=request.export_activations is not None,
        keep_blocks=request.keep_blocks,
        blocks_limit=request.blocks_limit,
    )


def _recommended(run: OpenRun) -> str:
    """Return the recommended method of the run; choose it now if no recommendation is stored.

    Raises
    ------
    InvalidInputError
        If it would be chosen on the scored images, or must be chosen in a dry run.
    """
    if run.calibration_part != "val":
        raise InvalidInputError(
            f"--method auto needs validation images, and {run.data_name} has none: "
            "choosing on the test images would inflate the results; hold some out of training: "
            "ood train --val-fraction 0.1 (or ood import --val-fraction 0.1)"
        )
    stored = stored_for_images(run)
    if stored is None and not run.decode:
        raise InvalidInputError(
            f"no method has been recommended for run {run.name} yet, and a dry run "
            f"chooses none; run first: ood recommend --run {run.name}"
        )
    chosen = stored or recommended_for_images(run)
    run.progress.note(f"--method auto: {chosen}; why: ood recommend --run {run.name}")
    return chosen


def _result(
    opened: OpenedWork,
    methods: FittedMethods,
    chosen: NormRatioResult | None,
    *,
    of_benchmark: bool,
) -> ScoreResult:
    """Tabulate the stored scores."""
    run, passes = opened.run, opened.run.activator.passes
    query = ScoreQuery(
        runs=[run.name],
        limit=opened.work.limit(),
        methods=[each.canonical for each in methods.fitted],
        datasets=[each.dataset.name for each in opened.work.sets],
        benchmark=(run.benchmark.name or None) if run.benchmark and of_benchmark else None,
    )
    with Sources.open(run.store, query) as sources:
        found = report(sources)
    notes = (*found.notes, *method_notes(found.rows, methods.left_out))
    return ScoreResult(
        report=replace(found, notes=list(dict.fromkeys(notes))),
        passes=tuple(
            Pass(name, passes.computed[name], passes.cached[name]) for name in passes.computed
        ),
        seconds=passes.seconds,
        normratio=chosen,
        left_out=methods.left_out,
        undefined=methods.undefined,
    )


def _export(
    opened: OpenedWork, request: ScoreRequest, scores: Mapping[tuple[str, str], Scores]
) -> None:
    """Write the requested export files."""
    if request.export is not None:
        others = {(PREDICTIONS, images.name) for images in opened.others}
        export_scores(request.export, {key: s for key, s in scores.items() if key not in others})
    if request.export_activations is not None:
        export_activations(opened, request.export_activations)
