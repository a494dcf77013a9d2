"""ODIN: a tempered softmax after a step of the pixels towards the predicted class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.activations import Activations, Reference
from oodcli.methods._softmax import Scale
from oodcli.methods.msp import MSP
from oodcli.probes import Output, Probe, ProbedNetwork
from oodcli.specs import positive


@dataclass(frozen=True, slots=True)
class PerturbedLogits:
    """Logits of the perturbed image, ``(n, k)``; see :class:`ODIN`.

    Parameters
    ----------
    temperature
        Divisor of the logits in the loss.
    epsilon
        Step, in pixel values from 0 to 1.
    """

    temperature: float
    epsilon: float

    @property
    def key(self) -> str:
        """Name of the array."""
        return f"odin(temperature={self.temperature!r},epsilon={self.epsilon!r})"

    @property
    def passes(self) -> float:
        """A forward and a backward pass for the gradient, and a forward pass."""
        return 4.0

    def maps(self, _network: ProbedNetwork, /) -> Sequence[str]:
        """Want no map."""
        return ()

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return the logits of the perturbed images, ``(n, k)``."""
        with torch.enable_grad():
            leaves = images.clone().detach().requires_grad_()
            logits = network.run(leaves).logits
            # The sum keeps images apart: the gradient of each is that of its own loss.
            loss = functional.cross_entropy(
                logits / self.temperature, output.logits.argmax(dim=1), reduction="sum"
            )
            (gradient,) = torch.autograd.grad(loss, leaves)
        step = self.epsilon * gradient.sign() / network.std
        return network.run(images - step).logits


@dataclass(frozen=True, slots=True)
class ODIN:
    """Largest tempered class probability of an image moved towards its predicted class.

    ``x' = x - ε · sign(∇ₓ -log softmax(z(x) / T)_ŷ) / s`` with ``ŷ = argmax z(x)`` and ``s`` the
    standard deviation that divides each channel, so that ``ε`` is in pixel values from 0 to 1; then
    ``log(p / (1 - p))`` with ``p = max_c softmax(z(x') / T)_c``, which ranks images as ``p`` does.

    Parameters
    ----------
    temperature
        ``T``.
    probes
        Gives the logits of the perturbed images.
    scale
        As for MSP.

    References
    ----------
    Liang, Li, Srikant. "Enhancing the Reliability of Out-of-distribution Image Detection in Neural
    Networks". ICLR 2018, arXiv:1706.02690, sections 3 (temperature scaling, input preprocessing).

    Notes
    -----
    Where a gradient is exactly 0 a pixel stays; published code moves it by ``-ε``. That matters
    only for images so confident that the whole gradient vanishes, at small temperatures.

    The perturbed image may leave the range of pixel values, as in published code.

    Temperature and ``ε`` default to the published values; the paper chooses ``ε`` per network.

    Published code compares ``p`` in float32. At ``T = 1000`` all ``p`` are near ``1 / k`` and
    round to few values, at ``T = 1`` many are 1: images tie. ``scale=probability`` gives that.
    """

    temperature: float
    probes: tuple[Probe, ...]
    scale: Scale = "log-odds"

    @classmethod
    def fit(
        cls,
        _reference: Reference,
        *,
        temperature: float = 1000.0,
        epsilon: float = 0.0014,
        scale: Scale = "log-odds",
    ) -> Self:
        """Learn nothing.

        Parameters
        ----------
        _reference
            Not used.
        temperature
            What logits are divided by.
        epsilon
            How far each pixel value is moved, for values from 0 to 1.
        scale
            How the probability is written: ``probability`` as published, with its ties.
        """
        probe = PerturbedLogits(
            float(positive("odin:temperature", temperature)),
            float(positive("odin:epsilon", epsilon)),
        )
        return cls(probe.temperature, (probe,), scale)

    def score(self, batch: Activations) -> Tensor:
        """Return the log-odds of the largest class probability, or the probability, ``(n,)``."""
        return MSP(self.temperature, self.scale).score_logits(batch.extra[self.probes[0].key])
