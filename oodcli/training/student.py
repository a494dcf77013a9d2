"""A network in training together with the layers of its objective."""

from typing import Any

import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.training.objective import Objective, Output


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
        Path of the block whose map the objective may look at.

    Notes
    -----
    Maps are rectified, because some networks have blocks that end in a plain sum.
    """

    def __init__(
        self, network: nn.Module, objective: Objective, *, head: str, last_block: str
    ) -> None:
        super().__init__()
        self.network = network
        self._seen: dict[str, Tensor] = {}
        self.extras: nn.Module | None = None
        if not objective.looks_at:
            return
        last = network.get_submodule(head)
        assert isinstance(last, nn.Linear)  # every architecture sees to it
        last.register_forward_pre_hook(self._keep_features)
        channels = 0
        if "maps" in objective.looks_at:
            network.get_submodule(last_block).register_forward_hook(self._keep_maps)
            channels = _channels(network, last_block)
        self.extras = objective.extras(last.in_features, channels)

    def forward(self, images: Tensor) -> Output:
        """Return what the objective looks at, for normalised images ``(m, 3, h, w)``."""
        self._seen.clear()
        logits = self.network(images)
        nothing = logits.new_empty(0)
        features = self._seen.get("features", nothing)
        maps = self._seen.get("maps", nothing)
        self._seen.clear()  # a graph must not outlive its step
        extras = () if self.extras is None else self.extras(features, maps)
        return Output(logits, features, maps, extras)

    def _keep_features(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.training:
            self._seen["features"] = inputs[0]

    def _keep_maps(self, _module: nn.Module, _inputs: Any, maps: Tensor) -> None:  # noqa: ANN401
        if self.training:
            self._seen["maps"] = maps.relu()


def _channels(network: nn.Module, block: str) -> int:
    """Return the channels of the map of a block.

    Raises
    ------
    InvalidInputError
        If its output is no map.
    """
    seen: list[tuple[int, ...]] = []
    handle = network.get_submodule(block).register_forward_hook(
        lambda _module, _inputs, maps: seen.append(tuple(maps.shape))
    )
    training = network.training
    try:
        with torch.no_grad():
            parameter = next(network.parameters())
            network.eval()(torch.zeros(1, 3, 32, 32, device=parameter.device))
    finally:
        handle.remove()
        network.train(training)
    if len(seen[0]) != 4:
        raise InvalidInputError(
            f"the last block {block} gives {len(seen[0])} dimensions and not a map (n, c, h, w), "
            "which this objective aligns; take another objective or network"
        )
    return seen[0][1]
