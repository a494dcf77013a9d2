"""VRA: features clipped from above and raised, or silenced, from below."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods._percentiles import calibration_percentile
from oodcli.methods.base import percentile

Floor = Literal["low", "zero"]


@dataclass(frozen=True, slots=True)
class VRA:
    """Logits of features that are clipped from above and from below.

    ``z' = W f' + b`` with ``f' = min(max(f, low), high)``, where both thresholds are percentiles of
    all features of all calibration images. With ``floor=zero`` features below ``low`` become 0.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    low_threshold
        Lower threshold, ``low`` above.
    high_threshold
        Upper threshold, ``high`` above.
    floor
        What features below ``low`` become: ``low`` itself or ``zero``.

    References
    ----------
    Xu, Lian, Liu, Tao. "VRA: Variational Rectified Activation for Out-of-distribution Detection".
    NeurIPS 2023, arXiv:2302.11716 (the form VRA-P).

    Notes
    -----
    The paper sets low features to 0 (``floor=zero``). OpenOOD, whose published numbers are compared
    with, raises them to ``low``, which is the default here. The paper's form that adds a constant
    to the features in between is not implemented.
    """

    head: Head
    low_threshold: float
    high_threshold: float
    floor: Floor = "low"

    @classmethod
    def fit(
        cls, reference: Reference, *, low: float = 10.0, high: float = 90.0, floor: Floor = "low"
    ) -> Self:
        """Take both thresholds from all calibration features together.

        Parameters
        ----------
        reference
            The calibration images.
        low
            Percentile of the calibration features that is the lower threshold.
        high
            Percentile that is the upper threshold.
        floor
            What features below the lower threshold become: the threshold (``low``) or ``zero``.

        Raises
        ------
        InvalidInputError
            If they are not at least 0 and less than 100, or ``low`` is not less than ``high``.
        UndefinedMethodError
            If both percentiles have the same value.
        """
        low, high = percentile("vra:low", low), percentile("vra:high", high)
        if low >= high:
            raise InvalidInputError(f"vra:low must be less than vra:high, not {low:g} and {high:g}")
        least, most = (calibration_percentile(reference, each) for each in (low, high))
        if least >= most:
            raise UndefinedMethodError(
                f"vra is not defined here: both percentiles of the calibration features, {low:g} "
                f"and {high:g}, are {most:.3g}, and all features would become the same; choose "
                "others, as in vra:high=99"
            )
        return cls(reference.head, least, most, floor)

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the clipped features, ``(n, k)``."""
        if self.floor == "low":
            return self.head(batch.features.clamp(self.low_threshold, self.high_threshold))
        clipped = batch.features.clamp(max=self.high_threshold)
        return self.head(torch.where(batch.features < self.low_threshold, 0.0, clipped))
