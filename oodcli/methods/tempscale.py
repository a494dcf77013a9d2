"""Maximum softmax probability at the temperature that calibrates it."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods.msp import MSP

FIRST_TEMPERATURE = 1.5
STEPS = 50
# A slope of the loss over log T below this counts as none.
TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True)
class TempScale:
    """Largest class probability after temperature scaling.

    ``max_c softmax(z / T)_c``, where ``T`` minimises the mean negative log-likelihood of the true
    class over the calibration images.

    Parameters
    ----------
    temperature
        ``T`` above.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger. "On Calibration of Modern Neural Networks". ICML 2017,
    arXiv:1706.04599.

    Notes
    -----
    The loss is convex in ``1 / T``, so its minimum is found by safeguarded Newton steps in float64.
    Published code takes 50 L-BFGS steps of length 0.01 from 1.5 (or 1) and stops on the way.

    Where every calibration image is classified correctly there is no minimum, for the loss falls as
    long as ``T`` does; the search ends where the loss no longer changes.

    Fitted on the logits of the network, it means nothing after a shaper.
    """

    temperature: float

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Find the temperature on the calibration images."""
        logits = reference.calibration.logits
        labels = reference.calibration_labels.to(logits.device)
        return cls(best_temperature(logits, labels))

    def score(self, batch: Activations) -> Tensor:
        """Return the largest class probability, ``(n,)``."""
        return MSP(self.temperature).score_logits(batch.logits)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the negative log-likelihood.

    Parameters
    ----------
    logits
        ``(n, k)``.
    labels
        True classes, ``(n,)``.
    """
    logits = logits.double()
    true = logits.gather(1, labels[:, None])[:, 0]
    inverse = 1 / FIRST_TEMPERATURE
    low, high = 0.0, float("inf")
    for _ in range(STEPS):
        probabilities = (logits * inverse).softmax(dim=1)
        mean = (probabilities * logits).sum(dim=1)
        spread = (probabilities * (logits - mean[:, None]).square()).sum(dim=1)
        slope, curvature = float((mean - true).mean()), float(spread.mean())
        if abs(slope * inverse) <= TOLERANCE:
            break
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        # A Newton step, of a factor of two at most; where it would leave the bracket, bisection.
        newton = inverse - slope / max(curvature, 1e-300)
        step = min(max(newton, inverse / 2), inverse * 2)
        inverse = step if low < step < high else (low + high) / 2
    return 1 / inverse
