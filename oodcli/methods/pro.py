"""PRO: the least confidence of an image within a few small steps that lower it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods.base import at_least
from oodcli.methods.entropy import Entropy
from oodcli.methods.gen import GEN
from oodcli.methods.msp import MSP
from oodcli.probes import Output, Probe, ProbedNetwork
from oodcli.specs import positive

Of = Literal["gen", "msp", "entropy"]


@dataclass(frozen=True, slots=True)
class LeastConfidence:
    """The least confidence on the way of :class:`PRO`, ``(n, 1)``.

    Parameters
    ----------
    of
        Which score is lowered.
    epsilon
        Length of a step, in units of the normalised image.
    steps
        Number of steps.
    temperature
        What logits are divided by, of ``msp``.
    gamma, m
        Of ``gen``.
    """

    of: Of
    epsilon: float
    steps: int
    temperature: float
    gamma: float
    m: int

    @property
    def key(self) -> str:
        """Name of the array."""
        settings = {
            "gen": f"gamma={self.gamma!r},m={self.m}",
            "msp": f"temperature={self.temperature!r}",
            "entropy": "",
        }[self.of]
        return f"pro({self.of}({settings}),epsilon={self.epsilon!r},steps={self.steps})"

    @property
    def passes(self) -> float:
        """A forward and a backward pass for each step, and a forward pass."""
        return 3.0 * self.steps + 1

    def maps(self, _network: ProbedNetwork, /) -> Sequence[str]:
        """Want no map."""
        return ()

    def observe(self, network: ProbedNetwork, images: Tensor, _output: Output, /) -> Tensor:
        """Return the least confidence, ``(n, 1)``."""
        least, moved = torch.full((len(images),), torch.inf, device=images.device), images
        for _ in range(self.steps):
            with torch.enable_grad():
                leaves = moved.clone().detach().requires_grad_()
                logits = network.run(leaves).logits
                # The sum keeps images apart: the gradient of each is that of its own score.
                (gradient,) = torch.autograd.grad(self._rising(logits).sum(), leaves)
            least = torch.minimum(least, self._confidence(logits.detach()).float())
            # A prediction that is certain beyond float64 has no slope that could be computed.
            moved = moved - self.epsilon * gradient.nan_to_num(nan=0.0).sign()
        last = self._confidence(network.run(moved).logits).float()
        return torch.minimum(least, last)[:, None]

    def _confidence(self, logits: Tensor) -> Tensor:
        match self.of:
            case "gen":
                return GEN(self.gamma, self.m).score_logits(logits)
            case "msp":
                return MSP(self.temperature).score_logits(logits)
            case _:
                return Entropy().score_logits(logits)

    def _rising(self, logits: Tensor) -> Tensor:
        """Return what rises with the confidence and can be differentiated, ``(n,)``."""
        if self.of != "entropy":
            return self._confidence(logits)
        logs = logits.double().log_softmax(dim=1)
        return (logs.exp() * logs).sum(dim=1)


@dataclass(frozen=True, slots=True)
class PRO:
    """Least confidence of an image within a few small steps of its pixels that lower it.

    ``min_{t = 0..steps} s(x_t)`` with ``x_{t+1} = x_t - ε · sign(∇ₓ s(x_t))`` and ``s`` the score
    of GEN, MSP or Entropy: the confidence of OOD images falls faster.

    Parameters
    ----------
    probes
        Gives the least confidence.

    References
    ----------
    Chen, Yeh, Mou, Gu. "Leveraging Perturbation Robustness to Enhance
    Out-of-Distribution Detection". CVPR 2025, arXiv:2503.18784; code:
    wenxichen2746/Perturbation-Rectified-OOD-Detection (``pro_gen_postprocessor.py``,
    ``pro2_msp_postprocessor.py``).

    Notes
    -----
    Defaults are those of PRO-GEN in the published code: three steps of ``1e-4``, which count in
    units of the normalised image, ``gamma`` 0.1 and ``m`` 100. Its first variants for MSP, entropy
    and temperature scaling take the score after the last step, the newer PRO2 and PRO-GEN the
    minimum, as here. Scores are those of ``gen``, ``msp`` and ``entropy`` in their unbounded forms,
    which rank images as the published ones do and have the same signs of gradients. The grid is
    that of PRO-GEN's code for ``epsilon`` and ``steps``. The perturbed image may leave the range of
    pixel values, as published.
    """

    probes: tuple[Probe, ...]

    @classmethod
    def fit(
        cls,
        _reference: Reference,
        *,
        of: Of = "gen",
        epsilon: float = 1e-4,
        steps: int = 3,
        temperature: float = 1.0,
        gamma: float = 0.1,
        m: int = 100,
    ) -> Self:
        """Learn nothing.

        Parameters
        ----------
        _reference
            Not used.
        of
            Which score is lowered.
        epsilon
            Length of a step, in units of the normalised image.
        steps
            Number of steps.
        temperature
            What logits are divided by; for ``of=msp``.
        gamma
            Exponent; for ``of=gen``.
        m
            Number of largest probabilities; for ``of=gen``.
        """
        probe = LeastConfidence(
            of,
            float(positive("pro:epsilon", epsilon)),
            at_least("pro:steps", steps, 1),
            float(positive("pro:temperature", temperature)),
            float(positive("pro:gamma", gamma)),
            at_least("pro:m", m, 1),
        )
        return cls((probe,))

    def score(self, batch: Activations) -> Tensor:
        """Return the least confidence, ``(n,)``."""
        return batch.extra[self.probes[0].key][:, 0]
