"""The forward pass of scoring as one module, from normalised images to activations, for export."""

import copy
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from oodcli.activations import predicted
from oodcli.models.heads import NormalisedLinear
from oodcli.models.hooks import feature_norm, record_input, record_norm
from oodcli.models.network import Network


class ActivationsOf(nn.Module):
    """Computes the outputs of :func:`~oodcli.models.extraction.extract` in one module.

    Parameters
    ----------
    network
        The network; the module holds a copy of it, in float32 on the CPU.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network
        self.module = copy.deepcopy(network.module).eval().to("cpu", torch.float32)
        for each in self.module.modules():
            if getattr(each, "inplace", False):
                each.inplace = False  # type: ignore[assignment]
        head = network.head()
        self.register_buffer("weight", head.weight)
        self.register_buffer("bias", head.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, features, block norms and predictions of normalised images.

        Parameters
        ----------
        images
            Normalised images, ``(n, 3, h, w)``, any ``n``.

        Returns
        -------
        tuple
            Logits ``(n, k)``, features ``(n, d)``, block norms ``(n, b)`` and classes ``(n,)``.
        """
        norms: dict[str, Tensor] = {}
        seen: list[Tensor] = []
        hooks = [
            self.module.get_submodule(path).register_forward_hook(
                partial(record_norm, norms, name, self._network.layout(name))
            )
            for name, path in self._network.blocks.items()
        ]
        hooks.append(self._last.register_forward_pre_hook(partial(record_input, seen)))
        try:
            self.module(images)
        finally:
            for hook in hooks:
                hook.remove()
        return self._of(seen[0], norms)

    @property
    def _last(self) -> nn.Module:
        return self.module.get_submodule(self._network.head_path)

    def _of(
        self, features: Tensor, norms: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all from features ``(n, d)`` and the norms of every block ``(n,)``."""
        last = self._last
        logits = features @ self.weight.T + self.bias  # (n, k)
        own = last(features) if isinstance(last, NormalisedLinear) else logits
        block_norms = torch.stack([norms[name] for name in self._network.blocks], dim=1)
        return logits, features, block_norms, predicted(own)


class ActivationsOfMaps(ActivationsOf):
    """The same from what a network that runs outside of torch gives: features, and maps."""

    def forward(self, features: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, features, block norms and predictions.

        Parameters
        ----------
        features
            ``(n, d)``, or ``(n, d, h, w)``, of which the mean counts.
        maps
            Of every block, as it gives them.
        """
        rows = features.mean(dim=(2, 3)) if features.dim() == 4 else features
        norms = {
            name: feature_norm(self._network.layout(name).maps(each))
            for name, each in zip(self._network.blocks, maps, strict=True)
        }
        return self._of(rows, norms)
