"""Softmax probabilities with full precision of small ones and of one minus the largest.

In float32 a probability rounds to 1 from a lead of 17 nats on, in float64 from 37, and images that
are more certain than that tie. Computed relative to the largest logit, nothing is rounded away.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# How a probability is written as a score: both rank alike as long as nothing rounds.
Scale = Literal["log-odds", "probability"]
# How what a prediction lacks to certainty is written, an entropy or a regret: minus its logarithm,
# which has no end, or as published minus itself, which ends at 0. Both rank alike.
Magnitude = Literal["log", "linear"]
# exp of less than this is nothing beside 1 in float64.
_NOTHING = -37.0


@dataclass(frozen=True, slots=True)
class Softmax:
    """The softmax of logits, relative to its largest value.

    Parameters
    ----------
    first
        Class of the largest logit, ``(n, 1)``.
    below
        Logits less the largest, float64, ``(n, k)``: 0 for ``first``, else not above 0.
    log_rest
        ``log Σ exp(below)`` over the other classes, float64, ``(n, 1)``: minus the log-odds of the
        largest probability, ``log((1 - p) / p)``.
    """

    first: Tensor
    below: Tensor
    log_rest: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "Softmax":
        """Take the softmax of logits ``(n, k)``."""
        wide = logits.double()
        largest = wide.max(dim=1, keepdim=True)
        below = wide - largest.values
        others = below.scatter(1, largest.indices, -torch.inf)
        return cls(largest.indices, below, log_sum(others))

    @property
    def log_p(self) -> Tensor:
        """Logarithms of the probabilities, ``(n, k)``."""
        return self.below - self.log_total

    @property
    def log_total(self) -> Tensor:
        """Minus the logarithm of the largest probability, ``(n, 1)``."""
        return self.log_rest.exp().log1p()

    @property
    def log_complement(self) -> Tensor:
        """Logarithms of what the probabilities leave, ``log(1 - p)``, ``(n, k)``."""
        return self.logs()[1]

    def logs(self) -> tuple[Tensor, Tensor]:
        """Return :attr:`log_p` and :attr:`log_complement`."""
        log_total = self.log_total
        log_p = self.below - log_total
        # Only of the largest, where p may be near 1, is the difference nothing but rounding.
        plain = (-log_p.exp()).log1p()
        return log_p, plain.scatter(1, self.first, self.log_rest - log_total)


def log_sum(logs: Tensor) -> Tensor:
    """Return ``log Σ_c exp(x_c)``, ``(n, 1)``, of values ``(n, k)``; minus infinity of none.

    As torch's own ``logsumexp``, but for a graph: ONNX's leaves the range of numbers.
    """
    # The least float32 is low enough, and a constant that graphs can hold.
    peak = logs.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    return (logs - peak).exp().sum(dim=1, keepdim=True).log() + peak


def log_log1p(logs: Tensor) -> Tensor:
    """Return ``log(log(1 + x))`` of ``log x``, also where ``x`` is too small to be a number."""
    return torch.where(logs < _NOTHING, logs, logs.exp().log1p().log())


def log_one_less(logs: Tensor) -> Tensor:
    """Return ``log(1 - exp(-x))`` of ``log x``, also where ``x`` is too small to be a number."""
    return torch.where(logs < _NOTHING, logs, (-(-logs.exp()).expm1()).log())


def magnitude(logs: Tensor, scale: Magnitude) -> Tensor:
    """Return the score of what a prediction lacks to certainty, of its logarithm ``log x``."""
    return -logs if scale == "log" else -logs.exp()
