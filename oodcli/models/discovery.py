"""Finding the blocks and the last layer of a network that the tool has never seen.

One forward pass is followed, operation by operation. A module's output is a *cut* if everything
after it depends on the image through that output alone: it feeds only what comes next. A block is a
module whose output is a cut and a map, and inside which there is no such module with weights: a
residual block, an inverted residual, an encoder layer of a transformer. Where a network has no such
modules it is plain, and its blocks are its convolutions, each with the normalisation and activation
that follow it.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.layout import Layout
from oodcli.models.tracing import Call, Trace, memory_of, trace

# Sides of the images that are tried where the size is unknown, in pixels: a small one first, then
# those in common use.
_SIDES = (64, 224, 32, 28, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
_IMAGES = 2
_LEAST_BLOCKS = 2
_REASON_LETTERS = 100


@dataclass(frozen=True)
class Anatomy:
    """What is found in a network.

    Parameters
    ----------
    blocks
        The blocks in forward order: name, and path of the module whose output is the map.
    layouts
        How those maps lie, by name, where they are not ``(n, c, h, w)``.
    head
        Path of the last linear layer.
    head_has_bias
        Whether that layer has a bias of its own.
    channels_last
        Whether the network takes images that lie channels-last in memory.
    side
        Height and width of the images that were followed, in pixels.
    text
        All this in a line for the user.
    """

    blocks: Mapping[str, str]
    layouts: Mapping[str, Layout]
    head: str
    head_has_bias: bool
    channels_last: bool
    side: int
    text: str


def dissect(module: nn.Module, name: str, *, side: int | None = None) -> Anatomy:
    """Find the blocks and the last layer of a network.

    Parameters
    ----------
    module
        The network; put into evaluation mode.
    name
        What it is called in messages.
    side
        Height and width of the images it will be used with, in pixels: no other size is tried.
        If None, that is unknown, and usual sizes are tried until one works.

    Raises
    ------
    InvalidInputError
        If the network takes no square image of that size, or of a usual one; if it gives anything
        but logits ``(n, k)``; if these are not the output of one linear layer of a feature vector
        ``(n, d)``; or if it has no two blocks whose maps can be read safely.

    Notes
    -----
    The output of a block is read by its shape: of ``(n, a, b, c)`` the two equal dimensions are
    those of space, and of ``(n, t, c)`` the last is that of channels. Tokens at the front that the
    image does not change are no positions: class, distillation and register tokens.
    """
    module.eval()
    images, seen = _first_pass(module, name, side)
    head = _head(module, seen, name)
    blocks = _blocks(module, seen, head)
    if len(blocks) < _LEAST_BLOCKS:
        raise InvalidInputError(
            f"{name} has no two repeated units of which each feeds only the next one, so it has no "
            "blocks to take norms of; give each unit a module that returns one tensor"
        )
    layouts = _layouts(module, blocks, name)
    last = module.get_submodule(head)
    assert isinstance(last, nn.Linear)  # _head has seen to it
    kinds = dict.fromkeys(type(module.get_submodule(call.path)).__name__ for call in blocks)
    text = (
        f"{name}: {len(blocks)} blocks ({', '.join(kinds)}) from {blocks[0].path} to "
        f"{blocks[-1].path}{_positions(layouts)}; last layer {head}"
        + ("" if last.bias is not None else ", which gets a bias of zero")
    )
    return Anatomy(
        {call.path: call.path for call in blocks},
        layouts,
        head,
        last.bias is not None,
        _takes_channels_last(module, images),
        images.shape[-1],
        text,
    )


def _first_pass(module: nn.Module, name: str, side: int | None) -> tuple[Tensor, Trace]:
    refused: dict[str, list[int]] = {}
    for tried in _SIDES if side is None else (side,):
        images = _noise(tried)
        try:
            return images, trace(module, images)
        except Exception as error:  # noqa: BLE001 - the code of others raises anything
            refused.setdefault(_line(error)[:_REASON_LETTERS], []).append(tried)
    if side is not None:
        raise InvalidInputError(
            f"{name} takes no images of {side} x {side} pixels ({next(iter(refused))}); name the "
            "size it was made for: --image-size N"
        )
    outcomes = "; ".join(
        f"{', '.join(f'{each} x {each}' for each in sides)}: {reason}"
        for reason, sides in refused.items()
    )
    raise InvalidInputError(
        f"{name} takes no images of the sizes that were tried ({outcomes}); it has to take "
        "normalised images (n, 3, h, w); if it wants another size, name it: --image-size N"
    )


def _noise(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_IMAGES, 3, side, side, generator=generator)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _head(module: nn.Module, seen: Trace, name: str) -> str:
    """Return the path of the one linear layer whose output the logits are."""
    logits = seen.output
    if not isinstance(logits, Tensor):
        raise InvalidInputError(
            f"{name} gives a {type(logits).__name__}, not a tensor; "
            "wrap it in a module that returns the logits (n, k) alone"
        )
    if logits.dim() != 2 or len(logits) != _IMAGES:
        raise InvalidInputError(
            f"{name} gives {tuple(logits.shape)} for {_IMAGES} images, not logits (n, k); "
            "name a classifier"
        )
    linear = [call for call in seen.calls if isinstance(module.get_submodule(call.path), nn.Linear)]
    ends = [call for call in linear if _is_same(call.output, logits)]
    if not ends:
        raise InvalidInputError(f"the logits of {name} are {_other_end(module, linear, logits)}")
    path = ends[-1].path
    features = ends[-1].inputs[0] if ends[-1].inputs else None
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise InvalidInputError(
            f"the last layer {path} of {name} does not see one feature vector (n, d) an image; "
            "pool before it"
        )
    layer = module.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    if sum(call.path == path for call in seen.calls) > 1:
        raise InvalidInputError(f"{name} uses its last layer {path} twice; give it one of its own")
    with torch.no_grad():
        plain = nn.functional.linear(features, layer.weight, layer.bias)
    if "weight" not in dict(layer.named_parameters(recurse=False)) or not torch.allclose(
        plain, logits, rtol=1e-4, atol=1e-4
    ):
        raise InvalidInputError(
            f"the last layer {path} of {name} is not linear in its input with a weight of its own; "
            "only ordinary linear layers can be read"
        )
    return path


def _is_same(output: object, logits: Tensor) -> bool:
    return (
        isinstance(output, Tensor)
        and output.shape == logits.shape
        and memory_of(output) == memory_of(logits)
    )


def _other_end(module: nn.Module, linear: Sequence[Call], logits: Tensor) -> str:
    """Say where logits come from that are no linear layer's output."""
    like = [
        call.path
        for call in linear
        if isinstance(call.output, Tensor) and call.output.shape == logits.shape
    ]
    if len(like) > 1 and len({type(module.get_submodule(path)) for path in like}) == 1:
        return f"made of several heads ({', '.join(like)}); build it with one of them"
    if like:
        return (
            f"not the output of the linear layer {like[-1]}, but changed after it; leave that out"
        )
    return "not the output of a linear layer; end it with nn.Linear(d, k)"


def _blocks(module: nn.Module, seen: Trace, head: str) -> list[Call]:
    """Return the calls of the blocks in forward order."""
    times = {path: sum(call.path == path for call in seen.calls) for path in _paths(seen)}
    cuts = [
        call
        for call in seen.calls
        if times[call.path] == 1
        and call.path != head
        and isinstance(call.output, Tensor)
        and call.output.dim() in (3, 4)
        and len(call.output) == _IMAGES
        and seen.is_cut(call)
    ]
    weighted = [call for call in cuts if _has_weights(module.get_submodule(call.path))]
    units = _units(module, weighted)
    convolutions = [
        call
        for call in weighted
        if isinstance(module.get_submodule(call.path), nn.Conv2d) and _is_spread(call)
    ]
    between = [
        call for call in convolutions if not any(_inside(call.path, unit.path) for unit in units)
    ]
    # A few gates among many convolutions do not make a network of gates.
    rare = len(units) < len(between) and (_weights(module, units) < _weights(module, weighted) / 2)
    if len(units) >= _LEAST_BLOCKS and not rare:
        return units
    return [_with_activation(module, call, cuts) for call in convolutions]


def _weights(module: nn.Module, calls: Sequence[Call]) -> int:
    """Count the weights of modules, those that they share or hold together once."""
    found = {id(p): p.numel() for c in calls for p in module.get_submodule(c.path).parameters()}
    return sum(found.values())


def _paths(seen: Trace) -> set[str]:
    return {call.path for call in seen.calls}


def _is_spread(call: Call) -> bool:
    """Tell whether a map has more than one position: else the layer is one of the classifier."""
    return isinstance(call.output, Tensor) and call.output.shape[2:].numel() > 1


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _is_leaf(module: nn.Module, call: Call) -> bool:
    return not any(True for _ in module.get_submodule(call.path).children())


def _kind(module: nn.Module, call: Call) -> type[nn.Module]:
    return type(module.get_submodule(call.path))


def _inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


def _units(module: nn.Module, weighted: Sequence[Call]) -> list[Call]:
    """Return the modules with parts that cannot be cut themselves.

    A class of which one instance cannot be cut is not cut at all: an inverted residual without its
    shortcut is one unit like those that have one.
    """

    def whole(call: Call) -> bool:
        return not any(_inside(other.path, call.path) for other in weighted)

    parts = [call for call in weighted if not _is_leaf(module, call)]
    kinds = {_kind(module, call) for call in parts if whole(call)} - {nn.Sequential}
    units = [call for call in parts if whole(call) or _kind(module, call) in kinds]
    return [call for call in units if not any(_inside(call.path, other.path) for other in units)]


def _with_activation(module: nn.Module, conv: Call, cuts: Sequence[Call]) -> Call:
    """Return the last of the layers after a convolution that only normalise or activate its map."""
    assert isinstance(conv.output, Tensor)  # a cut is one
    last = conv
    for call in cuts[cuts.index(conv) + 1 :]:
        if _inside(conv.path, call.path):
            continue
        layer = module.get_submodule(call.path)
        assert isinstance(call.output, Tensor)
        if isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Identity):
            continue
        pools = "pool" in type(layer).__name__.lower()
        if pools or _has_weights(layer) or call.output.shape != conv.output.shape:
            break
        last = call
    return last


def _layouts(module: nn.Module, blocks: Sequence[Call], name: str) -> dict[str, Layout]:
    found: dict[str, Layout | None] = {}
    prefix = count = 0
    for call in blocks:
        assert isinstance(call.output, Tensor)  # a cut is one
        shape = tuple(call.output.shape)
        if len(shape) == 4:
            found[call.path] = _of_map(shape)
            continue
        if not _knows_width(module.get_submodule(call.path), shape[2]):
            raise InvalidInputError(
                f"block {call.path} of {name} gives {shape}, of which the last dimension "
                "is not that of its channels; return tokens (n, t, c)"
            )
        # Class tokens may join later; once they have seen the image, only their place tells them.
        joined = max(_prefix(call, name) - prefix, 0)
        prefix += joined
        if prefix and count and shape[1] != count + joined:
            raise InvalidInputError(
                f"{name} changes the number of its tokens from {count} to {shape[1]}, so its "
                "class token cannot be told from the others; its norms would be wrong"
            )
        count = shape[1]
        found[call.path] = Layout("tokens", prefix)
    clear = {layout for layout in found.values() if layout is not None}
    unclear = [path for path, layout in found.items() if layout is None]
    if unclear and len(clear) != 1:
        raise InvalidInputError(
            f"the channels of block {unclear[0]} of {name} cannot be told from its positions; "
            "name a network with more channels"
        )
    settled = {path: layout or next(iter(clear)) for path, layout in found.items()}
    return {path: layout for path, layout in settled.items() if layout != Layout()}


def _of_map(shape: Sequence[int]) -> Layout | None:
    """Tell by two equal dimensions where the positions are, for the images were square."""
    _, first, second, third = shape
    if second == third and first != second:
        return Layout("nchw")
    if first == second and second != third:
        return Layout("nhwc")
    return None


def _knows_width(block: nn.Module, width: int) -> bool:
    return any(width in parameter.shape for parameter in block.parameters())


def _prefix(call: Call, name: str) -> int:
    """Return how many tokens at the front of what a block is given do not see the image."""
    if call.blind is None:
        return 0
    prefix = int(call.blind.sum())
    if not call.blind[:prefix].all():
        raise InvalidInputError(
            f"the tokens of {name} that do not see the image are not the first ones, "
            "so they cannot be left out of a norm; put class tokens first"
        )
    return prefix


def _positions(layouts: Mapping[str, Layout]) -> str:
    prefix = max((layout.prefix for layout in layouts.values()), default=0)
    if not any(layout.kind == "tokens" for layout in layouts.values()):
        return ""
    left_out = f", the first {prefix} left out" if prefix else ""
    return f" with tokens as positions{left_out}"


def _takes_channels_last(module: nn.Module, images: Tensor) -> bool:
    """Tell whether a network works on images in the other layout; ``view`` may fail on it."""
    with contextlib.suppress(RuntimeError), torch.no_grad():
        module(images.contiguous(memory_format=torch.channels_last))
        return True
    return False
