"""GEN: generalised entropy of the largest class probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._softmax import Magnitude, Softmax, log_sum, magnitude
from oodcli.methods.base import at_least
from oodcli.specs import positive


@dataclass(frozen=True, slots=True)
class GEN:
    """Minus the logarithm of the generalised entropy of the largest class probabilities.

    ``-log G`` with ``G = Σ_{c among the m largest} (p_c (1 - p_c))^gamma`` and ``p = softmax(z)``.

    Parameters
    ----------
    gamma
        Exponent, more than 0.
    m
        Number of largest probabilities; all if there are fewer classes.
    scale
        ``log``, or ``linear`` for ``-G`` itself, float64.

    References
    ----------
    Liu, Lochman, Zach. "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection".
    CVPR 2023.

    Notes
    -----
    Published code compares ``-G``, which ``scale=linear`` gives. It subtracts ``1 - p`` in float32,
    where what is left of a very confident image is rounding, and an exponent of 0.1 makes much of
    it: scores of images above 0.999 differ by that. Here logarithms of ``p`` and of ``1 - p``, in
    float64, keep their digits. ``-G`` is 0 from a lead of about ``700 / gamma`` nats over all other
    classes on, and such images tie; ``-log G`` ranks images as ``-G`` does and has no end.
    One other library clamps ``p`` at 1e-7 and divides by ``m``.
    """

    gamma: float = 0.1
    m: int = 100
    scale: Magnitude = "log"

    @classmethod
    def fit(
        cls,
        _reference: Reference,
        *,
        gamma: float = 0.1,
        m: int = 100,
        scale: Magnitude = "log",
    ) -> Self:
        """Learn nothing.

        Parameters
        ----------
        _reference
            Not used.
        gamma
            Exponent.
        m
            Number of largest probabilities.
        scale
            How the generalised entropy is written: ``linear`` as published.
        """
        return cls(positive("gen:gamma", gamma), at_least("gen:m", m, 1), scale)

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return ``-log G``, or ``-G``, float64, ``(n,)``."""
        return self._of(_log_products(logits, [self.m]))

    def score(self, batch: Activations) -> Tensor:
        """Return the score of the generalised entropy, ``(n,)``."""
        return self.score_logits(batch.logits)

    @staticmethod
    def score_all(detectors: Sequence["GEN"], batch: Activations) -> Sequence[Tensor]:
        """Return the scores of several settings, sorting the probabilities once."""
        products = _log_products(batch.logits, [each.m for each in detectors])
        return [each._of(products[:, : each.m]) for each in detectors]  # noqa: SLF001 - its own

    def _of(self, products: Tensor) -> Tensor:
        return magnitude(log_sum(self.gamma * products)[:, 0], self.scale)


def _log_products(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Return ``log(p_c (1 - p_c))``, float64, ``(n, min(largest count, k))``.

    They are in descending order of ``p_c`` if any of the counts leaves classes out.
    """
    found = Softmax.of(logits)
    log_p, log_complement = found.logs()
    products = log_p + log_complement
    most = min(max(counts), logits.shape[1])
    if min(counts) < logits.shape[1]:
        return products.gather(1, found.below.topk(most, dim=1).indices)
    return products
