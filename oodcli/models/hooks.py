"""Hooks that record what a network computes, or change it, and the FeatureNorm of a map."""

from torch import Tensor, nn

from oodcli.models.layout import Layout
from oodcli.probes import Edit


def feature_norm(maps: Tensor) -> Tensor:
    """Return the FeatureNorm of every image: the mean over channels of the L2 norm of the ReLU.

    Parameters
    ----------
    maps
        Output of a block, ``(n, c, h, w)``; not changed.

    Returns
    -------
    Tensor
        float32, ``(n,)``.

    References
    ----------
    Yu, Shin, Lee, Jun, Lee. "Block Selection Method for Using Feature Norm in Out-of-Distribution
    Detection". CVPR 2023, arXiv:2212.02295.
    """
    # In float32 for all types: a sum of many squares in bfloat16 would stop growing.
    squares = maps.clamp(min=0).float().square_()  # in place on the copy that clamp returns
    return squares.sum(dim=(2, 3)).sqrt().mean(dim=1)


def record_norm(
    norms: dict[str, Tensor],
    name: str,
    layout: Layout,
    _module: nn.Module,
    _inputs: object,
    output: Tensor,
) -> None:
    """Record the FeatureNorm of the output of a block; a forward hook.

    Parameters
    ----------
    norms
        Gets the FeatureNorm, ``(n,)``, under the name of the block.
    name
        Name of the block.
    layout
        Layout of its output.
    """
    norms[name] = feature_norm(layout.maps(output))


def record_input(features: list[Tensor], _module: nn.Module, inputs: tuple[Tensor]) -> None:
    """Append the input of the last layer to a list; a forward pre-hook."""
    features.append(inputs[0])


def record_map(
    maps: dict[str, Tensor],
    path: str,
    layout: Layout,
    _module: nn.Module,
    _inputs: object,
    output: Tensor,
) -> None:
    """Record the output of a module as maps ``(n, c, h, w)`` under its path; a forward hook."""
    maps[path] = layout.maps(output)


def apply_edit(change: Edit, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """Replace the output of a module by a changed one; a forward hook."""
    return change(output)
