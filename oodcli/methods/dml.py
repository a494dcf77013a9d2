"""DML: the largest logit, taken apart into its cosine and the length of the feature."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.methods.base import not_negative


@dataclass(frozen=True, slots=True)
class DML:
    """Largest cosine between the feature and the weight of a class, plus the weighted length.

    ``max_c ⟨f, w_c⟩ / (‖f‖₂ ‖w_c‖₂) + lmbda ‖f‖₂``.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    lengths
        ``‖w_c‖₂``, float64, ``(k,)``; 1 for a weight of length zero, whose cosine is 0.
    lmbda
        Weight of the length.

    References
    ----------
    Zhang, Xiang. "Decoupling MaxLogit for Out-of-Distribution Detection". CVPR 2023; README of
    HAIV-Lab/DML ("formal" implementation).

    Notes
    -----
    The README gives no ``lmbda``; 0.002 is the constant of the authors' library (HAIV-Lab/openhaiv,
    ``dml``), and the grid around it is ours, as the scale of features differs between networks.
    Cosines come from the logits less the bias. A feature of length zero has cosine 0 with all.
    DML+ needs two networks that were trained for it, and is not implemented.
    """

    head: Head
    lengths: Tensor
    lmbda: float

    @classmethod
    def fit(cls, reference: Reference, *, lmbda: float = 0.002) -> Self:
        """Measure the weights of the last layer.

        Parameters
        ----------
        reference
            Has the last layer.
        lmbda
            Weight of the length.
        """
        lengths = reference.head.weight.double().norm(dim=1)
        lengths = torch.where(lengths > 0, lengths, 1.0)
        return cls(reference.head, lengths, not_negative("dml:lmbda", lmbda))

    def score(self, batch: Activations) -> Tensor:
        """Return largest cosine plus weighted length, float64, ``(n,)``."""
        length = batch.features.double().norm(dim=1)
        products = batch.logits.double() - self.head.bias.double()
        largest = (products / self.lengths).amax(dim=1)
        is_zero = length == 0
        cosine = torch.where(is_zero, 0.0, largest / torch.where(is_zero, 1.0, length))
        return cosine + self.lmbda * length
