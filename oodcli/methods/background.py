"""Background: an image belongs to a class, and not to the background that outliers were."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import BACKGROUND, Activations, Reference
from oodcli.methods._softmax import log_sum

By = Literal["class", "background"]


@dataclass(frozen=True, slots=True)
class Background:
    """Largest probability of a class beside the background, as log-odds.

    ``log(p / (1 - p))`` with ``p = max_c exp z_c / (exp b + sum_j exp z_j)``, where
    ``b = v . f + a`` is the logit of the background, which the objective ``background`` has trained
    on outliers.

    Parameters
    ----------
    weight, bias
        Weight ``v``, ``(1, d)``, and bias ``a``, ``(1,)``, of the background.
    by
        ``class`` as in the paper; ``background`` for the log-odds of any class against the
        background, ``log sum_j exp z_j - b``.

    References
    ----------
    Dhamija, Günther, Boult. "Reducing Network Agnostophobia". NeurIPS 2018, arXiv:1811.04110: the
    baseline with a background class.

    Notes
    -----
    Log-odds rank images as probabilities do; in float32 many of these would be equal.
    """

    weight: Tensor
    bias: Tensor
    by: By = "class"

    @classmethod
    def fit(cls, reference: Reference, *, by: By = "class") -> Self:
        """Take the layer of the background.

        Parameters
        ----------
        reference
            Has the last layer and what is kept beside it.
        by
            What the score is the log-odds of: the most probable ``class``, or not the
            ``background``.
        """
        return cls(*reference.head.kept[BACKGROUND], by)

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds, float64, ``(n,)``."""
        logits = batch.logits.double()
        background = batch.features.double() @ self.weight.double().T + self.bias.double()
        if self.by == "background":
            return logits.logsumexp(dim=1) - background[:, 0]
        largest = logits.max(dim=1, keepdim=True)
        others = logits.scatter(1, largest.indices, -torch.inf)
        return (largest.values - log_sum(torch.cat([others, background], dim=1)))[:, 0]
