"""DOCTOR: the probability that two samples from the predicted distribution agree."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._softmax import Scale, Softmax


@dataclass(frozen=True, slots=True)
class Doctor:
    """Sum of the squared class probabilities, as log-odds.

    ``log(g / (1 - g))`` with ``g = Σ_c p_c²`` and ``p = softmax(z)``: the more, the more certain;
    ``-log(k - 1)`` for a uniform prediction over ``k`` classes.

    Parameters
    ----------
    scale
        ``log-odds``, or ``probability`` for ``g`` itself in the precision of the logits.

    References
    ----------
    Granese, Romanelli, Gorla, Palamidessi, Piantanida. "DOCTOR: A Simple Method for Detecting
    Misclassification Errors". NeurIPS 2021, arXiv:2106.02395.

    Notes
    -----
    The paper compares ``(1 - g) / g`` with a threshold; the score is minus its logarithm. With
    ``s_c = exp(z_c - max z)``, ``q`` the sum of the ``s_c`` but the largest, and ``r`` that of
    their squares, ``(1 - g) / g = (2 q + q² - r) / (1 + r)``, in which nothing is rounded away.

    Published code computes ``g`` in float32, where it is 1 for very confident images, which tie:
    ``scale=probability`` gives that. The paper's second variant, with a perturbation of the input,
    is not implemented.
    """

    scale: Scale = "log-odds"

    @classmethod
    def fit(cls, _reference: Reference, *, scale: Scale = "log-odds") -> Self:
        """Learn nothing.

        Parameters
        ----------
        _reference
            Not used.
        scale
            How the sum is written: ``probability`` as published, with its ties.
        """
        return cls(scale)

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return the log-odds in float64, or ``Σ_c p_c²``, ``(n,)``."""
        if self.scale == "probability":
            return logits.softmax(dim=1).square().sum(dim=1)
        found = Softmax.of(logits)
        squares = (2 * found.below).scatter(1, found.first, -torch.inf)
        # r / q, which stays a number where both are too small to be one.
        ratio = (squares - found.log_rest).exp().sum(dim=1)
        rest = found.log_rest[:, 0]
        return squares.exp().sum(dim=1).log1p() - rest - (2 + rest.exp() - ratio).log()

    def score(self, batch: Activations) -> Tensor:
        """Return the score of the sum of the squared class probabilities, ``(n,)``."""
        return self.score_logits(batch.logits)
