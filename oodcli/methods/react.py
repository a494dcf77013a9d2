"""ReAct: features clipped from above."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._percentiles import calibration_percentile
from oodcli.methods.base import percentile as valid


@dataclass(frozen=True, slots=True)
class ReAct:
    """Logits of features that are clipped from above.

    ``z' = W min(f, c) + b``, where ``c`` is a percentile of all features of all calibration images.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    threshold
        ``c`` above.

    References
    ----------
    Sun, Guo, Li. "ReAct: Out-of-distribution Detection With Rectified Activations". NeurIPS 2021,
    arXiv:2111.12797.

    Notes
    -----
    The paper takes the percentile over training images; OpenOOD, whose published numbers are
    compared with, over validation images, as here.
    """

    head: Head
    threshold: float

    @classmethod
    def fit(cls, reference: Reference, *, percentile: float = 90.0) -> Self:
        """Clip at a percentile of all calibration features together.

        Parameters
        ----------
        reference
            The calibration images.
        percentile
            Percentile of the calibration features that is the threshold.

        Raises
        ------
        InvalidInputError
            If it is not at least 0 and less than 100.
        UndefinedMethodError
            If no calibration feature lies below that percentile.
        """
        percent = valid("react:percentile", percentile)
        threshold = calibration_percentile(reference, percent)
        if threshold <= (least := calibration_percentile(reference, 0)):
            raise UndefinedMethodError(
                f"react is not defined here: percentile {percent:g} of the calibration features is "
                f"{threshold:.3g}, and none is below {least:.3g}, so that all features would "
                "become the same; choose a higher one, as in react:percentile=99"
            )
        return cls(reference.head, threshold)

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the clipped features, ``(n, k)``."""
        return self.head(batch.features.clamp(max=self.threshold))
