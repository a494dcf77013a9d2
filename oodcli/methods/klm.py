"""KL matching: how far a prediction is from the typical prediction of any class."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._needs import Arguments, Need
from oodcli.methods._softmax import Softmax

# Of a mean probability that is 0 because logits are minus infinity.
_LEAST = torch.finfo(torch.float32).min
# Share of images without a typical prediction of their class above which there is no score.
MAX_UNSEEN = 0.1


def _unseen(reference: Reference, _arguments: Arguments) -> str | None:
    predicted = reference.calibration.logits.argmax(dim=1)
    counts = torch.bincount(predicted, minlength=reference.calibration.logits.shape[1])
    alone, classes = int((counts == 1).sum()), int((counts > 0).sum())
    if classes < 2:
        return f"all {len(predicted):,} are predicted as {classes} class"
    if alone <= MAX_UNSEEN * len(predicted):
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
    A class that no calibration image is predicted to be of is excluded. Published code takes its
    one-hot vector instead, from which every other prediction is infinitely far. How many images
    are predicted to be of such a class is estimated from the classes that one calibration image
    alone is predicted to be of (Good, "The population frequencies of species and the estimation of
    population parameters", Biometrika 1953): their share among the calibration images. Above 10 %
    the method is refused, since the images without a typical prediction would look OOD.

    Logarithms are averaged in float64, in which no mean probability is rounded to 0 or 1. Distances
    are exact to a few units in the last place, and yet images tie: an image of class c that is
    certain is at the distance ``-log q_c(c)``, to which all that are more certain than a lead of
    about 37 nats round. No number of 64 bits tells them apart, and published code, in float32, does
    so less. On a CIFAR-10 ResNet-18 no two of 2,000 images tie; with ten times its logits half do.

    Fitted on the logits of the network, it means nothing after a shaper.
    """

    log_typical: Tensor

    @classmethod
    def fit(cls, reference: Reference) -> Self:
        """Average the predictions of the calibration images by predicted class."""
        found = Softmax.of(reference.calibration.logits)
        predicted, index = found.first[:, 0].unique(return_inverse=True)
        counts = torch.bincount(index)[:, None].double()
        means = _log_sums(found.log_p, index, len(predicted)) - counts.log()
        # Near 1, where a mean says nothing, it is what it leaves that is averaged.
        rest = found.log_complement.gather(1, found.first)
        own = -(_log_sums(rest, index, len(predicted)).exp() / counts)
        return cls(means.scatter(1, predicted[:, None], own.log1p()).clamp(min=_LEAST))

    def score(self, batch: Activations) -> Tensor:
        """Return the negative divergence from the nearest typical prediction, ``(n,)``."""
        logs = Softmax.of(batch.logits).log_p
        probabilities = logs.exp()
        own = (probabilities * logs.clamp(min=_LEAST)).sum(dim=1, keepdim=True)
        distances = own - probabilities @ self.log_typical.T  # (n, classes that were predicted)
        return -distances.amin(dim=1)


def _log_sums(logs: Tensor, index: Tensor, groups: int) -> Tensor:
    """Return the logarithms of sums over groups of rows, ``(groups, k)``, of logarithms."""
    where = index[:, None].expand_as(logs)
    peaks = logs.new_full((groups, logs.shape[1]), -torch.inf)
    peaks = peaks.scatter_reduce(0, where, logs, "amax").clamp(min=_LEAST)
    return torch.zeros_like(peaks).scatter_add(0, where, (logs - peaks[index]).exp()).log() + peaks
