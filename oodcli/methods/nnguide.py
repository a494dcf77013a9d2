"""NNGuide: the energy of an image, guided by similar training images and their energies."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods._bank import Bank, by_bank
from oodcli.methods._class_means import directions, feature_rows
from oodcli.methods.base import at_least

_SEED = 0


@dataclass(frozen=True, slots=True)
class NNGuide:
    """Energy times the mean of the largest similarities to training images.

    ``E(x) · (1/k) Σ ⟨u, E(x_i) u_i⟩`` over the ``k`` training images of the bank for which the
    product is largest; ``E = log Σ_c exp z_c`` and ``u = f / ‖f‖₂``.

    Parameters
    ----------
    bank
        Training features divided by their lengths and multiplied by their energies.
    k
        How many products are averaged; the size of the bank if that is smaller.
    alpha
        Fraction of the training images that the bank was drawn from them as.

    References
    ----------
    Park, Jung, Teoh. "Nearest Neighbor Guidance for Out-of-Distribution Detection". ICCV 2023,
    arXiv:2309.14888.

    Notes
    -----
    ``k = 100`` and ``alpha = 0.01`` are OpenOOD's. It fills the bank with the first images that the
    loader gives, which are all of one class where images lie class by class. Here they are drawn at
    random, by a fixed hash of their logits: whatever their order, the same images are drawn, and
    the images for a small ``alpha`` are among those for a larger one. At least ``k`` images are
    drawn, if there are as many. The authors' code takes ``k = 10`` where nothing else is said.
    """

    bank: Bank
    k: int
    alpha: float

    @classmethod
    def fit(cls, reference: Reference, *, k: int = 100, alpha: float = 0.01) -> Self:
        """Draw the bank from the training images."""
        at_least("nnguide:k", k, 1)
        if not 0 < alpha <= 1:
            raise InvalidInputError(
                f"nnguide:alpha must be greater than 0 and at most 1, not {alpha:g}"
            )
        total = len(reference.train)
        drawn = min(total, max(k, ceil(alpha * total)))
        bank = reference.once(("nnguide", drawn), lambda: _bank(reference, drawn))
        return cls(bank, min(k, bank.size), alpha)

    def score(self, batch: Activations) -> Tensor:
        """Return the guided energy, ``(n,)``."""
        return self.score_all([self], batch)[0]

    @staticmethod
    def score_all(detectors: Sequence["NNGuide"], batch: Activations) -> list[Tensor]:
        """Return the scores of each, ``(n,)``, from one search in each bank."""
        energies = batch.logits.logsumexp(dim=1)

        def search(bank: Bank, ks: Sequence[int]) -> list[Tensor]:
            products = bank.largest(feature_rows(batch, normalised=True), max(ks))
            return [energies * products[:, :k].mean(dim=1) for k in ks]

        return by_bank([(each.bank, each.k) for each in detectors], search)


def _bank(reference: Reference, drawn: int) -> Bank:
    if drawn == len(reference.train):

        def scaled(images: Activations) -> Tensor:
            return directions(images.features) * images.logits.logsumexp(dim=1, keepdim=True)

        return Bank.of(reference.train, scaled, size=drawn)
    keys = reference.once(
        "nnguide", lambda: torch.cat([_keys(chunk) for chunk in reference.train.chunks()])
    )
    last = keys.kthvalue(drawn).values

    def chosen(images: Activations) -> Tensor:
        kept = _keys(images) <= last
        energies = images.logits[kept].logsumexp(dim=1, keepdim=True)
        return directions(images.features[kept]) * energies

    # More than were asked for where images share their logits.
    return Bank.of(reference.train, chosen, size=int((keys <= last).sum()))


def _keys(images: Activations) -> Tensor:
    """Return a random whole number for every image that depends on its logits alone, ``(n,)``."""
    bits = images.logits.float().contiguous().view(torch.int32).long()
    generator = torch.Generator().manual_seed(_SEED)
    factors = torch.randint(-(2**63), 2**63 - 1, bits.shape[1:], generator=generator)
    # Sums modulo 2**64, so the same in whatever order they are taken.
    return (bits * (factors | 1).to(bits.device)).sum(dim=1)
