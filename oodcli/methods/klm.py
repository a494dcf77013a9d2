"""KL matching: how far a prediction is from the typical prediction of any class."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods.needs import Arguments, Need

# The smallest positive number that a mean probability may be: log of it is finite.
TINY = 5e-324


# Share of images without a typical prediction of their class above which there is no score.
MOST_UNSEEN = 0.1


def _unseen(reference: Reference, _arguments: Arguments) -> str | None:
    predicted = reference.calibration.logits.argmax(dim=1)
    counts = torch.bincount(predicted, minlength=reference.calibration.logits.shape[1])
    alone, classes = int((counts == 1).sum()), int((counts > 0).sum())
    if classes < 2:
        return f"all {len(predicted):,} are predicted as {classes} class"
    if alone <= MOST_UNSEEN * len(predicted):
        return None
    share = 100 * alone / len(predicted)
    return (
        f"{len(predicted):,} are predicted as {classes:,} of {len(counts):,} classes, {alone:,} of "
        f"them as the only one of its class, so that about {share:.0f} % of all images would find "
        "no typical prediction of their class"
    )


TYPICAL = Need(
    "calibration images of several predicted classes, and several of most of these",
    _unseen,
    "calibrate on more images: --val-fraction",
)


@dataclass(frozen=True, slots=True)
class KLMatching:
    """Negative divergence from the nearest typical prediction.

    ``-min_c KL(p ‖ q_c)`` with ``p = softmax(z)`` and ``q_c`` the mean of ``p`` over the
    calibration images that are predicted to be of class c.

    Parameters
    ----------
    log_typical
        ``log q_c``, float64, ``(classes that were predicted, k)``.

    References
    ----------
    Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt, Song. "Scaling Out-of-Distribution
    Detection for Real-World Settings". ICML 2022, arXiv:1911.11132.

    Notes
    -----
    A class that no calibration image is predicted to be of is left out. Published code takes its
    one-hot vector instead, from which every other prediction is infinitely far. How many images
    are predicted to be of such a class is estimated from the classes that one calibration image
    alone is predicted to be of (Good, "The population frequencies of species and the estimation of
    population parameters", Biometrika 1953): their share among the calibration images. Above 10 %
    the method is refused, since the images without a typical prediction would look OOD.

    Both steps are in float64, since the distance of a confident image is a small difference. A mean
    probability of 0, which takes logits more than 700 apart, counts as 5e-324: its distance is
    large instead of infinite.

    Fitted on the logits of the network, it means nothing after a shaper.
    """

    log_typical: Tensor

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Average the predictions of the calibration images by predicted class."""
        probabilities = reference.calibration.logits.double().softmax(dim=1)
        predicted, index = probabilities.argmax(dim=1).unique(return_inverse=True)
        sums = probabilities.new_zeros(len(predicted), probabilities.shape[1])
        sums.index_add_(0, index, probabilities)
        means = sums / torch.bincount(index)[:, None]
        return cls(means.clamp(min=TINY).log())

    def score(self, batch: Activations) -> Tensor:
        """Return the negative divergence from the nearest typical prediction, ``(n,)``."""
        logs = batch.logits.double().log_softmax(dim=1)
        probabilities = logs.exp()
        own = (probabilities * logs).sum(dim=1, keepdim=True)
        distances = own - probabilities @ self.log_typical.T  # (n, classes that were predicted)
        return -distances.amin(dim=1)
