"""pNML: regret of the last layer about an image it was not trained on."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods._class_means import feature_rows, wide_blocks
from oodcli.methods._moments import Spectrum, moments
from oodcli.methods._softmax import (
    Magnitude,
    Softmax,
    log_log1p,
    log_one_less,
    log_sum,
    magnitude,
)


@dataclass(frozen=True, slots=True)
class PNML:
    """Minus the logarithm of the regret of the last layer.

    ``-log R`` with ``R = log_K Σ_c p_c / (p_c + (1 - p_c) p_c^κ)``, ``κ = q / (1 + q)`` and
    ``q = f̂ᵀ (XᵀX)⁺ f̂``, where ``f̂ = f / ‖f‖₂``, the rows of ``X`` are the ``f̂`` of the training
    images, and ``p`` is the softmax of the logits of ``f̂``.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    whitening
        float64 ``V`` with ``V Vᵀ = (XᵀX)⁺``, ``(n, r)``.
    scale
        ``log``, or ``linear`` for ``-R`` itself, float64.

    References
    ----------
    Bibas, Feder, Hassner. "Single Layer Predictive Normalized Maximum Likelihood for
    Out-of-Distribution Detection". NeurIPS 2021, arXiv:2110.09246.

    Notes
    -----
    As in the authors' code, and pytorch-ood, it is the normalised feature that the last layer sees.
    The sum is 1 plus ``Σ_c p_c (1 - p_c) (1 - p_c^κ) / (p_c + (1 - p_c) p_c^κ)``, of which the
    logarithms are added here, so that a confident image, which has next to no regret, keeps all
    digits. Published code rounds its regret to 0 from a lead of 37 nats on. ``scale=linear`` gives
    minus the regret, which in float64 is 0, and ties, from a lead of about 700 nats on. An image
    without any regret, such as a feature of length zero, gets 1.8e308. What ``f̂`` has outside the
    space of the training features does not count, as in the authors' code (an earlier version of it
    took that part for ``κ``, where larger). ``XᵀX`` and its eigenvectors are in float64;
    eigenvalues not above ``n · 1.4e-14`` times the largest, rounding of float32 features, count as
    zero.
    """

    head: Head
    whitening: Tensor
    scale: Magnitude = "log"

    @classmethod
    def fit(cls, reference: Reference, *, scale: Magnitude = "log") -> Self:
        """Take the second moment of the normalised training features.

        Parameters
        ----------
        reference
            Has the last layer and the training features.
        scale
            How the regret is written: ``linear`` as published, but for its sign.
        """
        whitening = reference.once("pnml", lambda: _whitening(reference))
        return cls(reference.head, whitening, scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the score of the regret, float64, ``(n,)``."""
        energies = [
            (block @ self.whitening).square().sum(dim=1, keepdim=True)
            for block in wide_blocks(batch.features, normalised=True)
        ]
        energy = torch.cat(energies)  # (n, 1)
        logits = self.head(feature_rows(batch, normalised=True))
        found = Softmax.of(logits)
        log_p, log_rest = found.logs()
        kappa = energy / (1 + energy)
        # log of -log p, of the largest as well
        log_minus_log = (-log_p).log().scatter(1, found.first, log_log1p(found.log_rest))
        odds = log_rest + (kappa - 1) * log_p
        log_share = -odds.clamp(min=0) - (-odds.abs()).exp().log1p()  # p / (p + (1 - p) p^κ)
        gained = log_share + log_rest + log_one_less(kappa.log() + log_minus_log)
        regret = log_log1p(log_sum(gained)) - math.log(math.log(logits.shape[1]))
        return magnitude(regret[:, 0], self.scale).clamp(max=torch.finfo(torch.float64).max)


def _whitening(reference: Reference) -> Tensor:
    normalised = moments(reference, normalised=True)
    product = normalised.about(torch.zeros_like(normalised.mean)) * normalised.count
    return Spectrum.of(product).whitening(0.0)
