"""A network in training together with the layers of its objective."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from oodcli.models import KeptHeadsLinear
from oodcli.training.objectives.base import Objective, StepOutput


def _identity(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class LastBlock:
    """The block whose feature map an objective may use.

    Parameters
    ----------
    path
        Path of the module of the block.
    channels
        Number of channels of the feature map.
    maps
        Converts the output of the block to feature maps ``(m, c, h, w)``.
    """

    path: str
    channels: int
    maps: Callable[[Tensor], Tensor] = _identity


class TrainingModule(nn.Module):
    """The network and the layers of its objective, in one module for the training step.

    Parameters
    ----------
    network
        The network; the objective has been attached to it.
    objective
        The objective, with the tensors that it needs and its own layers.
    head
        Path of the last linear layer of the network.
    last_block
        The block whose feature map the objective uses; None if it uses none.

    Notes
    -----
    Feature maps are rectified, because the blocks of some networks end in a plain sum. Outputs that
    the loss does not depend on are detached, so that processes that train together do not wait for
    their gradients.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        head: str,
        last_block: LastBlock | None,
    ) -> None:
        super().__init__()
        self.network = network
        self._trains_last_layer = objective.trains_last_layer
        self._seen: dict[str, Tensor] = {}
        self.extras: nn.Module | None = None
        self.last_layer: Callable[[Tensor], Tensor] | None = None
        self._kept: list[Callable[[Tensor], Tensor]] = []
        if not objective.needs:
            return
        last = network.get_submodule(head)
        assert isinstance(last, nn.Linear)  # ensured by every architecture
        self.last_layer = last.forward  # without the hook
        last.register_forward_pre_hook(self._keep_features)
        if last_block is not None and "maps" in objective.needs:
            network.get_submodule(last_block.path).register_forward_hook(self._keep_maps)
        channels = 0 if last_block is None else last_block.channels
        self._maps = _identity if last_block is None else last_block.maps
        self.extras = objective.extras(last.in_features, channels, last.out_features)
        if objective.kept:
            assert isinstance(last, KeptHeadsLinear)  # from attaching the objective
            # Functions, because the heads are modules of the network already.
            self._kept = [last.kept[name].forward for name in objective.kept]

    def forward(self, images: Tensor) -> StepOutput:
        """Return the outputs that the objective needs, for normalised images ``(m, 3, h, w)``."""
        self._seen.clear()
        logits = self.network(images)
        nothing = logits.new_empty(0)
        features = self._seen.get("features", nothing)
        maps = self._seen.get("maps", nothing)
        self._seen.clear()  # frees the autograd graph after the step
        extras = tuple(head(features).float() for head in self._kept)
        if self.extras is not None:
            extras += self.extras(features, maps)
        if not self._trains_last_layer:
            logits = logits.detach()
        return StepOutput(logits, features.detach(), maps.detach(), extras)

    def _keep_features(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.training:
            self._seen["features"] = inputs[0]

    def _keep_maps(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:  # noqa: ANN401
        if self.training:
            self._seen["maps"] = self._maps(output).relu()
