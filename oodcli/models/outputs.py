"""What goes into a network and comes out of it, where that is not three channels and one tensor."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

# Weights of red, green and blue in ITU-R 601 luma, as Pillow's mode L has them; red has the rest.
_GREEN, _BLUE = 0.587, 0.114


def leaves(output: object) -> dict[str, Tensor]:
    """Return all tensors in what a network returned, by name.

    Parameters
    ----------
    output
        A tensor, whose name is empty; or a dict, tuple, list, dataclass or object made of such,
        nested at will: keys, fields and positions, joined by dots, are the names.

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


def take_output(module: nn.Module, name: str) -> None:
    """Let a network return one of its outputs alone.

    Parameters
    ----------
    module
        The network, changed in place.
    name
        As in :func:`leaves`. Where the network returns a tensor, nothing changes.
    """
    module.register_forward_hook(partial(_taken, name))


def _taken(name: str, _module: nn.Module, _inputs: object, output: Any) -> Tensor:  # noqa: ANN401
    return output if isinstance(output, Tensor) else leaves(output)[name]


def take_grey(module: nn.Module) -> Any:  # noqa: ANN401 - a handle of torch
    """Let a network of one channel take normalised images ``(n, 3, h, w)``.

    Parameters
    ----------
    module
        The network, changed in place.

    Returns
    -------
    object
        What removes this again.

    Notes
    -----
    Its channel is the luma of ITU-R 601, which is that of grey images exactly. With the same mean
    and standard deviation in all channels, luma of normalised pixels is normalised luma; Pillow's
    mode ``L`` also rounds it to a whole number.
    """
    return module.register_forward_pre_hook(_grey)


def _grey(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != 3:
        return inputs
    red, green, blue = images.split(1, dim=1)
    # So written, three equal channels are one of them to the last digit.
    return (red + _GREEN * (green - red) + _BLUE * (blue - red), *others)
