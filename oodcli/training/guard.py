"""What stops a training with one line: losses that are not finite, and errors of torch."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from oodcli.errors import InvalidInputError

# Steps between two checks of the loss; each check makes an accelerator wait.
_CHECK_EVERY = 64


class NotFiniteError(InvalidInputError):
    """A loss that is NaN or infinite; the weights of the epoch cannot be used.

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


class LossMonitor:
    """Reads the first bad step and the mean loss from the device, without waiting for a GPU.

    Parameters
    ----------
    steps
        Number of steps of the epoch; as the number of the first bad step it means none.
    device
        The device that trains.

    Notes
    -----
    On a GPU, a read returns the values of the previous read, whose asynchronous copy has finished
    by then. All processes thus read the values of the same step.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.every = 1 if device.type == "cpu" else _CHECK_EVERY
        self._delayed = device.type == "cuda"
        self._steps = steps
        self._copy: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def read(self, bad: Tensor, mean: Tensor) -> tuple[int, float]:
        """Return the first bad step and the mean loss.

        Parameters
        ----------
        bad, mean
            The current values on the device, ``()`` each.

        Returns
        -------
        tuple
            The current values; on a GPU those of the previous call, and at the first call no bad
            step and a loss of NaN.
        """
        if not self._delayed:
            return int(bad), float(mean)
        # float64 represents every step number exactly.
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
def explain_torch_errors() -> Iterator[None]:
    """Turn errors of compilation and of batch normalisation into one line.

    Raises
    ------
    InvalidInputError
        If torch cannot compile the network, or normalise a batch of one image, in the body of the
        context.
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
        # The first paragraph; the others are about debugging torch.
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise InvalidInputError(
            f"torch cannot compile this network: {reason}; omit --compile"
        ) from error
