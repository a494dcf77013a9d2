"""The one training loop."""

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
from oodcli.errors import InvalidInputError
from oodcli.progress import SILENT, Progress, Task
from oodcli.records import as_json
from oodcli.training.augment import augmented
from oodcli.training.objectives.base import Objective, StepOutput
from oodcli.training.objectives.cross_entropy import CrossEntropy
from oodcli.training.objectives.student import LastBlock, Student
from oodcli.training.recipes import Recipe
from oodcli.training.streaming import TrainingImages, after_crop

_EVALUATION_BATCH = 500
# Steps between two looks at the loss, each of which makes an accelerator wait.
_LOOK_EVERY = 64
# Share of an epoch spent in waiting for images from which on it is worth a word.
MUCH_WAITING = 0.1
# Devices on which one kernel makes the whole step of the optimiser in every version of torch.
_FUSED = ("cpu", "cuda")


class NotFiniteError(InvalidInputError):
    """A loss that is NaN or infinite; the weights of the epoch are spoiled.

    Parameters
    ----------
    loss
        The loss.
    epoch
        Number of the epoch, from 1.
    step
        Number of the step in the epoch, from 1.
    lr
        Learning rate of the step.
    """

    def __init__(self, loss: float, *, epoch: int, step: int, lr: float) -> None:
        super().__init__(
            f"the loss is {loss} at step {step} in epoch {epoch}; lower the learning rate, "
            f"which is {lr:g}: --lr {lr / 10:g}"
        )
        self.epoch = epoch
        self.step = step


@dataclass(frozen=True, slots=True)
class EpochStats:
    """What is kept of an epoch.

    Parameters
    ----------
    epoch
        Number of the epoch, from 1.
    loss
        Mean of what is minimised over the augmented training images.
    train_accuracy
        Accuracy on them, while training; None where the last layer is not trained.
    val_accuracy
        Accuracy on the validation images after the epoch; None without any, or where the last layer
        is not trained.
    lr
        Learning rate of the last step.
    seconds
        How long it took.
    images_per_s
        Training images a second.
    """

    epoch: int
    loss: float
    train_accuracy: float | None
    val_accuracy: float | None
    lr: float
    seconds: float
    images_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the line of the history."""
        return as_json(self)


@dataclass(frozen=True, slots=True)
class LabelledPixels:
    """Images in memory, on the device that trains.

    Parameters
    ----------
    pixels
        uint8 ``(n, 3, h, w)``.
    labels
        int64 ``(n,)``.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cropped(self) -> bool:
        """Whether the images of a batch have been cropped at random: these have not."""
        return False

    @property
    def waited(self) -> float:
        """Seconds that training has waited for images in the last epoch: none."""
        return 0.0

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
        """Yield the images of each span."""
        for at in spans:
            yield self.pixels[at]


class Trainer:
    """A network in training: its optimiser, its images and its place in the schedule.

    All chance of an epoch comes from the seed and the number of the epoch, so training that was cut
    off and goes on from a finished epoch ends with the weights of training that was not. Several
    processes draw the same order and the same augmentation, and take their share of every batch.

    Parameters
    ----------
    module
        The network; changed in place, and put on ``device``.
    recipe
        The schedule.
    seed
        Seed of the order of the images, their augmentation, and dropout.
    device
        Where to train.
    amp
        Whether to compute in bfloat16 where that is safe.
    objective
        What is minimised; it must have been attached to the network.
    head
        Path of the last linear layer, for objectives and recipes that want to know.
    last_block
        The last block, for objectives that look at its map.
    channels_last
        Whether the network takes images that lie channels-last in memory.
    compiled
        Whether torch compiles the network, and the layers of the objective, for their training
        steps; images without augmentation go through it as it is.
    processes
        The processes that train together; this one alone if None.

    Notes
    -----
    On GPUs, several processes normalise every batch by the statistics of all of it. On the CPU
    torch has no such layer: each process normalises its share, and the running statistics become
    the mean of all processes after every epoch.
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
        self._student = Student(module, self._objective, head=head, last_block=last_block).to(
            device
        )
        last = channels_last and not (device.type == "cpu" and overruns(module))
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

    def _groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters, those of the last layer apart."""
        last = f"{self._head}." if self._head else None
        named = self._trained()
        ours = [p for name, p in named if last is None or not name.startswith(last)]
        own = [p for name, p in named if last is not None and name.startswith(last)]
        plain = self._recipe.weight_decay
        special = self._recipe.head_weight_decay
        groups = [
            {"params": ours, "weight_decay": plain},
            {"params": own, "weight_decay": plain if special is None else special},
        ]
        return [group for group in groups if group["params"]]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return every parameter that is trained, by the name it has in a state."""
        extras = self._student.extras
        named = [*self._module.named_parameters()]
        if extras is not None:
            named += [(f"extras/{name}", p) for name, p in extras.named_parameters()]
        return [(name, p) for name, p in named if p.requires_grad]

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    def state(self) -> dict[str, Tensor]:
        """Return weights, running statistics and momenta, named, on the CPU."""
        tensors = {f"module.{k}": v for k, v in self._module.state_dict().items()}
        if self._student.extras is not None:
            tensors |= {f"extras.{k}": v for k, v in self._student.extras.state_dict().items()}
        for name, parameter in self._trained():
            momentum = self._optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up the state of a finished epoch."""
        self._module.load_state_dict(weights_of(state))
        if self._student.extras is not None:
            extras = {k.removeprefix("extras."): v for k, v in state.items() if k[:7] == "extras."}
            self._student.extras.load_state_dict(extras)
        for name, parameter in self._trained():
            if f"momentum.{name}" in state:
                # Momenta lie in memory as their parameters do, so that the arithmetic is the same.
                momentum = torch.empty_like(parameter)
                momentum.copy_(state[f"momentum.{name}"])
                self._optimiser.state[parameter]["momentum_buffer"] = momentum

    def follow_first(self) -> None:
        """Take up the state of the first process; every process calls it at the same time."""
        if not self._processes.distributed:
            return
        trained = [parameter for _, parameter in self._trained()]
        momenta = [self._optimiser.state[p].get("momentum_buffer") for p in trained]
        kept = self._processes.broadcast([momentum is not None for momentum in momenta])
        for parameter, keeps in zip(trained, kept, strict=True):
            if keeps:
                self._optimiser.state[parameter].setdefault(
                    "momentum_buffer", torch.empty_like(parameter)
                )
        buffers = [
            self._optimiser.state[p]["momentum_buffer"]
            for p, k in zip(trained, kept, strict=True)
            if k
        ]
        self._processes.broadcast_tensors([*self._student.state_dict().values(), *buffers])

    def _training_step(self) -> nn.Module:
        """Return the student, whose gradients become those of all processes going backwards."""
        if self._model is None:
            student: Any = self._student
            if self._compiled:
                # Not dynamic: an epoch has two sizes of batches, and each gets code of its own.
                student = torch.compile(student, dynamic=False)
            self._model = self._in_parallel(student) if self._processes.distributed else student
        return self._model

    def _in_parallel(self, student: nn.Module) -> nn.Module:
        # Newer versions of torch have another name for it, and warn of the old one.
        known = signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        apart: dict[str, Any] = {name: False}  # they become the mean after every epoch
        return DistributedDataParallel(
            student,
            device_ids=[self._device.index] if self._device.type == "cuda" else None,
            # What lies behind the last block learns nothing from its maps alone.
            find_unused_parameters=not self._objective.trains_last_layer
            and "features" not in self._objective.looks_at,
            **apart,
        )

    def _average_buffers(self) -> None:
        """Make the running statistics the mean of those of all processes."""
        if not self._processes.distributed:
            return
        with torch.no_grad():
            for buffer in self._student.buffers():
                if buffer.is_floating_point():
                    own = buffer.clone()
                    self._processes.broadcast_tensors([buffer])
                    # By differences, so that what is the same in all processes stays as it is.
                    buffer.add_(self._processes.all_reduce(own - buffer) / self._processes.size)

    def epochs(
        self,
        train: TrainingImages,
        val: TrainingImages | None,
        *,
        done: int,
        task: Task,
        progress: Progress = SILENT,
    ) -> Iterator[EpochStats]:
        """Train epoch by epoch.

        Parameters
        ----------
        train, val
            Training images, and validation images if there are any.
        done
            Epochs finished before.
        task
            Told of every image trained, and of what each epoch brought.
        progress
            Told of the epoch under way, and of its mean loss so far.

        Yields
        ------
        EpochStats
            After each epoch; the network may be saved then.

        Raises
        ------
        NotFiniteError
            If the loss is not finite.
        """
        for epoch in range(done + 1, self._recipe.epochs + 1):
            yield self._epoch(epoch, train, val, task, progress)

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
        generator = torch.Generator(self._device).manual_seed(_seed_of(self._seed, epoch))
        rank = self._processes.rank
        others = (rank,) if rank else ()
        torch.manual_seed(_seed_of(self._seed, epoch, 1, *others))  # dropout
        order = torch.randperm(len(train), generator=generator, device=self._device)
        batches = order.split(self._recipe.batch_size)
        total = torch.zeros((), device=self._device)
        right = torch.zeros((), device=self._device, dtype=torch.int64)
        # First step with a loss that is not finite, found without waiting for the device.
        bad = torch.full((), len(batches), device=self._device)
        looks = _Looks(len(batches), self._device)
        images = 0
        start = time.perf_counter()
        lr = self._recipe.lr
        views = self._objective.views
        self._student.train()
        model = self._training_step()
        arriving = train.arriving(batches, epoch=epoch, views=views, share=self._share)
        for step, rows in enumerate(batches):
            lr = self._set_rate(epoch, step / len(batches))
            seen, labels, mine = self._batch(train, next(arriving), rows, generator)
            loss, hits = self._step(model, seen, labels, mine=mine, images=len(rows))
            right += hits
            total += loss * mine
            images += mine
            bad = torch.where(loss.isfinite(), bad, bad.clamp(max=step))
            if step % looks.every == 0:
                # What was bad at the last look, or is now where nothing has to be waited for.
                seen_bad, mean = looks.next(self._processes.all_reduce_min(bad), total / images)
                self._check(seen_bad, loss, epoch=epoch, steps=len(batches))
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
        self._tell(task, stats, waiting=train.waited / seconds)
        return stats

    def _step(
        self, model: nn.Module, seen: Tensor, labels: Tensor, *, mine: int, images: int
    ) -> tuple[Tensor, Tensor]:
        """Take one step of the optimiser on the views of a batch that this process has.

        Parameters
        ----------
        model
            The student, whose gradients become those of all processes.
        seen, labels
            The augmented images, uint8 ``(n, 3, h, w)``, and their labels, ``(n,)``.
        mine
            Images of the batch that count for this process.
        images
            Images of the whole batch.

        Returns
        -------
        loss
            Mean loss, ``()``, without gradient.
        right
            Number of views that were classified rightly before the step, ``()``.
        """
        views = self._objective.views
        with self._precision(), _explained():
            output = model(self._normalised(seen))
        correct = output.logits.detach().argmax(dim=1) == labels
        right = correct[: views * mine].sum()
        if self._objective.compares_images and self._processes.distributed:
            output, labels = self._of_all(output, labels, rows=views * mine)
        loss = self._objective.loss(output, labels)
        # Gradients become the mean over processes, and those of the batch are the mean over
        # images; a loss of all images is there in every process.
        size = self._processes.size
        weight = 1.0 if self._objective.compares_images else mine * size / images
        self._optimiser.zero_grad(set_to_none=True)
        with self._processes.connection_errors(), _explained():
            (loss if weight == 1 else loss * weight).backward()
        self._optimiser.step()
        return loss.detach(), right

    def _set_rate(self, epoch: int, part: float) -> float:
        """Set the learning rate of a step, after that part of an epoch, and return it."""
        lr = self._recipe.learning_rate(epoch - 1, (epoch - 1 + part) / self._recipe.epochs)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        return lr

    def _tell(self, task: Task, stats: EpochStats, *, waiting: float) -> None:
        """Tell what an epoch brought."""
        accuracies = {"train": stats.train_accuracy, "val": stats.val_accuracy}
        task.advance(
            0,
            epoch=f"{stats.epoch}/{self._recipe.epochs}",
            loss=f"{stats.loss:.3f}",
            lr=f"{stats.lr:.3g}",
            **{k: f"{100 * v:.1f} %" for k, v in accuracies.items() if v is not None},
            **({"waiting": f"{100 * waiting:.0f} %"} if waiting > MUCH_WAITING else {}),
            **self._memory(),
        )

    def _memory(self) -> dict[str, str]:
        """Return how much of a GPU's memory training has taken at most, to be shown."""
        if self._device.type != "cuda":
            return {}
        taken = torch.cuda.max_memory_reserved(self._device)
        return {"memory": f"{taken / 2**30:.1f} GiB"}

    def _batch(
        self,
        train: TrainingImages,
        arrived: Sequence[Tensor],
        rows: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, int]:
        """Return the augmented images of this process, their labels, and how many count."""
        views = self._objective.views
        recipe = self._recipe
        if train.cropped:
            recipe = replace(recipe, augmentation=after_crop(recipe))
        # All of the batch is changed, so that chance is that of one process with all of it.
        seen = [augmented(pixels, generator, recipe) for pixels in arrived]
        count = len(rows)
        if self._processes.distributed:
            mine = self._share(count).to(self._device)
            rows, seen = rows[mine], [view[mine] for view in seen]
            count = len(self._processes.share(torch.arange(count)))
        return torch.cat(seen) if views > 1 else seen[0], train.labels[rows].repeat(views), count

    def _share(self, count: int) -> Tensor:
        """Return which images of a batch go through the network of this process."""
        mine = self._processes.share(torch.arange(count))
        # Every process goes through the network, also where a last batch has too few images.
        return mine if len(mine) else mine.new_zeros(1)

    def _of_all(
        self, output: StepOutput, labels: Tensor, *, rows: int
    ) -> tuple[StepOutput, Tensor]:
        """Return what all processes know of a batch, of which this one has some rows."""
        parts = [part[:rows] for part in output.extras]
        if self._objective.trains_last_layer:
            parts.append(output.logits[:rows])
        joined = self._processes.gather_rows(parts)
        (every,) = self._processes.gather_rows([labels[:rows]])
        extras = joined[: len(output.extras)]
        nothing = output.logits.new_zeros(len(every), output.logits.shape[1])
        logits = joined[-1] if self._objective.trains_last_layer else nothing
        return StepOutput(logits, output.features, output.maps, extras), every

    def _check(self, step: int, loss: Tensor, *, epoch: int, steps: int) -> None:
        """Stop at a loss that is not finite."""
        if step < steps:
            share = (epoch - 1 + step / steps) / self._recipe.epochs
            lr = self._recipe.learning_rate(epoch - 1, share)
            # Once the weights are spoiled, the last loss may be NaN where the first was infinite.
            value = float(self._processes.all_reduce(loss.detach().clone())) / self._processes.size
            raise NotFiniteError(value, epoch=epoch, step=step + 1, lr=lr)

    def features(self, images: TrainingImages) -> Tensor:
        """Return the inputs of the last layer for images without augmentation, ``(n, d)``."""
        seen: list[Tensor] = []
        head = self._module.get_submodule(self._head)
        assert isinstance(head, nn.Linear)  # every architecture sees to it
        features = torch.zeros(len(images), head.in_features, device=self._device)
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
        try:
            for at, _ in self._over(images, lambda pixels: self._module(self._normalised(pixels))):
                features[at] = seen.pop()
        finally:
            handle.remove()
        return self._processes.all_reduce(features)

    def set_last_layer(self, weight: Tensor, bias: Tensor) -> None:
        """Replace the weights of the last layer, ``(k, d)`` and ``(k,)``."""
        head = self._module.get_submodule(self._head)
        assert isinstance(head, nn.Linear)  # every architecture sees to it
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)

    def accuracy(self, images: TrainingImages) -> float:
        """Return the share of images whose largest logit is that of their label."""
        logits = self._over(images, lambda pixels: self._module(self._normalised(pixels)))
        right = 0
        with torch.no_grad():
            for at, values in logits:
                right += int((values.argmax(dim=1) == images.labels[at]).sum())
        return self._processes.total(right) / len(images)

    def _over(
        self, images: TrainingImages, function: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield where the batches of this process are, and what a function makes of them."""
        self._student.eval()
        starts = range(0, len(images), _EVALUATION_BATCH)
        own = starts[self._processes.rank :: self._processes.size]
        spans = [slice(start, min(start + _EVALUATION_BATCH, len(images))) for start in own]
        for at, pixels in zip(spans, images.spans(spans), strict=True):
            with torch.no_grad(), self._precision():
                values = function(pixels)
            yield at, values

    def _normalised(self, pixels: Tensor) -> Tensor:
        images = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return images.contiguous(memory_format=self._layout)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._amp:
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


class _Looks:
    """Looks at the number of the first bad step and at the mean loss, for which nobody waits.

    Parameters
    ----------
    steps
        Steps of the epoch: the number as long as no step was bad.
    device
        The device that trains.

    Notes
    -----
    A look at a GPU sees what they were at the look before, whose copy has long arrived. That is the
    same step in every process.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.every = 1 if device.type == "cpu" else _LOOK_EVERY
        self._later = device.type == "cuda"
        self._steps = steps
        self._copy: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def next(self, bad: Tensor, mean: Tensor) -> tuple[int, float]:
        """Look at number and loss, ``()`` each; at the first look no step of a GPU is bad."""
        if not self._later:
            return int(bad), float(mean)
        # In 64 bits, which hold every number of a step.
        both = torch.stack((bad.double(), mean.double()))
        before, loss = self._steps, math.nan
        if self._copy is None or self._arrived is None:
            self._copy = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
            self._arrived = torch.cuda.Event()
        else:
            self._arrived.synchronize()
            before, loss = int(self._copy[0]), float(self._copy[1])
        self._copy.copy_(both, non_blocking=True)
        self._arrived.record()
        return before, loss


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say in one line that torch cannot compile a network, or normalise a batch.

    Raises
    ------
    InvalidInputError
        If it fails while the context lasts.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise InvalidInputError(
            "this network cannot normalise a batch of one image, such as the last one of an "
            "epoch or a process's share of it; change --batch-size, or use a larger --image-size"
        ) from error
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        # Its first paragraph; those after it say how to find a fault in torch.
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise InvalidInputError(
            f"torch cannot compile this network: {reason}; omit --compile"
        ) from error


def overruns(module: nn.Module) -> bool:
    """Return whether a CPU must not train a network channels-last.

    Notes
    -----
    oneDNN, issue 6035: the weight gradient of a 1×1 convolution that skips pixels writes past its
    memory where images lie channels-last and the layer has fewer channels than a vector of the
    processor, which are 16 at most. torch 2.15 dies of it, or computes on spoiled memory.
    """
    return any(
        isinstance(part, nn.Conv2d)
        and max(part.kernel_size) == 1
        and max(part.stride) > 1
        and part.in_channels // part.groups < 16
        for part in module.modules()
    )


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the network out of what :meth:`Trainer.state` gives."""
    return {k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")}


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
