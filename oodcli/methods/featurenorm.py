"""FeatureNorm: the norm of one block's activation map, and that norm inside other scores."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods._needs import Arguments, Need
from oodcli.normratio import NormRatio, norm_ratio


@dataclass(frozen=True, slots=True)
class FeatureNorm:
    """Average activation energy of one block.

    The forward pass has already reduced the map ``Z`` of every block to
    ``mean_c sqrt(sum_hw max(Z_chw, 0)²)``; this reads off the chosen block.

    Parameters
    ----------
    block
        Index of the block, from 0.

    References
    ----------
    Yu, Shin, Lee, Jun, Lee. "Block Selection Method for Using Feature Norm in Out-of-Distribution
    Detection". CVPR 2023, arXiv:2212.02295, section 3.
    """

    block: int

    @classmethod
    def fit(cls, reference: Reference, *, block: int | None = None) -> Self:
        """Take the given block, or else the one that NormRatio selects on all training images."""
        return cls(_block(reference, block))

    def score(self, batch: Activations) -> Tensor:
        """Return FeatureNorm of the block, ``(n,)``."""
        return batch.block_norms[:, self.block]


@dataclass(frozen=True, slots=True)
class SelectedNorm:
    """Logits of the feature with its length replaced by FeatureNorm of the selected block.

    ``z' = W (FN(x) · f / ‖f‖₂) + b``; a feature of length zero stays zero.

    Parameters
    ----------
    head
        Last linear layer of the classifier.
    block
        Index of the block, from 0.

    References
    ----------
    Yu, Shin, Lee, Jun, Lee. "Block Selection Method for Using Feature Norm in Out-of-Distribution
    Detection". CVPR 2023, arXiv:2212.02295.

    Notes
    -----
    No code was published for this form. The formula is the authors' description: keep the direction
    of the penultimate feature, and use the magnitude of the output of the selected block, read here
    as its FeatureNorm.
    """

    head: Head
    block: int

    @classmethod
    def fit(cls, reference: Reference, *, block: int | None = None) -> Self:
        """Take the given block, or else the one that NormRatio selects on all training images."""
        return cls(reference.head, _block(reference, block))

    def logits(self, batch: Activations) -> Tensor:
        """Return the new logits, ``(n, k)``."""
        lengths = batch.features.norm(dim=1, keepdim=True)  # (n, 1)
        directions = batch.features / lengths.clamp(min=1e-12)
        norms = batch.block_norms[:, self.block, None]  # (n, 1)
        return self.head(norms * directions)


def _one_image(reference: Reference, arguments: Arguments) -> str | None:
    if arguments["block"] is not None or len(reference.train) > 1:
        return None
    return f"there is {len(reference.train)}"


SEVERAL_IMAGES = Need(
    "at least 2 training images to select a block",
    _one_image,
    "name the block, as in featurenorm:block=0",
)


def selection(reference: Reference) -> NormRatio:
    """Compare all training images with their jigsaw puzzles, once for all methods."""
    return reference.once(
        "normratio",
        lambda: norm_ratio(
            reference.train.block_norms.cpu().numpy(), reference.jigsaw.block_norms.cpu().numpy()
        ),
    )


def _block(reference: Reference, block: int | None) -> int:
    if block is None:
        return selection(reference).selected
    if not 0 <= block < reference.n_blocks:
        raise InvalidInputError(
            f"there is no block {block}: this network has blocks 0 to {reference.n_blocks - 1}"
        )
    return block
