"""Where a block is quiet or loud: its energy at every position of its map, by a probe."""

from dataclasses import dataclass

from torch import Tensor

from oodcli.probes import Output, ProbedNetwork


@dataclass(frozen=True, slots=True)
class EnergyMap:
    """Energy of a block at every position: the L2 norm over channels of the ReLU, ``(n, h, w)``.

    Parameters
    ----------
    block
        Name of the block.

    Notes
    -----
    ``e_hw = sqrt(sum_c max(Z_chw, 0)²)``. FeatureNorm, ``mean_c sqrt(sum_hw max(Z_chw, 0)²)``, sums
    the same squares over positions instead: the sum of all squares is the same for both.
    """

    block: str

    @property
    def key(self) -> str:
        """Name of the array."""
        return f"energy map({self.block})"

    @property
    def passes(self) -> float:
        """Nothing beyond the ordinary pass."""
        return 0.0

    def maps(self, network: ProbedNetwork) -> tuple[str, ...]:
        """Return the path of the block."""
        return (network.blocks[self.block],)

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output) -> Tensor:
        """Return the energies of a batch, float32 ``(n, h, w)``."""
        del images
        maps = output.maps[network.blocks[self.block]]  # (n, c, h, w)
        squares = maps.clamp(min=0).float().square_()  # in place on the copy that clamp returns
        return squares.sum(dim=1).sqrt_()
