"""CIDER: features near the prototype of their class, and prototypes far apart."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.specs import positive
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.prototypes import ClassMeanPrototypes, moved
from oodcli.training.objectives.supcon import BASE_TEMPERATURE, Contrastive


@dataclass(frozen=True)
class CIDER(Contrastive):
    """Compactness of projected features around class prototypes, plus dispersion of prototypes.

    For unit vectors ``u_i`` of two views per image, and one prototype ``mu_c`` per class, every
    vector first moves the prototype of its class, ``mu_y <- unit(m mu_y + (1 - m) u_i)``, one after
    the other. Then, with the new prototypes::

        compact  = -(tau / 0.07) mean_i log softmax_c(u_i . mu_c / tau)_(y_i)
        disperse = mean_c log 1 / (K - 1) sum_{j != c} exp(mu_c . mu_j / tau)
        loss     = weight compact + disperse

    The gradient of ``disperse`` flows through the vectors of this step; that of ``compact`` treats
    prototypes as constant. Prototypes start as the class means of projected validation images (of
    training images if there are none), and are part of the stored state. Projection, last layer and
    linear probe are as for ``supcon``.

    Parameters
    ----------
    tau
        Temperature.
    momentum
        ``m``: 0.95 for CIFAR-10, 0.5 for CIFAR-100.
    weight
        Weight of the compactness.

    References
    ----------
    Ming, Sun, Dia, Li. "How to Exploit Hyperspherical Embeddings for Out-of-Distribution
    Detection?". ICLR 2023, arXiv:2203.04450. Defaults: ``cider_trainer.py`` of OpenOOD.

    Notes
    -----
    OpenOOD trains ImageNet's last stage only, which no recipe here does. ``knn`` on the features
    before the projection scores as there.
    """

    tau: float = 0.1
    momentum: float = 0.95
    weight: float = 2.0

    def __post_init__(self) -> None:
        positive("cider:tau", self.tau)
        positive("cider:weight", self.weight)
        check_momentum("cider", self.momentum)

    def extras(self, features: int, channels: int, classes: int) -> nn.Module:  # noqa: ARG002
        """Build the projection, and prototypes that start as class means."""
        if classes < 2:
            raise InvalidInputError("cider needs at least 2 classes, and there is 1")
        return ClassMeanPrototypes(features, classes)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Move the prototypes, and return the loss of the projected unit vectors."""
        state, unit = output.state, output.extras[0]
        assert isinstance(state, ClassMeanPrototypes)  # from `extras`
        with torch.autocast(unit.device.type, enabled=False):
            prototypes = moved(state.values, unit, labels, momentum=self.momentum)
            state.values.copy_(prototypes.detach())
            compact = functional.cross_entropy(unit @ prototypes.detach().T / self.tau, labels)
            return self.weight * self.tau / BASE_TEMPERATURE * compact + dispersion(
                prototypes, tau=self.tau
            )


def dispersion(prototypes: Tensor, *, tau: float) -> Tensor:
    """Return the mean log-mean-exp of the similarities of prototypes ``(k, e)`` to the others."""
    classes = len(prototypes)
    diagonal = torch.eye(classes, dtype=torch.bool, device=prototypes.device)
    similar = (prototypes @ prototypes.T / tau).masked_fill(diagonal, -torch.inf)
    return similar.logsumexp(dim=1).mean() - torch.tensor(classes - 1.0).log()


def check_momentum(name: str, momentum: float) -> None:
    """Refuse a momentum outside of 0 to 1.

    Raises
    ------
    InvalidInputError
        If it is negative, 1 or more, or not a number.
    """
    if not 0 <= momentum < 1:
        raise InvalidInputError(
            f"{name}:momentum must be at least 0 and less than 1, not {momentum:g}"
        )
