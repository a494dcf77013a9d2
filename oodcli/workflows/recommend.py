"""Recommending a method for a run from ID images alone.

Every method that needs no more than the ordinary forward pass, with every published value of its
parameters and every block, and ensembles of them, is tried on ID images that the network was not
trained on, against the same images corrupted in several ways: jigsaws, noise, blur, rotation. No
OOD image is used.
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
from oodcli.scoring.fitting import choose_again
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.detector import BY_DEFAULT, Detector, detector_for
from oodcli.screening.thresholds import ThresholdRule
from oodcli.selection.contrasts import merits, resampled
from oodcli.selection.recommendation import (
    RatedMethod,
    Recommendation,
    family_of,
    stored_recommendation,
)
from oodcli.selection.trial import TrialResult, candidates, try_all
from oodcli.selection.validation import (
    MAX_IMAGES,
    corruptions,
    selection_images,
    with_validation,
)
from oodcli.store.runs import utc_now
from oodcli.store.store import Store, write_json
from oodcli.text import counted

DRAWS = 400
# What is taken where nothing was named or recommended: the baseline of the field, known as soon as
# the logits are.
DEFAULT = "msp"


@dataclass(frozen=True)
class RecommendRequest:
    """For which run to recommend a method, and how.

    Parameters
    ----------
    run
        Name of the run; the one created last if None.
    methods
        The methods to choose from; all that need no more than the ordinary forward pass if empty.
    limit
        Take that many ID images only.
    seed
        Of spoiling images and of the draws.
    compute
        Where and how to compute.
    skip_unreadable
        Whether to leave out images that cannot be decoded.
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
    """Choose a method for a run, and store the choice with the run.

    Parameters
    ----------
    store
        Where the run is.
    request
        For which run, and how.
    progress
        Reports long work.

    Raises
    ------
    OodError
        If the run, its data or the device cannot be used, or no candidate can be tried.
    """
    if request.limit is not None and request.limit < 2:
        raise InvalidInputError(f"--limit must be at least 2, not {request.limit}")
    if request.seed < 0:
        raise InvalidInputError(f"--seed must be at least 0, not {request.seed}")
    parse_methods(request.methods)  # wrong names are told before anything is opened
    with OpenRun.open(
        store,
        request.run,
        request.compute,
        skip_unreadable=request.skip_unreadable,
        progress=progress,
    ) as opened:
        run = with_validation(opened)
        if not request.methods and request.limit is None:
            progress.note(f"choosing takes {price(run)}")
        return choose(run, methods=request.methods, limit=request.limit, seed=request.seed)


def method_for(run: OpenRun, method: str | None) -> str:
    """Return the method that is meant by what a user wrote for it, or did not write.

    Parameters
    ----------
    run
        The run; which method it is, and why, is reported where none was named.
    method
        As written on the command line; ``auto`` for the recommended one, which is chosen now if it
        was not yet; None for :func:`default_method`.

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


def detector_meant(run: OpenRun, method: str | None, rule: ThresholdRule = BY_DEFAULT) -> Detector:
    """Return the detector of a run with the method that :func:`method_for` finds to be meant.

    Parameters
    ----------
    run
        The run.
    method
        As for :func:`method_for`.
    rule
        How the threshold is set.

    Raises
    ------
    OodError
        As for :func:`method_for` and :func:`detector_for`. Where a recommended method is not
        defined any more, the cure is another choice.
    """
    name = method_for(run, method)
    try:
        return detector_for(run, name, rule)
    except UndefinedMethodError as error:
        stored = None if method not in (None, AUTO) else stored_recommendation(run)
        if stored is None:
            raise
        raise UndefinedMethodError(choose_again(str(error), name, run.name)) from None


def recommended_method(run: OpenRun) -> str:
    """Return the canonical name of the method recommended for a run, chosen now if it was not yet.

    Raises
    ------
    OodError
        As for :func:`recommend`.
    """
    stored = stored_recommendation(run)
    if stored is not None:
        return stored.method
    held_out = with_validation(run)
    run.progress.note(_choosing(held_out))
    return choose(held_out).method


def default_method(run: OpenRun) -> str:
    """Return the method to take where none was named, without long work.

    It is the recommended one where the choice has been made, else ``msp``, which needs nothing but
    the logits; a note then offers the choice, with its cost.

    Raises
    ------
    OodError
        If the weights of the run are damaged.
    """
    stored = stored_recommendation(run)
    if stored is not None:
        run.progress.note(f"method: {stored.method}, recommended for run {run.name}")
        return stored.method
    run.progress.note(
        f"method: {DEFAULT}, as none was named (--method) and none has been recommended for run "
        f"{run.name}; ood recommend --run {shlex.quote(run.name)} chooses one without OOD "
        f"images, which takes {price(run)}"
    )
    return DEFAULT


def price(run: OpenRun) -> str:
    """Say what a choice costs at most: images through the network, time for them, and fits.

    Images are counted as in the record of the run, and take as long as those of the last pass did.
    """
    record, activator = run.record, run.activator
    parts = record.parts
    held_out = parts.get("val") or max(
        (n for part, n in parts.items() if part != "train"), default=0
    )
    size = record.preprocess.size
    views = {View()}
    for way in corruptions():
        views |= {way.view, way.id_view(size)}
    count = parts.get("train", 0) + min(held_out, MAX_IMAGES) * len(views)
    text = f"a forward pass over up to {count:,} images"
    rate = activator.rate()
    if rate:
        text += f" (about {duration(count / rate)} on {activator.device}, as fast as the last one)"
    return f"{text} and fits of {len(candidates(len(record.blocks))):,} candidates"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours, of two digits."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{max(seconds, 1):.2g}'):g} s"


def _choosing(run: OpenRun) -> str:
    return (
        f"no method has been recommended for run {run.name} yet: choosing one, which takes "
        f"{price(run)}"
    )


def chosen_for(run: OpenRun) -> str:
    """Return the recommended method of a run as it is open; it must have a validation part.

    Raises
    ------
    OodError
        As for :func:`recommend`.
    """
    stored = stored_for(run)
    if stored is not None:
        return stored
    run.progress.note(_choosing(run))
    return choose(run).method


def stored_for(run: OpenRun) -> str | None:
    """Return the method that was recommended on just the images of a run as it is open, or None."""
    stored = stored_recommendation(run)
    if stored is None:
        return None
    images, _ = selection_images(run)
    return stored.method if stored.digest == images.digest else None


def choose(
    run: OpenRun, *, methods: Sequence[str] = (), limit: int | None = None, seed: int = 0
) -> Recommendation:
    """Choose a method for a run that is open, and store the choice with the run.

    Parameters
    ----------
    run
        The run.
    methods
        The methods to choose from; all if empty.
    limit
        Take that many ID images only.
    seed
        Of spoiling images and of the draws.

    Raises
    ------
    InvalidInputError
        If no candidate can be tried.
    """
    images, part = selection_images(run)
    if part != "val":
        made = "import" if run.record.origin == "imported" else "train"
        run.progress.note(
            f"{run.data_name} has no validation images: choosing on test images of the run, so "
            "results on these images are optimistic afterwards; to avoid this, hold some out: "
            f"ood {made} --val-fraction 0.1"
        )
    images = subsample(images, limit)
    if len(images) < 2:
        raise InvalidInputError(
            f"{images.name} has {counted(len(images), 'image')}, but a choice needs at least two"
        )
    trial = try_all(run, images, methods=methods, seed=seed)
    restricted = bool(methods) or limit is not None
    found = _recommendation(run, images, part, trial, seed=seed, restricted=restricted)
    if not restricted:
        write_json(run.folder.recommendation, found.to_json())
    return found


def _recommendation(
    run: OpenRun, images: ImageSet, part: str, trial: TrialResult, *, seed: int, restricted: bool
) -> Recommendation:
    """Return the choice that a trial on some images of a part leads to."""
    contrasts = trial.contrasts
    worth = merits(np.stack([each.auroc for each in contrasts]), list(trial.families.values()))
    draws = resampled(contrasts, draws=DRAWS, seed=seed)
    order = np.argsort(-worth, kind="stable")
    winners = np.bincount(draws.argmax(axis=1), minlength=len(worth)) / len(draws)
    names = [spec.canonical for spec in trial.specs]
    families = [family_of(spec) for spec in trial.specs]
    best = int(order[0])
    alike = [index for index, family in enumerate(families) if family == families[best]]
    other = next((int(i) for i in order if families[i] != families[best]), None)
    lead = None if other is None else draws[:, best] - draws[:, other]
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
        draws=DRAWS,
        families=trial.families,
        method=names[best],
        share=float(winners[alike].sum()),
        runner_up=None if other is None else names[other],
        lead=None if other is None else float(worth[best] - worth[other]),
        lead_low=None if lead is None else float(np.quantile(lead, 0.025)),
        lead_high=None if lead is None else float(np.quantile(lead, 0.975)),
        candidates=tuple(
            RatedMethod(
                method=names[index],
                family=families[index],
                merit=float(worth[index]),
                auroc={each.kind: float(each.auroc[index]) for each in contrasts},
                share=float(winners[index]),
            )
            for index in order
        ),
        left_out=trial.left_out,
        restricted=restricted,
    )
