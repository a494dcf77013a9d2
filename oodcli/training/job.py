"""The job of a training run: everything that determines its weights, built from a request."""

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
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.preprocess import Preprocess
from oodcli.store.run_names import run_folders
from oodcli.store.runs import Job, RunFolder, TrainingRecord
from oodcli.store.store import Store
from oodcli.training.augmentations.mixtures import check_combination
from oodcli.training.initial import Initial, InitialWeights, initial_weights, published_weights
from oodcli.training.mixing_sets import MixingSets
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.outlier_sets import OutlierSets, plan_outliers
from oodcli.training.preprocessing import sizing_for
from oodcli.training.recipe_choice import default_architecture, recipe_for, recipe_named
from oodcli.training.recipes import Recipe
from oodcli.windows import canonical


@dataclass(frozen=True)
class TrainRequest:
    """Options of a training run; None takes the value of the published recipe.

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
        Name of a published recipe; None: chosen by objective, architecture and data set.
    objective
        Objective with parameters, such as ``t2fnorm:tau=0.05``.
    epochs, batch_size, lr, momentum, weight_decay
        Values that replace those of the recipe.
    settings
        Further values of the recipe, ``KEY=VALUE`` each.
    init
        A run or a checkpoint to start from; random weights if None. With ``pretrained``, a weight
        file or the name of a set of published weights; the default set if None.
    pretrained
        Whether to start from published weights of the network: images then get the size and the
        normalisation that these weights expect, unless the request specifies others.
    outliers
        For objectives that are trained with outliers: a set, or a kind that is made from the
        training images, a key of :data:`oodcli.training.outliers.MADE`.
    outlier_batch_size
        Outliers per step.
    mixing_set
        For recipes with the augmentation ``pixmix``: a set of pictures; None: the published one if
        the store has it, else fractals that are computed.
    image_size, resize
        Height and width of the images in pixels, and how images are resized to them; None: as in
        the benchmark of the data set, or derived from the sizes of the images.
    jpeg_draft
        Whether JPEG files are decoded at a reduced size, see :class:`oodcli.resizing.Resize`.
    window
        Which values of medical images are black and white; see :mod:`oodcli.windows`.
    device, amp
        The device, and whether the network computes in bfloat16.
    val_fraction
        Fraction of the training images to hold out for validation.
    test_fraction
        Fraction of the images to hold out for testing if the data set has no test part;
        ``TEST_FRACTION`` if None.
    skip_unreadable
        Whether to skip images that cannot be decoded.
    check_images
        Whether to decode all images once before training, to find those that cannot be decoded,
        also where they are decoded on the fly. The weights do not depend on it.
    compile
        Whether torch compiles the network for its training steps.
    scale_batch
        With several processes: whether each uses the batch size of the recipe, with the learning
        rate multiplied by the number of processes; otherwise they share one batch.
    data_workers
        Processes that decode streamed images, per training process; None: the cores divided among
        the training processes. The weights do not depend on it.
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
    outliers: str | None = None
    outlier_batch_size: int | None = None
    mixing_set: str | None = None
    image_size: int | None = None
    resize: str | None = None
    jpeg_draft: bool = False
    window: str | None = None
    device: str = "auto"
    amp: bool = False
    val_fraction: float = 0.0
    test_fraction: float | None = None
    skip_unreadable: bool = False
    check_images: bool = False
    compile: bool = False
    scale_batch: bool = False
    data_workers: int | None = None


def recipe_of(job: Job) -> Recipe:
    """Return the recipe of a job, which stores it as JSON.

    Parameters
    ----------
    job
        A training job.

    Raises
    ------
    TypeError
        If the stored recipe has unknown fields.
    InvalidInputError
        If a value is invalid.
    """
    return Recipe.from_json(job.recipe)


def initial_of(job: Job) -> Initial | None:
    """Return the source of the initial weights of a job; None if they are random.

    Parameters
    ----------
    job
        A training job.

    Raises
    ------
    TypeError
        If the stored source has unknown fields.
    """
    return None if job.init is None else Initial(**job.init)


def read_unfinished(folder: RunFolder) -> TrainingRecord:
    """Return the job and the command of an unfinished run.

    Parameters
    ----------
    folder
        The run.

    Raises
    ------
    CorruptArtifactError
        If the stored job cannot be read.
    """
    begun = folder.read_training()
    try:
        recipe_of(begun.job), initial_of(begun.job), OutlierSource.of(begun.job.outliers)
        OutlierSource.of(begun.job.mixing)
    except (TypeError, InvalidInputError) as error:
        raise CorruptArtifactError(
            f"the unfinished run {folder.name} is damaged: {error}; "
            f"remove it: ood runs remove {folder.name}"
        ) from None
    return begun


def with_settings_as_options(request: TrainRequest) -> TrainRequest:
    """Move ``arch`` and ``objective`` from the settings of a request to their own fields.

    Parameters
    ----------
    request
        The request as given by the user.

    Raises
    ------
    InvalidInputError
        If an option and a setting contradict each other.
    """
    options: dict[str, Any] = {}
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
            options[key] = text
    return replace(request, settings=tuple(others), **options)


def plan_job(
    store: Store,
    request: TrainRequest,
    dataset: Dataset,
    *,
    progress: Progress,
    processes: Processes,
) -> Job:
    """Determine everything that the weights depend on, and refuse what is incompatible.

    Parameters
    ----------
    store
        Store of the runs.
    request
        The options, from :func:`with_settings_as_options`.
    dataset
        The data.
    progress
        Reports what was derived from the images.
    processes
        The processes that train together.

    Raises
    ------
    OodError
        If the architecture, the recipe, the image size or the initial weights are invalid or
        incompatible with each other.
    """
    start = _initial_weights(store, request, progress)
    initial_arch = None if start is None else start.origin.arch
    arch, named = _network_of(request, given_name(dataset.spec), initial_arch)
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
        jpeg_draft=request.jpeg_draft,
    )
    spec = parse_architecture(arch, side=sizing.side)
    spec.architecture.check_trainable()
    recipe = _recipe_of(request, spec, given_name(dataset.spec), named)
    parse_objective(recipe.objective).objective.check(sizing.size)
    published = None
    if request.pretrained:
        # One process downloads the weights before the others read them.
        start, published = processes.in_turn(partial(published_weights, spec, request.init))
    if published is not None:
        recipe = _as_published(recipe, published, request.settings)
    recipe = _scaled(recipe, processes, progress, scale_batch=request.scale_batch)
    for line in sizing.changes(dataset.name):
        progress.note(line)
    if start is not None:
        start.network(spec)  # refuses weights that do not fit
    preprocess = Preprocess(
        sizing.size, sizing.resize, recipe.mean, recipe.std, canonical(request.window)
    )
    sets = OutlierSets(store, preprocess, request.skip_unreadable, progress)
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
        preprocess=preprocess,
        init=None if start is None else start.origin.to_json(),
        **_added_images(sets, request, recipe, processes),
        compile=request.compile,
    )


def _added_images(
    sets: OutlierSets, request: TrainRequest, recipe: Recipe, processes: Processes
) -> dict[str, dict[str, Any] | None]:
    """Return the records of the outliers and of the mixing set of a training; None without them."""
    mixing = MixingSets(sets).plan(request.mixing_set, recipe, processes=processes)
    outliers = plan_outliers(
        sets,
        request.outliers,
        parse_objective(recipe.objective),
        recipe,
        batch_size=request.outlier_batch_size,
        processes=processes,
    )
    return {
        "outliers": None if outliers is None else outliers.to_json(),
        "mixing": None if mixing is None else mixing.to_json(),
    }


def _initial_weights(
    store: Store, request: TrainRequest, progress: Progress
) -> InitialWeights | None:
    """Return the initial weights from a run or a checkpoint; None if the request has none."""
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
    """Return the architecture of a request as text, and the recipe that the request names."""
    if request.pretrained and request.arch is None and request.recipe is None:
        raise InvalidInputError(
            "--pretrained needs a network that has published weights; specify one: "
            "--arch torchvision:resnet50 or --arch timm:NAME"
        )
    named = None if request.recipe is None else recipe_named(request.recipe, data_name)
    default = named.arch if named else default_architecture(data_name)
    return request.arch or init_arch or default, named


def _recipe_of(
    request: TrainRequest, spec: ArchitectureSpec, data_name: str, named: Recipe | None
) -> Recipe:
    """Return the recipe of a request with the values that the request changes."""
    objective = request.objective
    if objective is not None:
        parse_objective(objective)  # refuses what is wrong with it
    recipe = (
        recipe_for(spec.name, data_name, objective or "cross-entropy")
        if named is None
        else replace(named, objective=objective or named.objective)
    )
    changed = recipe.changed(
        epochs=request.epochs,
        batch_size=request.batch_size,
        lr=request.lr,
        momentum=request.momentum,
        weight_decay=request.weight_decay,
        outlier_batch_size=request.outlier_batch_size,
    )
    changed = changed.with_settings(request.settings)
    chosen = parse_objective(changed.objective)
    check_combination(changed, chosen.canonical, chosen.objective)
    if changed.start == "trained" and request.init is None and not request.pretrained:
        raise InvalidInputError(
            f"recipe {changed.name} starts from a trained network; specify one: --init RUN, "
            "--init FILE or --pretrained, or start from random weights: --set start=random"
        )
    return replace(changed, objective=chosen.canonical)


def _as_published(recipe: Recipe, published: Pretrained, settings: Sequence[str]) -> Recipe:
    """Return a recipe with the normalisation of published weights, unless the user set one."""
    given = {text.partition("=")[0].strip() for text in settings}
    wanted: dict[str, Any] = {"mean": published.mean, "std": published.std}
    return replace(recipe, **{name: wanted[name] for name in wanted if name not in given})


def _scaled(
    recipe: Recipe, processes: Processes, progress: Progress, *, scale_batch: bool
) -> Recipe:
    """Return the recipe of the job: with ``scale_batch``, scaled by the number of processes."""
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
        progress.note("--scale-batch has no effect: there is only one process")
    return recipe


def same_run(store: Store, job: Job, name: str | None) -> RunFolder | None:
    """Return the newest run of the same job, finished or not; None if there is none.

    Parameters
    ----------
    store
        Store of the runs.
    job
        The job.
    name
        Name of the run; None: any run.

    Raises
    ------
    InvalidInputError
        If the run of that name has a different job.
    """
    for folder in reversed(run_folders(store)):
        if name is not None and folder.name != name:
            continue
        if _job_of(folder) == job:
            return folder
        if name is not None:
            raise InvalidInputError(
                f"run {name} was started with other settings; to resume it with its own settings: "
                f"ood train --resume --run {name}"
            )
    return None


def _job_of(folder: RunFolder) -> Job | None:
    """Return the job of a run; None if it was not trained, or its record cannot be read."""
    with contextlib.suppress(CorruptArtifactError, InvalidInputError, TypeError):
        if not folder.finished:
            job = read_unfinished(folder).job
        elif (record := folder.read()).origin == "trained":
            job = record.job
        else:
            return None
        # Adds the defaults of fields that recipes did not have when the run was started.
        return replace(job, recipe=recipe_of(job).to_json())
    return None
