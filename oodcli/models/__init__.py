"""Networks: architectures, weights, and the forward pass for scoring."""

from oodcli.models.architecture import Architecture, ArchitectureSpec
from oodcli.models.checkpoint import load_head, load_run_network, load_weights, save_weights
from oodcli.models.clip_text import Clip, imagenet_templates
from oodcli.models.fitting import load_into, load_with_remarks, names_classifier
from oodcli.models.heads import (
    KeptHeadsLinear,
    UnitFeatureLinear,
    keep_heads,
    quotient,
    restore_last_layer,
    standardised_features,
    unit_features,
)
from oodcli.models.network import Network, fill, network_of
from oodcli.models.onnx_network import ONNX
from oodcli.models.pretrained import (
    Pretrained,
    clip_network,
    folder_class_names,
    folder_commit,
    pretrained_state,
    published_configuration,
    translated_state,
)
from oodcli.models.programs import Program, read_program
from oodcli.models.registry import (
    ARCHITECTURES,
    builder_of,
    builder_side_of,
    is_external,
    parse_architecture,
    with_output,
)
from oodcli.models.state_dicts import Checkpoint, read_checkpoint, read_state

__all__ = [
    "ARCHITECTURES",
    "ONNX",
    "Architecture",
    "ArchitectureSpec",
    "Checkpoint",
    "Clip",
    "KeptHeadsLinear",
    "Network",
    "Pretrained",
    "Program",
    "UnitFeatureLinear",
    "builder_of",
    "builder_side_of",
    "clip_network",
    "fill",
    "folder_class_names",
    "folder_commit",
    "imagenet_templates",
    "is_external",
    "keep_heads",
    "load_head",
    "load_into",
    "load_run_network",
    "load_weights",
    "load_with_remarks",
    "names_classifier",
    "network_of",
    "parse_architecture",
    "pretrained_state",
    "published_configuration",
    "quotient",
    "read_checkpoint",
    "read_program",
    "read_state",
    "restore_last_layer",
    "save_weights",
    "standardised_features",
    "translated_state",
    "unit_features",
    "with_output",
]
