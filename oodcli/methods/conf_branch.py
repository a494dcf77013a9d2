"""ConfBranch: the confidence that a second layer has learned to give."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import CONFIDENCE, Activations, Reference


@dataclass(frozen=True, slots=True)
class ConfBranch:
    """The learned confidence, as log-odds: ``v . f + b`` of ``c = sigmoid(v . f + b)``.

    Parameters
    ----------
    weight, bias
        Weight ``(1, d)`` and bias ``(1,)`` of the layer that the objective ``conf-branch`` has
        trained.

    References
    ----------
    DeVries, Taylor. "Learning Confidence for Out-of-Distribution Detection in Neural Networks".
    arXiv:1802.04865.

    Notes
    -----
    Log-odds rank images as ``c`` does; in float32 many ``c`` near 1 would be equal. The paper also
    moves the pixels before it scores; neither OpenOOD nor this method does.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Take the layer of the network."""
        return cls(*reference.head.kept[CONFIDENCE])

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds of the confidence, ``(n,)``."""
        return (batch.features @ self.weight.T + self.bias)[:, 0]
