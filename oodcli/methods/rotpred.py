"""RotPred: class probabilities and predicted rotations of four rotated copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import ROTATION, Activations, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.probes import Output, Probe, ProbedNetwork

TURNS = 4


@dataclass(frozen=True, slots=True)
class RotationProbabilities:
    """Log-probability of its own rotation for each of four rotated copies, ``(n, 4)``."""

    @property
    def key(self) -> str:
        """Name of the array."""
        return "rotpred"

    @property
    def passes(self) -> float:
        """A forward pass for each copy but the upright one."""
        return float(TURNS - 1)

    def maps(self, _network: ProbedNetwork, /) -> Sequence[str]:
        """Want no map."""
        return ()

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return natural log-probabilities, ``(n, 4)``.

        Raises
        ------
        UndefinedMethodError
            If the images are not square.
        """
        height, width = images.shape[2:]
        if height != width:
            raise UndefinedMethodError(
                f"rotpred is not defined for images of {height} x {width} pixels, which it would "
                "have to turn by 90 degrees; use another method"
            )
        weight, bias = network.kept[ROTATION]
        found = []
        for turns in range(TURNS):
            turned = output if not turns else network.run(images.rot90(turns, (2, 3)))
            logits = turned.features.float() @ weight.T + bias  # (n, 4)
            found.append(logits.log_softmax(dim=1)[:, turns])
        return torch.stack(found, dim=1)


@dataclass(frozen=True, slots=True)
class RotPred:
    """Distance of the class probabilities from uniform, minus the error in predicting rotations.

    ``KL(U ‖ p) - 1/4 Σ_r KL(e_r ‖ q(x^r))`` in bits, where ``p`` are the class probabilities, ``U``
    is uniform, ``x^r`` is the image rotated by ``r`` quarter turns, and ``q`` are the probabilities
    of the four rotations from the layer that the objective ``rotpred`` has trained:
    ``KL(e_r ‖ q) = -log2 q_r``.

    Parameters
    ----------
    probes
        Gives the log-probabilities of the rotations.

    References
    ----------
    Hendrycks, Mazeika, Kadavath, Song. "Using Self-Supervised Learning Can Improve Model Robustness
    and Uncertainty". NeurIPS 2019, arXiv:1906.12340, section 4. Formula:
    ``rotpred_postprocessor.py`` of OpenOOD.
    """

    probes: tuple[Probe, ...]

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls((RotationProbabilities(),))

    def score(self, batch: Activations) -> Tensor:
        """Return the score, ``(n,)``."""
        classes = batch.logits.shape[1]
        uniform = -batch.logits.log_softmax(dim=1).mean(dim=1) - log(classes)
        return (uniform + batch.extra[self.probes[0].key].mean(dim=1)) / log(2)
