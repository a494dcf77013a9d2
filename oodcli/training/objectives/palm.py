"""PALM: several prototypes per class, to which features are assigned softly."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.specs import positive
from oodcli.training.objectives.base import StepOutput
from oodcli.training.objectives.cider import check_momentum
from oodcli.training.objectives.prototypes import Prototypes
from oodcli.training.objectives.supcon import Contrastive

_PROTOTYPE_TEMPERATURE = 0.5


@dataclass(frozen=True)
class PALM(Contrastive):
    """Likelihood under a mixture of prototypes per class, plus contrast between prototypes.

    For unit vectors ``u_i`` of two views per image, and ``prototypes`` unit vectors ``p_k`` of
    every class, with ``q`` the Sinkhorn assignment of all vectors to all prototypes (see
    :func:`sinkhorn`), and ``T_i`` the ``top`` largest ``q_ik`` among those of the class of ``i``::

        w_ik = q_ik / sum_{j in T_i} q_ij                                       (k in T_i, else 0)
        p_k <- unit(m p_k + (1 - m) sum_i w_ik u_i / sum_i w_ik)
        w'_ik as w_ik, from the assignment to the new prototypes, with the same T_i
        likelihood = -mean_i [sum_k w'_ik u_i . p_k / tau - log sum_all exp(u_i . p_k / tau)]
        loss       = likelihood + weight contrast

    ``contrast`` is the supervised contrastive loss of the new prototypes at temperature 0.5; its
    gradient flows through the vectors of this step. All else treats assignments and prototypes as
    constant. Prototypes start at random and are part of the stored state. Projection, last layer
    and linear probe are as for ``supcon``.

    Parameters
    ----------
    tau
        Temperature.
    prototypes
        Prototypes of each class.
    momentum
        ``m``: 0.999, or 0.9 in OpenOOD's script for CIFAR-10.
    top
        Prototypes of its class to which a vector is assigned; all of them if there are fewer.
    epsilon
        Entropy of the Sinkhorn assignment.
    rounds
        Rounds of the Sinkhorn assignment.
    weight
        Weight of the contrast between prototypes.

    References
    ----------
    Lu, Gong, Wang, Xue, Yao, Moore. "Learning with Mixture of Prototypes for Out-of-Distribution
    Detection". ICLR 2024, arXiv:2402.02653. Defaults: ``palm_trainer.py`` of OpenOOD.

    Notes
    -----
    As in the code of the authors, the entries of ``w'`` are those of the first assignment. Sinkhorn
    is computed with logarithms, so that it cannot overflow. ``mds++`` (Mahalanobis distance on unit
    features before the projection) scores as there.
    """

    tau: float = 0.1
    prototypes: int = 6
    momentum: float = 0.999
    top: int = 5
    epsilon: float = 0.05
    rounds: int = 3
    weight: float = 1.0

    def __post_init__(self) -> None:
        positive("palm:tau", self.tau)
        positive("palm:epsilon", self.epsilon)
        check_momentum("palm", self.momentum)
        for name in ("prototypes", "top", "rounds"):
            if getattr(self, name) < 1:
                raise InvalidInputError(
                    f"palm:{name} must be at least 1, not {getattr(self, name)}"
                )
        if not 0 <= self.weight < float("inf"):
            raise InvalidInputError(f"palm:weight must be a number from 0, not {self.weight:g}")

    def extras(self, features: int, channels: int, classes: int) -> nn.Module:  # noqa: ARG002
        """Build the projection and random prototypes."""
        return Prototypes(features, classes, self.prototypes)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Move the prototypes, and return the loss of the projected unit vectors."""
        state, unit = output.state, output.extras[0]
        assert isinstance(state, Prototypes)  # from `extras`
        owners = torch.arange(len(state.values), device=labels.device) % state.classes
        own = labels[:, None] == owners[None, :]  # (m, p)
        with torch.autocast(unit.device.type, enabled=False):
            weights = self._assigned(unit, state.values, own)
            chosen = self._chosen(weights, own)
            weights = functional.normalize(weights * chosen, p=1, dim=1)
            towards = functional.normalize(weights, p=1, dim=0).T @ unit  # (p, e)
            prototypes = functional.normalize(
                self.momentum * state.values + (1 - self.momentum) * towards, dim=1
            )
            fixed = prototypes.detach()
            state.values.copy_(fixed)
            logits = unit @ fixed.T / self.tau
            again = self._assigned(unit, fixed, own) * chosen
            again = functional.normalize(again, p=1, dim=1)
            likelihood = (logits.logsumexp(dim=1) - (again * logits).sum(dim=1)).mean()
            return likelihood + self.weight * contrast(prototypes, owners)

    def _assigned(self, unit: Tensor, prototypes: Tensor, own: Tensor) -> Tensor:
        """Return the assignment to the prototypes of the own class, ``(m, p)``."""
        similar = unit.detach() @ prototypes.T
        return sinkhorn(similar, epsilon=self.epsilon, rounds=self.rounds) * own

    def _chosen(self, weights: Tensor, own: Tensor) -> Tensor:
        """Return a mask of the ``top`` largest entries of each row, ``(m, p)``."""
        top = min(self.top, self.prototypes)
        places = weights.masked_fill(~own, -1.0).topk(top, dim=1).indices
        return torch.zeros_like(weights).scatter(1, places, 1.0)


def contrast(prototypes: Tensor, owners: Tensor) -> Tensor:
    """Return the supervised contrastive loss of prototypes ``(p, e)`` of classes ``(p,)``.

    A prototype that is the only one of its class has no attraction, but is repelled by the others.
    """
    similar = prototypes @ prototypes.T / _PROTOTYPE_TEMPERATURE
    diagonal = torch.eye(len(owners), dtype=torch.bool, device=owners.device)
    others = similar.masked_fill(diagonal, -torch.inf).logsumexp(dim=1)
    positives = (owners[:, None] == owners[None, :]) & ~diagonal
    attraction = (similar * positives).sum(dim=1) / positives.sum(dim=1).clamp(min=1)
    return (others - attraction).mean()


def sinkhorn(similarities: Tensor, *, epsilon: float, rounds: int) -> Tensor:
    """Assign rows to columns, each row with weight 1, and all columns with nearly equal weight.

    ``q = exp(s / epsilon)``; in every round the columns are scaled to sum ``1 / p``, then the rows
    to sum ``1 / m``; at last all is multiplied by ``m``.

    Parameters
    ----------
    similarities
        ``s``, ``(m, p)``.
    epsilon, rounds
        As above.

    Returns
    -------
    Tensor
        ``(m, p)``; rows sum to 1.

    References
    ----------
    Cuturi. "Sinkhorn Distances". NeurIPS 2013.
    """
    logs = similarities / epsilon
    for _ in range(rounds):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp()
