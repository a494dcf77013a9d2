"""AdaSCALE: SCALE with a percentile of each image's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods._descending import LARGEST_EXPONENT, descending
from oodcli.methods.base import percentile
from oodcli.probes import Output, Probe, ProbedNetwork
from oodcli.specs import positive

_STEP = 0.5  # in units of normalised pixels


@dataclass(frozen=True, slots=True)
class PerturbedFeatures:
    """Features of the image with its least important pixels moved, ``(n, d)``.

    Half a unit of the normalised image, with the sign of the gradient of the largest logit, is
    added to the share of input values where that gradient is smallest in magnitude.

    Parameters
    ----------
    share
        Share of the input values, from 0 to 1.
    """

    share: float

    @property
    def key(self) -> str:
        """Name of the array."""
        return f"adascale(share={self.share!r})"

    @property
    def passes(self) -> float:
        """A forward and a backward pass for the gradient, and a forward pass."""
        return 4.0

    def maps(self, _network: ProbedNetwork, /) -> Sequence[str]:
        """Want no map."""
        return ()

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return the features of the perturbed images, ``(n, d)``."""
        best = output.logits.argmax(dim=1, keepdim=True)
        with torch.enable_grad():
            leaves = images.clone().detach().requires_grad_()
            # The sum keeps images apart: the gradient of each is that of its own logit.
            largest = network.run(leaves).logits.gather(1, best).sum()
            (gradient,) = torch.autograd.grad(largest, leaves)
        flat = gradient.flatten(1)  # (n, c*h*w)
        count = int(flat.shape[1] * self.share)
        least = flat.abs().topk(count, dim=1, largest=False).indices
        step = torch.zeros_like(flat).scatter_(1, least, flat.gather(1, least).sign() * _STEP)
        return network.run(images + step.reshape(images.shape)).features


@dataclass(frozen=True, slots=True)
class AdaSCALE:
    """Logits of features scaled at a percentile that depends on the image.

    With ``f'`` the feature of the perturbed image (see :class:`PerturbedFeatures`),
    ``Q' = Σ_{top k1 %} relu(f') + lmbda · Σ_{top k2 %} |f - f'|``, where the top is that of ``f``.
    ``F`` is the empirical distribution of ``Q'`` over calibration images, and the percentile
    ``p = low + (1 - F(Q')) · (high - low)``. As in SCALE ``r = S / S_k``, the sum of ``relu(f)``
    over that of its ``k = d - round(d · p / 100)`` largest values. Variant ``a`` gives the logits
    of ``exp(r) · f``, variant ``l`` gives ``r² · z``. The paper's score is their energy.

    Parameters
    ----------
    head
        Last layer of the classifier.
    variant
        ``a`` scales activations, ``l`` logits.
    low, high
        Range of the percentile.
    k1, k2
        Percent of the features in each sum.
    lmbda
        Weight of the shift.
    calibration
        ``Q'`` of the calibration images, ascending, ``(m,)``.
    probes
        Gives ``f'``.

    References
    ----------
    Regmi. "AdaSCALE: Adaptive Scaling for OOD Detection". 2025, arXiv:2503.08023.

    Notes
    -----
    Checked against the author's code in OpenOOD, which draws 5,000 calibration images at random
    where there are more; here all are used. At least one feature enters each sum, and ``k`` is at
    least 1. An image without positive features has ``r = 1``; ``exp(r)`` ends at ``r = 600``.

    The pixels that are moved have the smallest gradients, whose signs and order hang on rounding: a
    score varies a little with the device and with what else is in the batch, far less than between
    images.

    OpenOOD searches all pairs of percentiles in 60, 65, … 95, 99; the grid here holds those whose
    every combination is a range.
    """

    head: Head
    variant: Literal["a", "l"]
    low: float
    high: float
    k1: float
    k2: float
    lmbda: float
    calibration: Tensor
    probes: tuple[Probe, ...]

    @classmethod
    def fit(
        cls,
        reference: Reference,
        *,
        variant: Literal["a", "l"] = "a",
        low: float = 75.0,
        high: float = 85.0,
        k1: float = 5.0,
        k2: float = 1.0,
        lmbda: float = 10.0,
        share: float = 0.05,
    ) -> Self:
        """Measure the calibration images.

        Parameters
        ----------
        reference
            The calibration images.
        variant
            ``a`` scales features, ``l`` logits.
        low, high
            Percentiles between which that of an image lies.
        k1, k2
            Shares of the features that are summed, in percent.
        lmbda
            Weight of the change of the features.
        share
            Share of the pixel values that are moved.

        Raises
        ------
        InvalidInputError
            If a parameter is out of its range.
        """
        percentile("adascale:low", low)
        percentile("adascale:high", high)
        if low >= high:
            raise InvalidInputError(
                f"adascale:low must be less than adascale:high, not {low:g} and {high:g}"
            )
        for name, value in (("k1", k1), ("k2", k2), ("lmbda", lmbda), ("share", share)):
            positive(f"adascale:{name}", value)
        for name, value, most in (("k1", k1, 100), ("k2", k2, 100), ("share", share, 1)):
            if value > most:
                raise InvalidInputError(f"adascale:{name} must be at most {most}, not {value:g}")
        probe = PerturbedFeatures(float(share))
        chunks = reference.probed("calibration", probe).chunks()
        shifts = torch.cat(
            [_shift(chunk, probe.key, k1=k1, k2=k2, lmbda=lmbda) for chunk in chunks]
        )
        calibration = shifts.sort().values
        return cls(reference.head, variant, low, high, k1, k2, lmbda, calibration, (probe,))

    def logits(self, batch: Activations) -> Tensor:
        """Return the scaled logits, float64 ``(n, k)``."""
        # float64, for exp(r) leaves the range of float32 at percentiles near 99.
        ratio = self._ratio(batch)[:, None].double()  # (n, 1)
        if self.variant == "l":
            return batch.logits * ratio.square()
        # W (e f) + b = e (z - b) + b
        factor = ratio.clamp(max=LARGEST_EXPONENT).exp()
        return (batch.logits - self.head.bias) * factor + self.head.bias

    def _ratio(self, batch: Activations) -> Tensor:
        shift = _shift(batch, self.probes[0].key, k1=self.k1, k2=self.k2, lmbda=self.lmbda)
        below = torch.searchsorted(self.calibration, shift, right=True) / len(self.calibration)
        chosen = self.low + (1 - below) * (self.high - self.low)  # (n,)
        width = batch.features.shape[1]
        kept = (width - (width * chosen / 100).round().long()).clamp(min=1)  # (n,)
        ordered = descending(batch)
        largest = ordered.sums.gather(1, kept[:, None] - 1).squeeze(1)  # (n,)
        nothing = largest <= 0
        return torch.where(nothing, 1.0, ordered.total / largest.masked_fill(nothing, 1.0))


def _shift(batch: Activations, key: str, *, k1: float, k2: float, lmbda: float) -> Tensor:
    """Return ``Q'``, ``(n,)``."""
    features, moved = batch.features, batch.extra[key]
    width = features.shape[1]
    many, few = (max(int(width * share / 100), 1) for share in (k1, k2))
    order = features.topk(max(many, few), dim=1).indices
    corrections = moved.gather(1, order[:, :many]).relu().sum(dim=1)
    shifts = (features - moved).abs().gather(1, order[:, :few]).sum(dim=1)
    return corrections + lmbda * shifts
