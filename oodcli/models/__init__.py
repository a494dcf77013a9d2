"""Networks: what can be built, how weights get in and out, and the one forward pass."""

from oodcli.models.architecture import Architecture, ArchitectureSpec
from oodcli.models.checkpoint import (
    load_head,
    load_into,
    load_run_network,
    load_weights,
    read_state,
    save_weights,
)
from oodcli.models.heads import UnitFeatureLinear, unit_features
from oodcli.models.network import Network, network_of
from oodcli.models.pretrained import Pretrained, pretrained_state
from oodcli.models.registry import ARCHITECTURES, is_foreign, parse_architecture

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ArchitectureSpec",
    "Network",
    "Pretrained",
    "UnitFeatureLinear",
    "is_foreign",
    "load_head",
    "load_into",
    "load_run_network",
    "load_weights",
    "network_of",
    "parse_architecture",
    "pretrained_state",
    "read_state",
    "save_weights",
    "unit_features",
]
