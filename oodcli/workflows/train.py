"""Training of a classifier into a run, resumable after every epoch."""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from oodcli.data.dataset import Dataset
from oodcli.data.prepare import prepare
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MissingArtifactError,
    OodError,
)
from oodcli.images import ImageSet
from oodcli.models import (
    Network,
    network_of,
    parse_architecture,
    save_weights,
)
from oodcli.progress import Progress, Silent
from oodcli.runs import (
    TRAINING,
    Preprocess,
    Run,
    RunFolder,
    find_run,
    new_name,
    now,
    remove_run,
    run_folders,
    training_lock,
)
from oodcli.store import (
    Store,
    digest_of_bytes,
    read_arrays,
    read_json,
    replacing,
    write_arrays,
    write_json,
)
from oodcli.training.loop import LabelledPixels, Trainer
from oodcli.training.recipes import Recipe, default_architecture, recipe_for
from oodcli.workflows.devices import enough_memory, find_device, versions
from oodcli.workflows.run_data import find_dataset, preprocess_for

TRAINING_SCHEMA = 1
_STATE = "state.json"


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
    epochs, batch_size, lr, momentum, weight_decay
        Changes of the recipe.
    device, amp
        Where to compute, and whether in bfloat16.
    val_fraction
        Share of the training images to hold out for validation.
    skip_unreadable
        Whether to leave out images that cannot be decoded.
    """

    data: str
    arch: str | None = None
    name: str | None = None
    seed: int = 0
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    device: str = "auto"
    amp: bool = False
    val_fraction: float = 0.0
    skip_unreadable: bool = False


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
    skip_unreadable: bool
    command: str
    created: str

    def identity(self) -> dict[str, Any]:
        """Return what fixes the weights that come out."""
        return {
            "data": self.data,
            "arch": self.arch,
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "amp": self.amp,
            "val_fraction": self.val_fraction,
            "skip_unreadable": self.skip_unreadable,
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
            return cls(
                data=content["data"],
                arch=content["arch"],
                recipe=Recipe.from_json(content["recipe"]),
                seed=content["seed"],
                amp=content["amp"],
                val_fraction=content["val_fraction"],
                skip_unreadable=content["skip_unreadable"],
                command=content["command"],
                created=content["created"],
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

    Raises
    ------
    OodError
        If the data, the architecture, the recipe or the device cannot be used, or the loss is not
        finite.
    """
    watch = progress or Silent()
    device = find_device(request.device)
    dataset = find_dataset(
        request.data,
        store,
        role="id",
        val_fraction=_fraction(request.val_fraction),
        progress=watch,
    )
    if "train" not in dataset.parts:
        raise InvalidInputError(f"{dataset.name} at {dataset.location} has no training images")
    spec = parse_architecture(request.arch or default_architecture(dataset.name))
    recipe = recipe_for(spec.name, dataset.name).changed(
        epochs=request.epochs,
        batch_size=request.batch_size,
        lr=request.lr,
        momentum=request.momentum,
        weight_decay=request.weight_decay,
    )
    job = _Job(
        data=dataset.spec,
        arch=spec.canonical,
        recipe=recipe,
        seed=request.seed,
        amp=request.amp,
        val_fraction=request.val_fraction,
        skip_unreadable=request.skip_unreadable,
        command=command,
        created=now(),
    )
    with store.lock("runs"):
        same = _same(store, job, request.name) if resume else None
        if same is None:
            default = f"{dataset.name}-{spec.canonical}-s{request.seed}"
            folder = RunFolder(store.runs / new_name(store, request.name, default))
            write_json(folder.path / TRAINING, job.to_json())
    if same is not None:
        return _carry_on(store, same, device=device, watch=watch, dataset=dataset)
    try:
        return _train(store, folder, job, dataset, device=device, watch=watch)
    except OodError:
        # Before its first epoch a run is nothing but in the way of the corrected command.
        if not (folder.path / _STATE).is_file():
            remove_run(store, folder.name)
        raise


def resume_run(
    store: Store, name: str | None, *, device: str = "auto", progress: Progress | None = None
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

    Raises
    ------
    MissingArtifactError
        If there is no unfinished run.
    """
    watch = progress or Silent()
    torch_device = find_device(device)
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
    return _carry_on(store, folder, device=torch_device, watch=watch, dataset=None)


def _carry_on(
    store: Store,
    folder: RunFolder,
    *,
    device: torch.device,
    watch: Progress,
    dataset: Dataset | None,
) -> TrainResult:
    if folder.finished:
        watch.note(f"run {folder.name} is finished already")
        return TrainResult(folder.name, folder.read(), 0)
    job = _Job.from_json(folder.read_training(), folder.name)
    opened = dataset or find_dataset(
        job.data, store, role="id", val_fraction=job.val_fraction, progress=watch
    )
    return _train(store, folder, job, opened, device=device, watch=watch)


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
        content = folder.read_training()
        return {
            k: v for k, v in content.items() if k not in ("kind", "schema", "command", "created")
        }
    record = folder.read()
    if record.origin != "trained":
        return None
    identity = {
        "data": record.data,
        "arch": record.arch,
        "recipe": dict(record.recipe),
        "seed": record.seed,
        "amp": record.training["amp"],
        "val_fraction": record.val_fraction,
        "skip_unreadable": record.training["skip_unreadable"],
    }
    return json.loads(json.dumps(identity))


def _fraction(value: float) -> float:
    if not 0 <= value < 1:
        raise InvalidInputError(f"--val-fraction must be from 0 to below 1, not {value}")
    return value


def _train(
    store: Store,
    folder: RunFolder,
    job: _Job,
    dataset: Dataset,
    *,
    device: torch.device,
    watch: Progress,
) -> TrainResult:
    with store.lock(training_lock(folder.name), progress=watch):
        if folder.finished:
            return TrainResult(folder.name, folder.read(), 0)
        preprocess = preprocess_for(dataset.name, mean=job.recipe.mean, std=job.recipe.std)
        parts = {
            name: _prepared(store, dataset, name, job=job, preprocess=preprocess, watch=watch)
            for name in ("train", "val")
            if name in dataset.parts and not (name == "val" and "test" not in dataset.parts)
        }
        _deterministic(device)
        torch.manual_seed(job.seed)
        spec = parse_architecture(job.arch)
        module = spec.build(len(dataset.class_names))
        trainer = Trainer(module, job.recipe, seed=job.seed, device=device, amp=job.amp)
        history = _load_state(folder, trainer, watch)
        begun = len(history)
        watch.note(
            f"training {job.arch} on {len(parts['train'])} images of {dataset.name}, "
            f"{job.recipe.epochs} epochs, on {device}"
            + (f", going on after epoch {begun}" if begun else "")
        )
        started = time.perf_counter()
        images = {name: _loaded(part, device) for name, part in parts.items()}
        total = (job.recipe.epochs - begun) * len(images["train"])
        cure = "take fewer images a step: --batch-size N"
        with (
            enough_memory(device, cure),
            watch.task("training", total=total, unit="images") as task,
        ):
            for stats in trainer.epochs(images["train"], images.get("val"), done=begun, task=task):
                history.append(stats.to_json())
                _save_state(folder, trainer, history)
        network = network_of(spec, module.cpu())
        record = _record(
            folder, job, dataset, network, preprocess=preprocess, history=history, device=device
        )
        folder.write(record)
        _drop_state(folder)
        watch.note(
            f"run {folder.name} is ready after {time.perf_counter() - started:.1f} s of training"
        )
        return TrainResult(folder.name, record, len(history) - begun)


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


def _loaded(images: ImageSet, device: torch.device) -> LabelledPixels:
    assert images.labels is not None  # _prepared has seen to it
    return LabelledPixels(
        torch.from_numpy(np.ascontiguousarray(images.pixels())).to(device),
        torch.from_numpy(images.labels).to(device),
    )


def _deterministic(device: torch.device) -> None:
    """Make two trainings with the same seed give the same weights."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def _save_state(folder: RunFolder, trainer: Trainer, history: list[dict[str, Any]]) -> None:
    """Store the state after an epoch: first the tensors, then the note that they are good."""
    epoch = len(history)
    path = folder.path / f"state-{epoch:04d}.safetensors"
    arrays = {name: tensor.numpy() for name, tensor in trainer.state().items()}
    digest = write_arrays(path, arrays)
    write_json(folder.path / _STATE, {"file": path.name, "digest": digest, "history": history})
    for old in folder.path.glob("state-*.safetensors"):
        if old != path:
            old.unlink(missing_ok=True)


def _load_state(folder: RunFolder, trainer: Trainer, watch: Progress) -> list[dict[str, Any]]:
    """Take up the state of the last finished epoch and return the history up to it."""
    path = folder.path / _STATE
    if not path.is_file():
        return []
    try:
        content = read_json(path)
        arrays = read_arrays(folder.path / content["file"], digest=content["digest"])
        trainer.load_state({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
    except (CorruptArtifactError, FileNotFoundError, KeyError, RuntimeError):
        watch.note(f"the saved state of run {folder.name} is damaged: beginning again")
        return []
    history = content["history"]
    return list(history)


def _drop_state(folder: RunFolder) -> None:
    for path in (folder.path / _STATE, *folder.path.glob("state-*.safetensors")):
        path.unlink(missing_ok=True)


def _record(
    folder: RunFolder,
    job: _Job,
    dataset: Dataset,
    network: Network,
    *,
    preprocess: Preprocess,
    history: list[dict[str, Any]],
    device: torch.device,
) -> Run:
    save_weights(network, folder.weights)
    with replacing(folder.history) as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in history).encode())
    last = history[-1]
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
        weights=digest_of_bytes(folder.weights.read_bytes()),
        recipe=job.recipe.to_json(),
        seed=job.seed,
        parts={name: len(part) for name, part in dataset.parts.items()},
        val_fraction=job.val_fraction,
        versions=versions(),
        command=job.command,
        training={
            "device": str(device),
            "amp": job.amp,
            "skip_unreadable": job.skip_unreadable,
            "threads": torch.get_num_threads(),
            "seconds": sum(line["seconds"] for line in history),
            "loss": last["loss"],
            "train_accuracy": last["train_accuracy"],
            "val_accuracy": last["val_accuracy"],
        },
    )
