"""G-ODIN: cosines of the features after a step of the pixels that makes the largest one larger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import DIVISOR, Activations, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods.msp import MSP
from oodcli.probes import Output, Probe, ProbedNetwork

By = Literal["softmax", "h", "g"]
# Added to the length of features, as in training.
_MARGIN = 1e-4


@dataclass(frozen=True, slots=True)
class StepTowards:
    """Features of an image moved so that the largest ``h``, or ``g``, grows, ``(n, d)``.

    Parameters
    ----------
    epsilon
        Step, in pixel values from 0 to 1.
    divisor
        Whether ``g`` grows, not ``h``.
    """

    epsilon: float
    divisor: bool = False

    @property
    def key(self) -> str:
        """Name of the array."""
        return f"g-odin(epsilon={self.epsilon!r},by={'g' if self.divisor else 'h'})"

    @property
    def passes(self) -> float:
        """A forward and a backward pass for the gradient, and a forward pass."""
        return 4.0

    def maps(self, _network: ProbedNetwork, /) -> Sequence[str]:
        """Want no map."""
        return ()

    def observe(self, network: ProbedNetwork, images: Tensor, _output: Output, /) -> Tensor:
        """Return the features of the perturbed images, ``(n, d)``."""
        with torch.enable_grad():
            leaves = images.clone().detach().requires_grad_()
            features = network.run(leaves).features.float()
            if self.divisor:
                weight, bias = network.kept[DIVISOR]
                target = features @ weight.T + bias
            else:
                target = cosines(features, network.weight).amax(dim=1)
            # The sum keeps images apart: the gradient of each is that of its own target.
            (gradient,) = torch.autograd.grad(target.sum(), leaves)
        step = self.epsilon * gradient.sign() / network.std
        return network.run(images + step).features


def cosines(features: Tensor, weight: Tensor) -> Tensor:
    """Return ``h``, ``(n, k)``, of features ``(n, d)`` and weights of unit length ``(k, d)``."""
    return features @ weight.T / (features.norm(dim=1, keepdim=True) + _MARGIN)


@dataclass(frozen=True, slots=True)
class GODIN:
    """Largest softmax of the cosines ``h`` of an image moved towards its largest cosine.

    ``x' = x + ε · sign(∇ₓ max_c h_c(x)) / s`` with ``s`` the standard deviation that divides each
    channel; then ``log(p / (1 - p))`` with ``p = max_c softmax(h(x'))_c``, which ranks images as
    ``p`` does; or ``max_c h_c(x')``; or ``g(x')`` of ``x' = x + ε · sign(∇ₓ g(x)) / s``.

    Parameters
    ----------
    by
        ``softmax`` of ``h``, as OpenOOD; ``h``, or the log-odds of ``g``, as the paper.
    head
        The last layer, whose rows have length 1, and the layer of ``g``.
    probes
        Gives the features of the perturbed images; empty without a step.

    References
    ----------
    Hsu, Shen, Jin, Kira. "Generalized ODIN: Detecting Out-of-distribution Image without Learning
    from Out-of-distribution Data". CVPR 2020, arXiv:2002.11297, sections 3.1 and 3.2. Softmax and
    ``ε``: ``godin_postprocessor.py`` of OpenOOD.

    Notes
    -----
    The paper chooses ``ε`` on ID images, as the value with the largest mean score. OpenOOD's score
    by ``g`` is the softmax over its one value, so always 1. Where a gradient is exactly 0 a pixel
    stays; published code moves it by ``ε``.
    """

    by: By
    head: Head
    probes: tuple[Probe, ...]

    @classmethod
    def fit(cls, reference: Reference, *, by: By = "softmax", epsilon: float = 0.0025) -> Self:
        """Learn nothing.

        Parameters
        ----------
        reference
            Gives the last layer.
        by
            What is compared.
        epsilon
            How far each pixel value is moved, for values from 0 to 1; 0 for no step.

        Raises
        ------
        InvalidInputError
            If ``epsilon`` is negative or not finite.
        """
        if not 0 <= epsilon < float("inf"):
            raise InvalidInputError(f"g-odin:epsilon must be a number from 0, not {epsilon:g}")
        probes = (StepTowards(float(epsilon), by == "g"),) if epsilon else ()
        return cls(by, reference.head, probes)

    def score(self, batch: Activations) -> Tensor:
        """Return the score, ``(n,)``."""
        features = batch.extra[self.probes[0].key] if self.probes else batch.features
        if self.by == "g":
            weight, bias = self.head.kept[DIVISOR]
            return (features @ weight.T + bias)[:, 0]
        found = cosines(features, self.head.weight)
        return found.amax(dim=1) if self.by == "h" else MSP().score_logits(found)
