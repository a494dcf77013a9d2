"""RankFeat: logits of maps without their largest singular component."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.methods._stages import last_of_stages
from oodcli.probes import Output, Probe, ProbedNetwork

# Squaring a matrix this often is a power iteration of 2 ** 12 steps.
_SQUARINGS = 12
_TINY = torch.finfo(torch.float32).tiny


def without_rank_one(maps: Tensor) -> Tensor:
    """Return every map less the rank-1 term of its singular value decomposition.

    Parameters
    ----------
    maps
        ``(n, c, h, w)``; a map is the matrix ``(c, h*w)``. Left as they are.

    Notes
    -----
    With ``v`` the first right singular vector, the term of ``A`` is ``A v vᵀ``, and ``v vᵀ`` is the
    limit of ``M^k / tr M^k`` for ``M = AᵀA``. It is found by squaring ``M`` (or ``A Aᵀ``, whichever
    is smaller), always in float32: no random start, no sign to choose, and matrix products alone.
    """
    with torch.autocast(maps.device.type, enabled=False):
        matrices = maps.flatten(2).float()  # (n, c, h*w)
        flat = matrices.shape[1] < matrices.shape[2]
        power = matrices @ matrices.mT if flat else matrices.mT @ matrices  # (n, m, m)
        power = _unit_trace(power)
        for _ in range(_SQUARINGS):
            power = _unit_trace(power @ power)
        term = power @ matrices if flat else matrices @ power
        return (matrices - term).reshape(maps.shape).to(maps.dtype)


def _unit_trace(matrices: Tensor) -> Tensor:
    trace = matrices.diagonal(dim1=1, dim2=2).sum(dim=1)  # (n,)
    return matrices / trace.clamp(min=_TINY)[:, None, None]


@dataclass(frozen=True, slots=True)
class RankOneRemoved:
    """Mean of the logits without the rank-1 term of the last and of the last-but-one stage."""

    @property
    def key(self) -> str:
        """Name of the array."""
        return "rankfeat()"

    @property
    def passes(self) -> float:
        """A forward pass for each of the two stages."""
        return 2.0

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the paths of all blocks: the sizes of their maps tell where stages end."""
        return list(network.blocks.values())

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return the mean of the two logits, ``(n, k)``."""
        ends = last_of_stages(network.blocks, output.maps)[-2:]
        logits = [network.run(images, edit={path: without_rank_one}).logits for path in ends]
        return torch.stack(logits).mean(dim=0)


@dataclass(frozen=True, slots=True)
class RankFeat:
    """Logits of maps without their largest singular component.

    ``A' = A - σ₁ u₁ v₁ᵀ`` for the map ``A`` (channels by positions) of the last block of a stage.
    The network goes on from ``A'``; the logits for the last stage and those for the last but one,
    each changed alone, are averaged. The paper's score is their energy.

    Parameters
    ----------
    probes
        Gives the logits.

    References
    ----------
    Song, Sebe, Wang. "RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection".
    NeurIPS 2022, arXiv:2209.08590.

    Notes
    -----
    Checked against the authors' code, which uses a full decomposition, or 20 power iterations from
    a random start; here see :func:`without_rank_one`.

    A stage is a run of blocks with maps of one height and width. A network with a single stage is
    scored with that one, the paper's variant without fusion.

    What is edited is the output of a block, before any normalisation that follows the last one, as
    the authors do for networks with pre-activation.
    """

    probes: tuple[Probe, ...]

    @classmethod
    def fit(cls, _reference: Reference) -> Self:
        """Learn nothing."""
        return cls((RankOneRemoved(),))

    def logits(self, batch: Activations) -> Tensor:
        """Return the averaged logits, ``(n, k)``."""
        return batch.extra[self.probes[0].key]
