"""``ood recommend``: choose a method for a run from ID images only.

Candidates are all methods that need only the ordinary forward pass, with all published values of
their parameters and all blocks, and ensembles of them. Each is evaluated on ID images that the
network was not trained on, against corrupted copies of the same images (jigsaw puzzles, noise,
blur, rotation). No OOD images are used.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from oodcli.compute.compute import Compute
from oodcli.data.views import View
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.images import ImageSet, subsample
from oodcli.methods import parse_methods
from oodcli.methods.ensemble import AUTO
from oodcli.progress import SILENT, Progress
from oodcli.scoring.fitting import recommend_again
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.detector import Detector, detector_for
from oodcli.screening.thresholds import DEFAULT_RULE, ThresholdRule
from oodcli.selection.contrasts import bootstrap_merits, merits
from oodcli.selection.recommendation import (
    RatedMethod,
    Recommendation,
    family_of,
    stored_recommendation,
)
from oodcli.selection.trial import TrialResult, candidates, evaluate_candidates
from oodcli.selection.validation import (
    MAX_IMAGES,
    corruptions,
    selection_images,
    with_validation,
)
from oodcli.store.runs import utc_now
from oodcli.store.store import Store, write_json
from oodcli.text import counted

BOOTSTRAP_SAMPLES = 400
# The method if none is given or recommended: the baseline of the field, which needs only logits.
DEFAULT_METHOD = "msp"
# The same for a network without a classifier, which gives no logits.
_DEFAULT_WITHOUT_LOGITS = "knn"


@dataclass(frozen=True)
class RecommendRequest:
    """The run to recommend a method for, and the settings of the choice.

    Parameters
    ----------
    run
        Name of the run; the default run if None.
    methods
        The candidates; if empty, all methods that need only the ordinary forward pass.
    limit
        Number of ID images to use, evenly spaced; all if None.
    seed
        Seed of the corruptions and of the bootstrap samples.
    compute
        Device, precision and batch size.
    skip_unreadable
        Whether to skip images that cannot be decoded.
    """

    run: str | None = None
    methods: Sequence[str] = ()
    limit: int | None = None
    seed: int = 0
    compute: Compute = field(default_factory=Compute.of)
    skip_unreadable: bool = False


def recommend(
    store: Store, request: RecommendRequest, *, progress: Progress = SILENT
) -> Recommendation:
    """Choose a method for a run, and store the choice with the run unless it is restricted.

    Parameters
    ----------
    store
        The store that contains the run.
    request
        The run, and the settings of the choice.
    progress
        Receives the progress of long work.

    Raises
    ------
    OodError
        If the run, its data or the device cannot be used, or no candidate can be evaluated.
    """
    if request.limit is not None and request.limit < 2:
        raise InvalidInputError(f"--limit must be at least 2, not {request.limit}")
    if request.seed < 0:
        raise InvalidInputError(f"--seed must be at least 0, not {request.seed}")
    parse_methods(request.methods)  # wrong names are reported before anything is opened
    with OpenRun.open(
        store,
        request.run,
        request.compute,
        skip_unreadable=request.skip_unreadable,
        progress=progress,
    ) as opened:
        run = with_validation(opened)
        if not request.methods and request.limit is None:
            progress.note(f"choosing takes {cost_estimate(run)}")
        return choose(run, methods=request.methods, limit=request.limit, seed=request.seed)


def resolve_method(run: OpenRun, method: str | None) -> str:
    """Return the method for the value of ``--method``.

    Parameters
    ----------
    run
        The run; for None and ``auto``, a note reports the method and the reason.
    method
        The value of the option: ``auto`` for the recommended method, which is chosen now if no
        recommendation is stored; None for :func:`default_method`.

    Raises
    ------
    OodError
        As for :func:`recommend`.
    """
    if method is None:
        return default_method(run)
    if method != AUTO:
        return method
    chosen = recommended_method(run)
    run.progress.note(f"method: {chosen}, recommended for run {run.name}")
    return chosen


def resolve_detector(
    run: OpenRun, method: str | None, rule: ThresholdRule = DEFAULT_RULE
) -> Detector:
    """Return the detector of a run with the method of :func:`resolve_method`.

    Parameters
    ----------
    run
        The run.
    method
        As for :func:`resolve_method`.
    rule
        Rule for the threshold.

    Raises
    ------
    OodError
        As for :func:`resolve_method` and :func:`detector_for`. If a recommended method is no longer
        defined, the message suggests to choose again.
    """
    name = resolve_method(run, method)
    try:
        return detector_for(run, name, rule)
    except UndefinedMethodError as error:
        stored = None if method not in (None, AUTO) else stored_recommendation(run)
        if stored is None:
            raise
        raise UndefinedMethodError(recommend_again(str(error), name, run.name)) from None


def recommended_method(run: OpenRun) -> str:
    """Return the recommended method of a run; chooses one now if no recommendation is stored.

    Raises
    ------
    OodError
        As for :func:`recommend`.
    """
    stored = stored_recommendation(run)
    if stored is not None:
        return stored.method
    held_out = with_validation(run)
    run.progress.note(_choosing_note(held_out))
    return choose(held_out).method


def default_method(run: OpenRun) -> str:
    """Return the method to use if none is given, without long work.

    This is the stored recommendation if there is one, otherwise ``msp``, which needs only logits,
    or ``knn`` without a classifier. In the latter cases a note suggests ``ood recommend`` and gives
    its cost.

    Raises
    ------
    OodError
        If the weights of the run are damaged.
    """
    stored = stored_recommendation(run)
    if stored is not None:
        run.progress.note(f"method: {stored.method}, recommended for run {run.name}")
        return stored.method
    usual = DEFAULT_METHOD if run.record.outputs else _DEFAULT_WITHOUT_LOGITS
    run.progress.note(
        f"method: {usual}, since none is given (--method) and none has been recommended "
        f"for run {run.name}; to choose one without OOD images: ood recommend --run "
        f"{shlex.quote(run.name)}, which takes {cost_estimate(run)}"
    )
    return usual


def cost_estimate(run: OpenRun) -> str:
    """Return the maximum cost of a choice as text: forward passes, their time, and fits.

    The number of images is that of the run's record; the time assumes the speed of the last pass.
    """
    record, activator = run.record, run.activator
    parts = record.parts
    held_out = parts.get("val") or max(
        (n for part, n in parts.items() if part != "train"), default=0
    )
    size = record.preprocess.size
    views = {View()}
    for corruption in corruptions():
        views |= {corruption.view, corruption.id_view(size)}
    count = parts.get("train", 0) + min(held_out, MAX_IMAGES) * len(views)
    text = f"a forward pass over up to {count:,} images"
    rate = activator.rate()
    if rate:
        text += (
            f" (about {rounded_duration(count / rate)} on {activator.device}, at the speed of the "
            "last one)"
        )
    tried = candidates(
        len(record.blocks),
        zero_shot=bool(record.zero_shot),
        kept=record.kept_heads,
        classifier=record.outputs > 0,
    )
    return f"{text} and fits of {len(tried):,} candidates"


def rounded_duration(seconds: float) -> str:
    """Return a duration as text, in seconds, minutes or hours, rounded to two digits."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{max(seconds, 1):.2g}'):g} s"


def _choosing_note(run: OpenRun) -> str:
    return (
        f"no method has been recommended for run {run.name} yet: choosing one, which takes "
        f"{cost_estimate(run)}"
    )


def recommended_for_images(run: OpenRun) -> str:
    """Return the method recommended on the validation images of an open run; choose it if needed.

    Raises
    ------
    OodError
        As for :func:`recommend`.
    """
    stored = stored_for_images(run)
    if stored is not None:
        return stored
    run.progress.note(_choosing_note(run))
    return choose(run).method


def stored_for_images(run: OpenRun) -> str | None:
    """Return the stored method if it was recommended on exactly these images; otherwise None."""
    stored = stored_recommendation(run)
    if stored is None:
        return None
    images, _ = selection_images(run)
    return stored.method if stored.digest == images.digest else None


def choose(
    run: OpenRun, *, methods: Sequence[str] = (), limit: int | None = None, seed: int = 0
) -> Recommendation:
    """Choose a method for an open run, and store the choice unless it is restricted.

    Parameters
    ----------
    run
        The run.
    methods
        The candidates; all if empty. Given candidates restrict the choice.
    limit
        Number of ID images to use; all if None. A limit restricts the choice.
    seed
        Seed of the corruptions and of the bootstrap samples.

    Raises
    ------
    InvalidInputError
        If no candidate can be evaluated.
    """
    images, part = selection_images(run)
    if part != "val":
        command = "import" if run.record.origin == "imported" else "train"
        run.progress.note(
            f"{run.data_name} has no validation images: choosing on test images of the run, so "
            "later results on these images are optimistic; to avoid this, hold some out: "
            f"ood {command} --val-fraction 0.1"
        )
    images = subsample(images, limit)
    if len(images) < 2:
        raise InvalidInputError(
            f"{images.name} has {counted(len(images), 'image')}, but a choice needs at least two"
        )
    trial = evaluate_candidates(run, images, methods=methods, seed=seed)
    restricted = bool(methods) or limit is not None
    recommendation = _recommendation(run, images, part, trial, seed=seed, restricted=restricted)
    if not restricted:
        write_json(run.folder.recommendation, recommendation.to_json())
    return recommendation


def _recommendation(
    run: OpenRun, images: ImageSet, part: str, trial: TrialResult, *, seed: int, restricted: bool
) -> Recommendation:
    """Return the recommendation that follows from a trial on images of a part."""
    contrasts = trial.contrasts
    merit = merits(np.stack([each.auroc for each in contrasts]), list(trial.families.values()))
    samples = bootstrap_merits(contrasts, draws=BOOTSTRAP_SAMPLES, seed=seed)
    order = np.argsort(-merit, kind="stable")
    winners = np.bincount(samples.argmax(axis=1), minlength=len(merit)) / len(samples)
    names = [spec.canonical for spec in trial.specs]
    families = [family_of(spec) for spec in trial.specs]
    best = int(order[0])
    same_family = [index for index, family in enumerate(families) if family == families[best]]
    other = next((int(i) for i in order if families[i] != families[best]), None)
    lead = None if other is None else samples[:, best] - samples[:, other]
    return Recommendation(
        run=run.name,
        network=run.record.network,
        weights=run.record.weights,
        created=utc_now(),
        data=run.data_name,
        part=part,
        n=len(images),
        digest=images.digest,
        precision=run.compute.precision,
        seed=seed,
        draws=BOOTSTRAP_SAMPLES,
        families=trial.families,
        method=names[best],
        share=float(winners[same_family].sum()),
        runner_up=None if other is None else names[other],
        lead=None if other is None else float(merit[best] - merit[other]),
        lead_low=None if lead is None else float(np.quantile(lead, 0.025)),
        lead_high=None if lead is None else float(np.quantile(lead, 0.975)),
        candidates=tuple(
            RatedMethod(
                method=names[index],
                family=families[index],
                merit=float(merit[index]),
                auroc={each.kind: float(each.auroc[index]) for each in contrasts},
                share=float(winners[index]),
            )
            for index in order
        ),
        left_out=trial.left_out,
        restricted=restricted,
    )
