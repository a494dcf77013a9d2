"""T2FNorm's score: maximum softmax probability of the feature over a temperature."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods._softmax import Scale
from oodcli.methods.msp import MSP
from oodcli.specs import positive

PUBLISHED_TEMPERATURE = 0.1


@dataclass(frozen=True, slots=True)
class T2FNorm:
    """Largest class probability of a feature that is divided by a temperature, its length kept.

    ``log(p / (1 - p))`` with ``p = max_c softmax(W f / T + b)_c``, which ranks images as ``p``
    does. Training normalises the feature; scoring does not.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    temperature
        ``T`` above. By default the one the classifier was trained with, which its last layer
        contains already; 0.1 for a classifier that was trained otherwise.
    scale
        As for MSP.

    References
    ----------
    Regmi, Panthi, Dotel, Gyawali, Stoyanov, Bhattarai. "T2FNorm: Train-time Feature Normalization
    for OOD Detection in Image Classification". CVPR Workshops 2024, arXiv:2305.17797.

    Notes
    -----
    The authors leave the temperature out on ImageNet-1K, where they fine-tune a pretrained
    classifier: ``temperature=1``.

    Of a classifier that was not trained with normalised features this is MSP at a low temperature,
    its bias aside. The authors' code compares ``p`` in float32, where ten times the logits saturate
    and the most confident images tie: ``scale=probability`` gives that.
    """

    head: Head
    temperature: float
    scale: Scale = "log-odds"

    @classmethod
    def fit(
        cls, reference: Reference, *, temperature: float | None = None, scale: Scale = "log-odds"
    ) -> Self:
        """Learn nothing; read the temperature off the last layer unless it is given.

        Parameters
        ----------
        reference
            Has the last layer.
        temperature
            What the feature is divided by.
        scale
            How the probability is written: ``probability`` as published, with its ties.
        """
        head = reference.head
        if temperature is None:
            temperature = PUBLISHED_TEMPERATURE if head.tau == 1 else head.tau
        return cls(head, positive("t2fnorm:temperature", temperature), scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds of the largest class probability, or the probability, ``(n,)``."""
        # The weight contains 1 / tau already.
        factor = self.head.tau / self.temperature
        logits = batch.logits
        if factor != 1:
            logits = (logits - self.head.bias) * factor + self.head.bias
        return MSP(scale=self.scale).score_logits(logits)
