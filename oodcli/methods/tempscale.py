"""Maximum softmax probability at the temperature that calibrates it."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._needs import Arguments, Need
from oodcli.methods._softmax import Scale
from oodcli.methods.msp import MSP

FIRST_TEMPERATURE = 1.5
STEPS = 50
# A slope of the loss over log T below this counts as none.
TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True)
class TempScale:
    """Largest class probability after temperature scaling, as log-odds.

    ``log(p / (1 - p))`` with ``p = max_c softmax(z / T)_c``, which ranks images as ``p`` does.
    ``T`` minimises the mean negative log-likelihood of the true class over the calibration images.

    Parameters
    ----------
    temperature
        ``T`` above.
    scale
        As for MSP.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger. "On Calibration of Modern Neural Networks". ICML 2017,
    arXiv:1706.04599.

    Notes
    -----
    The loss is convex in ``1 / T``, so its minimum is found by safeguarded Newton steps in float64.
    Published code takes 50 L-BFGS steps of length 0.01 from 1.5 (or 1) and stops on the way.

    There is a minimum where some calibration images are classified wrongly, and the logit of the
    true class is above the mean logit on average. Without the first, the loss falls as long as
    ``T`` does; without the second, as long as it rises. The method is refused then.

    Published code compares ``p`` in float32, in which the most confident images tie:
    ``scale=probability`` gives that.

    Fitted on the logits of the network, it means nothing after a shaper.
    """

    temperature: float
    scale: Scale = "log-odds"

    @classmethod
    def fit(cls, reference: Reference, *, scale: Scale = "log-odds") -> Self:
        """Find the temperature on the calibration images.

        Parameters
        ----------
        reference
            Has the calibration images and their labels.
        scale
            How the probability is written: ``probability`` as published, with its ties.
        """
        logits = reference.calibration.logits
        labels = reference.calibration_labels.to(logits.device)
        return cls(best_temperature(logits, labels), scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds of the largest class probability, or the probability, ``(n,)``."""
        return MSP(self.temperature, self.scale).score_logits(batch.logits)


def _without_optimum(logits: Tensor, labels: Tensor) -> str | None:
    """Return why no temperature minimises the loss of logits ``(n, k)``, or None where one does.

    The derivative of the loss by ``1 / T`` rises from ``mean(mean_c z_c - z_y)`` at ``1 / T = 0``
    towards ``mean(max_c z_c - z_y)``; between the two it has to change its sign.
    """
    wide = logits.double()
    true = wide.gather(1, labels[:, None])[:, 0]
    wrong = int((true < wide.amax(dim=1)).sum())
    images = (
        f"{wrong:,} of {len(labels):,} calibration images {'is' if wrong == 1 else 'are'} wrong"
    )
    if not wrong:
        return f"{images}: the likelihood rises as long as T falls"
    if float((true - wide.mean(dim=1)).mean()) <= 0:
        return f"{images}, at random or worse: the likelihood rises as long as T does"
    return None


def _lacking(reference: Reference, _arguments: Arguments) -> str | None:
    logits = reference.calibration.logits
    return _without_optimum(logits, reference.calibration_labels.to(logits.device))


OPTIMUM = Need(
    "calibration images that are classified wrongly, and others better than at random",
    _lacking,
    "calibrate on more images that the network was not trained on (--val-fraction 0.1)",
)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the negative log-likelihood, where one does.

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
