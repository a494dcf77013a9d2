"""KNN: the distance to the k-th nearest training feature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._bank import Bank, by_bank, unit_features
from oodcli.methods._class_means import feature_rows
from oodcli.methods.base import at_least


@dataclass(frozen=True, slots=True)
class KNN:
    """Negative squared distance to the k-th nearest training feature.

    ``-‖u - u_(k)‖²``, where ``u = f / ‖f‖₂`` and ``u_(k)`` is the k-th nearest of the training
    features, which are divided by their lengths as well.

    Parameters
    ----------
    bank
        Training features divided by their lengths.
    k
        Which neighbour counts; 50 for CIFAR-10, 200 for CIFAR-100 and 1000 for ImageNet in the
        paper. With fewer training images the farthest of them counts, and this is their number.

    References
    ----------
    Sun, Ming, Zhu, Li. "Out-of-Distribution Detection with Deep Nearest Neighbors". ICML 2022,
    arXiv:2204.06507, section 3.

    Notes
    -----
    The distance is squared as in the published code, where the paper has its root: no rank changes.
    That code adds 1e-10 to features or lengths, which is nothing in single precision. A feature of
    length zero stays zero, at distance 1 from every direction.
    """

    bank: Bank
    k: int

    @classmethod
    def fit(cls, reference: Reference, *, k: int = 50) -> Self:
        """Take all training features."""
        at_least("knn:k", k, 1)
        bank = unit_features(reference)
        return cls(bank, min(k, bank.size))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative squared distance, ``(n,)``."""
        return self.score_all([self], batch)[0]

    @staticmethod
    def score_all(detectors: Sequence["KNN"], batch: Activations) -> list[Tensor]:
        """Return the scores of each, ``(n,)``, from one search for the largest ``k``."""

        def search(bank: Bank, ks: Sequence[int]) -> list[Tensor]:
            distances = bank.nearest(feature_rows(batch, normalised=True), max(ks))
            return [-distances[:, k - 1] for k in ks]

        return by_bank([(each.bank, each.k) for each in detectors], search)
