"""Largest cosine between the feature and a class mean."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods.class_means import class_means, directions, feature_rows


@dataclass(frozen=True, slots=True)
class MaxCosine:
    """Largest cosine between the feature and the mean training feature of a class.

    ``max_c ⟨f, μ_c⟩ / (‖f‖₂ ‖μ_c‖₂)``, where ``μ_c`` is the mean feature of the training images
    with label ``c``.

    Parameters
    ----------
    prototypes
        Class means of length 1, ``(c, n)``, of the classes that have training images.

    References
    ----------
    Nguyen, Nguyen, Ta, Nguyen-Tang, Doan, Thanh-Tung. "A Cosine Similarity-based Method for
    Out-of-Distribution Detection". ICML 2023 workshop on spurious correlations, arXiv:2306.14920.

    Notes
    -----
    A class without training images is left out. A feature of length zero has cosine 0 with all.
    """

    prototypes: Tensor

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Average the training features of every class."""
        by_class = class_means(reference)
        prototypes = directions(by_class.means[by_class.present])
        return cls(prototypes.to(reference.head.weight.dtype))

    def score(self, batch: Activations) -> Tensor:
        """Return the largest cosine, ``(n,)``."""
        return (feature_rows(batch, normalised=True) @ self.prototypes.T).amax(dim=1)
