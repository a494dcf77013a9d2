"""MCM: the softmax of the cosines between an image and the names of the classes."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods._softmax import Scale
from oodcli.methods.msp import MSP
from oodcli.specs import positive


@dataclass(frozen=True, slots=True)
class MCM:
    """Largest class probability of a softmax of cosines to text embeddings, as log-odds.

    ``log(p / (1 - p))`` with ``p = max_c softmax(s / T)_c``, which ranks images as ``p`` does;
    ``s_c`` is the cosine between the image embedding and the text embedding of class ``c``, without
    the logit scale.

    Parameters
    ----------
    head
        Last layer of the zero-shot classifier.
    temperature
        ``T`` above; 1 in the paper.
    scale
        As for MSP.

    References
    ----------
    Ming, Cai, Gu, Sun, Li, Li. "Delving into Out-of-Distribution Detection with Vision-Language
    Representations". NeurIPS 2022, arXiv:2211.13445; checked against the authors' code.

    Notes
    -----
    The authors' code compares ``p`` itself in float32; at ``T = 1`` it is near ``1 / k`` for all
    images. ``scale=probability`` gives that. With ``T = 1 / logit scale`` this is MSP.

    The authors write classes as "a photo of a NAME", without a full stop.
    """

    head: Head
    temperature: float = 1.0
    scale: Scale = "log-odds"

    @classmethod
    def fit(
        cls, reference: Reference, *, temperature: float = 1.0, scale: Scale = "log-odds"
    ) -> Self:
        """Learn nothing.

        Parameters
        ----------
        reference
            Has the last layer.
        temperature
            What cosines are divided by.
        scale
            How the probability is written: ``probability`` as published.
        """
        return cls(reference.head, positive("mcm:temperature", temperature), scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds of the largest class probability, or the probability, ``(n,)``."""
        cosines = self.head.cosines(batch.logits)
        return MSP(self.temperature, self.scale).score_logits(cosines)
