"""Families of networks whose blocks are known by the names of their parts."""

from collections.abc import Sequence

from torch import nn


def of_inverted(module: nn.Module) -> Sequence[str]:
    """Return the paths of all blocks of timm's EfficientNets, MobileNets and related networks.

    Returns
    -------
    Sequence
        Paths in forward order; empty for other networks.

    Notes
    -----
    The blocks are the stem, all blocks of all stages, and the last convolution if it precedes the
    pooling, each after its activation. FeatureNorm uses the same blocks for MobileNetV3, and the
    search finds the same for the EfficientNets of other packages.
    """
    parts = dict(module.named_children())
    stages = parts.get("blocks")
    if not {"conv_stem", "bn1"} <= parts.keys() or not isinstance(stages, nn.Sequential):
        return ()
    if not all(isinstance(stage, nn.Sequential) for stage in stages):
        return ()
    within = [
        f"blocks.{stage}.{block}"
        for stage, each in stages.named_children()
        for block, _ in each.named_children()
    ]
    return ("bn1", *within, *(("bn2",) if {"conv_head", "bn2"} <= parts.keys() else ()))
