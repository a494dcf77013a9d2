"""The image tower of a CLIP network as a classifier, and its local embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.models.heads import SMALLEST_NORM


class ImageTower(nn.Module):
    """An image tower followed by a linear layer; its input is the embedding divided by its length.

    Parameters
    ----------
    visual
        The tower; returns embeddings ``(n, d)``, or a tuple whose first element they are.
    width
        Length of an embedding, ``d``.
    num_classes
        Number of classes.
    """

    def __init__(self, visual: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.visual = visual
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(n, k)`` of normalised images ``(n, 3, h, w)``."""
        given = self.visual(images)
        embeddings: Tensor = given[0] if isinstance(given, tuple) else given
        # In float32 even under autocast, so that features have length 1.
        return self.head(F.normalize(embeddings.float(), dim=1, eps=SMALLEST_NORM))

    @property
    def local_path(self) -> str:
        """Path of the block whose feature map gives local embeddings; empty if there are none."""
        return self._local[0]

    def local_embeddings(self, maps: Tensor) -> Tensor:
        """Return one embedding per position, ``(n, p, d)``.

        Parameters
        ----------
        maps
            Output of the block at :attr:`local_path`, ``(n, c, h, w)``, without a class token.
        """
        return self._local[1](maps.flatten(2).mT)

    @property
    def _local(self) -> tuple[str, Callable[[Tensor], Tensor]]:
        """The path, and a function from positions ``(n, p, c)`` to embeddings ``(n, p, d)``."""
        visual: Any = self.visual
        if hasattr(getattr(visual, "attnpool", None), "c_proj"):
            return f"visual.layer4.{len(visual.layer4) - 1}", self._of_pooling
        if self._has_values():
            last = len(visual.transformer.resblocks) - 1
            return f"visual.transformer.resblocks.{last - 1}", self._of_values
        return "", _none

    def _has_values(self) -> bool:
        """Return whether the tower is a ViT whose embedding is that of its class token."""
        blocks: Any = getattr(getattr(self.visual, "transformer", None), "resblocks", ())
        attention = getattr(blocks[-1], "attn", None) if len(blocks) > 1 else None
        return (
            isinstance(attention, nn.MultiheadAttention)
            and attention.in_proj_weight is not None
            and getattr(self.visual, "pool_type", "") == "tok"
            and getattr(self.visual, "attn_pool", None) is None
            and isinstance(getattr(self.visual, "proj", None), nn.Parameter)
        )

    def _of_values(self, tokens: Tensor) -> Tensor:
        visual: Any = self.visual
        block = visual.transformer.resblocks[-1]
        attention = block.attn
        values = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        own = attention.out_proj(F.linear(block.ln_1(tokens), *values))
        tokens = tokens + block.ls_1(own)
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        return visual.ln_post(tokens) @ visual.proj

    def _of_pooling(self, positions: Tensor) -> Tensor:
        pooling: Any = self.visual.attnpool
        return pooling.c_proj(pooling.v_proj(positions))


def tower_blocks(module: nn.Module) -> Sequence[str]:
    """Return the paths of the transformer blocks of a ViT of open_clip; empty for other towers.

    They are listed instead of searched, because a tower may have another block that pools its
    tokens (CoCa).
    """
    visual: Any = getattr(module, "visual", None)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    return tuple(f"visual.transformer.resblocks.{index}" for index in range(len(blocks)))


def _none(_tokens: Tensor) -> Tensor:
    raise ValueError("this network has no local embeddings")
