"""OptFS: features weighted by what their size has meant for the prediction."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import BLOCK_ROWS
from oodcli.methods._percentiles import outer_percentiles

BINS = 100
# The bins cover the training features between these percentiles.
LOW, HIGH = 0.1, 99.9
# Euclidean length of the vector of weights.
LENGTH = 1000.0


@dataclass(frozen=True, slots=True)
class OptFS:
    """Logits of features that are multiplied by a weight for the interval they lie in.

    ``z' = W (θ(f) ⊙ f) + b``. ``θ`` is constant on 100 intervals of equal width between the 0.1 %
    and the 99.9 % percentile of all training features and 0 outside them. On interval i it is
    proportional to the mean, over training images, of ``Σ_{j: f_j in i} W_ŷj f_j``: what features
    of that size have contributed to the logit of the predicted class ŷ.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    low
        Where the first interval begins.
    width
        Width of an interval.
    weights
        ``θ`` with a 0 at both ends for what lies outside, ``(102,)``.

    References
    ----------
    Zhao, Xu, Gupta, Asthana, Zheng, Gould. "Towards Optimal Feature-Shaping Methods for
    Out-of-Distribution Detection". ICLR 2024, arXiv:2402.00865, equation 14 (from ID data
    alone).

    Notes
    -----
    Written from the authors' code, whose form "energy" this is, with ``θ`` of length 1000 as there.
    Their form "vanilla" takes ``w_ŷ · (θ(f) ⊙ f)`` for the class ŷ that the network predicts:
    ``optfs+maxlogit`` is the same but for the bias and images whose predicted class changes.

    The logits are some hundred times as large as those of the network, so that a scorer that
    bends with their size, such as MSP, saturates after it.
    """

    head: Head
    low: float
    width: float
    weights: Tensor

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Measure the contributions of the intervals, in two passes over the training features.

        Raises
        ------
        UndefinedMethodError
            If the training features have no spread, or contribute nothing.
        """
        head = reference.head
        low, high = outer_percentiles(
            (chunk.features for chunk in reference.train.chunks()),
            total=len(reference.train) * head.weight.shape[1],
            low=LOW,
            high=HIGH,
        )
        if low >= high:
            raise UndefinedMethodError(
                f"optfs is not defined for training features without spread "
                f"(0.1 % and 99.9 % percentile: {low:.3g}): use another method"
            )
        width = (high - low) / BINS
        sums = torch.zeros(BINS + 2, dtype=torch.float64, device=head.weight.device)
        for chunk in reference.train.chunks():
            blocks = zip(
                chunk.features.split(BLOCK_ROWS), chunk.predictions.split(BLOCK_ROWS), strict=True
            )
            for features, predictions in blocks:
                parts = (head.weight[predictions] * features).flatten().double()
                places = _interval(features, low, width).flatten()
                sums += torch.bincount(places, parts, minlength=BINS + 2)
        sums[0] = sums[-1] = 0
        length = sums.norm()
        if length == 0:
            raise UndefinedMethodError(
                "optfs is not defined where training features contribute nothing to the "
                "predicted class: use another method"
            )
        return cls(head, low, width, (sums * (LENGTH / length)).to(head.weight.dtype))

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the weighted features, ``(n, k)``."""
        weights = self.weights[_interval(batch.features, self.low, self.width)]
        return self.head(weights * batch.features)


def _interval(features: Tensor, low: float, width: float) -> Tensor:
    """Return the number of the interval, from 1; 0 below the first, 101 above the last."""
    # A feature that is not a number has to have some interval, and stays what it is.
    places = (features - low).div_(width).floor_().nan_to_num_(nan=-1.0)
    return places.clamp_(-1, BINS).add_(1).long()
