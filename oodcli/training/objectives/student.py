"""A network in training together with the layers of its objective."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from oodcli.training.objectives.base import Objective, StepOutput


def _as_it_is(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class LastBlock:
    """The block whose map an objective may look at.

    Parameters
    ----------
    path
        Path of its module.
    channels
        Channels of its map.
    maps
        Makes maps ``(m, c, h, w)`` of its output.
    """

    path: str
    channels: int
    maps: Callable[[Tensor], Tensor] = _as_it_is


class Student(nn.Module):
    """Everything that is trained, in one module; its forward pass is one training step's.

    Parameters
    ----------
    network
        The network; the objective has been attached to it.
    objective
        Says what to look at, and brings layers of its own.
    head
        Path of the last linear layer of the network.
    last_block
        The block whose map the objective may look at; None if it does not.

    Notes
    -----
    Maps are rectified, because some networks have blocks that end in a plain sum. What no loss of
    the objective reaches comes without its graph, so that processes that train together do not wait
    for gradients of it.
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
        if not objective.looks_at:
            return
        last = network.get_submodule(head)
        assert isinstance(last, nn.Linear)  # every architecture sees to it
        last.register_forward_pre_hook(self._keep_features)
        if last_block is not None and "maps" in objective.looks_at:
            network.get_submodule(last_block.path).register_forward_hook(self._keep_maps)
        channels = 0 if last_block is None else last_block.channels
        self._maps = _as_it_is if last_block is None else last_block.maps
        self.extras = objective.extras(last.in_features, channels)

    def forward(self, images: Tensor) -> StepOutput:
        """Return what the objective looks at, for normalised images ``(m, 3, h, w)``."""
        self._seen.clear()
        logits = self.network(images)
        nothing = logits.new_empty(0)
        features = self._seen.get("features", nothing)
        maps = self._seen.get("maps", nothing)
        self._seen.clear()  # a graph must not outlive its step
        extras = () if self.extras is None else self.extras(features, maps)
        if not self._trains_last_layer:
            logits = logits.detach()
        return StepOutput(logits, features.detach(), maps.detach(), extras)

    def _keep_features(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.training:
            self._seen["features"] = inputs[0]

    def _keep_maps(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:  # noqa: ANN401
        if self.training:
            self._seen["maps"] = self._maps(output).relu()
