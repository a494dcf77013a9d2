"""Training of a classifier into a run, resumable after every epoch."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodcli.data.benchmarks import BENCHMARKS
from oodcli.data.dataset import Dataset
from oodcli.data.decoders import Decoders
from oodcli.data.originals import OriginalSizes
from oodcli.data.prepare import Resizing, prepare
from oodcli.data.splits import split
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    OodError,
)
from oodcli.images import ImageSet
from oodcli.memory import free_memory
from oodcli.models import (
    ArchitectureSpec,
    Network,
    Pretrained,
    network_of,
    parse_architecture,
    published_configuration,
    save_weights,
    unit_features,
)
from oodcli.pools import worker_count
from oodcli.progress import Progress, Silent
from oodcli.runs import (
    STATE,
    TRAINING,
    Preprocess,
    Run,
    RunFolder,
    find_run,
    new_name,
    now,
    remove_run,
    run_folders,
    run_lock,
)
from oodcli.store import Store, digest_of_file, write_json
from oodcli.training.loop import (
    MUCH_WAITING,
    LabelledPixels,
    NotFiniteError,
    Trainer,
    weights_of,
)
from oodcli.training.objective import Objective
from oodcli.training.probe import fit_probe
from oodcli.training.processes import Processes, ProcessLostError
from oodcli.training.recipes import Recipe, default_architecture, recipe_for, recipe_named
from oodcli.training.registry import parse_objective
from oodcli.training.streaming import StreamedImages, TrainingImages, crops_originals, fits
from oodcli.training.student import LastBlock
from oodcli.workflows.accuracy import accuracy_on
from oodcli.workflows.activate import Activator
from oodcli.workflows.devices import (
    check_compiler,
    cpu_threads,
    enough_memory,
    find_device,
    quick_in_bfloat16,
    versions,
)
from oodcli.workflows.initial import (
    Initial,
    initial_weights,
    published_weights,
)
from oodcli.workflows.preprocessing import size_of_training
from oodcli.workflows.run_data import (
    TEST_FRACTION,
    check_division,
    find_dataset,
    find_divided,
    preprocess_for,
)
from oodcli.workflows.training_state import (
    History,
    drop_state,
    load_state,
    read_best,
    save_state,
    write_history,
)

TRAINING_SCHEMA = 1
PROBE = "linear probe"


@dataclass(frozen=True)
class TrainRequest:
    """What to train, and how; None leaves a choice to the recipe of the paper.

    Parameters
    ----------
    data
        Data set: a name, a folder, an ``.npz`` file, or ``NAME=PATH``.
    arch
        Architecture with parameters, such as ``resnet18:stem_padding=2``.
    name
        Name of the run.
    seed
        Seed of the weights, the order of the images, augmentation and dropout.
    recipe
        Name of a published recipe; that of the objective and the architecture if None.
    objective
        What is minimised, such as ``t2fnorm:tau=0.05``.
    epochs, batch_size, lr, momentum, weight_decay
        Changes of the recipe.
    settings
        Further changes of the recipe, ``KEY=VALUE`` each.
    init
        A run or a checkpoint to start from; random weights if None. With ``pretrained``, a file of
        published weights or the name of a set of them; the usual set if None.
    pretrained
        Whether to start from published weights of the network: images then have the size and the
        normalisation that these want, unless the request names others.
    image_size, resize
        Height and width of the images, and how they get there; as the benchmark of the data set has
        them if None.
    device, amp
        Where to compute, and whether in bfloat16.
    val_fraction
        Share of the training images to hold out for validation.
    test_fraction
        Share of the images to test on where the data set is one whole; ``TEST_FRACTION`` if None.
    skip_unreadable
        Whether to leave out images that cannot be decoded.
    compile
        Whether torch compiles the network for its training steps.
    scale_batch
        Whether each of several processes takes the batch of the recipe, at a learning rate that is
        as many times as high; all of them share one batch otherwise.
    data_workers
        Processes that decode images where those are streamed, of each process that trains; the
        cores divided among these if None. The weights do not depend on it.
    """

    data: str
    arch: str | None = None
    name: str | None = None
    seed: int = 0
    recipe: str | None = None
    objective: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    settings: tuple[str, ...] = ()
    init: str | None = None
    pretrained: bool = False
    image_size: int | None = None
    resize: str | None = None
    device: str = "auto"
    amp: bool = False
    val_fraction: float = 0.0
    test_fraction: float | None = None
    skip_unreadable: bool = False
    compile: bool = False
    scale_batch: bool = False
    data_workers: int | None = None


@dataclass(frozen=True)
class TrainResult:
    """What training made.

    Parameters
    ----------
    run
        Name of the run.
    record
        Its record.
    trained
        Epochs trained by this call; 0 if the run was finished before.
    """

    run: str
    record: Run
    trained: int


@dataclass(frozen=True)
class _Job:
    """A run in training, as it stands in ``training.json``."""

    data: str
    arch: str
    recipe: Recipe
    seed: int
    amp: bool
    val_fraction: float
    test_fraction: float
    division: str
    skip_unreadable: bool
    command: str
    created: str
    preprocess: Preprocess | None = None
    init: Initial | None = None
    compile: bool = False

    def identity(self) -> dict[str, Any]:
        """Return what fixes the weights that come out."""
        return {
            "data": self.data,
            "arch": self.arch,
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "amp": self.amp,
            "compile": self.compile,
            "val_fraction": self.val_fraction,
            "test_fraction": self.test_fraction,
            "division": self.division,
            "skip_unreadable": self.skip_unreadable,
            "size": None if self.preprocess is None else list(self.preprocess.size),
            "resize": None if self.preprocess is None else self.preprocess.resize,
            "init": None if self.init is None else self.init.to_json(),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "ood-run",
            "schema": TRAINING_SCHEMA,
            **self.identity(),
            "command": self.command,
            "created": self.created,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], name: str) -> "_Job":
        try:
            recipe = Recipe.from_json(content["recipe"])
            size, init = content.get("size"), content.get("init")
            return cls(
                data=content["data"],
                arch=content["arch"],
                recipe=recipe,
                seed=content["seed"],
                amp=content["amp"],
                val_fraction=content["val_fraction"],
                test_fraction=content["test_fraction"],
                division=content["division"],
                skip_unreadable=content["skip_unreadable"],
                command=content["command"],
                created=content["created"],
                preprocess=None
                if size is None
                else Preprocess((size[0], size[1]), content["resize"], recipe.mean, recipe.std),
                init=None if init is None else Initial(**init),
                compile=content["compile"],
            )
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(
                f"the unfinished run {name} is damaged: {error}; remove it: ood runs remove {name}"
            ) from None


def train(
    store: Store,
    request: TrainRequest,
    *,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> TrainResult:
    """Train a classifier and store it as a run.

    Parameters
    ----------
    store
        Where the run goes.
    request
        What to train, and how.
    resume
        Go on with an unfinished run of the same request, if there is one; a finished one is
        returned as it is.
    command
        The command line, kept with the run.
    progress
        Told of every epoch.
    processes
        The processes that train together, each of which calls this with the same request; they
        share the store, in which the first one alone writes the run. This one alone if None.

    Raises
    ------
    OodError
        If the data, the architecture, the recipe or the device cannot be used, the loss is not
        finite, or another process has ended.
    """
    job_of = processes or Processes()
    watch = progress or Silent()
    request = _named_apart(request)
    device = find_device(request.device)
    decoders = _decoders(request.data_workers, job_of, watch)
    for name in ("val", "test"):
        _check_fraction(name, getattr(request, f"{name}_fraction"))
    if request.compile:
        _check_compiled(device, job_of)
    # One process downloads before the others look.
    dataset = job_of.in_turn(
        partial(
            find_divided,
            request.data,
            store,
            val=request.val_fraction,
            test=request.test_fraction,
            usual_test=TEST_FRACTION,
            progress=watch,
        )
    )
    if "train" not in dataset.parts:
        raise InvalidInputError(f"{dataset.name} at {dataset.location} has no training images")
    job = _planned(store, request, dataset, command=command, watch=watch, job_of=job_of)
    same, folder = None, None
    if job_of.first:
        with store.lock("runs"):
            same = _same(store, job, request.name) if resume else None
            if same is None:
                kind = job.recipe.objective.partition(":")[0]
                marks = [dataset.name, job.arch, *([] if kind == "cross-entropy" else [kind])]
                default = "-".join([*marks, f"s{request.seed}"])
                folder = RunFolder(store.runs / new_name(store, request.name, default))
                write_json(folder.path / TRAINING, job.to_json())
    same, folder = job_of.agreed((same, folder))
    if same is not None:
        return _carry_on(
            store,
            same,
            device=device,
            watch=watch,
            dataset=dataset,
            job_of=job_of,
            decoders=decoders,
        )
    assert folder is not None
    try:
        return _train(
            store,
            folder,
            job,
            dataset,
            device=device,
            watch=watch,
            job_of=job_of,
            decoders=decoders,
        )
    except ProcessLostError:
        raise  # it tells how to go on
    except OodError:
        # Before its first epoch a run is nothing but in the way of the corrected command.
        if job_of.first and not (folder.path / STATE).is_file():
            with contextlib.suppress(InvalidInputError):  # another process has taken it up
                remove_run(store, folder.name)
        raise


def _planned(
    store: Store,
    request: TrainRequest,
    dataset: Dataset,
    *,
    command: str,
    watch: Progress,
    job_of: Processes,
) -> _Job:
    """Settle all that fixes the weights, and refuse what does not fit together."""
    start = None
    if request.init is not None and not request.pretrained:
        start = initial_weights(store, request.init)
        if Path(request.init).exists() and request.init in {f.name for f in run_folders(store)}:
            watch.note(
                f"--init {request.init} is taken as the run, not as the file {request.init} in "
                f"this folder; to take the file: ./{request.init}"
            )
    arch, named = _network_of(request, dataset.name, None if start is None else start.named.arch)
    sizing = size_of_training(
        dataset,
        arch,
        published=published_configuration(arch, request.init if request.pretrained else None),
        certain=request.pretrained,
        image_size=request.image_size,
        resize=request.resize,
    )
    spec = parse_architecture(arch, side=sizing.side)
    recipe = _recipe_of(request, spec, dataset.name, named)
    published = None
    if request.pretrained:
        # One process downloads before the others look.
        start, published = job_of.in_turn(partial(published_weights, spec, request.init))
    initial = None if start is None else start.named
    if published is not None:
        recipe = _as_published(recipe, published, request.settings)
    recipe = _shared_out(recipe, job_of, watch, scale_batch=request.scale_batch)
    preprocess = Preprocess(sizing.size, sizing.resize, recipe.mean, recipe.std)
    for line in sizing.changes(dataset.name):
        watch.note(line)
    if start is not None:
        start.network(spec)  # it fits, or is refused now
    return _Job(
        data=dataset.spec,
        arch=spec.canonical,
        recipe=recipe,
        seed=request.seed,
        amp=request.amp,
        val_fraction=request.val_fraction,
        test_fraction=dataset.test_fraction,
        division=dataset.division,
        skip_unreadable=request.skip_unreadable,
        command=command,
        created=now(),
        preprocess=preprocess,
        init=initial,
        compile=request.compile,
    )


def train_seeds(
    store: Store,
    request: TrainRequest,
    seeds: Sequence[int],
    *,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> list[TrainResult]:
    """Train the same request with several seeds, one after the other.

    Parameters
    ----------
    store
        Where the runs go.
    request
        What to train; its own seed does not matter, and its name becomes ``NAME-s0`` and so on.
    seeds
        The seeds.
    resume
        Go on with what is unfinished, and train no finished run again.
    command
        The command line, kept with every run.
    progress
        Told of every epoch.
    processes
        As for :func:`train`.

    Raises
    ------
    InvalidInputError
        If a seed stands twice, or there is none.
    OodError
        If one cannot be trained.
    """
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InvalidInputError("--seeds must be different numbers from 0, such as 0,1,2")
    watch = progress or Silent()
    results = []
    for seed in seeds:
        name = None if request.name is None else f"{request.name}-s{seed}"
        results.append(
            train(
                store,
                replace(request, seed=seed, name=name),
                resume=resume,
                command=command,
                progress=watch,
                processes=processes,
            )
        )
    every = " ".join(f"--run {result.run}" for result in results)
    watch.note(f"score each run; their mean and spread: ood report {every}")
    return results


def _named_apart(request: TrainRequest) -> TrainRequest:
    """Return the request with a network and an objective out of its settings."""
    apart: dict[str, Any] = {}
    others = []
    for pair in request.settings:
        key, _, text = (piece.strip() for piece in pair.partition("="))
        if key not in ("arch", "objective"):
            others.append(pair)
        elif getattr(request, key) is not None:
            raise InvalidInputError(f"--set {key} and --{key} contradict each other; leave one out")
        else:
            apart[key] = text
    return replace(request, settings=tuple(others), **apart)


def _as_published(recipe: Recipe, published: Pretrained, settings: Sequence[str]) -> Recipe:
    """Return a recipe with the normalisation of published weights, unless it was set."""
    given = {text.partition("=")[0].strip() for text in settings}
    wanted: dict[str, Any] = {"mean": published.mean, "std": published.std}
    return replace(recipe, **{name: wanted[name] for name in wanted if name not in given})


def _network_of(
    request: TrainRequest, data_name: str, init_arch: str | None
) -> tuple[str, Recipe | None]:
    """Return the architecture of a request as it is written, and the recipe that was named."""
    if request.pretrained and request.arch is None and request.recipe is None:
        raise InvalidInputError(
            "--pretrained needs a network that has published weights; name one: "
            "--arch torchvision:resnet50 or --arch timm:NAME"
        )
    named = None if request.recipe is None else recipe_named(request.recipe, data_name)
    usual = named.arch if named else default_architecture(data_name)
    return request.arch or init_arch or usual, named


def _recipe_of(
    request: TrainRequest, spec: ArchitectureSpec, data_name: str, named: Recipe | None
) -> Recipe:
    """Return the recipe of a request with its changes."""
    objective = None if request.objective is None else parse_objective(request.objective).canonical
    recipe = named or recipe_for(spec.name, data_name, objective or "cross-entropy")
    changed = replace(recipe, objective=objective or recipe.objective).changed(
        epochs=request.epochs,
        batch_size=request.batch_size,
        lr=request.lr,
        momentum=request.momentum,
        weight_decay=request.weight_decay,
    )
    changed = changed.with_settings(request.settings)
    canonical = parse_objective(changed.objective).canonical
    if changed.start == "trained" and request.init is None and not request.pretrained:
        raise InvalidInputError(
            f"recipe {changed.name} starts from a trained network; name one: --init RUN, "
            "--init FILE or --pretrained, or start from random weights: --set start=random"
        )
    return replace(changed, objective=canonical)


def _shared_out(recipe: Recipe, job_of: Processes, watch: Progress, *, scale_batch: bool) -> Recipe:
    """Return the recipe for all processes: as it is, or a batch of it for each of them."""
    size = job_of.size
    if scale_batch and size > 1:
        scaled = replace(
            recipe,
            batch_size=recipe.batch_size * size,
            lr=recipe.lr * size,
            lr_min=recipe.lr_min * size,
        )
        watch.note(
            f"linear scaling: batch size {recipe.batch_size} becomes {scaled.batch_size}, and "
            f"learning rate {recipe.lr:g} becomes {scaled.lr:g}"
        )
        return scaled
    if scale_batch:
        watch.note("--scale-batch changes nothing: torchrun has not started several processes")
    return recipe


def resume_run(
    store: Store,
    name: str | None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    processes: Processes | None = None,
    data_workers: int | None = None,
) -> TrainResult:
    """Go on with an unfinished run by its own settings.

    Parameters
    ----------
    store
        Where the run is.
    name
        Its name; the unfinished run begun last if None.
    device
        Where to compute.
    progress
        Told of every epoch.
    processes
        As for :func:`train`; there may be another number of them than before.
    data_workers
        As of a request; there may be another number of them than before.

    Raises
    ------
    MissingArtifactError
        If there is no unfinished run.
    """
    job_of = processes or Processes()
    watch = progress or Silent()
    torch_device = find_device(device)
    decoders = _decoders(data_workers, job_of, watch)
    if name is None:
        unfinished = [folder for folder in run_folders(store) if not folder.finished]
        if not unfinished:
            raise MissingArtifactError(
                f"there is no unfinished run in {store.root}; train one: ood train --data digits"
            )
        folder = unfinished[-1]
        watch.note(f"run: {folder.name}")
    else:
        folder = find_run(store, name)
    return _carry_on(
        store,
        folder,
        device=torch_device,
        watch=watch,
        dataset=None,
        job_of=job_of,
        decoders=decoders,
    )


def _decoders(workers: int | None, job_of: Processes, watch: Progress) -> Decoders:
    """Return who decodes; nobody is started yet."""
    return Decoders(worker_count(job_of.here) if workers is None else workers, progress=watch)


def _carry_on(
    store: Store,
    folder: RunFolder,
    *,
    device: torch.device,
    watch: Progress,
    dataset: Dataset | None,
    job_of: Processes,
    decoders: Decoders,
) -> TrainResult:
    if job_of.agreed(folder.finished):
        watch.note(f"run {folder.name} is finished already")
        return TrainResult(folder.name, folder.read(), 0)
    job = _Job.from_json(folder.read_training(), folder.name)
    opened = dataset or find_dataset(
        job.data,
        store,
        role="id",
        val_fraction=job.val_fraction,
        test_fraction=job.test_fraction,
        progress=watch,
    )
    check_division(opened, job.division, run=folder.name)
    return _train(
        store,
        folder,
        job,
        opened,
        device=device,
        watch=watch,
        job_of=job_of,
        decoders=decoders,
    )


def _same(store: Store, job: _Job, name: str | None) -> RunFolder | None:
    """Return the newest run of the same job, finished or not."""
    for folder in reversed(run_folders(store)):
        if name is not None and folder.name != name:
            continue
        if _identity(folder) == json.loads(json.dumps(job.identity())):
            return folder
        if name is not None:
            raise InvalidInputError(
                f"run {name} was begun with other settings; go on with its own: "
                f"ood train --resume --run {name}"
            )
    return None


def _identity(folder: RunFolder) -> dict[str, Any] | None:
    """Return what fixed the weights of a run; None if it was not trained or its record is bad."""
    with contextlib.suppress(CorruptArtifactError, KeyError):
        return _recorded(folder)
    return None


def _recorded(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.finished:
        return json.loads(
            json.dumps(_Job.from_json(folder.read_training(), folder.name).identity())
        )
    record = folder.read()
    if record.origin != "trained":
        return None
    identity = {
        "data": record.data,
        "arch": record.arch,
        "recipe": Recipe.from_json(record.recipe).to_json(),
        "seed": record.seed,
        "amp": record.training["amp"],
        "compile": record.training.get("compile", False),
        "val_fraction": record.val_fraction,
        "test_fraction": record.test_fraction,
        "division": record.division,
        "skip_unreadable": record.training["skip_unreadable"],
        "size": list(record.preprocess.size),
        "resize": record.preprocess.resize,
        "init": record.training.get("init"),
    }
    return json.loads(json.dumps(identity))


@contextlib.contextmanager
def _writing(store: Store, folder: RunFolder, watch: Progress) -> Iterator[None]:
    """Keep other processes from training a run, and from removing it."""
    name = run_lock(folder.name)
    with store.shared(name, progress=watch), store.lock(name, progress=watch):
        if not folder.ours:
            raise MissingArtifactError(
                f"run {folder.name} was removed or renamed just now; see: ood runs list"
            )
        yield


def _check_fraction(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise InvalidInputError(f"--{name}-fraction must be from 0 to below 1, not {value}")


def _train(
    store: Store,
    folder: RunFolder,
    job: _Job,
    dataset: Dataset,
    *,
    device: torch.device,
    watch: Progress,
    job_of: Processes,
    decoders: Decoders,
) -> TrainResult:
    one_writer = _writing(store, folder, watch) if job_of.first else contextlib.nullcontext()
    with one_writer, decoders, cpu_threads(job.recipe.threads):
        if job_of.agreed(folder.finished):
            return TrainResult(folder.name, folder.read(), 0)
        if job.compile:
            _check_compiled(device, job_of)
        _check_shares(job.recipe, job_of)
        preprocess = job.preprocess or preprocess_for(
            dataset.name, mean=job.recipe.mean, std=job.recipe.std
        )
        _check_several(dataset)
        dataset = _with_val(store, dataset, job, watch)
        parts = {
            name: _prepared(store, dataset, name, job=job, preprocess=preprocess, watch=watch)
            for name in ("train", "val")
            if name in dataset.parts and not (name == "val" and "test" not in dataset.parts)
        }
        # Test images that cannot be read are refused now, not after the training.
        test = _test_images(store, dataset, job=job, preprocess=preprocess, watch=watch)
        _check_classes(parts["train"], dataset)
        _deterministic(device)
        height, width = preprocess.size
        spec = parse_architecture(job.arch, side=height if height == width else None)
        classes = len(dataset.class_names)
        objective = parse_objective(job.recipe.objective).objective
        build = partial(
            _trainer,
            store,
            job,
            spec,
            objective,
            classes,
            device=device,
            size=preprocess.size,
            job_of=job_of,
        )
        trainer, history, best = _begun(folder, build, watch, job_of)
        begun = len(history)
        for remark in network_of(spec, trainer.module).remarks():
            watch.note(remark)
        watch.note(
            f"training {job.arch} on {len(parts['train'])} images of {dataset.name}, "
            f"{job.recipe.epochs} epoch{'s' * (job.recipe.epochs > 1)}, on {_where(device, job_of)}"
            + (f", going on after epoch {begun}" if begun else "")
        )
        watch.note(
            f"recipe {job.recipe.name} ({job.recipe.source}), {job.recipe.objective}"
            + ("" if job.init is None else f", from {job.init.source}")
        )
        if job.amp and not quick_in_bfloat16(device):
            watch.note(
                f"{device} has no instructions for bfloat16, so that --amp makes training slower; "
                "leave it out"
            )
        started = time.perf_counter()
        images = _images(
            dataset,
            parts,
            job.recipe,
            Resizing(preprocess.size, preprocess.resize),
            seed=job.seed,
            device=device,
            decoders=decoders,
            watch=watch,
            job_of=job_of,
        )
        if job.recipe.keep == "best" and "val" not in images:
            watch.note(
                f"{dataset.name} has no validation images, so that the last checkpoint counts "
                "and not the best; hold some out: --val-fraction 0.02"
            )
        with enough_memory(device, "take fewer images a step: --batch-size N"):
            best = _through_epochs(
                folder, trainer, job.recipe, images, history, best=best, watch=watch, job_of=job_of
            )
        outcome = history[-1] if best is None else history[best["epoch"] - 1]
        if objective.trains_last_layer:
            weights = weights_of(trainer.state()) if best is None else read_best(folder, best)
        else:
            outcome = {**outcome, **_fit_probe(trainer, images, classes, watch, job_of)}
            weights = weights_of(trainer.state())
        network = _finished(spec, weights, classes)
        record = _record(
            folder,
            job,
            dataset,
            network,
            preprocess=preprocess,
            history=history,
            outcome=outcome,
            last_layer="trained" if objective.trains_last_layer else PROBE,
            device=device,
            job_of=job_of,
        )
        tested = _tested(store, folder, record, test, device=device, watch=watch, job_of=job_of)
        record = replace(record, training={**record.training, "test": tested})
        if job_of.first:
            folder.write(record)
            drop_state(folder)
        job_of.meet()
        if best is not None:
            watch.note(f"the checkpoint of epoch {best['epoch']} counts, the best on validation")
        watch.note(
            f"run {folder.name} is ready after {time.perf_counter() - started:.1f} s of training"
        )
        if tested is not None:
            for line in _said_of(tested, dataset.name):
                watch.note(line)
        return TrainResult(folder.name, record, len(history) - begun)


def _test_images(
    store: Store, dataset: Dataset, *, job: _Job, preprocess: Preprocess, watch: Progress
) -> ImageSet | None:
    """Return the images that are tested on, None if there are none."""
    if dataset.parts.keys() == {"train"}:
        return None
    name = dataset.test_name
    images = _prepared(store, dataset, name, job=job, preprocess=preprocess, watch=watch)
    return replace(images, name=dataset.name)


def _tested(
    store: Store,
    folder: RunFolder,
    record: Run,
    images: ImageSet | None,
    *,
    device: torch.device,
    watch: Progress,
    job_of: Processes,
) -> dict[str, Any] | None:
    """Measure the accuracy on test images; None if there are none, or it cannot be measured."""
    if images is None:
        return None
    activator = Activator(
        store, folder, record, device=device, amp=False, batch_size=None, progress=watch
    )
    try:
        found = accuracy_on(activator, images, len(record.class_names), processes=job_of)
    except ProcessLostError:
        raise
    except OodError as error:
        watch.note(f"the test images were not classified: {error}")  # the training is done
        return None
    return found.to_json()


def _said_of(tested: Mapping[str, Any], data_name: str) -> Iterator[str]:
    right = 100 * tested["accuracy"]
    yield f"accuracy on {tested['n']:,} test images of {data_name}: {right:.2f} %"
    if tested["chance"] is not None:
        yield (
            "warning: that is hardly better than guessing "
            f"({100 * tested['chance']:.2f} %); train longer, or look at images and classes: "
            "ood datasets show"
        )


def _begun(
    folder: RunFolder, build: Callable[..., Trainer], watch: Progress, job_of: Processes
) -> tuple[Trainer, History, dict[str, Any] | None]:
    """Make the network as it is after the last good epoch, if there is one.

    Returns
    -------
    trainer
        The network in training, the same in every process.
    history
        One entry per finished epoch.
    best
        Where the best weights are, if they count.
    """
    before = job_of.agreed((folder.path / STATE).is_file())
    trainer = build(from_init=not before)
    state = load_state(folder, trainer, watch) if job_of.first else None
    history, best = job_of.agreed(state) or ([], None)
    if before and not history:
        watch.note(f"no state of run {folder.name} is whole: beginning again")
        trainer = build(from_init=True)
    trainer.follow_first()
    job_of.cure = (
        "the run goes on after its last finished epoch, with any number of processes: "
        f"ood train --resume --run {folder.name}"
    )
    return trainer, history, best


def _through_epochs(
    folder: RunFolder,
    trainer: Trainer,
    recipe: Recipe,
    images: Mapping[str, TrainingImages],
    history: History,
    *,
    best: dict[str, Any] | None,
    watch: Progress,
    job_of: Processes,
) -> dict[str, Any] | None:
    """Train the epochs that are left, add them to the history, and return where the best is."""
    begun, train = len(history), images["train"]
    total = (recipe.epochs - begun) * len(train)
    keep_best = recipe.keep == "best"
    with watch.task("training", total=total, unit="images") as task:
        try:
            for stats in trainer.epochs(
                train, images.get("val"), done=begun, task=task, progress=watch
            ):
                history.append(stats.to_json())
                share = train.waited / stats.seconds
                if stats.epoch == begun + 1 and share > MUCH_WAITING:
                    watch.note(
                        f"waiting for images took {100 * share:.0f} % of the time; more cores, "
                        "with --data-workers N for all of them, or smaller images help"
                    )
                if job_of.first:
                    best = save_state(folder, trainer, history, keep_best=keep_best)
        except NotFiniteError as error:
            if not history:
                raise
            raise InvalidInputError(
                f"{error}; the weights after epoch {len(history)} are kept, to start from: "
                f"--init {folder.name}"
            ) from None
    return job_of.agreed(best)


def _check_shares(recipe: Recipe, job_of: Processes) -> None:
    """Refuse a batch that has not an image for every process."""
    if recipe.batch_size < job_of.size:
        raise InvalidInputError(
            f"a batch of {recipe.batch_size} images cannot be shared by {job_of.size} processes; "
            "start fewer, or take more images a step: --batch-size N"
        )


def _check_compiled(device: torch.device, job_of: Processes) -> None:
    """Refuse to compile where that cannot be done, or is not tested."""
    if job_of.many:
        raise InvalidInputError(
            f"--compile is for one process, not for {job_of.size} that share batches; leave "
            "--compile out, or train a run that was begun with it in one process"
        )
    check_compiler(device)


def _trainer(
    store: Store,
    job: _Job,
    spec: ArchitectureSpec,
    objective: Objective,
    classes: int,
    *,
    device: torch.device,
    size: tuple[int, int],
    from_init: bool,
    job_of: Processes,
) -> Trainer:
    """Make the network as it is before its first step, and what trains it."""
    torch.manual_seed(job.seed)
    module = spec.build(classes)
    network = network_of(spec, module)
    network.check_image_size(*size)
    last_block = None
    if "maps" in objective.looks_at:
        name, (channels, _, _) = list(network.block_shapes(size).items())[-1]
        last_block = LastBlock(network.blocks[name], channels, network.layout(name).maps)
    head = spec.architecture.head
    if job.init is not None and from_init:
        job.init.read(store, spec).put_into(module, spec, digest=job.init.digest)
    objective.attach(module, head)
    return Trainer(
        module,
        job.recipe,
        seed=job.seed,
        device=device,
        amp=job.amp,
        objective=objective,
        head=head,
        last_block=last_block,
        channels_last=spec.architecture.channels_last,
        compiled=job.compile,
        processes=job_of,
    )


def _finished(spec: ArchitectureSpec, weights: Mapping[str, torch.Tensor], classes: int) -> Network:
    """Return the network without anything that only training needs."""
    with torch.random.fork_rng(devices=[]):
        module = spec.build(classes)
    if f"{spec.architecture.head}.tau" in weights:
        unit_features(module, spec.architecture.head)
    module.load_state_dict(weights)
    return network_of(spec, module)


def _with_val(store: Store, dataset: Dataset, job: _Job, watch: Progress) -> Dataset:
    """Return the data with the published validation images, where a recipe wants any."""
    if job.recipe.keep != "best" or "val" in dataset.parts or "test" not in dataset.parts:
        return dataset
    published = [b for b in BENCHMARKS.values() if b.id_set == dataset.name and b.id_val_list]
    for benchmark in published:
        with contextlib.suppress(OodError):
            val = split(dataset, benchmark.id_val_list, store).part
            watch.note(f"validation images: {len(val)} of the test images, as {benchmark.name} has")
            return replace(dataset, parts={**dataset.parts, "val": val})
    return dataset


def _fit_probe(
    trainer: Trainer,
    images: Mapping[str, TrainingImages],
    classes: int,
    watch: Progress,
    job_of: Processes,
) -> dict[str, float | None]:
    """Fit the last layer on what the network makes of the training images, and put it there."""
    watch.note("fitting a linear probe, which becomes the last layer")
    train = images["train"]
    features = trainer.features(train)
    if job_of.first:
        trainer.set_last_layer(*fit_probe(features, train.labels, classes))
    trainer.follow_first()
    val = images.get("val")
    return {
        "train_accuracy": trainer.accuracy(train),
        "val_accuracy": None if val is None else trainer.accuracy(val),
    }


def _prepared(
    store: Store,
    dataset: Dataset,
    part: str,
    *,
    job: _Job,
    preprocess: Preprocess,
    watch: Progress,
) -> ImageSet:
    images = prepare(
        dataset.parts[part],
        store,
        name=f"{dataset.name} {part}",
        size=preprocess.size,
        resize=preprocess.resize,
        progress=watch,
        skip_unreadable=job.skip_unreadable,
    )
    if images.skipped:
        watch.note(f"{images.name}: {len(images.skipped)} unreadable images are left out")
    if images.labels is None or len(images) == 0:
        raise InvalidInputError(f"the {part} part of {dataset.name} has no labelled images")
    return images


def _check_several(dataset: Dataset) -> None:
    """Refuse a classifier of one class, before an image is decoded."""
    if len(dataset.class_names) < 2:
        raise InvalidInputError(f"{dataset.name} has one class; a classifier needs two at least")


def _check_classes(train: ImageSet, dataset: Dataset) -> None:
    """Refuse a classifier that never sees a class."""
    names = dataset.class_names
    assert train.labels is not None  # _prepared has seen to it
    seen = np.bincount(train.labels, minlength=len(names))
    if not seen.all():
        name = names[int(seen.argmin())]
        raise InvalidInputError(
            f"class {name} of {dataset.name} has no training images left; add some, or remove it"
        )


def _where(device: torch.device, job_of: Processes) -> str:
    """Say where training computes, and how several processes share it."""
    if not job_of.many:
        return str(device)
    if device.type == "cuda":
        return f"{job_of.size} GPUs, each batch shared out and normalised as a whole"
    return f"{job_of.size} processes, each batch shared out and each share normalised by itself"


def _images(
    dataset: Dataset,
    parts: Mapping[str, ImageSet],
    recipe: Recipe,
    resizing: Resizing,
    *,
    seed: int,
    device: torch.device,
    decoders: Decoders,
    watch: Progress,
    job_of: Processes,
) -> dict[str, TrainingImages]:
    """Put the images on the device where they fit, and stream the others.

    Notes
    -----
    Whether training images are cropped out of their originals depends on the recipe and the images
    alone, and decides what comes out. Where images are held does not, and depends on the memory.
    """
    originals = OriginalSizes.of(dataset.parts["train"].source)
    cropped = crops_originals(recipe) and originals.differ_from(resizing.size)
    held = [name for name in parts if not (name == "train" and cropped)]
    free = free_memory(device)
    if free is not None and device.type != "cuda":
        free //= job_of.here  # all processes of a host share its memory
    free = job_of.agreed(free)
    if not fits(sum(len(parts[name]) for name in held), resizing.size, free):
        held = [
            name for name in held if name != "train" and fits(len(parts[name]), resizing.size, free)
        ]
    images: dict[str, TrainingImages] = {}
    for name, part in parts.items():
        assert part.labels is not None  # _prepared has seen to it
        labels = torch.from_numpy(part.labels).to(device)
        if name in held:
            pixels = torch.from_numpy(np.ascontiguousarray(part.pixels()))
            images[name] = LabelledPixels(pixels.to(device), labels)
        else:
            images[name] = StreamedImages(
                dataset.parts[name].source,
                np.concatenate([shard.indices for shard in part.shards]),
                labels,
                resizing=resizing,
                decoders=decoders,
                crop_scale=recipe.crop_scale if name == "train" and cropped else None,
                seed=seed,
            )
    if "train" not in held:
        workers = f"{decoders.workers} processes" if decoders.workers else "this process"
        watch.note(
            f"training images are decoded as they are needed, by {workers}: "
            + (
                "they are cropped out of their originals"
                if cropped
                else "there are too many to be held in memory"
            )
        )
    return images


def _deterministic(device: torch.device) -> None:
    """Make two trainings with the same seed give the same weights."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def _record(
    folder: RunFolder,
    job: _Job,
    dataset: Dataset,
    network: Network,
    *,
    preprocess: Preprocess,
    history: History,
    outcome: Mapping[str, Any],
    last_layer: str,
    device: torch.device,
    job_of: Processes,
) -> Run:
    if job_of.first:
        save_weights(network, folder.weights)
        write_history(folder, history)
    job_of.meet()
    return Run(
        origin="trained",
        created=now(),
        arch=job.arch,
        data=job.data,
        data_name=dataset.name,
        class_names=tuple(dataset.class_names),
        preprocess=preprocess,
        blocks=tuple(network.blocks),
        network=network.digest,
        weights=digest_of_file(folder.weights),
        recipe=job.recipe.to_json(),
        seed=job.seed,
        parts={name: len(part) for name, part in dataset.parts.items()},
        val_fraction=job.val_fraction,
        test_fraction=job.test_fraction,
        division=job.division,
        versions=versions(),
        command=job.command,
        training={
            "device": str(device),
            "processes": job_of.size,
            "amp": job.amp,
            "compile": job.compile,
            "skip_unreadable": job.skip_unreadable,
            "threads": torch.get_num_threads(),
            "seconds": sum(line["seconds"] for line in history),
            "loss": outcome["loss"],
            "train_accuracy": outcome["train_accuracy"],
            "val_accuracy": outcome["val_accuracy"],
            "checkpoint": outcome["epoch"],
            "last_layer": last_layer,
            "init": None if job.init is None else job.init.to_json(),
            "history": digest_of_file(folder.history),
        },
    )
