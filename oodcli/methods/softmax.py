"""Softmax probabilities of which the small ones, and what the largest leaves, keep their digits.

In float32 a probability rounds to 1 from a lead of 17 nats on, in float64 from 37, and images that
are more certain than that tie. Computed relative to the largest logit, nothing is rounded away.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# How a probability is written as a score: both rank alike as long as nothing rounds.
Scale = Literal["log-odds", "probability"]


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
        # As torch's own logsumexp; ONNX's leaves the range of numbers.
        # The least float32 is low enough, and a constant that graphs can hold.
        peak = others.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        log_rest = (others - peak).exp().sum(dim=1, keepdim=True).log() + peak
        return cls(largest.indices, below, log_rest)

    @property
    def log_p(self) -> Tensor:
        """Logarithms of the probabilities, ``(n, k)``."""
        return self.below - self.log_total

    @property
    def log_total(self) -> Tensor:
        """Minus the logarithm of the largest probability, ``(n, 1)``."""
        return self.log_rest.exp().log1p()

    def complement(self, probabilities: Tensor) -> Tensor:
        """Return ``1 - p``, ``(n, k)``.

        Parameters
        ----------
        probabilities
            ``exp(log_p)``, ``(n, k)``.
        """
        return (1 - probabilities).scatter(1, self.first, (self.log_rest - self.log_total).exp())
