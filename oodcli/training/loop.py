"""The one training loop."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.progress import Task
from oodcli.training.augment import augment
from oodcli.training.recipes import Recipe

_EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True)
class EpochStats:
    """What is kept of an epoch.

    Parameters
    ----------
    epoch
        Number of the epoch, from 1.
    loss
        Mean cross-entropy over the augmented training images.
    train_accuracy
        Accuracy on them, while training.
    val_accuracy
        Accuracy on the validation images after the epoch; None without any.
    lr
        Learning rate of the last step.
    seconds
        How long it took.
    images_per_s
        Training images a second.
    """

    epoch: int
    loss: float
    train_accuracy: float
    val_accuracy: float | None
    lr: float
    seconds: float
    images_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the line of the history."""
        return asdict(self)


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


class Trainer:
    """A network in training: its optimiser, its images and its place in the schedule.

    All chance of an epoch comes from the seed and the number of the epoch, so training that was cut
    off and goes on from a finished epoch ends with the weights of training that was not.

    Parameters
    ----------
    module
        The network, on ``device``; changed in place.
    recipe
        The schedule.
    seed
        Seed of the order of the images, their augmentation, and dropout.
    device
        Where to train.
    amp
        Whether to compute in bfloat16 where that is safe.
    """

    def __init__(
        self, module: nn.Module, recipe: Recipe, *, seed: int, device: torch.device, amp: bool
    ) -> None:
        self._module = module.to(device).to(memory_format=torch.channels_last)
        self._recipe = recipe
        self._seed = seed
        self._device = device
        self._amp = amp
        self._mean = torch.tensor(recipe.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(recipe.std, device=device).view(1, 3, 1, 1)
        self._optimiser = torch.optim.SGD(
            module.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
        )

    def state(self) -> dict[str, Tensor]:
        """Return weights, running statistics and momenta, named, on the CPU."""
        tensors = {f"module.{k}": v for k, v in self._module.state_dict().items()}
        for name, parameter in self._module.named_parameters():
            momentum = self._optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up the state of a finished epoch."""
        weights = {k.removeprefix("module."): v for k, v in state.items() if k[:7] == "module."}
        self._module.load_state_dict(weights)
        for name, parameter in self._module.named_parameters():
            if f"momentum.{name}" in state:
                # Momenta lie in memory as their parameters do, so that the arithmetic is the same.
                momentum = torch.empty_like(parameter)
                momentum.copy_(state[f"momentum.{name}"])
                self._optimiser.state[parameter]["momentum_buffer"] = momentum

    def epochs(
        self,
        train: LabelledPixels,
        val: LabelledPixels | None,
        *,
        done: int,
        task: Task,
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

        Yields
        ------
        EpochStats
            After each epoch; the network may be saved then.

        Raises
        ------
        InvalidInputError
            If the loss is not finite.
        """
        for epoch in range(done + 1, self._recipe.epochs + 1):
            yield self._epoch(epoch, train, val, task)

    def _epoch(
        self, epoch: int, train: LabelledPixels, val: LabelledPixels | None, task: Task
    ) -> EpochStats:
        generator = torch.Generator(self._device).manual_seed(_seed_of(self._seed, epoch))
        torch.manual_seed(_seed_of(self._seed, epoch, 1))  # dropout
        order = torch.randperm(len(train), generator=generator, device=self._device)
        batches = order.split(self._recipe.batch_size)
        total = torch.zeros((), device=self._device)
        right = torch.zeros((), device=self._device, dtype=torch.int64)
        start = time.perf_counter()
        lr = self._recipe.lr
        self._module.train()
        for step, rows in enumerate(batches):
            share = (epoch - 1 + step / len(batches)) / self._recipe.epochs
            lr = self._recipe.learning_rate(epoch - 1, share)
            for group in self._optimiser.param_groups:
                group["lr"] = lr
            labels = train.labels[rows]
            pixels = augment(
                train.pixels[rows],
                generator,
                flip=self._recipe.flip,
                crop_padding=self._recipe.crop_padding,
            )
            with self._precision():
                logits = self._module(self._normalised(pixels))
            loss = functional.cross_entropy(logits.float(), labels)
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self._optimiser.step()
            total += loss.detach() * len(rows)
            right += (logits.detach().argmax(dim=1) == labels).sum()
            task.advance(len(rows))
        loss_value = float(total) / len(train)
        seconds = time.perf_counter() - start
        if not np.isfinite(loss_value):
            raise InvalidInputError(
                f"the loss is {loss_value} in epoch {epoch}; lower the learning rate, "
                f"which is {lr:g}: --lr {lr / 10:g}"
            )
        stats = EpochStats(
            epoch=epoch,
            loss=loss_value,
            train_accuracy=int(right) / len(train),
            val_accuracy=None if val is None else self.accuracy(val),
            lr=lr,
            seconds=seconds,
            images_per_s=len(train) / seconds,
        )
        val_text = (
            {} if stats.val_accuracy is None else {"val": f"{100 * stats.val_accuracy:.1f} %"}
        )
        task.advance(
            0,
            epoch=f"{epoch}/{self._recipe.epochs}",
            loss=f"{loss_value:.3f}",
            train=f"{100 * stats.train_accuracy:.1f} %",
            **val_text,
        )
        return stats

    def accuracy(self, images: LabelledPixels) -> float:
        """Return the share of images whose largest logit is that of their label."""
        self._module.eval()
        right = 0
        with torch.inference_mode():
            for pixels, labels in zip(
                images.pixels.split(_EVALUATION_BATCH),
                images.labels.split(_EVALUATION_BATCH),
                strict=True,
            ):
                with self._precision():
                    logits = self._module(self._normalised(pixels))
                right += int((logits.argmax(dim=1) == labels).sum())
        return right / len(images)

    def _normalised(self, pixels: Tensor) -> Tensor:
        images = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return images.contiguous(memory_format=torch.channels_last)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._amp:
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
