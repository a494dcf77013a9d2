"""One training session: from the images to the record; it can be interrupted and resumed."""

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
from oodcli.errors import InvalidInputError, MissingArtifactError, UnreadableImageError
from oodcli.images import ImageSet, ImageShard
from oodcli.models import (
    ArchitectureSpec,
    Network,
    fill,
    network_of,
    parse_architecture,
    restore_last_layer,
    save_weights,
)
from oodcli.progress import Progress
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.run_locks import run_lock
from oodcli.store.runs import STATE, Job, Run, RunFolder, TrainingRecord, utc_now
from oodcli.store.store import Store, digest_of_file
from oodcli.text import counted
from oodcli.training.guard import NotFiniteError
from oodcli.training.images import (
    Placement,
    check_class_count,
    check_classes,
    free_for_images,
    labelled_images,
    place_images,
    with_published_val,
)
from oodcli.training.initial import Initial
from oodcli.training.job import initial_of, recipe_of
from oodcli.training.linear_probe import fit_probe
from oodcli.training.loop import REPORTED_WAITING, Trainer, weights_of
from oodcli.training.mixing_sets import MixingSets
from oodcli.training.objectives.base import Objective
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.objectives.training_module import LastBlock
from oodcli.training.outlier_sets import OutlierPlacement, OutlierSets
from oodcli.training.outliers import Outliers
from oodcli.training.recipe_choice import is_fine_tuning
from oodcli.training.recipes import Recipe
from oodcli.training.state import (
    History,
    load_state,
    read_best,
    remove_state,
    save_state,
    write_history,
)
from oodcli.training.streaming import TrainingImages

PROBE = "linear probe"
Best = dict[str, Any] | None
# Called with shards that are decoded and not stored, as for `prepare`.
Seen = Callable[[ImageShard], None] | None
# Classifies the test images with a run whose weights are stored; returns None if that fails. The
# images are opened by a function that takes a consumer of their shards.
Test = Callable[[Run, Callable[[Seen], ImageSet]], dict[str, Any] | None]


@dataclass(frozen=True)
class TrainResult:
    """Result of training.

    Parameters
    ----------
    run
        Name of the run.
    record
        Record of the run.
    trained
        Number of epochs trained by this call; 0 if the run was already finished.
    """

    run: str
    record: Run
    trained: int


@dataclass(frozen=True)
class Session:
    """Trains a run from its current state to the end.

    Parameters
    ----------
    store
        Store of the run.
    folder
        Folder of the run.
    begun
        The job, which determines the weights, and the command that started the run.
    dataset
        The data.
    device
        The device that trains.
    decoders
        The processes that decode streamed images; started and stopped by :meth:`run`.
    test
        Classifies the test images.
    progress
        Reports every epoch.
    processes
        The processes that train together; only the first one writes files.
    check_images
        Whether all images are decoded once before training, to find unreadable ones.
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
    check_images: bool = False

    @property
    def job(self) -> Job:
        """Everything that determines the weights."""
        return self.begun.job

    @property
    def seed(self) -> int:
        """Seed of all random numbers of training."""
        assert self.job.seed is not None  # only an imported network has none
        return self.job.seed

    @cached_property
    def recipe(self) -> Recipe:
        """The schedule."""
        return recipe_of(self.job)

    @cached_property
    def init(self) -> Initial | None:
        """Source of the initial weights; None if they are random."""
        return initial_of(self.job)

    @cached_property
    def outliers(self) -> OutlierSource | None:
        """Source of the outliers; None without outliers."""
        return OutlierSource.of(self.job.outliers)

    @cached_property
    def mixing(self) -> OutlierSource | None:
        """Source of the mixing set of PixMix; None without it."""
        return OutlierSource.of(self.job.mixing)

    @property
    def _sets(self) -> OutlierSets:
        """Opens further sets at the size of the run."""
        job = self.job
        return OutlierSets(self.store, job.preprocess, job.skip_unreadable, self.progress)

    @cached_property
    def data(self) -> Dataset:
        """The data, with published validation images if the recipe needs validation images."""
        if self.recipe.keep != "best":
            return self.dataset
        return with_published_val(self.store, self.dataset, self.progress)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.dataset.class_names)

    @cached_property
    def spec(self) -> ArchitectureSpec:
        """The architecture."""
        height, width = self.job.preprocess.size
        return parse_architecture(self.job.arch, side=height if height == width else None)

    @cached_property
    def objective(self) -> Objective:
        """The objective."""
        return parse_objective(self.recipe.objective).objective

    def run(self) -> TrainResult:
        """Train the remaining epochs, and write the record of the run.

        Raises
        ------
        OodError
            If the data, the recipe or the device cannot be used, the loss is not finite, the run
            was removed, or another process has ended.
        """
        with self._locked(), self.decoders, cpu_threads(self.recipe.threads):
            if self.processes.broadcast(self.folder.finished):
                return TrainResult(self.folder.name, self.folder.read(), 0)
            if self.job.compile:
                check_compiled(self.device, self.processes)
            _check_batch_size(self.recipe, self.processes)
            check_class_count(self.dataset)
            return self._train()

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Lock the run in the first process, so that no other job trains or removes it."""
        if self.processes.first:
            return _locked_run(self.store, self.folder, self.progress)
        return contextlib.nullcontext()

    def _train(self) -> TrainResult:
        placement = self.placement
        parts = {
            name: self._labelled(name)
            for name in ("train", "val")
            if name in self.data.parts and not (name == "val" and "test" not in self.data.parts)
        }
        has_test = self.data.parts.keys() != {"train"}
        if has_test and self.data.test_name in placement.prepared:
            # Before training, so that unreadable test images are refused now and not after it.
            self._test_images()
        check_classes(parts["train"], self.data)
        _make_deterministic(self.device)
        trainer, history, best = self._restore()
        finished = len(history)
        self._announce(trainer, len(parts["train"]), finished)
        started = time.perf_counter()
        images = self._place_images(parts)
        outliers, shared = self._open_outliers(images, parts["train"])
        pictures = None
        if self.mixing is not None:
            pictures = MixingSets(self._sets).opened(self.mixing, self.device)
        with explain_out_of_memory(self.device, "use fewer images per step: --batch-size N"):
            best = self._train_epochs(trainer, images, history, best, (outliers, pictures))
        weights, outcome = self._final_weights(trainer, images, history, best)
        network = _network_of_weights(self.spec, weights, self.classes)
        record = self._record(network, history, outcome)
        tested = self.test(record, self._test_images) if has_test else None
        more = {"test": tested} | ({} if shared is None else {"outliers_in_training": shared})
        record = replace(record, training={**record.training, **more})
        if self.processes.first:
            self.folder.write(record)
            remove_state(self.folder)
        self.processes.barrier()
        if best is not None:
            self.progress.note(
                f"the checkpoint of epoch {best['epoch']} is used, the best on validation images"
            )
        seconds = time.perf_counter() - started
        self.progress.note(f"run {self.folder.name} is ready after {seconds:.1f} s of training")
        for line in _accuracy_notes(tested, self.data.name):
            self.progress.note(line)
        if self.recipe.scorer:
            kind = self.recipe.objective.partition(":")[0]
            self.progress.note(
                f"the paper of {kind} scores with {self.recipe.scorer}: "
                f"ood score --run {self.folder.name} --method {self.recipe.scorer}"
            )
        return TrainResult(self.folder.name, record, len(history) - finished)

    @cached_property
    def placement(self) -> Placement:
        """How the images are read."""
        return Placement.of(
            self.data,
            self.recipe,
            self.job.preprocess.size,
            free=free_for_images(self.device, self.processes),
            # Which images are skipped decides on the order of the others.
            check=self.check_images or self.job.skip_unreadable,
        )

    def _labelled(self, part: str, seen: Seen = None, *, decode: bool = False) -> ImageSet:
        return labelled_images(
            self.store,
            self.data,
            part,
            self.job.preprocess,
            skip_unreadable=self.job.skip_unreadable,
            progress=self.progress,
            decode=decode or part in self.placement.prepared,
            seen=seen,
        )

    def _test_images(self, seen: Seen = None) -> ImageSet:
        """Return the prepared test images."""
        images = self._labelled(self.data.test_name, seen, decode=True)
        return replace(images, name=self.data.name)

    def _restore(self) -> tuple[Trainer, History, Best]:
        """Build the network and load its newest intact state, if there is one.

        Returns
        -------
        trainer
            The network in training; equal in every process.
        history
            One entry per finished epoch.
        best
            Epoch, file name and digest of the best weights; None if they are not stored.
        """
        before = self.processes.broadcast((self.folder.path / STATE).is_file())
        trainer = self._trainer(from_init=not before)
        state = load_state(self.folder, trainer, self.progress) if self.processes.first else None
        history, best = self.processes.broadcast(state) or ([], None)
        if before and not history:
            self.progress.note(
                f"every stored state of run {self.folder.name} is damaged: training starts again"
            )
            trainer = self._trainer(from_init=True)
        trainer.copy_from_first()
        self.processes.cure = (
            "the run resumes after its last finished epoch, with any number of processes: "
            f"ood train --resume --run {self.folder.name}"
        )
        return trainer, history, best

    def _trainer(self, *, from_init: bool) -> Trainer:
        """Build the network with its initial weights, and its trainer."""
        job, spec, objective = self.job, self.spec, self.objective
        torch.manual_seed(self.seed)
        module = spec.build(self.classes)
        network = network_of(spec, module)
        size = job.preprocess.size
        network.check_image_size(*size)
        last_block = None
        if "maps" in objective.needs:
            name, (channels, _, _) = list(network.block_shapes(size).items())[-1]
            last_block = LastBlock(network.blocks[name], channels, network.layout(name).maps)
        head = spec.architecture.head
        if self.init is not None and from_init:
            weights = self.init.read(self.store, spec)
            weights.copy_into(module, spec, digest=self.init.digest)
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

    def _announce(self, trainer: Trainer, images: int, finished: int) -> None:
        """Report the architecture, the data, the device, the recipe and the initial weights."""
        job, recipe = self.job, self.recipe
        for remark in network_of(self.spec, trainer.module).remarks():
            self.progress.note(remark)
        self.progress.note(
            f"training {job.arch} on {counted(images, 'image')} of {self.data.name}, "
            f"{counted(recipe.epochs, 'epoch')}, "
            f"on {_device_text(self.device, self.processes)}"
            + (f", resuming after epoch {finished}" if finished else "")
        )
        self.progress.note(
            f"recipe {recipe.name} ({recipe.source}), {recipe.objective}"
            + ("" if self.init is None else f", from {self.init.source}")
        )
        if self.init is None and is_fine_tuning(recipe.objective):
            self.progress.note(
                f"{recipe.objective} is published for fine-tuning a trained network; from random "
                "weights it may learn nothing: --init RUN"
            )
        if self.outliers is not None:
            self.progress.note(f"outliers: {self.outliers.text}")
        if self.mixing is not None:
            self.progress.note(f"mixing set: {self.mixing.of_mixing}")
        if job.amp and not has_fast_bfloat16(self.device):
            self.progress.note(
                f"{self.device} has no instructions for bfloat16, so --amp makes training slower; "
                "omit it"
            )

    def _place_images(self, parts: Mapping[str, ImageSet]) -> dict[str, TrainingImages]:
        """Return the images in memory or streamed, by name of the part."""
        preprocess = self.job.preprocess
        images = place_images(
            self.store,
            self.data,
            parts,
            self.placement,
            recipe=self.recipe,
            resizing=Resizing(preprocess.size, preprocess.resize),
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

    def _open_outliers(
        self, images: Mapping[str, TrainingImages], train: ImageSet
    ) -> tuple[Outliers | None, int | None]:
        """Return the outliers, and how many are also training images; None where there are none."""
        if self.outliers is None:
            return None, None
        free = free_for_images(self.device, self.processes)
        placement = OutlierPlacement(
            self._sets, self.recipe, self.seed, self.device, self.decoders, free=free
        )
        return placement.opened(self.outliers, images["train"], train)

    def _train_epochs(
        self,
        trainer: Trainer,
        images: Mapping[str, TrainingImages],
        history: History,
        best: Best,
        more: tuple[Outliers | None, torch.Tensor | None],
    ) -> Best:
        """Train the remaining epochs, append them to the history, and return the best epoch.

        Parameters
        ----------
        trainer
            The network in training.
        images
            The images by name of the part.
        history
            One entry per finished epoch.
        best
            The best epoch so far.
        more
            The outliers, and the pictures of the mixing set; None for none.

        Returns
        -------
        dict
            Epoch, file name and digest of the best weights; None if they are not stored.

        Raises
        ------
        InvalidInputError
            If the loss is not finite.
        """
        finished, train = len(history), images["train"]
        total = (self.recipe.epochs - finished) * len(train)
        keep_best = self.recipe.keep == "best"
        with self.progress.task("training", total=total, unit="images") as task:
            try:
                for stats in trainer.epochs(
                    train,
                    images.get("val"),
                    done=finished,
                    task=task,
                    progress=self.progress,
                    outliers=more[0],
                    pictures=more[1],
                ):
                    history.append(stats.to_json())
                    share = train.waited / stats.seconds
                    if stats.epoch == finished + 1 and share > REPORTED_WAITING:
                        self.progress.note(
                            f"waiting for images took {100 * share:.0f} % of the time; to reduce "
                            "this, use more cores (with --data-workers N) or smaller images"
                        )
                    if self.processes.first:
                        best = save_state(self.folder, trainer, history, keep_best=keep_best)
            except UnreadableImageError as error:
                raise self._unreadable(error, finished=len(history)) from None
            except NotFiniteError as error:
                if not history:
                    raise
                raise InvalidInputError(
                    f"{error}; the weights after epoch {len(history)} are stored; to start from "
                    f"them: --init {self.folder.name}"
                ) from None
        return self.processes.broadcast(best)

    def _unreadable(self, error: UnreadableImageError, *, finished: int) -> UnreadableImageError:
        """Return the error for an unreadable image that was found after some finished epochs."""
        if finished:
            cure = f"replace it, and resume: ood train --resume --run {self.folder.name}"
        else:
            cure = (
                "replace it, or skip such images: --skip-unreadable; to check all images before "
                "training: --check-images"
            )
        return UnreadableImageError(error.where, error.reason, cure)

    def _final_weights(
        self, trainer: Trainer, images: Mapping[str, TrainingImages], history: History, best: Best
    ) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
        """Return the weights of the run, and the entry of the history that belongs to them."""
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
        """Replace the last layer by a linear probe of training features; return its accuracies."""
        self.progress.note("fitting a linear probe, which becomes the last layer")
        train = images["train"]
        features = trainer.features(train)
        if self.processes.first:
            trainer.set_last_layer(*fit_probe(features, train.labels, self.classes))
        trainer.copy_from_first()
        val = images.get("val")
        return {
            "train_accuracy": trainer.accuracy(train),
            "val_accuracy": None if val is None else trainer.accuracy(val),
        }

    def _record(self, network: Network, history: History, outcome: Mapping[str, Any]) -> Run:
        """Write weights and history, and return the record of the run."""
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
                "kept_heads": network.kept_outputs,
                "history": digest_of_file(folder.history),
            },
        )


@contextlib.contextmanager
def _locked_run(store: Store, folder: RunFolder, progress: Progress) -> Iterator[None]:
    """Lock a run against other processes that train or remove it.

    Raises
    ------
    MissingArtifactError
        If the run was removed or renamed before the lock was acquired.
    """
    name = run_lock(folder.name)
    with store.shared(name, progress=progress), store.lock(name, progress=progress):
        if not folder.is_run:
            raise MissingArtifactError(
                f"run {folder.name} was removed or renamed just now; see: ood runs list"
            )
        yield


def _accuracy_notes(tested: Mapping[str, Any] | None, data_name: str) -> Iterator[str]:
    if tested is None:
        return
    right = 100 * tested["accuracy"]
    yield f"accuracy on {counted(tested['n'], 'test image')} of {data_name}: {right:.2f} %"
    if tested["chance"] is not None:
        yield (
            "warning: this is hardly better than chance "
            f"({100 * tested['chance']:.2f} %); train longer, or check images and classes: "
            "ood datasets show"
        )


def _check_batch_size(recipe: Recipe, processes: Processes) -> None:
    """Refuse a batch size smaller than the number of processes."""
    if recipe.batch_size < processes.size:
        raise InvalidInputError(
            f"a batch of {recipe.batch_size} images cannot be divided among {processes.size} "
            "processes; start fewer, or use more images per step: --batch-size N"
        )


def check_compiled(device: torch.device, processes: Processes) -> None:
    """Refuse to compile if torch cannot, or with several processes, which is not tested.

    Parameters
    ----------
    device
        The device that trains.
    processes
        The processes that train together.

    Raises
    ------
    InvalidInputError
        If there are several processes, or torch cannot compile on this machine.
    """
    if processes.distributed:
        raise InvalidInputError(
            f"--compile is for one process, not for {processes.size} that share batches; omit "
            "--compile, or resume a run that was started with it in a single process"
        )
    check_compiler(device)


def _network_of_weights(
    spec: ArchitectureSpec, weights: Mapping[str, torch.Tensor], classes: int
) -> Network:
    """Build the network for scoring, without the layers that only training needs."""
    with torch.random.fork_rng(devices=[]):
        module = spec.build(classes)
    restore_last_layer(module, spec.architecture.head, weights)
    fill(module, weights)
    return network_of(spec, module)


def _device_text(device: torch.device, processes: Processes) -> str:
    """Describe the device, and how several processes divide the batches."""
    if not processes.distributed:
        return str(device)
    if device.type == "cuda":
        return f"{processes.size} GPUs, each batch divided among them and normalised as a whole"
    return (
        f"{processes.size} processes, each batch divided among them and each part normalised "
        "separately"
    )


def _make_deterministic(device: torch.device) -> None:
    """Select deterministic algorithms, so that equal seeds give equal weights."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
