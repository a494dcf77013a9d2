"""One session of training: from the images to the record, interrupted and resumed at any time."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from oodcli.compute.devices import (
    check_compiler,
    cpu_threads,
    explain_out_of_memory,
    has_fast_bfloat16,
    versions,
)
from oodcli.compute.processes import Processes
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.random_access import Decoders
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import InvalidInputError, MissingArtifactError
from oodcli.images import ImageSet
from oodcli.models import (
    ArchitectureSpec,
    Network,
    network_of,
    parse_architecture,
    save_weights,
    unit_features,
)
from oodcli.progress import Progress
from oodcli.store.runs import STATE, Job, Run, RunFolder, TrainingRecord, run_lock, utc_now
from oodcli.store.store import Store, digest_of_file
from oodcli.text import counted
from oodcli.training.images import (
    check_classes,
    check_several,
    labelled_images,
    placed_images,
    with_published_val,
)
from oodcli.training.initial import Initial
from oodcli.training.job import initial_of, recipe_of
from oodcli.training.linear_probe import fit_probe
from oodcli.training.loop import MUCH_WAITING, NotFiniteError, Trainer, weights_of
from oodcli.training.objectives.base import Objective
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.objectives.student import LastBlock
from oodcli.training.recipes import Recipe
from oodcli.training.state import (
    History,
    drop_state,
    load_state,
    read_best,
    save_state,
    write_history,
)
from oodcli.training.streaming import TrainingImages

PROBE = "linear probe"
Best = dict[str, Any] | None
# Classifies the test images with a run whose weights are written; None where that fails.
Test = Callable[[Run, ImageSet], dict[str, Any] | None]


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
class Session:
    """A run that is trained from where it stands to its end.

    Parameters
    ----------
    store
        Where the run is.
    folder
        The run.
    begun
        What fixes its weights, and the command that began it.
    dataset
        Its data.
    device
        The device that trains.
    decoders
        The processes that decode streamed images; started and ended here.
    test
        Classifies the test images.
    progress
        Reports every epoch.
    processes
        The processes that train together; the first one alone writes.
    """

    store: Store
    folder: RunFolder
    begun: TrainingRecord
    dataset: Dataset
    device: torch.device
    decoders: Decoders
    test: Test
    progress: Progress
    processes: Processes

    @property
    def job(self) -> Job:
        """What fixes the weights."""
        return self.begun.job

    @property
    def seed(self) -> int:
        """Seed of all chance in training."""
        assert self.job.seed is not None  # only an imported network has none
        return self.job.seed

    @cached_property
    def recipe(self) -> Recipe:
        """The schedule."""
        return recipe_of(self.job)

    @cached_property
    def init(self) -> Initial | None:
        """Where the first weights come from; None if they are random."""
        return initial_of(self.job)

    @cached_property
    def data(self) -> Dataset:
        """The data, with published validation images where the recipe needs any."""
        if self.recipe.keep != "best":
            return self.dataset
        return with_published_val(self.store, self.dataset, self.progress)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.dataset.class_names)

    @cached_property
    def spec(self) -> ArchitectureSpec:
        """The network to be built."""
        height, width = self.job.preprocess.size
        return parse_architecture(self.job.arch, side=height if height == width else None)

    @cached_property
    def objective(self) -> Objective:
        """What is minimised."""
        return parse_objective(self.recipe.objective).objective

    def run(self) -> TrainResult:
        """Train the epochs that are left, and write the record of the run.

        Raises
        ------
        OodError
            If the data, the recipe or the device cannot be used, the loss is not finite, the run
            was removed, or another process has ended.
        """
        with self._alone(), self.decoders, cpu_threads(self.recipe.threads):
            if self.processes.broadcast(self.folder.finished):
                return TrainResult(self.folder.name, self.folder.read(), 0)
            if self.job.compile:
                check_compiled(self.device, self.processes)
            _check_shares(self.recipe, self.processes)
            check_several(self.dataset)
            return self._trained()

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Let the first process alone train the run, and nobody remove it."""
        if self.processes.first:
            return _writing(self.store, self.folder, self.progress)
        return contextlib.nullcontext()

    def _trained(self) -> TrainResult:
        parts = {
            name: self._labelled(name)
            for name in ("train", "val")
            if name in self.data.parts and not (name == "val" and "test" not in self.data.parts)
        }
        # Test images that cannot be read are refused now, not after the training.
        test = self._test_images()
        check_classes(parts["train"], self.data)
        _deterministic(self.device)
        trainer, history, best = self._begun()
        begun = len(history)
        self._introduce(trainer, len(parts["train"]), begun)
        started = time.perf_counter()
        images = self._placed(parts)
        with explain_out_of_memory(self.device, "use fewer images per step: --batch-size N"):
            best = self._through_epochs(trainer, images, history, best)
        weights, outcome = self._outcome(trainer, images, history, best)
        network = _finished(self.spec, weights, self.classes)
        record = self._record(network, history, outcome)
        tested = None if test is None else self.test(record, test)
        record = replace(record, training={**record.training, "test": tested})
        if self.processes.first:
            self.folder.write(record)
            drop_state(self.folder)
        self.processes.barrier()
        if best is not None:
            self.progress.note(
                f"the checkpoint of epoch {best['epoch']} is used, the best on validation images"
            )
        seconds = time.perf_counter() - started
        self.progress.note(f"run {self.folder.name} is ready after {seconds:.1f} s of training")
        for line in _said_of(tested, self.data.name):
            self.progress.note(line)
        return TrainResult(self.folder.name, record, len(history) - begun)

    def _labelled(self, part: str) -> ImageSet:
        return labelled_images(
            self.store,
            self.data,
            part,
            self.job.preprocess,
            skip_unreadable=self.job.skip_unreadable,
            progress=self.progress,
        )

    def _test_images(self) -> ImageSet | None:
        """Return the images that are tested on, None if there are none."""
        if self.data.parts.keys() == {"train"}:
            return None
        return replace(self._labelled(self.data.test_name), name=self.data.name)

    def _begun(self) -> tuple[Trainer, History, Best]:
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
        before = self.processes.broadcast((self.folder.path / STATE).is_file())
        trainer = self._trainer(from_init=not before)
        state = load_state(self.folder, trainer, self.progress) if self.processes.first else None
        history, best = self.processes.broadcast(state) or ([], None)
        if before and not history:
            self.progress.note(f"no state of run {self.folder.name} is intact: starting again")
            trainer = self._trainer(from_init=True)
        trainer.follow_first()
        self.processes.cure = (
            "the run resumes after its last finished epoch, with any number of processes: "
            f"ood train --resume --run {self.folder.name}"
        )
        return trainer, history, best

    def _trainer(self, *, from_init: bool) -> Trainer:
        """Make the network as it is before its first step, and what trains it."""
        job, spec, objective = self.job, self.spec, self.objective
        torch.manual_seed(self.seed)
        module = spec.build(self.classes)
        network = network_of(spec, module)
        size = job.preprocess.size
        network.check_image_size(*size)
        last_block = None
        if "maps" in objective.looks_at:
            name, (channels, _, _) = list(network.block_shapes(size).items())[-1]
            last_block = LastBlock(network.blocks[name], channels, network.layout(name).maps)
        head = spec.architecture.head
        if self.init is not None and from_init:
            weights = self.init.read(self.store, spec)
            weights.put_into(module, spec, digest=self.init.digest)
        objective.attach(module, head)
        return Trainer(
            module,
            self.recipe,
            seed=self.seed,
            device=self.device,
            amp=job.amp,
            objective=objective,
            head=head,
            last_block=last_block,
            channels_last=spec.architecture.channels_last,
            compiled=job.compile,
            processes=self.processes,
        )

    def _introduce(self, trainer: Trainer, images: int, begun: int) -> None:
        """Say what is trained, on what, and from where."""
        job, recipe = self.job, self.recipe
        for remark in network_of(self.spec, trainer.module).remarks():
            self.progress.note(remark)
        self.progress.note(
            f"training {job.arch} on {counted(images, 'image')} of {self.data.name}, "
            f"{counted(recipe.epochs, 'epoch')}, "
            f"on {_where(self.device, self.processes)}"
            + (f", resuming after epoch {begun}" if begun else "")
        )
        self.progress.note(
            f"recipe {recipe.name} ({recipe.source}), {recipe.objective}"
            + ("" if self.init is None else f", from {self.init.source}")
        )
        if job.amp and not has_fast_bfloat16(self.device):
            self.progress.note(
                f"{self.device} has no instructions for bfloat16, so --amp makes training slower; "
                "omit it"
            )

    def _placed(self, parts: Mapping[str, ImageSet]) -> dict[str, TrainingImages]:
        """Return the images as training takes them."""
        preprocess = self.job.preprocess
        images = placed_images(
            self.data,
            parts,
            self.recipe,
            Resizing(preprocess.size, preprocess.resize),
            seed=self.seed,
            device=self.device,
            decoders=self.decoders,
            progress=self.progress,
            processes=self.processes,
        )
        if self.recipe.keep == "best" and "val" not in images:
            self.progress.note(
                f"{self.data.name} has no validation images, so the last checkpoint is used, not "
                "the best; hold some out: --val-fraction 0.02"
            )
        return images

    def _through_epochs(
        self, trainer: Trainer, images: Mapping[str, TrainingImages], history: History, best: Best
    ) -> Best:
        """Train the epochs that are left, add them to the history, and return where the best is."""
        begun, train = len(history), images["train"]
        total = (self.recipe.epochs - begun) * len(train)
        keep_best = self.recipe.keep == "best"
        with self.progress.task("training", total=total, unit="images") as task:
            try:
                for stats in trainer.epochs(
                    train, images.get("val"), done=begun, task=task, progress=self.progress
                ):
                    history.append(stats.to_json())
                    share = train.waited / stats.seconds
                    if stats.epoch == begun + 1 and share > MUCH_WAITING:
                        self.progress.note(
                            f"waiting for images took {100 * share:.0f} % of the time; to reduce "
                            "this, use more cores (with --data-workers N) or smaller images"
                        )
                    if self.processes.first:
                        best = save_state(self.folder, trainer, history, keep_best=keep_best)
            except NotFiniteError as error:
                if not history:
                    raise
                raise InvalidInputError(
                    f"{error}; the weights after epoch {len(history)} are stored; to start from "
                    f"them: --init {self.folder.name}"
                ) from None
        return self.processes.broadcast(best)

    def _outcome(
        self, trainer: Trainer, images: Mapping[str, TrainingImages], history: History, best: Best
    ) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
        """Return the weights that count, and the line of the history that belongs to them."""
        outcome = history[-1] if best is None else history[best["epoch"] - 1]
        if not self.objective.trains_last_layer:
            outcome = {**outcome, **self._fit_probe(trainer, images)}
            return weights_of(trainer.state()), outcome
        if best is None:
            return weights_of(trainer.state()), outcome
        return read_best(self.folder, best), outcome

    def _fit_probe(
        self, trainer: Trainer, images: Mapping[str, TrainingImages]
    ) -> dict[str, float | None]:
        """Fit the last layer on the features of the training images, and put it there."""
        self.progress.note("fitting a linear probe, which becomes the last layer")
        train = images["train"]
        features = trainer.features(train)
        if self.processes.first:
            trainer.set_last_layer(*fit_probe(features, train.labels, self.classes))
        trainer.follow_first()
        val = images.get("val")
        return {
            "train_accuracy": trainer.accuracy(train),
            "val_accuracy": None if val is None else trainer.accuracy(val),
        }

    def _record(self, network: Network, history: History, outcome: Mapping[str, Any]) -> Run:
        """Write weights and history, and return the record of them."""
        folder = self.folder
        if self.processes.first:
            save_weights(network, folder.weights)
            write_history(folder, history)
        self.processes.barrier()
        return Run(
            origin="trained",
            created=utc_now(),
            job=self.job,
            data_name=self.data.name,
            class_names=tuple(self.data.class_names),
            blocks=tuple(network.blocks),
            network=network.digest,
            weights=digest_of_file(folder.weights),
            parts={name: len(part) for name, part in self.data.parts.items()},
            versions=versions(),
            command=self.begun.command,
            training={
                "device": str(self.device),
                "processes": self.processes.size,
                "threads": torch.get_num_threads(),
                "seconds": sum(line["seconds"] for line in history),
                "loss": outcome["loss"],
                "train_accuracy": outcome["train_accuracy"],
                "val_accuracy": outcome["val_accuracy"],
                "checkpoint": outcome["epoch"],
                "last_layer": "trained" if self.objective.trains_last_layer else PROBE,
                "history": digest_of_file(folder.history),
            },
        )


@contextlib.contextmanager
def _writing(store: Store, folder: RunFolder, progress: Progress) -> Iterator[None]:
    """Keep other processes from training a run, and from removing it."""
    name = run_lock(folder.name)
    with store.shared(name, progress=progress), store.lock(name, progress=progress):
        if not folder.is_run:
            raise MissingArtifactError(
                f"run {folder.name} was removed or renamed just now; see: ood runs list"
            )
        yield


def _said_of(tested: Mapping[str, Any] | None, data_name: str) -> Iterator[str]:
    if tested is None:
        return
    right = 100 * tested["accuracy"]
    yield f"accuracy on {counted(tested['n'], 'test image')} of {data_name}: {right:.2f} %"
    if tested["chance"] is not None:
        yield (
            "warning: that is hardly better than chance "
            f"({100 * tested['chance']:.2f} %); train longer, or look at images and classes: "
            "ood datasets show"
        )


def _check_shares(recipe: Recipe, processes: Processes) -> None:
    """Refuse a batch that has not an image for every process."""
    if recipe.batch_size < processes.size:
        raise InvalidInputError(
            f"a batch of {recipe.batch_size} images cannot be divided among {processes.size} "
            "processes; start fewer, or use more images per step: --batch-size N"
        )


def check_compiled(device: torch.device, processes: Processes) -> None:
    """Refuse to compile where that cannot be done, or is not tested.

    Parameters
    ----------
    device
        The device that trains.
    processes
        The processes that train together.

    Raises
    ------
    InvalidInputError
        If there are several, or torch cannot compile here.
    """
    if processes.distributed:
        raise InvalidInputError(
            f"--compile is for one process, not for {processes.size} that share batches; omit "
            "--compile, or resume a run that was started with it in one process"
        )
    check_compiler(device)


def _finished(spec: ArchitectureSpec, weights: Mapping[str, torch.Tensor], classes: int) -> Network:
    """Return the network without anything that only training needs."""
    with torch.random.fork_rng(devices=[]):
        module = spec.build(classes)
    if f"{spec.architecture.head}.tau" in weights:
        unit_features(module, spec.architecture.head)
    module.load_state_dict(weights)
    return network_of(spec, module)


def _where(device: torch.device, processes: Processes) -> str:
    """Say where training computes, and how several processes share it."""
    if not processes.distributed:
        return str(device)
    if device.type == "cuda":
        return f"{processes.size} GPUs, each batch divided among them and normalised as a whole"
    return (
        f"{processes.size} processes, each batch divided among them and each part normalised "
        "separately"
    )


def _deterministic(device: torch.device) -> None:
    """Make two trainings with the same seed give the same weights."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
