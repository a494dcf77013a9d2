"""VOS: outliers that are drawn in feature space, from Gaussians around the classes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.special import gammainccinv
from torch import Tensor, nn
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.specs import positive
from oodcli.training.objectives.base import PlainObjective, StepOutput

# Added to the variance of every feature, as in the authors' code.
_MARGIN = 1e-4


@dataclass(frozen=True)
class VOS(PlainObjective):
    """Cross-entropy, plus a logistic regression that tells ID images from virtual outliers.

    The last ``queue`` features of every class ``c``, without gradient, have the mean ``mu_c``;
    their shared covariance is ``S = mean (f - mu_y)(f - mu_y)^T + 1e-4 I``. Of ``sampled`` draws of
    ``N(mu_c, S)`` for every class, the ``select`` least likely are virtual outliers ``v``. For the
    last layer ``z(f) = W f + b``, and learned ``w`` (one element per class), ``a`` and ``d`` (two
    elements each)::

        E(z) = log sum_j max(w_j, 0) exp z_j
        q(z) = softmax(a E(z) + d)
        loss = cross-entropy
               + weight mean over images and outliers of -log q_1(z(f_i)), -log q_0(z(v))

    The second term begins after the share ``start`` of the epochs: after epoch 40 of 100. Its
    gradient reaches the network through the logits of images, and the last layer also through those
    of outliers. Queues, ``w``, ``a`` and ``d`` are discarded after training; images are scored by
    energy, as in the paper.

    Parameters
    ----------
    weight
        Weight of the logistic regression.
    start
        Share of the epochs without it, from 0 to less than 1.
    queue
        Number of features of each class that are stored.
    sampled
        Draws for each class in a step.
    select
        Outliers among them.

    References
    ----------
    Du, Wang, Cai, Li. "VOS: Learning What You Don't Know by Virtual Outlier Synthesis". ICLR 2022,
    arXiv:2202.01197. Defaults: the authors' code for CIFAR, ``train_virtual.py``.

    Notes
    -----
    OpenOOD's code computes ``E`` without gradient and with new random ``w`` at every call, so that
    its term does not reach the network; here it does, as in the authors' code. Departures from that
    code: (1) The likelihood of a draw falls with the length of its standard normal vector, which is
    independent of its direction; the largest lengths of ``sampled`` are drawn directly, as order
    statistics, which is the same distribution without the draws. (2) The authors wait until all
    queues are full, and do not move a full one before; here every queue moves, and from ``start``
    on what it contains counts, so that small sets train too. A class without a feature has no
    outlier. The two agree once all queues are full. (3) Weight decay acts on ``w``, ``a``
    and ``d`` before ``start`` too. (4) The sum in ``E`` is at least the smallest normal number.

    Every step computes the covariance from the queues, in float64: ``k queue d^2`` operations for
    ``k`` classes and ``d`` features. With 1000 classes, a shorter queue is advisable.
    """

    weight: float = 0.1
    start: float = 0.4
    queue: int = 1000
    sampled: int = 10000
    select: int = 1

    needs: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset({"features"})
    compares_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("vos:weight", self.weight)
        if not 0 <= self.start < 1:
            raise InvalidInputError(
                f"vos:start must be at least 0 and less than 1, not {self.start:g}: the share of "
                "the epochs before the outliers"
            )
        for name in ("queue", "sampled", "select"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"vos:{name} must be at least 1, not {getattr(self, name)}")
        if self.select > self.sampled:
            raise InvalidInputError(
                f"vos:select must be at most vos:sampled ({self.sampled}), not {self.select}"
            )

    def extras(self, features: int, channels: int, classes: int) -> nn.Module:  # noqa: ARG002
        """Build the queues and the logistic regression."""
        return VirtualOutliers(features, classes, self.queue)

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Store the features in their queues, and return the loss."""
        state = output.state
        assert isinstance(state, VirtualOutliers)  # from `extras`
        assert output.last_layer is not None  # from the training step
        logits = output.logits.float()
        loss = functional.cross_entropy(logits, labels)
        state.store(output.extras[0], labels)
        if state.share < self.start:
            # Processes that train together need a gradient of every parameter in every step.
            return loss + 0 * sum(parameter.sum() for parameter in state.parameters())
        outliers, exists = state.drawn(sampled=self.sampled, select=self.select)
        energies = torch.cat(
            [
                weighted_logsumexp(logits, state.weights),
                weighted_logsumexp(output.last_layer(outliers), state.weights),
            ]
        )
        is_id = torch.cat([torch.ones_like(labels), torch.zeros_like(exists, dtype=labels.dtype)])
        counts = torch.cat([torch.ones_like(labels, dtype=torch.bool), exists])
        losses = functional.cross_entropy(
            state.logistic(energies[:, None]), is_id, reduction="none"
        )
        return loss + self.weight * (losses * counts).sum() / counts.sum()


class VirtualOutliers(nn.Module):
    """The last features of every class, and a logistic regression on energies.

    Parameters
    ----------
    features
        Length of a feature vector, ``d``.
    classes
        Number of classes, ``k``.
    size
        Number of features of each class.
    """

    queue: Tensor
    seen: Tensor

    def __init__(self, features: int, classes: int, size: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(classes))
        self.logistic = nn.Linear(1, 2)
        self.register_buffer("queue", torch.zeros(classes, size, features))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.int64))
        self.begin(0.0, 0)

    def begin(self, share: float, seed: int) -> None:
        """Begin an epoch.

        Parameters
        ----------
        share
            Share of the epochs before it.
        seed
            Seed of the draws of the epoch.
        """
        self.share = share
        self._lengths = np.random.default_rng(seed)
        self._directions = torch.Generator(self.queue.device).manual_seed(seed)

    def forward(self, features: Tensor, maps: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return the features ``(m, d)`` without gradient, in float32."""
        return (features.detach().float(),)

    def store(self, features: Tensor, labels: Tensor) -> None:
        """Replace the oldest features of each class by new ones, ``(m, d)`` of classes ``(m,)``."""
        features = features.detach()  # those gathered from several processes have a graph
        size = self.queue.shape[1]
        each = functional.one_hot(labels, len(self.seen))  # (m, k)
        counts = each.sum(dim=0)
        turns = each.cumsum(dim=0).gather(1, labels[:, None])[:, 0] - 1  # (m,)
        places = (self.seen[labels] + turns) % size
        if len(labels) > size:  # the newest only, so that no place is written twice
            newest = turns >= counts[labels] - size
            features, labels, places = features[newest], labels[newest], places[newest]
        self.queue[labels, places] = features
        self.seen += counts

    def gaussians(self) -> tuple[Tensor, Tensor]:
        """Return means ``(k, d)`` and the shared covariance ``(d, d)`` of the queues, float64."""
        queue = self.queue.double()
        size = queue.shape[1]
        counts = self.seen.clamp(max=size)
        filled = torch.arange(size, device=queue.device) < counts[:, None]  # (k, size)
        means = queue.sum(dim=1) / counts.clamp(min=1)[:, None]  # empty places are zero
        centred = ((queue - means[:, None]) * filled[:, :, None]).flatten(0, 1)
        covariance = centred.T @ centred / counts.sum()
        return means, covariance + _MARGIN * torch.eye(len(covariance), device=queue.device)

    def drawn(self, *, sampled: int, select: int) -> tuple[Tensor, Tensor]:
        """Draw the virtual outliers of a step.

        Parameters
        ----------
        sampled, select
            Draws for each class, and outliers among them.

        Returns
        -------
        outliers
            ``(k select, d)``, float32.
        exists
            Whether their class has a feature, ``(k select,)``.
        """
        means, covariance = self.gaussians()
        k, d = means.shape
        lengths = torch.from_numpy(longest(self._lengths, k, d, sampled=sampled, select=select))
        directions = torch.randn(
            k, select, d, generator=self._directions, device=means.device, dtype=means.dtype
        )
        standard = functional.normalize(directions, dim=2) * lengths.to(means.device)[:, :, None]
        outliers = means[:, None] + standard @ torch.linalg.cholesky(covariance).T
        return outliers.flatten(0, 1).float(), (self.seen > 0).repeat_interleave(select)


def longest(
    generator: np.random.Generator, sets: int, d: int, *, sampled: int, select: int
) -> np.ndarray:
    """Draw the largest lengths of ``sampled`` standard normal vectors of ``d`` elements.

    Parameters
    ----------
    generator
        Random generator.
    sets
        Number ``n`` of independent sets of ``sampled`` vectors.
    d, sampled
        As above.
    select
        Number ``s`` of lengths of each set.

    Returns
    -------
    ndarray
        Lengths in decreasing order, float64 ``(n, s)``.

    Notes
    -----
    The largest of ``m`` uniform numbers is distributed as ``u^(1/m)``, and the next one as the
    largest of ``m - 1`` below it; squared lengths are chi-squared with ``d`` degrees of freedom.
    """
    left = np.arange(sampled, sampled - select, -1)
    logs = np.log1p(-generator.random((sets, select)))  # of numbers above 0
    above = -np.expm1(np.cumsum(logs / left, axis=1))  # 1 less the uniform numbers
    lengths: np.ndarray = np.sqrt(2 * gammainccinv(d / 2, above))
    return lengths


def weighted_logsumexp(logits: Tensor, weights: Tensor) -> Tensor:
    """Return ``log sum_j max(w_j, 0) exp z_j`` of logits ``(m, k)`` and weights ``(k,)``."""
    highest = logits.max(dim=1, keepdim=True).values
    total = (weights.relu() * (logits - highest).exp()).sum(dim=1)
    return highest[:, 0] + total.clamp(min=torch.finfo(total.dtype).tiny).log()
