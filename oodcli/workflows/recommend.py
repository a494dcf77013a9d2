"""Recommending a method for a run from ID images alone.

Every method that needs no more than the ordinary forward pass, with every published value of its
parameters and every block, and ensembles of them, is tried on ID images that the network was not
trained on, against the same images spoilt in several ways: jigsaws, noise, blur, rotation. No OOD
image has a part in it.
"""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from oodcli.activations import Activations, ActivationSet, Reference
from oodcli.data.benchmarks import benchmark_of
from oodcli.data.views import View
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    OodError,
    UndefinedMethodError,
)
from oodcli.images import ImageSet
from oodcli.methods import Fitted, MethodSpec, group, parse_method, parse_methods
from oodcli.methods.base import score_many
from oodcli.methods.ensemble import AUTO, EnsembleSpec, rank_scale
from oodcli.progress import SILENT, Progress
from oodcli.records import as_json
from oodcli.runs import now
from oodcli.store import Store, read_json, write_json
from oodcli.workflows.choosing import Contrast, Floats, joined_greedily, merits, resampled
from oodcli.workflows.compute import Compute
from oodcli.workflows.detect import learns_from_train, together
from oodcli.workflows.normratio import few
from oodcli.workflows.open_run import OpenRun
from oodcli.workflows.tune import settings

RECOMMENDATION_SCHEMA = 1
# More images make the choice no surer, since the ways to spoil them remain the same.
MAX_IMAGES = 5000
DRAWS = 400
# What is taken where nothing was named or recommended: the baseline of the field, known as soon as
# the logits are.
DEFAULT = "msp"
_TRIO = ("knn", "energy", "featurenorm")
# Of how many methods, the best setting of each, an ensemble is chosen.
_POOL = 12
_SAME = " gives the scores of "


@dataclass(frozen=True)
class Spoilt:
    """A way to make pseudo-OOD images of ID images.

    Parameters
    ----------
    name
        Its name.
    family
        Which ways are much the same; each family counts once.
    view
        What it does.
    """

    name: str
    family: str
    view: View

    def beside(self, size: tuple[int, int]) -> View:
        """Return how ID images of a size are shown beside the spoilt ones."""
        tiles = self.view.tiles
        whole = all(side % tiles == 0 for side in size)
        return View() if self.view.kind != "jigsaw" or whole else View("framed", tiles=tiles)


def ways_to_spoil(seed: int = 0) -> tuple[Spoilt, ...]:
    """Return the ways to spoil images."""
    return (
        *(Spoilt(f"jigsaw-{n}", "jigsaw", View("jigsaw", seed, n)) for n in (2, 3, 4)),
        Spoilt("pixel-shuffle", "noise", View("pixel-shuffle", seed)),
        Spoilt("gaussian-noise", "noise", View("gaussian-noise", seed)),
        Spoilt("uniform-noise", "noise", View("uniform-noise", seed)),
        Spoilt("blur", "blur", View("blur")),
        Spoilt("rotation", "rotation", View("rotation")),
    )


@dataclass(frozen=True)
class RatedMethod:
    """A candidate and what it was worth.

    Parameters
    ----------
    method
        Canonical name.
    family
        The method without its parameters.
    merit
        Mean AUROC over the families of corruptions, a fraction.
    auroc
        AUROC by corruption, a fraction.
    share
        Share of bootstrap samples in which it is the best.
    """

    method: str
    family: str
    merit: float
    auroc: Mapping[str, float]
    share: float


@dataclass(frozen=True)
class Recommendation:
    """The method that was recommended for a run, and why.

    Parameters
    ----------
    run
        Name of the run.
    network, weights
        Digests of the network and of the file of its weights.
    created
        When, UTC.
    data, part
        Data set and part of the ID images.
    n
        Number of the ID images.
    digest
        Digest of their pixels.
    precision
        ``float32`` or ``bfloat16``.
    seed
        Seed of the corruptions and of the bootstrap samples.
    draws
        Number of bootstrap samples.
    families
        Family of each corruption, by its name.
    method
        Canonical name of the recommended method.
    share
        Share of bootstrap samples in which it wins, with any setting of its parameters.
    runner_up
        The best other method.
    lead
        Mean AUROC of the recommended method minus that of the runner-up, a fraction.
    lead_low, lead_high
        2.5th and 97.5th percentile of the lead over bootstrap samples.
    candidates
        All candidates that were tried, best first.
    left_out
        Why a candidate could not be tried, by name.
    restricted
        Whether candidates or images were limited; such a recommendation is not stored.
    """

    run: str
    network: str
    weights: str
    created: str
    data: str
    part: str
    n: int
    digest: str
    precision: str
    seed: int
    draws: int
    families: Mapping[str, str]
    method: str
    share: float
    runner_up: str | None
    lead: float | None
    lead_low: float | None
    lead_high: float | None
    candidates: tuple[RatedMethod, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    restricted: bool = False

    @property
    def sureness(self) -> str:
        """Confidence of the choice: ``sure``, ``likely`` or ``a toss-up with`` the runner-up."""
        if self.runner_up is None:
            return "the only candidate"
        if self.share >= 0.95:
            return "sure"
        return "likely" if self.share >= 0.7 else f"a toss-up with {self.runner_up}"

    def rated(self, method: str) -> RatedMethod | None:
        """Return what a candidate was worth, by its canonical name."""
        return next((each for each in self.candidates if each.method == method), None)

    def undefined(self, methods: Sequence[str]) -> dict[str, str]:
        """Return which of the methods, as a user named them, could not be tried, and why."""
        tried = {each.family for each in self.candidates}
        named = [spec.canonical for spec in parse_methods(methods) if family_of(spec) not in tried]
        reasons = {name: self.left_out[name] for name in named if name in self.left_out}
        return {name: reason for name, reason in reasons.items() if _SAME not in reason}

    @property
    def best_of_each(self) -> tuple[RatedMethod, ...]:
        """The best candidate of every method, the best first."""
        found: dict[str, RatedMethod] = {}
        for each in self.candidates:
            found.setdefault(each.family, each)
        return tuple(found.values())

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that is stored and that ``--format json`` prints."""
        return {
            "kind": "ood-recommendation",
            "schema": RECOMMENDATION_SCHEMA,
            "sureness": self.sureness,
            **as_json(self),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """Read it back.

        Raises
        ------
        CorruptArtifactError
            If it is not what was written.
        """
        if content.get("schema") != RECOMMENDATION_SCHEMA:
            raise CorruptArtifactError(
                f"{where} has schema {content.get('schema')!r}, not {RECOMMENDATION_SCHEMA}; "
                "make it again: ood recommend"
            )
        derived = ("kind", "schema", "sureness")
        fields = {name: value for name, value in content.items() if name not in derived}
        try:
            candidates = tuple(RatedMethod(**each) for each in fields.pop("candidates"))
            return cls(**fields, candidates=candidates)
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(
                f"{where} is damaged: {error}; make it again: ood recommend"
            ) from None


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
        run = _with_validation(opened)
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


def recommended_method(run: OpenRun) -> str:
    """Return the canonical name of the method recommended for a run, chosen now if it was not yet.

    Raises
    ------
    OodError
        As for :func:`recommend`.
    """
    stored = _stored(run)
    if stored is not None:
        return stored.method
    held_out = _with_validation(run)
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
    stored = _stored(run)
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
    for way in ways_to_spoil():
        views |= {way.view, way.beside(size)}
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
    stored = _stored(run)
    if stored is None:
        return None
    images, _ = images_to_choose_on(run)
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
    record = run.record
    images, part = images_to_choose_on(run)
    if part != "val":
        made = "import" if record.origin == "imported" else "train"
        run.progress.note(
            f"{run.data_name} has no validation images: choosing on test images of the run, which "
            "the choice has then seen; for figures on them hold some out: "
            f"ood {made} --val-fraction 0.1"
        )
    images = few(images, limit)
    if len(images) < 2:
        raise InvalidInputError(f"{images.name} has {len(images)} images, and a choice needs two")
    trial = try_all(run, images, methods=methods, seed=seed)
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
    found = Recommendation(
        run=run.name,
        network=record.network,
        weights=record.weights,
        created=now(),
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
        restricted=bool(methods) or limit is not None,
    )
    if not found.restricted:
        write_json(run.folder.recommendation, found.to_json())
    return found


def images_to_choose_on(run: OpenRun) -> tuple[ImageSet, str]:
    """Return the ID images that a choice is made on, and the part they are of.

    Validation images where there are any, or else test images; at most ``MAX_IMAGES``.
    """
    try:
        part = run.calibration_part
    except InvalidInputError:  # there is a test part only
        part = "test"
    if part == "val":
        return few(run.calibration(), MAX_IMAGES), "val"
    test = run.data.prepared(run.data.dataset.id_test, name=run.data_name)
    return few(test, MAX_IMAGES), "test"


def family_of(spec: MethodSpec) -> str:
    """Return a method without its parameters; an ensemble is of its own kind."""
    if isinstance(spec, EnsembleSpec):
        return spec.canonical
    return "+".join(part.name for part in spec.parts)


@dataclass(frozen=True)
class Trial:
    """All candidates on ID images and on the same images spoilt.

    Parameters
    ----------
    specs
        The candidates that could be tried.
    contrasts
        Their scores, by way to spoil images.
    families
        Family of each way, by its name.
    left_out
        Why others could not be tried, by name.
    """

    specs: tuple[MethodSpec, ...]
    contrasts: tuple[Contrast, ...]
    families: Mapping[str, str]
    left_out: Mapping[str, str]


def try_all(run: OpenRun, images: ImageSet, *, methods: Sequence[str] = (), seed: int) -> Trial:
    """Score ID images and spoilt versions of them with every candidate.

    Parameters
    ----------
    run
        The run.
    images
        The ID images to choose on.
    methods
        The methods to choose from; all if empty.
    seed
        Of spoiling.

    Raises
    ------
    InvalidInputError
        If no candidate can be tried, or the images cannot be spoilt in any way.
    """
    reference = run.reference()
    specs = candidates(len(run.record.blocks), methods)
    if run.calibration_part == "train" and learns_from_train(specs):
        # The images to choose on are some of them, and are not computed again.
        reference.train  # noqa: B018 - it is made by being looked at
    sets, ways = _activations(run, images, seed)
    ready, left_out = _fitted(specs, reference, run.progress)
    tables = {
        view: _scores([fitted for _, fitted in ready], activations, name, run.progress)
        for view, (name, activations) in sets.items()
    }
    kept, reasons = _usable([fitted.canonical for _, fitted in ready], tables)
    left_out |= reasons
    ready = [ready[index] for index in kept]
    tables = {view: table[:, kept] for view, table in tables.items()}
    if not ready:
        raise InvalidInputError(together(left_out) or "there is no method to choose from")
    size = run.record.preprocess.size
    contrasts = tuple(
        Contrast(way.name, way.family, tables[way.beside(size)], tables[way.view]) for way in ways
    )
    if not methods:
        contrasts, ready = _with_ensembles(contrasts, ready, reference)
    return Trial(
        tuple(spec for spec, _ in ready),
        contrasts,
        {way.name: way.family for way in ways},
        left_out,
    )


def candidates(n_blocks: int, methods: Sequence[str] = ()) -> list[MethodSpec]:
    """Return methods with every value of their grids, defaults first, and every block.

    Parameters
    ----------
    n_blocks
        Number of blocks of the network.
    methods
        As written on the command line; all that need no more than stored activations if empty.
    """
    found: dict[str, MethodSpec] = {}
    for spec in parse_methods(list(methods or group(probes=False))):
        # Of settings that make no difference the one with the shortest name is first, and wins.
        each = [spec, *sorted(settings(spec), key=lambda one: len(one.canonical))]
        if spec.canonical == "featurenorm":
            each += [parse_method(f"featurenorm:block={block}") for block in range(n_blocks)]
        for one in each:
            found.setdefault(one.canonical, one)
    return list(found.values())


def _with_validation(run: OpenRun) -> OpenRun:
    """Return a run with the validation images of its benchmark, where it has none of its own."""
    benchmark = benchmark_of(run.record.data_name)
    if benchmark is None or not benchmark.id_val_list or "val" in run.data.dataset.parts:
        return run
    listed = run.on(benchmark)
    try:
        listed.data  # noqa: B018 - it is opened by being looked at
    except OodError as error:
        run.progress.note(f"without the validation images of {benchmark.name}: {error}")
        return run
    return listed


def _stored(run: OpenRun) -> Recommendation | None:
    """Return the stored recommendation if it is for these weights, and can still be parsed."""
    place = run.folder.recommendation
    if not place.is_file():
        return None
    try:
        found = Recommendation.from_json(read_json(place), place)
        parse_method(found.method)
    except OodError:
        return None  # it is made again
    fits = (found.weights, found.precision) == (run.record.weights, run.compute.precision)
    return found if fits else None


def _activations(
    run: OpenRun, images: ImageSet, seed: int
) -> tuple[dict[View, tuple[str, ActivationSet]], list[Spoilt]]:
    """Return the activations of images under every view that is needed, and the ways that work."""
    activator, size, progress = run.activator, run.record.preprocess.size, run.progress
    sets: dict[View, tuple[str, ActivationSet]] = {
        View(): (images.name, activator.activations(images))
    }
    ways: list[Spoilt] = []
    for way in ways_to_spoil(seed):
        if way.view.kind == "jigsaw" and min(size) < way.view.tiles:
            progress.note(f"without {way.name}: images of {size[0]}x{size[1]} pixels are too small")
            continue
        ways.append(way)
        for view in (way.beside(size), way.view):
            if view not in sets:
                name = f"{images.name} ({way.name if view == way.view else view.kind})"
                sets[view] = name, activator.activations(images, view=view)
    return sets, ways


def _fitted(
    specs: Sequence[MethodSpec], reference: Reference, progress: Progress
) -> tuple[list[tuple[MethodSpec, Fitted]], dict[str, str]]:
    ready: list[tuple[MethodSpec, Fitted]] = []
    left_out: dict[str, str] = {}
    with progress.task("fitting candidates", total=len(specs), unit="candidates") as task:
        for spec in specs:
            try:
                ready.append((spec, spec.fit(reference)))
            except InvalidInputError as error:  # not defined, or what it learns from is not there
                left_out[spec.canonical] = str(error)
            task.advance(1)
    probing = [spec.canonical for spec, fitted in ready if fitted.probes]
    left_out |= dict.fromkeys(probing, "it takes more than the ordinary forward pass")
    return [each for each in ready if not each[1].probes], left_out


def _scores(
    fitted: Sequence[Fitted], activations: ActivationSet, name: str, progress: Progress
) -> Floats:
    """Return the scores of every candidate, ``(n, c)``; NaN where one is not defined."""
    table = np.full((len(activations), len(fitted)), np.nan)
    # Neighbours of one class share work, and are defined together or not at all.
    alike = [
        [index for index, _ in run]
        for _, run in itertools.groupby(enumerate(fitted), key=lambda each: type(each[1].detector))
    ]
    row = 0
    with (
        torch.inference_mode(),
        progress.task(f"trying candidates on {name}", total=len(table), unit="images") as task,
    ):
        for chunk in activations.chunks():
            for run in alike:
                for part in _tried([fitted[index] for index in run], chunk):
                    table[row : row + len(chunk), [run[i] for i in part[0]]] = part[1]
            row += len(chunk)
            task.advance(len(chunk))
    return table


def _tried(fitted: Sequence[Fitted], chunk: Activations) -> Iterator[tuple[list[int], Floats]]:
    detectors = [each.detector for each in fitted]
    try:
        yield list(range(len(fitted))), score_many(detectors, chunk).cpu().numpy()
    except UndefinedMethodError:
        for index, detector in enumerate(detectors):
            try:
                yield [index], score_many([detector], chunk).cpu().numpy()
            except UndefinedMethodError:
                continue


def _usable(
    names: Sequence[str], tables: Mapping[View, Floats]
) -> tuple[list[int], dict[str, str]]:
    """Return the candidates that give finite scores that differ from those of the ones before."""
    kept: list[int] = []
    reasons: dict[str, str] = {}
    seen: dict[bytes, str] = {}
    for index, name in enumerate(names):
        columns = [table[:, index] for table in tables.values()]
        if not all(np.isfinite(column).all() for column in columns):
            reasons[name] = f"{name} gives scores that are not finite"
            continue
        same = seen.setdefault(b"".join(column.tobytes() for column in columns[:3]), name)
        if same == name:
            kept.append(index)
        else:
            reasons[name] = f"{name}{_SAME}{same}"
    return kept, reasons


def _with_ensembles(
    contrasts: tuple[Contrast, ...],
    ready: list[tuple[MethodSpec, Fitted]],
    reference: Reference,
) -> tuple[tuple[Contrast, ...], list[tuple[MethodSpec, Fitted]]]:
    """Add the ensemble of three methods of three kinds, and one chosen greedily."""
    families = [each.family for each in contrasts]
    worth = merits(np.stack([each.auroc for each in contrasts]), families)
    best: dict[str, int] = {}
    for index in np.argsort(-worth, kind="stable"):
        best.setdefault(family_of(ready[index][0]), int(index))
    names = [spec.canonical for spec, _ in ready]
    pool = list(best.values())[:_POOL]
    trio = [names.index(name) for name in _TRIO if name in names]
    scales = {}
    for index in dict.fromkeys((*pool, *trio)):
        try:
            scales[index] = rank_scale(ready[index][1], reference)
        except InvalidInputError:  # no calibration images, or nothing to rank
            continue
    ranked = {
        index: [
            [scale.ranks(torch.from_numpy(table[:, index]).to(scale.scores.device)).cpu().numpy()
             for table in (each.id_scores, each.pseudo_scores)]
            for each in contrasts
        ]
        for index, scale in scales.items()
    }  # fmt: skip
    pool = [index for index in pool if index in scales]
    groups: dict[str, list[int]] = {}
    if len(trio) == len(_TRIO) and all(index in scales for index in trio):
        groups["trio"] = trio
    if len(pool) > 1:
        ranks = [
            Contrast(
                each.kind,
                each.family,
                np.column_stack([ranked[index][at][0] for index in pool]),
                np.column_stack([ranked[index][at][1] for index in pool]),
            )
            for at, each in enumerate(contrasts)
        ]
        chosen = joined_greedily(ranks)
        if len(chosen) > 1 and sorted(pool[c] for c in chosen) != sorted(trio):
            groups["greedy"] = [pool[column] for column in chosen]
    for members in groups.values():
        spec = EnsembleSpec.of(*(ready[index][0] for index in members))
        contrasts = tuple(
            replace(
                each,
                id_scores=_appended(each.id_scores, [ranked[i][at][0] for i in members]),
                pseudo_scores=_appended(each.pseudo_scores, [ranked[i][at][1] for i in members]),
            )
            for at, each in enumerate(contrasts)
        )
        # It is fitted for real where it is used; here its scores are known.
        ready = [*ready, (spec, ready[members[0]][1])]
    return contrasts, ready


def _appended(table: Floats, ranks: Sequence[Floats]) -> Floats:
    return np.column_stack([table, np.mean(ranks, axis=0)])
