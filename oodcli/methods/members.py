"""Scores of an ensemble of networks: what the mean of their predictions says, and their agreement.

An ensemble has logits, the mean of those of its members, so that every scorer of logits is defined
for it, and predictions, those of the mean class probabilities. It has no features.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods._needs import CLASSES
from oodcli.methods.base import Input, Method, MethodPart, MethodSpec
from oodcli.methods.entropy import Entropy
from oodcli.methods.msp import MSP

# Arrays of an ensemble beyond its mean logits.
LOG_MEAN = "log mean probabilities"
INFORMATION = "mutual information"
# The inputs that an ensemble has; a method with others is not defined for it.
ENSEMBLE_INPUTS: frozenset[Input] = frozenset(
    {"logits", "train", "labels", "calibration", "calibration labels"}
)


def mean_of_members(members: Sequence[Activations]) -> Activations:
    """Return the activations of an ensemble for images, without features and block norms.

    With ``z_m`` the logits of member ``m`` and ``p_m`` their softmax: the logits are
    ``mean_m z_m``, the predictions the largest ``mean_m p_m``. :data:`LOG_MEAN` is
    ``log mean_m p_m``, float64 ``(n, k)``, and :data:`INFORMATION` is ``mean_m KL(p_m ‖ mean p)``,
    float64 ``(n,)``, which is ``H(mean_m p_m) - mean_m H(p_m)``.

    Parameters
    ----------
    members
        Activations of the same images, with the same classes; at least one.
    """
    logits = torch.stack([each.logits.double() for each in members])  # (m, n, k)
    log_p = logits.log_softmax(dim=2)
    log_mean = log_p.logsumexp(dim=0) - math.log(len(members))  # (n, k)
    # The terms of a member add up to a divergence; no entropy is lost in a difference of two.
    information = (log_p.exp() * (log_p - log_mean)).sum(dim=2).mean(dim=0)
    nothing = logits.new_zeros(logits.shape[1], 0, dtype=torch.float32)
    return Activations(
        logits.mean(dim=0).to(members[0].logits.dtype),
        nothing,
        nothing,
        log_mean.argmax(dim=1),
        extra={LOG_MEAN: log_mean, INFORMATION: information},
    )


def head_without_features(classes: int, device: torch.device | str) -> Head:
    """Return a last layer that only tells how many classes there are."""
    return Head(torch.zeros(classes, 0, device=device), torch.zeros(classes, device=device))


@dataclass(frozen=True, slots=True)
class MeanProbability:
    """Largest mean class probability of the members of an ensemble, as log-odds.

    ``log(p / (1 - p))`` with ``p = max_c mean_m softmax(z_m)_c``.

    References
    ----------
    Lakshminarayanan, Pritzel, Blundell. "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles". NeurIPS 2017, arXiv:1612.01474, section 2.4.

    Notes
    -----
    The paper compares the probability itself, which ranks images alike but for ties in float32; see
    ``msp``.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds, float64, ``(n,)``."""
        return MSP().score_logits(batch.extra[LOG_MEAN])


@dataclass(frozen=True, slots=True)
class MeanEntropy:
    """Minus the logarithm of the entropy of the mean class probabilities of an ensemble.

    ``-log H(mean_m softmax(z_m))``, in nats: the total uncertainty of the prediction.

    References
    ----------
    Lakshminarayanan, Pritzel, Blundell. "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles". NeurIPS 2017, arXiv:1612.01474.

    Notes
    -----
    The paper compares ``H`` itself, which ranks images alike; see ``entropy``.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score(self, batch: Activations) -> Tensor:
        """Return the score of the entropy, float64, ``(n,)``."""
        return Entropy().score_logits(batch.extra[LOG_MEAN])


@dataclass(frozen=True, slots=True)
class MutualInformation:
    """Minus the mutual information of prediction and member: how far the members agree.

    ``-(H(mean_m p_m) - mean_m H(p_m))`` with ``p_m = softmax(z_m)``, in nats; 0 if all members
    predict the same probabilities, at least ``-log`` of the number of members.

    References
    ----------
    Depeweg, Hernandez-Lobato, Doshi-Velez, Udluft. "Decomposition of Uncertainty in Bayesian Deep
    Learning for Efficient and Risk-sensitive Learning". ICML 2018, arXiv:1710.07283; of dropout:
    Gal, Islam, Ghahramani, ICML 2017, arXiv:1703.02910 (BALD).

    Notes
    -----
    Computed as the mean divergence of the members from their mean, in float64, so that members that
    are all certain do not tie at 0 because two entropies cancel.
    """

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls()

    def score(self, batch: Activations) -> Tensor:
        """Return minus the mutual information, float64, ``(n,)``."""
        return -batch.extra[INFORMATION]


ENSEMBLE_METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "mean-probability": Method(
            MeanProbability,
            "mean probability",
            "Lakshminarayanan et al., NeurIPS 2017",
            ("logits",),
            needs=(CLASSES,),
        ),
        "mean-entropy": Method(
            MeanEntropy,
            "entropy of the mean",
            "Lakshminarayanan et al., NeurIPS 2017",
            ("logits",),
            needs=(CLASSES,),
        ),
        "mutual-information": Method(
            MutualInformation,
            "mutual information",
            "Depeweg et al., ICML 2018",
            ("logits",),
            needs=(CLASSES,),
        ),
    }
)


def ensemble_spec(name: str) -> MethodSpec:
    """Return one of the methods for ensembles alone."""
    return MethodSpec((MethodPart(name, ENSEMBLE_METHODS[name], {}),))
