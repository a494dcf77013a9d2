"""pNML: regret of the last layer about an image it was not trained on."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods.class_means import feature_rows, wide_blocks
from oodcli.methods.moments import Spectrum, moments
from oodcli.methods.softmax import Softmax


@dataclass(frozen=True, slots=True)
class PNML:
    """Negative regret of the last layer.

    ``-log_K Σ_c p_c / (p_c + (1 - p_c) p_c^κ)`` with ``κ = q / (1 + q)`` and ``q = f̂ᵀ (XᵀX)⁺ f̂``,
    where ``f̂ = f / ‖f‖₂``, the rows of ``X`` are the ``f̂`` of the training images, and ``p`` is
    the softmax of the logits of ``f̂``.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    whitening
        float64 ``V`` with ``V Vᵀ = (XᵀX)⁺``, ``(n, r)``.

    References
    ----------
    Bibas, Feder, Hassner. "Single Layer Predictive Normalized Maximum Likelihood for
    Out-of-Distribution Detection". NeurIPS 2021, arXiv:2110.09246.

    Notes
    -----
    As in the authors' code, and pytorch-ood, it is the normalised feature that the last layer sees.
    The sum is 1 plus ``Σ_c p_c (1 - p_c) (1 - p_c^κ) / (p_c + (1 - p_c) p_c^κ)``, which keeps its
    digits where a confident image has next to no regret; published code rounds that to 0 from a
    lead of 37 nats on. What ``f̂`` has outside the space of the training features does not count, as
    in the authors' code (an earlier version of it took that part for ``κ``, where larger).
    ``XᵀX`` and its eigenvectors are in float64; eigenvalues not above
    ``n · 1.4e-14`` times the largest, rounding of float32 features, count as zero.
    """

    head: Head
    whitening: Tensor

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Take the second moment of the normalised training features."""
        return cls(reference.head, reference.once("pnml", lambda: _whitening(reference)))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative regret, float64, ``(n,)``."""
        energies = [
            (block @ self.whitening).square().sum(dim=1, keepdim=True)
            for block in wide_blocks(batch.features, normalised=True)
        ]
        energy = torch.cat(energies)  # (n, 1)
        logits = self.head(feature_rows(batch, normalised=True))
        found = Softmax.of(logits)
        log_p = found.log_p
        p = log_p.exp()
        rest = found.complement(p)
        kappa = energy / (1 + energy)
        share = 1 / (1 + rest * ((kappa - 1) * log_p).exp())  # p / (p + (1 - p) p^κ)
        gained = share * rest * -(kappa * log_p).expm1()
        return -gained.sum(dim=1).log1p() / math.log(logits.shape[1])


def _whitening(reference: Reference) -> Tensor:
    normalised = moments(reference, normalised=True)
    product = normalised.about(torch.zeros_like(normalised.mean)) * normalised.count
    return Spectrum.of(product).whitening(0.0)
