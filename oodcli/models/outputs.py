"""Adapters for networks with several outputs, and for networks with one input channel."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

# Weights of ITU-R 601 luma, as in Pillow's mode L; the weight of red is the rest.
_GREEN, _BLUE = 0.587, 0.114


def leaves(output: object) -> dict[str, Tensor]:
    """Return all tensors in the output of a network, by name.

    Parameters
    ----------
    output
        A tensor, whose name is empty; or a dict, tuple, list, dataclass or object that contains
        tensors at any depth. Names are keys, fields and positions, joined by dots.

    Examples
    --------
    >>> import torch
    >>> list(leaves({"logits": torch.zeros(2, 3), "aux": (torch.zeros(2), None)}))
    ['logits', 'aux.0']
    """
    if isinstance(output, Tensor):
        return {"": output}
    found: dict[str, Tensor] = {}
    for name, part in _parts(output).items():
        for rest, tensor in leaves(part).items():
            found[f"{name}.{rest}" if rest else name] = tensor
    return found


def _parts(output: object) -> dict[str, object]:
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or range(len(output))
        return {str(name): value for name, value in zip(names, output, strict=True)}
    if dataclasses.is_dataclass(output):
        return {each.name: getattr(output, each.name) for each in dataclasses.fields(output)}
    return dict(getattr(output, "__dict__", {}))


def select_output(module: nn.Module, name: str) -> None:
    """Make a network return only one of its outputs.

    Parameters
    ----------
    module
        The network, changed in place.
    name
        Name of the output, as in :func:`leaves`. A network that returns a tensor is not affected.
    """
    module.register_forward_hook(partial(_select, name))


def _select(name: str, _module: nn.Module, _inputs: object, output: Any) -> Tensor:  # noqa: ANN401
    return output if isinstance(output, Tensor) else leaves(output)[name]


def convert_input_to_grey(module: nn.Module) -> Any:  # noqa: ANN401 - a handle of torch
    """Make a network with one input channel accept normalised images ``(n, 3, h, w)``.

    Parameters
    ----------
    module
        The network, changed in place.

    Returns
    -------
    object
        Handle whose ``remove()`` undoes the change.

    Notes
    -----
    The channel is the luma of ITU-R 601, which for grey images equals their channels exactly. If
    mean and standard deviation are the same for all channels, the luma of normalised pixels equals
    the normalised luma; Pillow's mode ``L`` also rounds it to an integer.
    """
    return module.register_forward_pre_hook(_to_grey)


def _to_grey(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != 3:
        return inputs
    return (luma(images), *others)


def luma(images: Tensor) -> Tensor:
    """Return the luma ``(n, 1, h, w)`` of images ``(n, 3, h, w)``."""
    red, green, blue = images.split(1, dim=1)
    # In this form, three equal channels give exactly the same value.
    return red + _GREEN * (green - red) + _BLUE * (blue - red)
