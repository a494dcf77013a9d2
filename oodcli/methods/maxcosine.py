"""Largest cosine between the feature and a class mean."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._class_means import class_means, directions


@dataclass(frozen=True, slots=True)
class MaxCosine:
    """Largest cosine between the feature and the mean training feature of a class.

    ``max_c ⟨f, μ_c⟩ / (‖f‖₂ ‖μ_c‖₂)``, where ``μ_c`` is the mean feature of the training images
    with label ``c``.

    Parameters
    ----------
    prototypes
        Class means of length 1, float64, ``(c, n)``, of the classes that have training images.

    References
    ----------
    Nguyen, Nguyen, Ta, Nguyen-Tang, Doan, Thanh-Tung. "A Cosine Similarity-based Method for
    Out-of-Distribution Detection". ICML 2023 workshop on spurious correlations, arXiv:2306.14920.

    Notes
    -----
    A class without training images is excluded. A feature of length zero has cosine 0 with all.
    Cosines are in float64: in float32, where published code has them, those of a network whose
    features have collapsed on their class means are 1 but for rounding.
    """

    prototypes: Tensor

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Average the training features of every class."""
        by_class = class_means(reference)
        return cls(directions(by_class.means[by_class.present]))

    def score(self, batch: Activations) -> Tensor:
        """Return the largest cosine, float64, ``(n,)``."""
        # Not by blocks of rows: a graph has to work for any number of them.
        return (directions(batch.features.double()) @ self.prototypes.T).amax(dim=1)
