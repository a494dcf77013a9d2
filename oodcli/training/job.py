"""The job of a training, which fixes its weights: settled from a request, and found again."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from oodcli.compute.processes import Processes
from oodcli.data.benchmarks import given_name
from oodcli.data.dataset import Dataset
from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.models import (
    ArchitectureSpec,
    Pretrained,
    parse_architecture,
    published_configuration,
)
from oodcli.progress import Progress
from oodcli.store.runs import Job, Preprocess, RunFolder, TrainingRecord, run_folders
from oodcli.store.store import Store
from oodcli.training.initial import Initial, InitialWeights, initial_weights, published_weights
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.preprocessing import sizing_for
from oodcli.training.recipes import Recipe, default_architecture, recipe_for, recipe_named


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

    # Flat: a field for every option of the command, under its name and with its default.
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


def recipe_of(job: Job) -> Recipe:
    """Return the recipe of a job, which stores it as JSON has it.

    Parameters
    ----------
    job
        A job of training.

    Raises
    ------
    TypeError
        If a recipe has no such values.
    InvalidInputError
        If a value is impossible.
    """
    return Recipe.from_json(job.recipe)


def initial_of(job: Job) -> Initial | None:
    """Return what the weights of a job begin from; None if they are random.

    Parameters
    ----------
    job
        A job of training.

    Raises
    ------
    TypeError
        If it is not as it is stored.
    """
    return None if job.init is None else Initial(**job.init)


def resumed(folder: RunFolder) -> TrainingRecord:
    """Return what an unfinished run is trained with.

    Parameters
    ----------
    folder
        The run.

    Raises
    ------
    CorruptArtifactError
        If it cannot be read.
    """
    begun = folder.read_training()
    try:
        recipe_of(begun.job), initial_of(begun.job)
    except (TypeError, InvalidInputError) as error:
        raise CorruptArtifactError(
            f"the unfinished run {folder.name} is damaged: {error}; "
            f"remove it: ood runs remove {folder.name}"
        ) from None
    return begun


def named_apart(request: TrainRequest) -> TrainRequest:
    """Return the request with a network and an objective out of its settings.

    Parameters
    ----------
    request
        The request as it was given.

    Raises
    ------
    InvalidInputError
        If an option and a setting contradict each other.
    """
    apart: dict[str, Any] = {}
    others = []
    for pair in request.settings:
        key, _, text = (piece.strip() for piece in pair.partition("="))
        if key not in ("arch", "objective"):
            others.append(pair)
        elif getattr(request, key) is not None:
            raise InvalidInputError(
                f"--set {key} and --{key} contradict each other; remove one of them"
            )
        else:
            apart[key] = text
    return replace(request, settings=tuple(others), **apart)


def planned(
    store: Store,
    request: TrainRequest,
    dataset: Dataset,
    *,
    progress: Progress,
    processes: Processes,
) -> Job:
    """Settle all that fixes the weights, and refuse what does not fit together.

    Parameters
    ----------
    store
        Where the runs are.
    request
        What to train, and how, by :func:`named_apart`.
    dataset
        The data.
    progress
        Reports what was chosen from the images.
    processes
        The processes that train together.

    Raises
    ------
    OodError
        If the architecture, the recipe, the size or the first weights cannot be used, or do not fit
        together.
    """
    start = _start(store, request, progress)
    usual = None if start is None else start.named.arch
    arch, named = _network_of(request, given_name(dataset.spec), usual)
    sizing = sizing_for(
        "training",
        dataset,
        arch,
        published=published_configuration(
            arch, request.init if request.pretrained else None, download=request.pretrained
        ),
        certain=request.pretrained,
        image_size=request.image_size,
        resize=request.resize,
    )
    spec = parse_architecture(arch, side=sizing.side)
    spec.architecture.check_trainable()
    recipe = _recipe_of(request, spec, given_name(dataset.spec), named)
    published = None
    if request.pretrained:
        # One process downloads before the others look.
        start, published = processes.in_turn(partial(published_weights, spec, request.init))
    if published is not None:
        recipe = _as_published(recipe, published, request.settings)
    recipe = _shared_out(recipe, processes, progress, scale_batch=request.scale_batch)
    for line in sizing.changes(dataset.name):
        progress.note(line)
    if start is not None:
        start.network(spec)  # it fits, or is refused now
    return Job(
        data=dataset.spec,
        arch=spec.canonical,
        recipe=recipe.to_json(),
        seed=request.seed,
        amp=request.amp,
        val_fraction=request.val_fraction,
        test_fraction=dataset.test_fraction,
        division=dataset.division,
        skip_unreadable=request.skip_unreadable,
        preprocess=Preprocess(sizing.size, sizing.resize, recipe.mean, recipe.std),
        init=None if start is None else start.named.to_json(),
        compile=request.compile,
    )


def _start(store: Store, request: TrainRequest, progress: Progress) -> InitialWeights | None:
    """Return the weights of a run or a checkpoint to start from; None if none are named."""
    if request.init is None or request.pretrained:
        return None
    if Path(request.init).exists() and request.init in {f.name for f in run_folders(store)}:
        progress.note(
            f"--init {request.init} means the run, not the file {request.init} in "
            f"this folder; to use the file: ./{request.init}"
        )
    return initial_weights(store, request.init)


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


def _as_published(recipe: Recipe, published: Pretrained, settings: Sequence[str]) -> Recipe:
    """Return a recipe with the normalisation of published weights, unless it was set."""
    given = {text.partition("=")[0].strip() for text in settings}
    wanted: dict[str, Any] = {"mean": published.mean, "std": published.std}
    return replace(recipe, **{name: wanted[name] for name in wanted if name not in given})


def _shared_out(
    recipe: Recipe, processes: Processes, progress: Progress, *, scale_batch: bool
) -> Recipe:
    """Return the recipe for all processes: as it is, or a batch of it for each of them."""
    size = processes.size
    if scale_batch and size > 1:
        scaled = replace(
            recipe,
            batch_size=recipe.batch_size * size,
            lr=recipe.lr * size,
            lr_min=recipe.lr_min * size,
        )
        progress.note(
            f"linear scaling: batch size {recipe.batch_size} becomes {scaled.batch_size}, and "
            f"learning rate {recipe.lr:g} becomes {scaled.lr:g}"
        )
        return scaled
    if scale_batch:
        progress.note("--scale-batch has no effect: torchrun has not started several processes")
    return recipe


def same_run(store: Store, job: Job, name: str | None) -> RunFolder | None:
    """Return the newest run of the same job, finished or not.

    Parameters
    ----------
    store
        Where the runs are.
    job
        The job.
    name
        Name of the run; any if None.

    Raises
    ------
    InvalidInputError
        If the run of that name has another job.
    """
    for folder in reversed(run_folders(store)):
        if name is not None and folder.name != name:
            continue
        if _job_of(folder) == job:
            return folder
        if name is not None:
            raise InvalidInputError(
                f"run {name} was started with other settings; resume it with its own: "
                f"ood train --resume --run {name}"
            )
    return None


def _job_of(folder: RunFolder) -> Job | None:
    """Return what fixed the weights of a run; None if it was not trained or its record is bad."""
    with contextlib.suppress(CorruptArtifactError, InvalidInputError, TypeError):
        if not folder.finished:
            job = resumed(folder).job
        elif (record := folder.read()).origin == "trained":
            job = record.job
        else:
            return None
        # What recipes have had only since then is as it was without it.
        return replace(job, recipe=recipe_of(job).to_json())
    return None
