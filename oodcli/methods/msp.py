"""Maximum softmax probability."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._softmax import Scale, Softmax
from oodcli.specs import positive


@dataclass(frozen=True, slots=True)
class MSP:
    """Largest class probability, as log-odds.

    ``log(p / (1 - p))`` with ``p = max_c softmax(z / T)_c``, which rises with ``p`` and ranks
    images as it does.

    Parameters
    ----------
    temperature
        ``T`` above; 1 in the paper.
    scale
        ``log-odds``, or ``probability`` for ``p`` itself in the precision of the logits.

    References
    ----------
    Hendrycks, Gimpel. "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
    Neural Networks". ICLR 2017, arXiv:1610.02136, section 2.

    Notes
    -----
    Published code compares the probability itself. In float32 it is 1 from a lead of 17 nats over
    all other classes on, so that the most confident images tie, and AUROC and FPR95 of a network
    with large logits are those of the ties. Log-odds, in float64, keep distinct logits distinct.
    ``scale=probability`` gives the published value with its ties.
    """

    temperature: float = 1.0
    scale: Scale = "log-odds"

    @classmethod
    def fit(
        cls, _reference: Reference, *, temperature: float = 1.0, scale: Scale = "log-odds"
    ) -> Self:
        """Learn nothing.

        Parameters
        ----------
        _reference
            Not used.
        temperature
            What logits are divided by.
        scale
            How the probability is written: ``probability`` as published, with its ties.
        """
        return cls(positive("msp:temperature", temperature), scale)

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return the log-odds in float64, or ``max_c softmax(z / T)_c``, ``(n,)``."""
        if self.scale == "probability":
            return (logits / self.temperature).softmax(dim=1).amax(dim=1)
        return -Softmax.of(logits.double() / self.temperature).log_rest[:, 0]

    def score(self, batch: Activations) -> Tensor:
        """Return the score of the largest class probability, ``(n,)``."""
        return self.score_logits(batch.logits)
