"""The training loop, for all objectives, devices and numbers of processes."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oodcli.compute.processes import Processes
from oodcli.models.network import fill
from oodcli.progress import SILENT, Progress, Task
from oodcli.training.augment import augmented, augmixed
from oodcli.training.augmentations.consistency import jensen_shannon
from oodcli.training.augmentations.mixtures import Labels, View, mixed, mixes
from oodcli.training.guard import LossMonitor, NotFiniteError, explain_torch_errors
from oodcli.training.objectives.base import (
    Objective,
    OutlierLoss,
    OutlierObjective,
    StepOutput,
    SynthesisObjective,
)
from oodcli.training.objectives.cross_entropy import CrossEntropy
from oodcli.training.objectives.training_module import LastBlock, TrainingModule
from oodcli.training.outliers import OutlierFeed, Outliers, OutlierShare, outlier_share
from oodcli.training.recipes import Recipe
from oodcli.training.seeds import derived_seed
from oodcli.training.steps import EpochStats, StepImages
from oodcli.training.streaming import TrainingImages, after_crop, agreeing

_EVALUATION_BATCH = 500
# Waiting for images is reported if it takes more than this fraction of an epoch.
REPORTED_WAITING = 0.1
# Devices that have a fused optimiser step in every supported version of torch.
_FUSED = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class LabelledPixels:
    """Images in memory, on the training device.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    labels
        Class of every image, int64 ``(n,)``.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cropped(self) -> bool:
        """Whether images are already randomly cropped: never."""
        return False

    @property
    def waited(self) -> float:
        """Seconds that training waited for images in the last epoch: zero."""
        return 0.0

    @property
    def unread(self) -> bool:
        """Whether some images may still be unreadable: no."""
        return False

    def arriving(
        self,
        batches: Sequence[Tensor],
        *,
        epoch: int,  # noqa: ARG002
        views: int,
        share: Callable[[int], Tensor],  # noqa: ARG002
    ) -> Iterator[list[Tensor]]:
        """Yield the views of each batch; see :class:`TrainingImages`."""
        for rows in batches:
            yield [self.pixels[rows]] * views

    def spans(self, spans: Sequence[slice]) -> Iterator[Tensor]:
        """Yield the images of each range of rows, uint8 ``(m, 3, h, w)``."""
        for at in spans:
            yield self.pixels[at]


class Trainer:
    """Trains a network by the schedule of a recipe, with SGD.

    All random numbers of an epoch are derived from the seed and the number of the epoch, so that
    training that was interrupted and resumed after a finished epoch gives the same weights as
    uninterrupted training. Several processes use the same order and the same augmentation, and
    each computes its share of every batch.

    Parameters
    ----------
    module
        The network; changed in place, and moved to ``device``.
    recipe
        The schedule.
    seed
        Seed of the order of the images, their augmentation, and dropout.
    device
        The device that trains.
    amp
        Whether to compute with bfloat16 autocast.
    objective
        The objective, already attached to the network; cross-entropy if None.
    head
        Path of the last linear layer; required by some objectives, and by recipes with a weight
        decay for that layer.
    last_block
        The last block; required by objectives that use its feature map.
    channels_last
        Whether the network supports the channels-last memory format.
    compiled
        Whether torch compiles the network, and the layers of the objective, for training steps;
        evaluation runs without compilation.
    processes
        The processes that train together; a single process if None.

    Notes
    -----
    On GPUs, several processes use synchronised batch normalisation. On the CPU torch does not
    support it: each process normalises its share of the batch, and after every epoch the running
    statistics are averaged over processes.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        amp: bool,
        objective: Objective | None = None,
        head: str = "",
        last_block: LastBlock | None = None,
        channels_last: bool = True,
        compiled: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self._processes = processes or Processes()
        if self._processes.distributed and device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        self._objective = objective or CrossEntropy()
        self._recipe = recipe
        self._seed = seed
        self._device = device
        self._amp = amp
        self._head = head
        self._mean = torch.tensor(recipe.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(recipe.std, device=device).view(1, 3, 1, 1)
        self._module = module
        self._training_module = TrainingModule(
            module, self._objective, head=head, last_block=last_block
        ).to(device)
        last = channels_last and not (device.type == "cpu" and unsafe_in_channels_last(module))
        self._layout = torch.channels_last if last else torch.contiguous_format
        module.to(memory_format=self._layout)
        self._optimiser = torch.optim.SGD(
            self._groups(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            fused=device.type in _FUSED,
        )
        self._compiled = compiled
        self._model: nn.Module | None = None
        self._outliers: Outliers | None = None
        self._pictures: Tensor | None = None
        self._epoch_share = 0.0

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimiser: the last layer, and all others."""
        last = {f"{self._head}.{leaf}" for leaf in ("weight", "bias")} if self._head else set()
        named = self._trained()
        ours = [p for name, p in named if name not in last]
        own = [p for name, p in named if name in last]
        plain = self._recipe.weight_decay
        special = self._recipe.head_weight_decay
        if special is None:
            special = plain if self._objective.decays_last_layer else 0.0
        groups = [
            {"params": ours, "weight_decay": plain, "factor": 1.0},
            {"params": own, "weight_decay": special, "factor": self._recipe.head_lr_factor},
        ]
        return [group for group in groups if group["params"]]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return all parameters that are trained, with their names in the stored momenta."""
        extras = self._training_module.extras
        named = [*self._module.named_parameters()]
        if extras is not None:
            named += [(f"extras/{name}", p) for name, p in extras.named_parameters()]
        return [(name, p) for name, p in named if p.requires_grad]

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    def state(self) -> dict[str, Tensor]:
        """Return weights, running statistics and momentum buffers by name, on the CPU."""
        tensors = {f"module.{k}": v for k, v in self._module.state_dict().items()}
        if self._training_module.extras is not None:
            tensors |= {
                f"extras.{k}": v for k, v in self._training_module.extras.state_dict().items()
            }
        for name, parameter in self._trained():
            momentum = self._optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load the state of a finished epoch, from :meth:`state`."""
        fill(self._module, weights_of(state))
        if self._training_module.extras is not None:
            extras = {k.removeprefix("extras."): v for k, v in state.items() if k[:7] == "extras."}
            self._training_module.extras.load_state_dict(extras)
        for name, parameter in self._trained():
            if f"momentum.{name}" in state:
                # The memory format of the parameter, so that the arithmetic is the same.
                momentum = torch.empty_like(parameter)
                momentum.copy_(state[f"momentum.{name}"])
                self._optimiser.state[parameter]["momentum_buffer"] = momentum

    def copy_from_first(self) -> None:
        """Copy the state of the first process to all others; every process must call it."""
        if not self._processes.distributed:
            return
        trained = [parameter for _, parameter in self._trained()]
        momenta = [self._optimiser.state[p].get("momentum_buffer") for p in trained]
        existing = self._processes.broadcast([momentum is not None for momentum in momenta])
        for parameter, exists in zip(trained, existing, strict=True):
            if exists:
                self._optimiser.state[parameter].setdefault(
                    "momentum_buffer", torch.empty_like(parameter)
                )
        buffers = [
            self._optimiser.state[p]["momentum_buffer"]
            for p, exists in zip(trained, existing, strict=True)
            if exists
        ]
        self._processes.broadcast_tensors([*self._training_module.state_dict().values(), *buffers])

    def _training_step(self) -> nn.Module:
        """Return the module of a training step; its backward pass averages over processes."""
        if self._model is None:
            step: Any = self._training_module
            if self._compiled:
                # Not dynamic: an epoch has two batch sizes, and torch compiles for each of them.
                step = torch.compile(step, dynamic=False)
            self._model = self._in_parallel(step) if self._processes.distributed else step
        return self._model

    def _in_parallel(self, module: nn.Module) -> nn.Module:
        # Newer versions of torch have renamed this parameter, and warn about the old name.
        known = signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        unsynchronised: dict[str, Any] = {name: False}  # averaged after every epoch instead
        return DistributedDataParallel(
            module,
            device_ids=[self._device.index] if self._device.type == "cuda" else None,
            # An objective on maps alone gives the layers after the last block no gradient.
            find_unused_parameters=not self._objective.trains_last_layer
            and "features" not in self._objective.needs,
            **unsynchronised,
        )

    def _average_buffers(self) -> None:
        """Average the running statistics over all processes."""
        if not self._processes.distributed:
            return
        with torch.no_grad():
            for buffer in self._training_module.buffers():
                if buffer.is_floating_point():
                    own = buffer.clone()
                    self._processes.broadcast_tensors([buffer])
                    # As a mean of differences: equal values of all processes stay exactly equal.
                    buffer.add_(self._processes.all_reduce(own - buffer) / self._processes.size)

    def epochs(
        self,
        train: TrainingImages,
        val: TrainingImages | None,
        *,
        done: int,
        task: Task,
        progress: Progress = SILENT,
        outliers: Outliers | None = None,
        pictures: Tensor | None = None,
    ) -> Iterator[EpochStats]:
        """Train epoch by epoch.

        Parameters
        ----------
        train, val
            Training images, and validation images if there are any.
        done
            Number of epochs that are already finished.
        task
            Receives the number of images trained, and the statistics of each epoch.
        progress
            Receives progress of the current epoch, with its mean loss so far.
        outliers
            The outliers, if the objective is trained with any.
        pictures
            The mixing set of PixMix, uint8 ``(m, 3, H, W)`` on the training device, if the recipe
            has that augmentation.

        Yields
        ------
        EpochStats
            After each epoch, when the state can be stored.

        Raises
        ------
        NotFiniteError
            If the loss is not finite.
        InvalidInputError
            If torch cannot compile the network, or normalise a batch of one image.
        """
        self._outliers, self._pictures = outliers, pictures
        if not done:
            self._start(train if val is None else val)
        for epoch in range(done + 1, self._recipe.epochs + 1):
            yield self._epoch(epoch, train, val, task, progress)

    def _start(self, images: TrainingImages) -> None:
        """Set the state of an objective that starts from the features of images."""
        extras: Any = self._training_module.extras
        if hasattr(extras, "start"):
            with torch.no_grad():
                extras.start(self.features(images), images.labels)

    def _epoch(
        self,
        epoch: int,
        train: TrainingImages,
        val: TrainingImages | None,
        task: Task,
        progress: Progress,
    ) -> EpochStats:
        now = f"epoch {epoch}/{self._recipe.epochs}"
        with progress.task(now, total=len(train), unit="images", passing=True) as part:
            return self._trained_epoch(epoch, train, val, task, part)

    def _trained_epoch(
        self,
        epoch: int,
        train: TrainingImages,
        val: TrainingImages | None,
        task: Task,
        part: Task,
    ) -> EpochStats:
        order, draws = self._draws(epoch, len(train))
        batches = order.split(self._recipe.batch_size)
        total = torch.zeros((), device=self._device)
        right = torch.zeros((), device=self._device, dtype=torch.int64)
        # First step with a non-finite loss, computed on the device so that nothing waits for it.
        bad = torch.full((), len(batches), device=self._device)
        monitor = LossMonitor(len(batches), self._device)
        images = 0
        start = time.perf_counter()
        lr = self._recipe.lr
        views = self._objective.views
        self._training_module.train()
        self._begin(epoch)
        model = self._training_step()
        arriving = train.arriving(batches, epoch=epoch, views=views, share=self._needed)
        if train.unread:
            arriving = agreeing(arriving, self._processes)
        feed = self._outlier_feed(epoch, batches)
        for step, rows in enumerate(batches):
            lr = self._set_rate(epoch, step / len(batches))
            of_step = self._batch(train, next(arriving), rows, draws, feed)
            loss, hits = self._step(model, of_step)
            right += hits
            total += loss * (len(rows) / self._processes.size)
            images += len(rows)
            bad = torch.where(loss.isfinite(), bad, bad.clamp(max=step))
            if step % monitor.every == 0:
                mean_loss = total * (self._processes.size / images)
                first_bad, mean = monitor.read(self._processes.all_reduce_min(bad), mean_loss)
                self._check(first_bad, loss, epoch=epoch, steps=len(batches))
                if math.isfinite(mean):
                    part.advance(0, loss=f"{mean:.3f}")
            task.advance(len(rows))
            part.advance(len(rows))
        self._check(int(self._processes.all_reduce_min(bad)), loss, epoch=epoch, steps=len(batches))
        loss_value = float(self._processes.all_reduce(total)) / len(train)
        right = self._processes.all_reduce(right)
        self._average_buffers()
        seconds = time.perf_counter() - start
        classifies = self._objective.trains_last_layer
        stats = EpochStats(
            epoch=epoch,
            loss=loss_value,
            train_accuracy=int(right) / (views * len(train)) if classifies else None,
            val_accuracy=self.accuracy(val) if classifies and val is not None else None,
            lr=lr,
            seconds=seconds,
            images_per_s=len(train) / seconds,
        )
        self._report(task, stats, waiting=train.waited / seconds)
        return stats

    def _draws(
        self, epoch: int, images: int
    ) -> tuple[Tensor, tuple[torch.Generator, np.random.Generator]]:
        """Return the order of an epoch, and the sources of its augmentation and its mixtures."""
        generator = torch.Generator(self._device).manual_seed(derived_seed(self._seed, epoch))
        rank = self._processes.rank
        others = (rank,) if rank else ()
        torch.manual_seed(derived_seed(self._seed, epoch, 1, *others))  # dropout
        drawn = np.random.default_rng(derived_seed(self._seed, epoch, 2))  # one draw per batch
        return torch.randperm(images, generator=generator, device=self._device), (generator, drawn)

    def _begin(self, epoch: int) -> None:
        """Begin an epoch of an objective that depends on it."""
        self._epoch_share = epoch / self._recipe.epochs
        extras: Any = self._training_module.extras
        if hasattr(extras, "begin"):
            extras.begin((epoch - 1) / self._recipe.epochs, derived_seed(self._seed, epoch, 3))

    def _outlier_feed(self, epoch: int, batches: Sequence[Tensor]) -> OutlierFeed | None:
        """Return the outliers of an epoch, if there are any."""
        if self._outliers is None:
            return None
        return self._outliers.epoch(
            epoch, [*map(len, batches)], device=self._device, processes=self._processes
        )

    def _step(self, model: nn.Module, of_step: StepImages) -> tuple[Tensor, Tensor]:
        """Take one optimiser step on the share of a batch of this process.

        Parameters
        ----------
        model
            The module of a training step, from :meth:`_training_step`.
        of_step
            The augmented images.

        Returns
        -------
        loss
            Part of this process in the loss of the step, ``()``, without gradient: the mean of all
            parts is the loss.
        right
            Number of augmented views that were classified correctly before the step, ``()``.
        """
        objective = self._objective
        if isinstance(objective, SynthesisObjective):
            of_step = replace(of_step, outliers=self._synthesised(objective, of_step))
        with self._precision(), explain_torch_errors():
            output: StepOutput = model(self._normalised(of_step.pixels))
        of_mixtures = of_outliers = None
        known = len(of_step.labels.main)
        if len(output.logits) > known:
            output, others = output.split(known)
            of_mixtures, of_outliers = others.split(len(of_step.seen) - known)
        output = output._replace(draws=of_step.draws)
        own = output.logits
        correct = own.detach().argmax(dim=1) == of_step.labels.main
        right = correct[: objective.views * of_step.count].sum()
        labels = of_step.labels.targets(output.logits.shape[1])
        if objective.compares_images and self._processes.distributed:
            output, labels = self._gathered(output, labels, of_step)
        output = output._replace(
            state=self._training_module.extras, last_layer=self._training_module.last_layer
        )
        loss = self._part_of_loss(objective.loss(output, labels), of_outliers, of_step)
        if of_mixtures is not None and self._recipe.compares_views:
            loss = loss + self._inconsistency(own, of_mixtures.logits, of_step)
        self._optimiser.zero_grad(set_to_none=True)
        with self._processes.connection_errors(), explain_torch_errors():
            loss.backward()
        self._optimiser.step()
        return loss.detach(), right

    def _synthesised(self, objective: SynthesisObjective, of_step: StepImages) -> OutlierShare:
        """Return the outliers that an objective makes of the images of a step, with the network."""
        labels = of_step.labels
        images = of_step.seen[: len(labels.main)]
        self._training_module.eval()
        with self._precision():
            seen = self._normalised(images).requires_grad_()
            logits = self._module(seen).float()
            targets = labels.targets(logits.shape[1])
            of_class = logits * targets if targets.dim() > 1 else logits.gather(1, targets[:, None])
            (gradients,) = torch.autograd.grad(of_class.sum(), seen)
        self._training_module.train()
        pixels = objective.synthesised(
            images, gradients, self._std, of_step.draws, self._epoch_share
        )
        views = len(images) // max(of_step.count, 1)
        return OutlierShare(pixels, None, None, of_step.rows, of_step.images * views)

    def _part_of_loss(
        self, loss: Tensor, of_outliers: StepOutput | None, of_step: StepImages
    ) -> Tensor:
        """Return the part of this process in the loss of a step: the mean of all parts is the loss.

        Parameters
        ----------
        loss
            Mean loss of its ID images.
        of_outliers
            Outputs of the network for its outliers, if there are any.
        of_step
            The images.
        """
        # Gradients are averaged over processes, but the gradient of the batch is the mean over
        # images, hence the weight. A loss that compares images is equal in every process.
        size, objective, outliers = self._processes.size, self._objective, of_step.outliers
        weight = 1.0 if objective.compares_images else of_step.count * size / of_step.images
        if outliers is None or of_outliers is None:
            return loss if weight == 1 else loss * weight
        assert isinstance(objective, OutlierLoss)  # ensured by the job
        targets = outliers.targets(of_outliers.logits.shape[1])
        other = objective.outlier_loss(of_outliers, targets)
        other_weight = outliers.mine * size / outliers.images
        if objective.pooled:
            every = of_step.images + outliers.images
            weight *= of_step.images / every
            other_weight *= outliers.images / every
        return loss * weight + other * other_weight

    def _inconsistency(self, own: Tensor, of_mixtures: Tensor, of_step: StepImages) -> Tensor:
        """Return the part of this process in the consistency loss of AugMix.

        Parameters
        ----------
        own
            Logits of the images themselves, and of what the objective derives from them.
        of_mixtures
            Logits of two mixtures of each of the ``n`` images, ``(2 n, k)``.
        of_step
            The images.
        """
        count = len(of_mixtures) // 2
        views = torch.stack([own[:count], *of_mixtures.split(count)])
        weight = self._recipe.jsd_weight * of_step.count * self._processes.size / of_step.images
        return weight * jensen_shannon(views)

    def _set_rate(self, epoch: int, part: float) -> float:
        """Set the learning rate after a fraction ``part`` of an epoch, and return it."""
        lr = self._recipe.learning_rate(epoch - 1, (epoch - 1 + part) / self._recipe.epochs)
        for group in self._optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        return lr

    def _report(self, task: Task, stats: EpochStats, *, waiting: float) -> None:
        """Show the statistics of an epoch, and the fraction of its time spent waiting."""
        accuracies = {"train": stats.train_accuracy, "val": stats.val_accuracy}
        task.advance(
            0,
            epoch=f"{stats.epoch}/{self._recipe.epochs}",
            loss=f"{stats.loss:.3f}",
            lr=f"{stats.lr:.3g}",
            **{k: f"{100 * v:.1f} %" for k, v in accuracies.items() if v is not None},
            **({"waiting": f"{100 * waiting:.0f} %"} if waiting > REPORTED_WAITING else {}),
            **self._memory(),
        )

    def _memory(self) -> dict[str, str]:
        """Return the peak GPU memory of training, as text; empty on other devices."""
        if self._device.type != "cuda":
            return {}
        peak = torch.cuda.max_memory_reserved(self._device)
        return {"memory": f"{peak / 2**30:.1f} GiB"}

    def _batch(
        self,
        train: TrainingImages,
        arrived: Sequence[Tensor],
        rows: Tensor,
        random: tuple[torch.Generator, np.random.Generator],
        feed: OutlierFeed | None,
    ) -> StepImages:
        """Return the augmented images of this process, and what belongs to them."""
        generator, drawn = random
        recipe, objective = self._recipe, self._objective
        if train.cropped:
            recipe = replace(recipe, augmentation=after_crop(recipe))
        # Every process augments the whole batch, so that all use the same random numbers as a
        # single process would.
        labels = train.labels[rows]
        whole = [
            View(augmented(pixels, generator, recipe, self._pictures), labels) for pixels in arrived
        ]
        seen = [each for view in whole for each in mixed(view, drawn, recipe)]
        mixtures = [
            augmixed(whole[0].pixels, generator, recipe)
            for _ in range(2 if recipe.compares_views else 0)
        ]
        views = len(seen) * objective.copies
        count = total = len(rows)
        numbers = objective.draws(*arrived[0].shape[2:])
        draws = (
            torch.rand(views, total, numbers, generator=generator, device=self._device)
            if numbers
            else None
        )
        outliers = None
        if feed is not None:
            assert isinstance(objective, OutlierObjective)  # ensured by the job
            outliers = outlier_share(
                objective,
                feed,
                arrived=arrived[0],
                seen=whole[0].pixels,
                labels=labels,
                processes=self._processes,
            )
        mine = None
        if self._processes.distributed:
            mine = self._share(total).to(self._device)
            seen = [view.at(mine) for view in seen]
            mixtures = [pixels[mine] for pixels in mixtures]
            draws = None if draws is None else draws[:, mine]
            count = len(self._processes.share(torch.arange(total)))
        pixels = [*objective.derived([view.pixels for view in seen]), *mixtures]
        return StepImages(
            torch.cat(pixels) if len(pixels) > 1 else pixels[0],
            Labels.of(seen, copies=objective.copies),
            None if draws is None else draws.flatten(0, 1),
            count=count,
            images=total,
            rows=views * count,
            places=None if mine is None else _places(mine[:count], views, total),
            outliers=outliers,
        )

    def _needed(self, count: int) -> Tensor:
        """Return the positions in a batch of the images that this process needs, ``(m,)``."""
        mine = self._share(count)
        if not mixes(self._recipe):
            return mine
        return torch.cat([mine, (mine - 1) % count]).unique()  # with the partners of mixtures

    def _share(self, count: int) -> Tensor:
        """Return the positions in a batch of the images that this process computes, ``(m,)``."""
        mine = self._processes.share(torch.arange(count))
        # Every process runs the network, even if the last batch has fewer images than processes.
        return mine if len(mine) else mine.new_zeros(1)

    def _gathered(
        self, output: StepOutput, labels: Tensor, share: StepImages
    ) -> tuple[StepOutput, Tensor]:
        """Gather the outputs and the labels of a batch from all processes.

        Parameters
        ----------
        output, labels
            Of this process.
        share
            The share of the batch of this process.

        Returns
        -------
        output
            Of all processes in the order of a single process, with features and maps of this
            process only.
        labels
            Of all processes, ``(m,)`` or ``(m, k)``.
        """
        assert share.places is not None  # there are several processes
        parts = [part[: share.rows] for part in output.extras]
        if self._objective.trains_last_layer:
            parts.append(output.logits[: share.rows])
        labels, places = self._processes.gather_rows([labels[: share.rows], share.places])
        order = places.argsort()
        joined = [part[order] for part in self._processes.gather_rows(parts)]
        draws = output.draws
        if draws is not None:
            draws = self._processes.gather_rows([draws[: share.rows]])[0][order]
        extras = tuple(joined[: len(output.extras)])
        nothing = output.logits.new_zeros(len(labels), output.logits.shape[1])
        logits = joined[-1] if self._objective.trains_last_layer else nothing
        return StepOutput(logits, output.features, output.maps, extras, draws), labels[order]

    def _check(self, step: int, loss: Tensor, *, epoch: int, steps: int) -> None:
        """Raise :class:`NotFiniteError` if ``step`` is a step of the epoch."""
        if step < steps:
            share = (epoch - 1 + step / steps) / self._recipe.epochs
            lr = self._recipe.learning_rate(epoch - 1, share)
            # Of the last step: it may be NaN even if the first bad loss was infinite.
            value = float(self._processes.all_reduce(loss.detach().clone())) / self._processes.size
            raise NotFiniteError(value, epoch=epoch, step=step + 1, lr=lr)

    def features(self, images: TrainingImages) -> Tensor:
        """Return the inputs of the last layer for images without augmentation, ``(n, d)``."""
        seen: list[Tensor] = []
        head = self._module.get_submodule(self._head)
        assert isinstance(head, nn.Linear)  # ensured by every architecture
        features = torch.zeros(len(images), head.in_features, device=self._device)
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
        try:
            for at, _ in self._evaluated(
                images, lambda pixels: self._module(self._normalised(pixels))
            ):
                features[at] = seen.pop()
        finally:
            handle.remove()
        return self._processes.all_reduce(features)

    def set_last_layer(self, weight: Tensor, bias: Tensor) -> None:
        """Replace weight ``(k, d)`` and bias ``(k,)`` of the last layer."""
        head = self._module.get_submodule(self._head)
        assert isinstance(head, nn.Linear)  # ensured by every architecture
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)

    def accuracy(self, images: TrainingImages) -> float:
        """Return the accuracy on images without augmentation, from 0 to 1."""
        logits = self._evaluated(images, lambda pixels: self._module(self._normalised(pixels)))
        right = 0
        with torch.no_grad():
            for at, values in logits:
                right += int((values.argmax(dim=1) == images.labels[at]).sum())
        return self._processes.total(right) / len(images)

    def _evaluated(
        self, images: TrainingImages, function: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Apply a function to the evaluation batches of this process.

        Yields
        ------
        slice
            Rows of the batch.
        Tensor
            Result of the function for these images, without gradient.
        """
        self._training_module.eval()
        starts = range(0, len(images), _EVALUATION_BATCH)
        own = starts[self._processes.rank :: self._processes.size]
        spans = [slice(start, min(start + _EVALUATION_BATCH, len(images))) for start in own]
        for at, pixels in zip(spans, images.spans(spans), strict=True):
            with torch.no_grad(), self._precision():
                values = function(pixels)
            yield at, values

    def _normalised(self, pixels: Tensor) -> Tensor:
        images = pixels.to(torch.float32, copy=True).div_(255).sub_(self._mean).div_(self._std)
        return images.contiguous(memory_format=self._layout)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._amp:
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def _places(mine: Tensor, views: int, total: int) -> Tensor:
    """Return the positions of the views of some images of a batch of ``total``, view by view."""
    first = torch.arange(views, device=mine.device)[:, None] * total  # (views, 1)
    return (first + mine).flatten()


def unsafe_in_channels_last(module: nn.Module) -> bool:
    """Return whether training a network in channels-last format on a CPU corrupts memory.

    Notes
    -----
    oneDNN, issue 6035: in channels-last format, the weight gradient of a strided 1×1 convolution
    writes past the end of its buffer if the layer has fewer channels than a vector register of the
    processor has elements, which are 16 at most. torch 2.15 crashes, or computes with corrupted
    memory.
    """
    return any(
        isinstance(part, nn.Conv2d)
        and max(part.kernel_size) == 1
        and max(part.stride) > 1
        and part.in_channels // part.groups < 16
        for part in module.modules()
    )


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the network from a state of :meth:`Trainer.state`."""
    return {k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")}
