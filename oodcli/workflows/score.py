"""Scores of images by every method asked for, from one forward pass."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from oodcli.activations import Reference
from oodcli.data.benchmarks import BENCHMARKS, Benchmark, benchmark_of, own_benchmark
from oodcli.data.dataset import Dataset, take
from oodcli.data.prepare import UNDECODED
from oodcli.data.splits import Split, split
from oodcli.data.views import View
from oodcli.errors import (
    InvalidInputError,
    MissingArtifactError,
    UnknownNameError,
    UnreadableImageError,
)
from oodcli.images import ImageSet, ImageShard, Part, evenly_spaced
from oodcli.methods import Fitted, MethodSpec, parse_methods
from oodcli.methods.ensemble import AUTO
from oodcli.methods.featurenorm import selection
from oodcli.metrics import near_chance
from oodcli.probes import Probe
from oodcli.progress import Progress, Silent, lasting
from oodcli.records import as_json
from oodcli.results import AVERAGE, Report
from oodcli.scores import (
    LABELS,
    PREDICTIONS,
    ScoredSet,
    Scores,
    Scoring,
    add_scores,
    check_distinct,
    read_scorings,
)
from oodcli.searches import Search, Tuning, keep_search
from oodcli.store import Store, check_file_of_user, file_of_user
from oodcli.training.processes import Processes
from oodcli.workflows.activation_file import (
    JIGSAW,
    TEST,
    TRAIN,
    VAL,
    check_names,
    write_activations,
)
from oodcli.workflows.compute import Compute
from oodcli.workflows.detect import Detectors, fit_all, learns_from_train
from oodcli.workflows.normratio import NormRatioResult, described, keep
from oodcli.workflows.notes import method_notes
from oodcli.workflows.open_run import OpenRun
from oodcli.workflows.recommend import chosen_for, stored_for
from oodcli.workflows.report import report
from oodcli.workflows.run_data import find_dataset, missing_sets, say_which
from oodcli.workflows.sources import ScoreQuery, Sources
from oodcli.workflows.tune import ValidationSet, settings, tune

SCORE_SCHEMA = 1
# Written as the block of a method, it stands for one method per block of the network.
_EVERY_BLOCK = "block=all"
# Images that are looked at to tell whether those of a set are grey.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Pass:
    """The forward pass over one image set.

    Parameters
    ----------
    dataset
        Name of the set.
    computed
        Images that went through the network.
    cached
        Images whose activations were stored before.
    """

    dataset: str
    computed: int
    cached: int


@dataclass(frozen=True)
class ScoreResult:
    """What one call of ``score`` did.

    Parameters
    ----------
    report
        The table of the methods and sets of this call.
    passes
        The forward passes.
    seconds
        Time spent in forward passes.
    normratio
        How the block was selected, if a method needed that.
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


@dataclass(frozen=True)
class PlannedPass:
    """What a dry run says of one image set.

    Parameters
    ----------
    dataset
        Name of the set.
    images
        Its images.
    missing
        Images that have to go through the network.
    seconds
        Expected time; None if the rate of the network is not known.
    bytes
        Size of the new activations on disk.
    undecoded
        Images that have to be decoded first; until then they count as missing.
    """

    dataset: str
    images: int
    missing: int
    seconds: float | None
    bytes: int
    undecoded: int = 0


@dataclass(frozen=True)
class Plan:
    """What a dry run found.

    Parameters
    ----------
    run
        Name of the run.
    device
        Device that would be used.
    methods
        Canonical names of the methods.
    images_per_s
        Rate used for the expected times.
    passes
        The forward passes that are needed.
    """

    run: str
    device: str
    methods: tuple[str, ...]
    images_per_s: float
    passes: tuple[PlannedPass, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"schema": SCORE_SCHEMA, **as_json(self)}


@dataclass(frozen=True)
class _Entry:
    """A set that was asked for: an OOD set, or a covariate-shifted ID set."""

    dataset: Dataset
    group: str
    benchmark: str | None
    split: Split | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """What to score, and how.

    Parameters
    ----------
    run
        Name of the run; the one created last if None.
    methods
        Methods as written on the command line; every method that works from the cache if empty.
        ``auto`` stands for the one that is recommended for the run.
    ood
        OOD sets: names, folders, ``.npz`` files, or ``NAME=PATH``.
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
    export
        File that gets all scores of this call.
    export_activations
        File that gets the activations, and those of the training images.
    """

    run: str | None = None
    methods: Sequence[str] = ()
    ood: Sequence[str] = ()
    benchmark: str | None = None
    allow_missing: bool = False
    tune: Sequence[Tuning] = ()
    tune_ood: str | None = None
    limit: int | None = None
    compute: Compute = field(default_factory=Compute.of)
    skip_unreadable: bool = False
    export: Path | None = None
    export_activations: Path | None = None


@dataclass
class _Session:
    """Everything that scoring and its dry run share; the run is held until ``held`` is closed."""

    store: Store
    request: ScoreRequest
    progress: Progress
    held: contextlib.ExitStack
    dry: bool = False
    benchmark: Benchmark | None = field(init=False)
    specs: list[MethodSpec] = field(init=False)
    run: OpenRun = field(init=False)
    auto: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        request = self.request
        if request.limit is not None and request.limit < 1:
            raise InvalidInputError(f"--limit must be at least 1, not {request.limit}")
        for path in (request.export, request.export_activations):
            if path is not None:
                check_file_of_user(path)
        # Wrong names are told before anything is opened.
        named = [text for text in request.methods if text != AUTO]
        parse_methods(for_every_block(named, range(1)))
        run = self.held.enter_context(
            OpenRun.open(
                self.store,
                request.run,
                request.compute,
                limit=request.limit,
                skip_unreadable=request.skip_unreadable,
                progress=self.progress,
            )
        )
        self.run = run.without_decoding() if self.dry else run
        read_scorings(run.folder.scores)  # a damaged index is refused before the work
        self.run.data  # noqa: B018 - it is opened by being looked at
        self.benchmark = self._benchmark()
        if self.benchmark is not None:
            self.run = self.run.on(self.benchmark)
        self._check_possible()
        if len(named) < len(request.methods):
            self.auto = self._chosen()
        methods = [self.auto if text == AUTO else text for text in request.methods]
        self.specs = parse_methods(
            for_every_block([text for text in methods if text], range(len(self.run.record.blocks)))
        )

    def _check_possible(self) -> None:
        """Refuse what would fail after a forward pass, before there is any.

        Raises
        ------
        InvalidInputError
            If parameters are to be chosen, or activations written, and images for that are lacking.
        CorruptArtifactError
            If scores of the run are damaged, to which those of this call would be added.
        """
        request, name = self.request, self.run.data.dataset.name
        if request.tune and self.run.calibration_part != "val":
            raise InvalidInputError(
                f"--tune needs validation images, and {name} has none; hold some out of training: "
                "ood train --val-fraction 0.1 (or ood import --val-fraction 0.1)"
            )
        named = request.tune_ood is not None
        if (
            "openood" in request.tune
            and not named
            and not (self.benchmark is not None and self.benchmark.ood_val)
        ):
            raise InvalidInputError(
                "--tune openood needs OOD validation images, and no benchmark names them here; "
                "name some that are not scored: --tune-ood NAME|FOLDER, or use --tune pseudo"
            )
        if request.export_activations is not None and "train" not in self.run.data.dataset.parts:
            raise InvalidInputError(
                f"--export-activations writes those of training images too, and {name} has none; "
                "leave it out"
            )
        read_scorings(self.run.folder.scores)

    def _chosen(self) -> str:
        """Return the method that is recommended for the run, chosen now if it was not yet.

        Raises
        ------
        InvalidInputError
            If it would have to be chosen on the images that are scored, or in a dry run.
        """
        if self.run.calibration_part != "val":
            raise InvalidInputError(
                f"--method auto needs validation images, and {self.run.data_name} has none: "
                "chosen on the images that are scored it would look better than it is; hold some "
                "out of training: ood train --val-fraction 0.1 (or ood import --val-fraction 0.1)"
            )
        stored = stored_for(self.run)
        if stored is None and self.dry:
            raise InvalidInputError(
                f"no method has been recommended for run {self.run.name} yet, and a dry run "
                f"chooses none; run first: ood recommend --run {self.run.name}"
            )
        chosen = stored or chosen_for(self.run)
        self.progress.note(f"--method auto: {chosen}; why: ood recommend --run {self.run.name}")
        return chosen

    def limit(self, entries: Sequence[_Entry]) -> int | None:
        """Return the limit if a set that is scored, or learned from, has more images."""
        parts = self.run.data.dataset.parts
        used = [self.run.data.dataset.id_test, *(entry.dataset.ood_part for entry in entries)]
        learns = self.needs_train() or self.needs_block()
        if "train" in parts and (learns or self.request.export_activations is not None):
            used.append(parts["train"])
        return self.request.limit if self.run.limits(*used) else None

    def _benchmark(self) -> Benchmark | None:
        """Return the benchmark to score on, if any; all of it is here, or may be missing."""
        request, id_name = self.request, self.run.record.data_name
        if request.benchmark is not None:
            if request.benchmark not in BENCHMARKS:
                raise UnknownNameError.among("benchmark", request.benchmark, BENCHMARKS)
            benchmark = BENCHMARKS[request.benchmark]
            if benchmark.id_set != id_name:
                raise InvalidInputError(
                    f"benchmark {benchmark.name} is for networks trained on {benchmark.id_set}, "
                    f"and run {self.run.name} was trained on {id_name}; name its sets: --ood"
                )
            missing = missing_sets(benchmark, self.store)
            if not _ood_sets(benchmark, missing) and not request.ood:
                raise MissingArtifactError(
                    f"no OOD set of benchmark {benchmark.name} is here; get them: "
                    f"ood datasets download --benchmark {benchmark.name}, or name sets of your own "
                    "in place of the benchmark: --ood NAME|FOLDER"
                )
            if missing and not request.allow_missing:
                raise MissingArtifactError(
                    f"benchmark {benchmark.name} lacks {', '.join(missing)}; get them: "
                    f"ood datasets download --benchmark {benchmark.name}, "
                    "or go on without: --allow-missing"
                )
            return benchmark
        own = None if request.ood else benchmark_of(id_name)
        if own is None:
            return None
        missing = missing_sets(own, self.store)
        get = f"get them: ood datasets download --benchmark {own.name}"
        if not _ood_sets(own, missing):
            self.progress.note(
                f"no OOD set of benchmark {own.name} is here: scoring on photographs and noise "
                f"that come with ood; {get}"
            )
            return None
        if missing:
            self.progress.note(f"going on without {', '.join(missing)} of {own.name}; {get}")
        return own

    def entries(self) -> list[_Entry]:
        """Open the sets that were asked for."""
        request = self.request
        entries = [] if self.benchmark is None else self._benchmark_entries(self.benchmark)
        if self.benchmark is None and not request.ood:
            entries = self._own_entries()
        for text in request.ood:
            say_which(text, self.store, self.progress)
            entries.append(_Entry(self.opened(text), "ood", None))
        id_name = self.run.data_name
        names = [entry.dataset.name for entry in entries]
        if AVERAGE in names:
            raise InvalidInputError(
                f"a set cannot be called {AVERAGE!r}, which stands for the mean over sets; "
                "name it otherwise: --ood NAME=PATH"
            )
        twice = check_distinct([id_name, *names])
        if twice is not None:
            raise InvalidInputError(
                f"two of the sets are called {twice!r}; name one otherwise: --ood NAME=PATH"
            )
        return entries

    def opened(self, spec: str) -> Dataset:
        """Open an OOD set."""
        return find_dataset(spec, self.store, role="ood", val_fraction=0.0, progress=self.progress)

    def _benchmark_entries(self, benchmark: Benchmark) -> list[_Entry]:
        missing = missing_sets(benchmark, self.store)
        entries = []
        for group, names in (*benchmark.groups.items(), ("shifted", benchmark.shifted)):
            for name in names:
                if name in missing:
                    continue
                dataset, chosen = self.opened(name), None
                if name in benchmark.lists:
                    chosen = split(dataset, benchmark.lists[name], self.store)
                    dataset = replace(dataset, parts={"test": chosen.part})
                entries.append(_Entry(dataset, group, benchmark.name, chosen))
        return entries

    def _own_entries(self) -> list[_Entry]:
        grey = _is_grey(self.run.data.dataset.id_test)
        return [
            _Entry(self.opened(dataset), group, None)
            for group, datasets in own_benchmark(grey=grey).groups.items()
            for dataset in datasets
        ]

    def ood_images(
        self, entry: _Entry, seen: Callable[[ImageShard], None] | None = None
    ) -> ImageSet:
        """Return the images of a set that was asked for; see :meth:`OpenRun.limited`."""
        dataset = entry.dataset
        return self.run.limited(dataset.ood_part, name=dataset.name, seen=seen)

    def needs_block(self) -> bool:
        """Return whether a method leaves the choice of the block to NormRatio."""
        return any(
            "jigsaw" in part.method.inputs and "block" not in part.given
            for spec in self.specs
            for part in spec.parts
        )

    def needs_train(self) -> bool:
        """Return whether a method learns from the training images."""
        return learns_from_train(self.specs)

    def needs_calibration(self) -> bool:
        """Return whether calibration images are computed for themselves, not as training images."""
        if not any("calibration" in spec.inputs for spec in self.specs):
            return False
        return not (self.needs_train() and self.run.calibration_part == "train")

    def validation_sets(self, tuning: Tuning) -> tuple[ValidationSet, ValidationSet]:
        """Return the ID validation images, and what a search is to tell them from.

        Raises
        ------
        InvalidInputError
            If the OOD validation images cannot be used.
        """
        name = self.run.data.dataset.name
        views = (View("framed"), View("jigsaw")) if tuning == "pseudo" else (View(),)
        # What methods observe takes a pass of its own, which gives the ordinary activations too.
        observes = _observes(self.specs)
        seen = None if observes else self.run.as_decoded("val", dict.fromkeys(views, False))
        images = self.run.calibration(seen)
        if tuning == "pseudo":
            return (
                self._validation(images, View("framed"), f"{name} val"),
                self._validation(images, View("jigsaw"), f"jigsaws of {name} val"),
            )
        ood = self._ood_validation_images()
        return (
            self._validation(images, View(), f"{name} val"),
            self._validation(ood, View(), ood.name),
        )

    def _ood_validation_images(self) -> ImageSet:
        named, benchmark = self.request.tune_ood, self.benchmark
        if named is not None:
            say_which(named, self.store, self.progress)
            dataset = self.opened(named)
        else:
            assert benchmark is not None  # _check_possible has seen to it
            dataset = self.opened(benchmark.ood_val)
            if benchmark.ood_val_list:
                chosen = split(dataset, benchmark.ood_val_list, self.store)
                dataset = replace(dataset, parts={"test": chosen.part})
            dataset = replace(dataset, name=f"{dataset.name} val")
        images = self.run.data.prepared(dataset.ood_part, name=dataset.name)
        for entry in self.entries():
            if self.ood_images(entry).digest == images.digest:
                raise InvalidInputError(
                    f"--tune-ood {named} has the same images as {entry.dataset.name}, which is "
                    "scored; parameters must not be chosen on what they are tested on"
                )
        return images

    def _validation(self, images: ImageSet, view: View, name: str) -> ValidationSet:
        return ValidationSet(
            name,
            len(images),
            lambda probes: self.run.activator.activations(images, view=view, probes=probes),
        )

    def tell_cost(self, sets: Sequence[ImageSet]) -> None:
        """Say what the methods cost that need more than one forward pass, if there are any."""
        costly = [spec for spec in self.specs if spec.passes or spec.train_passes]
        if not costly:
            return
        scored = sum(map(len, sets))
        train = len(self.run.train()) if any(spec.train_passes for spec in costly) else 0
        passes = sum(spec.passes * scored + spec.train_passes * train for spec in costly)
        each = ", ".join(f"{spec.canonical} {_times(spec)}" for spec in costly)
        rate = self.run.activator.rate() or self.run.activator.timed_rate()
        count = f"{scored:,} images" + (f" and {train:,} training images" if train else "")
        self.progress.note(
            f"these methods take more than the one forward pass: {each}; for {count} about "
            f"{lasting(passes / rate)} at {rate:,.0f} images/s, less what is stored"
        )


def _ood_sets(benchmark: Benchmark, missing: Sequence[str]) -> list[str]:
    """Return the OOD sets of a benchmark that are here."""
    return [name for names in benchmark.groups.values() for name in names if name not in missing]


def for_every_block(methods: Sequence[str], blocks: range) -> list[str]:
    """Write ``block=all`` out as one method for every block."""
    return [
        written
        for text in methods
        for written in (
            [text.replace(_EVERY_BLOCK, f"block={block}") for block in blocks]
            if _EVERY_BLOCK in text
            else [text]
        )
    ]


def plan(store: Store, request: ScoreRequest, *, progress: Progress | None = None) -> Plan:
    """Say what :func:`score` would do, without a forward pass over any data.

    No image is decoded, but for a few where it has to be known whether they are grey. A network
    that has not run on this device yet is timed on a few batches of noise.

    Raises
    ------
    OodError
        If the run, a data set or the device cannot be used.
    """
    with contextlib.ExitStack() as held:
        return _planned(_Session(store, request, progress or Silent(), held, dry=True))


def _planned(session: _Session) -> Plan:
    entries = session.entries()
    views: list[tuple[ImageSet, View]] = [(session.run.test(), View())]
    views += [(session.ood_images(entry), View()) for entry in entries]
    session.tell_cost([images for images, _ in views])
    if session.needs_train():
        views.append((session.run.train(), View()))
    if session.needs_block():
        views.append((session.run.train(), View("jigsaw")))
    if session.needs_calibration():
        views.append((session.run.calibration(), View()))
    activator = session.run.activator
    rate = activator.rate() or activator.timed_rate()
    passes = []
    for images, view in views:
        puzzles = view.kind == "jigsaw"
        found = activator.plan(images, view=view, norms_only=puzzles)
        passes.append(
            PlannedPass(
                dataset=f"{images.name} (jigsaw)" if puzzles else images.name,
                images=found.total,
                missing=found.missing,
                seconds=found.missing / rate,
                bytes=found.missing * activator.bytes_per_image(norms_only=puzzles),
                # Puzzles are made of images that another pass has decoded.
                undecoded=0 if puzzles else _undecoded(images),
            )
        )
    return Plan(
        run=session.run.name,
        device=str(session.run.activator.device),
        methods=tuple(spec.canonical for spec in session.specs),
        passes=tuple(passes),
        images_per_s=rate,
    )


def _opened(
    store: Store,
    request: ScoreRequest,
    processes: Processes,
    progress: Progress,
    held: contextlib.ExitStack,
) -> tuple[_Session, list[_Entry], ImageSet, list[ImageSet]]:
    """Open the run and all that is scored; one process downloads and decodes before the others.

    Returns
    -------
    session
        The run.
    entries
        The sets to score beside the ID test images.
    id_images, ood_images
        The images of them all.
    """

    def opened() -> tuple[_Session, list[_Entry], ImageSet, list[ImageSet]]:
        session = _Session(store, request, progress, held)
        entries = session.entries()
        if request.export_activations is not None:
            check_names([entry.dataset.name for entry in entries])

        def seen(name: str) -> Callable[[ImageShard], None] | None:
            if processes.many or _observes(session.specs):
                return None
            return session.run.activator.as_decoded(name, {View(): False})

        id_images = session.run.test(seen(session.run.data_name))
        ood_images = [session.ood_images(entry, seen(entry.dataset.name)) for entry in entries]
        if id_images.labels is None:
            raise InvalidInputError(f"the test images of {session.run.data_name} have no labels")
        return session, entries, id_images, ood_images

    return processes.in_turn(opened)


def _observes(specs: Sequence[MethodSpec]) -> bool:
    """Return whether methods observe images in a pass that gives the ordinary activations too."""
    return bool({"network", "regions"} & {name for spec in specs for name in spec.inputs})


def _learn_as_decoded(session: _Session) -> None:
    """Compute what methods learn from while training images are decoded that cannot be kept."""
    views = {View("jigsaw"): True} if session.needs_block() else {}
    # What methods observe of training images takes a pass that gives the ordinary activations too.
    if not any(spec.needs_network for spec in session.specs):
        views = {View(): False, **views}
    name = f"{session.run.data.dataset.name} train"
    session.run.train(session.run.activator.as_decoded(name, views))


def _share_out_learning(session: _Session, processes: Processes) -> None:
    """Compute what methods learn from, every process some shards of it."""
    if not processes.many:
        if session.needs_train() and "train" in session.run.data.dataset.parts:
            _learn_as_decoded(session)
        return
    if session.needs_train():
        session.run.activator.share_out(session.run.train(), processes)
    if session.needs_block():
        session.run.activator.share_out(
            session.run.train(), processes, view=View("jigsaw"), norms_only=True
        )
    if any(spec.needs_calibration for spec in session.specs):
        session.run.activator.share_out(session.run.calibration(), processes)


def _share_out_scored(
    session: _Session, sets: Sequence[ImageSet], processes: Processes, probes: Sequence[Probe]
) -> None:
    """Compute what is scored, every process some shards of it; the first knows the probes."""
    if processes.many:
        probes = processes.agreed(probes)
        for images in sets:
            session.run.activator.share_out(images, processes, probes=probes)


def help_to_score(store: Store, request: ScoreRequest, *, processes: Processes) -> None:
    """Compute this process's part of the activations that the first one scores.

    Parameters
    ----------
    store, request
        As for :func:`score`, which the first process calls at the same time.
    processes
        The processes, of which this is not the first.

    Raises
    ------
    OodError
        If something cannot be used, or another process has ended.
    """
    with contextlib.ExitStack() as held:
        session, _, id_images, ood_images = _opened(store, request, processes, Silent(), held)
        _share_out_learning(session, processes)
        _share_out_scored(session, [id_images, *ood_images], processes, ())


def score(
    store: Store,
    request: ScoreRequest,
    *,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> ScoreResult:
    """Score the ID test images and OOD sets with every method, and store one score per image.

    A method that is not defined here is left out, with the reason; the others are scored.

    The network sees each image once, and not at all where its activations are stored.

    Parameters
    ----------
    store
        Where the run is.
    request
        What to score, and how.
    progress
        Told of long work.
    processes
        The processes, of which this is the first; the others :func:`help_to_score`, and all share
        the store. This one alone if None.

    Raises
    ------
    OodError
        If the run, a data set, a method or the device cannot be used, no method is defined here, or
        another process has ended.

    Notes
    -----
    Several processes compute the ordinary activations of training, calibration and scored images
    together, and what methods observe of scored images. The first one alone computes what a method
    observes or learns of training images, and the validation images of a search.
    """
    with contextlib.ExitStack() as held:
        return _score(
            store,
            request,
            watch=progress or Silent(),
            job_of=processes or Processes(),
            held=held,
        )


def _score(
    store: Store,
    request: ScoreRequest,
    *,
    watch: Progress,
    job_of: Processes,
    held: contextlib.ExitStack,
) -> ScoreResult:
    session, entries, id_images, ood_images = _opened(store, request, job_of, watch, held)
    reference = session.run.reference()
    session.tell_cost([id_images, *ood_images])
    _share_out_learning(session, job_of)
    detectors = _fitted(session, reference, watch)
    detectors.try_probes(session.run.activator.try_probes)
    detectors.require_one()
    nowhere = frozenset(detectors.left_out)
    _share_out_scored(session, [id_images, *ood_images], job_of, detectors.probes)
    chosen = _selection(session, reference) if session.needs_block() else None

    id_activations = session.run.activator.activations(id_images, probes=detectors.probes)
    labels = id_images.labels
    assert labels is not None  # _opened has seen to it
    scores: dict[tuple[str, str], Scores] = {(LABELS, session.run.data_name): labels}
    right = float(np.mean(id_activations.predictions.cpu().numpy() == labels))
    if near_chance(right, labels) is not None:
        watch.note(
            f"warning: {session.run.name} is right on {100 * right:.2f} % of {len(labels):,} test "
            "images, hardly better than guessing"
        )
    accuracies: dict[str, float] = {}
    for images in (id_images, *ood_images):
        activations = (
            id_activations
            if images is id_images
            else session.run.activator.activations(images, probes=detectors.probes)
        )
        predictions = activations.predictions.cpu().numpy()
        scores[PREDICTIONS, images.name] = predictions
        if images.labels is not None:
            accuracies[images.name] = float(np.mean(predictions == images.labels))
        for method, values in detectors.score(activations, images.name, progress=watch).items():
            scores[method, images.name] = values
    scores = {key: values for key, values in scores.items() if key[0] not in detectors.left_out}
    detectors.require_one()
    if (slow := detectors.slow()) is not None:
        watch.note(slow)

    limit = session.limit(entries)
    scoring = Scoring(
        limit=limit,
        precision=session.run.compute.precision,
        id_set=_scored_set(
            id_images, "id", None, session.run.test_split, data=session.run.data.dataset.spec
        ),
        id_accuracy=accuracies[session.run.data_name],
        sets=tuple(
            replace(
                _scored_set(
                    images, entry.group, entry.benchmark, entry.split, data=entry.dataset.spec
                ),
                accuracy=accuracies.get(images.name) if entry.group == "shifted" else None,
            )
            for entry, images in zip(entries, ood_images, strict=True)
        ),
        methods={each.canonical: dict(each.params) for each in detectors.fitted},
        left_out=detectors.left_out,
    )
    add_scores(store, session.run.folder.scores, scoring, scores, withdrawn=nowhere)
    if request.export is not None:
        others = {(PREDICTIONS, images.name) for images in ood_images}
        export_scores(
            request.export, {key: each for key, each in scores.items() if key not in others}
        )
    if request.export_activations is not None:
        _export_activations(
            session,
            request.export_activations,
            reference,
            [i for e, i in zip(entries, ood_images, strict=True) if e.group != "shifted"],
        )
    passes = session.run.activator.passes
    query = ScoreQuery(
        runs=[session.run.name],
        limit=limit,
        methods=[each.canonical for each in detectors.fitted],
        datasets=[entry.dataset.name for entry in entries],
        benchmark=None if session.benchmark is None or request.ood else session.benchmark.name,
    )
    with Sources.open(store, query) as sources:
        found = report(sources)
    notes = (*found.notes, *method_notes(found.rows, detectors.left_out))
    return ScoreResult(
        report=replace(found, notes=list(dict.fromkeys(notes))),
        passes=tuple(
            Pass(name, passes.computed[name], passes.cached[name]) for name in passes.computed
        ),
        seconds=passes.seconds,
        normratio=chosen,
        left_out=detectors.left_out,
        undefined=detectors.undefined,
    )


def _fitted(session: _Session, reference: Reference, progress: Progress) -> Detectors:
    """Fit every method as it was asked for, or with the parameters that a search chooses."""
    tuned = [
        spec
        for spec in session.specs
        if session.request.tune and len(settings(spec)) > 1 and spec.canonical != session.auto
    ]
    if tuned:
        count = sum(len(settings(spec)) for spec in tuned)
        progress.note(f"tuning tries {count:,} settings of {len(tuned)} methods")
    plain = [spec for spec in session.specs if spec not in tuned]
    part = session.run.calibration_part if _calibrates(session.specs) else "val"
    # Before anything is fitted: without these images there is no search.
    validation = {each: session.validation_sets(each) for each in session.request.tune}
    detectors = fit_all(plain, reference, progress=progress, calibrated_on=part)
    for tuning, (id_val, ood_val) in validation.items():
        found = tune(
            tuned, reference, tuning=tuning, id_val=id_val, ood_val=ood_val, progress=progress
        )
        for spec, *outcome in found:
            if len(outcome) == 1:
                detectors.left_out[f"{spec.canonical}@{tuning}"] = str(outcome[0])
                continue
            search, winner = outcome
            assert isinstance(search, Search)
            assert isinstance(winner, Fitted)
            keep_search(session.run.folder.scores, search)
            detectors.fitted.append(winner)
    detectors.optional |= {
        f"{spec.canonical}@{tuning}"
        for spec in tuned
        if spec.optional
        for tuning in session.request.tune
    }
    detectors.fitted = [
        replace(each, params={**each.params, "chosen": AUTO})
        if each.canonical == session.auto
        else each
        for each in detectors.fitted
    ]
    return detectors


def _calibrates(specs: Sequence[MethodSpec]) -> bool:
    return any(spec.needs_calibration for spec in specs)


def _selection(session: _Session, reference: Reference) -> NormRatioResult:
    """Describe and store how NormRatio chose the block; all it needs has been computed by now."""
    result = described(session.run, selection(reference), of=session.run.train(), normalised=True)
    keep(session.run.folder, result, precision=session.run.compute.precision)
    return result


def _times(spec: MethodSpec) -> str:
    parts = [f"{spec.passes:g} times"] if spec.passes else []
    parts += [f"{spec.train_passes:g} over training images"] if spec.train_passes else []
    return " and ".join(parts)


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


def export_scores(path: Path, scores: Mapping[tuple[str, str], Scores]) -> None:
    """Write scores as arrays called ``method/dataset``."""
    with file_of_user(path) as stream:
        np.savez(stream, **{f"{m}/{d}": values for (m, d), values in scores.items()})  # type: ignore[arg-type]


def _export_activations(
    session: _Session, path: Path, reference: Reference, ood_images: Sequence[ImageSet]
) -> None:
    """Write the activations of this call, and those of the images that methods learn from.

    Covariate-shifted ID sets are not among them: in the file every set of another name is OOD.
    """
    id_images, train = session.run.test(), session.run.train()
    sets = {TRAIN: (reference.train, train.labels)}
    if session.run.calibration_part == "val":
        sets[VAL] = (reference.calibration, session.run.calibration().labels)
    sets[TEST] = (session.run.activator.activations(id_images), id_images.labels)
    for images in ood_images:
        sets[images.name] = (session.run.activator.activations(images), images.labels)
    if session.needs_block():
        sets[JIGSAW] = (reference.jigsaw, None)
    write_activations(path, reference.head, sets)


def _undecoded(images: ImageSet) -> int:
    """Return how many images have to be decoded for some: all of the shards that they are in."""
    shards = {
        id(each): each
        for shard in images.shards
        for each in ([shard] if shard.known_digest else [piece.shard for piece in shard.pieces])
    }
    return sum(len(each) for each in shards.values() if each.known_digest == UNDECODED)


def _is_grey(part: Part) -> bool:
    """Return whether some images, spread over all, have no colour."""
    some = take(part, evenly_spaced(len(part), _LOOKED_AT)).source
    return all(
        isinstance(image, UnreadableImageError) or bool((image == image[:, :, :1]).all())
        for image in some.read(0, len(some))
    )
