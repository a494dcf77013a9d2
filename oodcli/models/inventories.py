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


def of_torchvision_families(module: nn.Module) -> Sequence[str]:
    """Return the paths of all blocks of torchvision's EfficientNets, MobileNets and others.

    Returns
    -------
    Sequence
        Paths in forward order; empty for other networks.

    Notes
    -----
    The blocks are those of :func:`of_inverted`: the stem, all blocks of all stages, and the last
    convolution. The stem of ResNets and related networks is not a block, as in FeatureNorm.
    """
    kind = type(module).__name__
    if kind == "ShuffleNetV2":
        stages = [f"stage{number}" for number in (2, 3, 4)]
        return ("conv1", *_children(module, stages), "conv5")
    if kind == "MNASNet":
        # Stem and a separable convolution lie flat before the stages, layer by layer.
        stages = [f"layers.{number}" for number in range(8, 14)]
        return ("layers.2", "layers.7", *_children(module, stages), "layers.16")
    if kind not in ("EfficientNet", "MobileNetV2", "MobileNetV3"):
        return ()
    first, *between, last = _children(module, ["features"])
    within: list[str] = []
    for path in between:
        stage = isinstance(module.get_submodule(path), nn.Sequential)
        within += _children(module, [path]) if stage else [path]
    return (first, *within, last)


def _children(module: nn.Module, paths: Sequence[str]) -> list[str]:
    return [
        f"{path}.{name}"
        for path in paths
        for name, _ in module.get_submodule(path).named_children()
    ]
