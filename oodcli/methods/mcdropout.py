"""MC dropout: predictions with the dropout layers of the network active, averaged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods.base import at_least
from oodcli.probes import Output, Probe, ProbedNetwork

By = Literal["probability", "information", "variance"]
SCORES: tuple[By, ...] = ("probability", "information", "variance")
# What a probability of 0 counts as in logarithms.
_LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class DroppedOut:
    """The scores of :class:`MCDropout` in the order of :data:`SCORES`, ``(n, 3)``.

    Parameters
    ----------
    samples
        Number of forward passes.
    seed
        Seed of what is dropped.
    """

    samples: int
    seed: int

    @property
    def key(self) -> str:
        """Name of the array."""
        return f"mcdropout(samples={self.samples},seed={self.seed})"

    @property
    def passes(self) -> float:
        """A forward pass for each sample."""
        return float(self.samples)

    def maps(self, _network: ProbedNetwork, /) -> Sequence[str]:
        """Want no map."""
        return ()

    def observe(self, network: ProbedNetwork, images: Tensor, _output: Output, /) -> Tensor:
        """Return the scores of a batch, ``(n, 3)``.

        Raises
        ------
        UndefinedMethodError
            If the network has no dropout layer that drops anything.
        """
        rates = {path: rate for path, rate in network.dropout_rates().items() if rate > 0}
        if not rates:
            raise UndefinedMethodError(
                "mcdropout is not defined for a network without dropout: it has 0 layers of "
                "torch.nn.Dropout that drop anything; use another method"
            )
        mean = square = entropy = torch.zeros((), dtype=torch.float64, device=images.device)
        for sample in range(self.samples):
            logits = network.run(images, edit=self._edits(rates, sample)).logits
            p = logits.double().softmax(dim=1)
            mean = mean + p / self.samples
            square = square + p.square() / self.samples
            entropy = entropy + _entropy(p) / self.samples
        first = mean.argmax(dim=1, keepdim=True)
        others = mean.scatter(1, first, 0.0).sum(dim=1)
        scores = {
            "probability": (mean.gather(1, first)[:, 0] / others.clamp(min=_LEAST)).log(),
            "information": entropy - _entropy(mean),
            "variance": (mean.square() - square).mean(dim=1),
        }
        return torch.stack([scores[name] for name in SCORES], dim=1)

    def _edits(self, rates: Mapping[str, float], sample: int) -> dict[str, Callable[..., Tensor]]:
        """Return what drops values of the outputs of dropout layers in one sample."""
        return {
            path: partial(_drop, rate=rate, seed=hash_of(self.seed, sample, at))
            for at, (path, rate) in enumerate(rates.items())
        }


def hash_of(*numbers: int) -> int:
    """Return a seed for several whole numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed


def _drop(output: Tensor, *, rate: float, seed: int) -> Tensor:
    """Drop the same values of the outputs of all images, and scale up the rest."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(output.shape[1:], generator=generator) >= rate
    return output * (kept.to(output.device, output.dtype) / (1 - rate) if rate < 1 else 0.0)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=_LEAST).log()).sum(dim=1)


@dataclass(frozen=True, slots=True)
class MCDropout:
    """Agreement of the predictions of a network whose dropout stays active.

    Over ``samples`` forward passes with predictions ``p_s``: ``log(p / (1 - p))`` of the largest
    class probability ``p`` of their mean, or minus the mutual information
    ``H(mean_s p_s) - mean_s H(p_s)``, or minus the variance of a class probability, averaged over
    the classes.

    Parameters
    ----------
    by
        ``probability``, ``information`` or ``variance``.
    samples
        Number of forward passes.
    probes
        Gives moments of the predictions.

    References
    ----------
    Gal, Ghahramani. "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep
    Learning". ICML 2016, arXiv:1506.02142. Mutual information: Gal, Islam, Ghahramani, ICML 2017.
    Variance: Kendall, Badrinarayanan, Cipolla, arXiv:1511.02680.

    Notes
    -----
    Every layer of ``torch.nn.Dropout`` and its kinds for maps is active, with its own rate; all
    else, such as BatchNorm, is in evaluation mode. What is dropped is the same for all images of a
    sample, drawn from ``seed``: every sample is one thinned network, and a score does not depend on
    the other images. Maps lose single values, also where the layer drops channels in training. A
    network without dropout is refused; OpenOOD adds a layer before the last one for this method,
    and trains with it. 30 samples are pytorch-ood's default, which takes the variance, with
    ``samples - 1``.
    """

    by: By
    samples: int
    probes: tuple[Probe, ...]

    @classmethod
    def fit(
        cls, _reference: Reference, *, by: By = "probability", samples: int = 30, seed: int = 0
    ) -> Self:
        """Learn nothing.

        Parameters
        ----------
        _reference
            Not used.
        by
            What is compared.
        samples
            Number of forward passes.
        seed
            Seed of what is dropped.
        """
        at_least("mcdropout:samples", samples, 2)
        return cls(by, samples, (DroppedOut(samples, at_least("mcdropout:seed", seed, 0)),))

    def score(self, batch: Activations) -> Tensor:
        """Return the score, ``(n,)``."""
        return batch.extra[self.probes[0].key][:, SCORES.index(self.by)]
