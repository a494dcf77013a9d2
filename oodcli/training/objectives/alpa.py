"""ALPA: aligns positions of the last feature map between images of a class."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from oodcli.errors import InvalidInputError
from oodcli.specs import positive
from oodcli.training.objectives.base import PlainObjective, StepOutput
from oodcli.training.objectives.supcon import Projection, contrastive, supcon_loss

# Elements of the largest tensor of a chunk of rows: 64 MiB in float32.
_CHUNK = 2**24
_SMALLEST = 1e-8
_SHARPNESS = 6.0


@dataclass(frozen=True)
class ALPA(PlainObjective):
    """Attention-based local propagation, with the loss of a backbone or alone.

    Every feature map is a set of ``P`` positions with queries, keys and values of length ``e``. For
    views ``i`` and ``j``, the values of ``j`` are aligned with the positions of ``i``::

        V_ji = softmax(Q_i K_j^T / sqrt(e)) V_j
        s_ij = 1/P sum_p [cos(V_i[p], V_ji[p]) + cos(V_j[p], V_ij[p])]
        loss = -mean_i 1 / |P(i)| sum_{p in P(i)} [10 s_ip - log sum_{j != i} exp(10 s_ij)]

    Parameters
    ----------
    base
        Loss of the backbone that ALPA is added to: ``supcon`` (ALPA-train), ``cross-entropy`` (the
        same for a cross-entropy backbone), or ``none`` (ALPA-finetune).
    weight
        Weight of ALPA in the sum with the base.
    sharpness
        Factor of the similarities.
    width
        Length ``e`` of queries, keys and values.
    pooling
        Pooling over the positions of a pair: ``mean``, ``sum``, ``max``, or ``soft``, the soft
        maximum ``1/6 log sum_p exp(6 c_p)``. As in the released code, ``c_p`` is the sum of both
        cosines at position ``p``; ``max-each`` and ``soft-each`` pool the two directions of a pair
        separately, and add the results.
    tau
        Temperature of SupCon.

    References
    ----------
    Zhang, Gao, Hao, Huang, Song, Shen. "From Global to Local: Multi-scale Out-of-distribution
    Detection". IEEE Transactions on Image Processing 2023, arXiv:2308.10239.

    Notes
    -----
    The projections, Linear(c, c)-ReLU-Linear(c, e) without bias, are discarded after training, and
    scoring does not use them. The poolings are those of the released code, except ``max-each`` and
    ``soft-each``, which are our own. For equal weights and feature maps, similarities, loss and
    gradients of that code (revision 23a3a20; its ``logsum`` is ``soft``) and of this one agree to
    2e-14 relative in float64 for all four; in float32 the losses agree to 6e-7. If the blocks of a
    network end in a plain sum (WRN), the output of its last block is rectified first. There is no
    published code for the cross-entropy backbone; the loss is the sum, as for SupCon.

    The largest tensors have ``m^2 P^2`` elements: cosines are computed from the products of values
    with values, without the aligned values of ``m^2 P e`` elements, and are recomputed in the
    backward pass (gradient checkpointing).
    """

    base: Literal["supcon", "cross-entropy", "none"] = "supcon"
    weight: float = 1.0
    sharpness: float = 10.0
    width: int = 80
    pooling: Literal["mean", "sum", "max", "soft", "max-each", "soft-each"] = "mean"
    tau: float = 0.1

    views: ClassVar[int] = 2
    compares_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("alpa:weight", self.weight)
        positive("alpa:sharpness", self.sharpness)
        positive("alpa:tau", self.tau)
        if self.width < 1:
            raise InvalidInputError(f"alpa:width must be at least 1, not {self.width}")

    @property
    def needs(self) -> frozenset[Literal["features", "maps"]]:  # type: ignore[override]
        """Tensors needed besides the logits: maps, and with SupCon also features."""
        return frozenset({"features", "maps"} if self.base == "supcon" else {"maps"})

    @property
    def trains_last_layer(self) -> bool:  # type: ignore[override]
        """Whether the last layer is trained: only with cross-entropy."""
        return self.base == "cross-entropy"

    def attach(self, module: nn.Module, head: str) -> None:
        """Freeze the last layer unless the base is cross-entropy."""
        if not self.trains_last_layer:
            module.get_submodule(head).requires_grad_(requires_grad=False)

    def extras(self, features: int, channels: int, classes: int) -> nn.Module:  # noqa: ARG002
        """Build the attention layers, and with SupCon its projection."""
        return _Attention(
            channels, self.width, Projection(features) if self.base == "supcon" else None
        )

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the loss of the base, if any, plus the weighted loss of ALPA."""
        queries, keys, values, *projected = output.extras
        similar = similarities(queries, keys, values, pooling=self.pooling)
        loss = self.weight * contrastive(self.sharpness * similar, labels)
        if self.base == "supcon":
            return supcon_loss(projected[0], labels, tau=self.tau) + loss
        if self.base == "cross-entropy":
            return functional.cross_entropy(output.logits.float(), labels) + loss
        return loss


class _Attention(nn.Module):
    """Computes queries, keys and values of positions, and with SupCon projected features."""

    def __init__(self, channels: int, width: int, projection: Projection | None) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (_projection(channels, width) for _ in range(3))
        self.projection = projection

    def forward(self, features: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys, values ``(m, p, e)`` and, with SupCon, unit vectors, float32."""
        positions = maps.flatten(2).transpose(1, 2)  # (m, p, c)
        local = tuple(layer(positions).float() for layer in (self.queries, self.keys, self.values))
        return local if self.projection is None else (*local, *self.projection(features, maps))


def _projection(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, channels, bias=False),
        nn.ReLU(),
        nn.Linear(channels, width, bias=False),
    )


def similarities(
    queries: Tensor, keys: Tensor, values: Tensor, *, pooling: str = "mean", chunk: int = _CHUNK
) -> Tensor:
    """Return the similarity of every pair of views, ``(m, m)``, symmetric.

    Parameters
    ----------
    queries, keys, values
        One vector per position of every view, ``(m, p, e)``.
    pooling
        Pooling over positions; see :class:`ALPA`.
    chunk
        Largest number of elements of a tensor.
    """
    m, p, _ = queries.shape
    rows = max(1, chunk // (m * p * p))
    unit = values / values.norm(dim=2, keepdim=True).clamp(min=_SMALLEST)
    products = values @ values.transpose(1, 2)  # (m, p, p)
    with torch.autocast(queries.device.type, enabled=False):
        parts = [
            checkpoint(
                _aligned,
                (queries[at : at + rows], unit[at : at + rows]),
                (keys, values, products),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for at in range(0, m, rows)
        ]
    # (m, m, p): the values of the column view at the positions of the row view.
    cosines = torch.cat(parts)
    if pooling.endswith("-each"):
        towards = _pooled(cosines, pooling.removesuffix("-each"))
        return towards + towards.T
    return _pooled(cosines + cosines.transpose(0, 1), pooling)


def _pooled(cosines: Tensor, pooling: str) -> Tensor:
    """Pool the cosines ``(m, m, p)`` of every pair over positions, ``(m, m)``."""
    if pooling == "mean":
        return cosines.mean(dim=2)
    if pooling == "sum":
        return cosines.sum(dim=2)
    if pooling == "max":
        return cosines.amax(dim=2)
    return (_SHARPNESS * cosines).logsumexp(dim=2) / _SHARPNESS


def _aligned(rows: tuple[Tensor, Tensor], every: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the cosines of the values of some rows with aligned values of all, ``(r, m, p)``."""
    queries, unit = rows
    keys, values, products = every
    e = queries.shape[2]
    attention = torch.einsum("ipe,jqe->ijpq", queries, keys) / sqrt(e)
    attention = attention.softmax(dim=3)  # (r, m, p, q)
    dot = (attention * torch.einsum("ipe,jqe->ijpq", unit, values)).sum(dim=3)  # (r, m, p)
    squared = (torch.einsum("ijpq,jqs->ijps", attention, products) * attention).sum(dim=3)
    return dot / squared.clamp(min=_SMALLEST**2).sqrt()
