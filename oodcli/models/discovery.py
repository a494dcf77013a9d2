"""Finding the blocks and the last layer of a network that the tool has never seen.

One forward pass is followed, operation by operation. A module's output is a *cut* if everything
after it depends on the image through that output alone: it feeds only what comes next. A block is a
module whose output is a cut and a map, and inside which there is no such module with weights: a
residual block, an inverted residual, an encoder layer of a transformer. Where a network has no such
modules it is plain, and its blocks are its convolutions, each with the normalisation and activation
that follow it.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.last_layer import LastLayer, find_last_layer
from oodcli.models.layout import Layout
from oodcli.models.outputs import convert_input_to_grey, leaves
from oodcli.models.tracing import Call, Trace, trace

# Sides of the images that are tried where the size is unknown, in pixels: a small one first, then
# those in common use.
_SIDES = (64, 224, 32, 28, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
_IMAGES = 2
_LEAST_BLOCKS = 2
_REASON_LETTERS = 100
# What the logits are usually called among several outputs.
_USUAL_OUTPUTS = ("logits", "out", "output")


@dataclass(frozen=True)
class Anatomy:
    """What is found in a network.

    Parameters
    ----------
    blocks
        The blocks in forward order: name, and path of the module whose output is the map.
    layouts
        How those maps lie, by name, where they are not ``(n, c, h, w)``.
    last
        The last layer.
    output
        Name of the output that is the logits, as :func:`oodcli.models.outputs.leaves` has it; empty
        where the network returns one tensor.
    channels
        Channels of its images: 3, or 1.
    channels_last
        Whether the network takes images that lie channels-last in memory.
    side
        Height and width of the images that were followed, in pixels.
    text
        All this in a line for the user.
    searched
        Names of the blocks that the search alone finds, where a known inventory goes before it.
    """

    blocks: Mapping[str, str]
    layouts: Mapping[str, Layout]
    last: LastLayer
    output: str
    channels: int
    channels_last: bool
    side: int
    text: str
    searched: tuple[str, ...] = ()

    @property
    def images(self) -> Tensor:
        """The images that were followed, ``(2, 3, h, w)``."""
        return _noise(self.side)


def dissect(
    module: nn.Module,
    name: str,
    *,
    side: int | None = None,
    output: str = "",
    classes: int | None = None,
    inventory: Callable[[nn.Module], Sequence[str]] | None = None,
) -> Anatomy:
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
    output
        Which of several outputs the logits are; if empty, the one that ends in a linear layer.
    classes
        How many classes it was built with, where that is known.
    inventory
        Returns the paths of the blocks in forward order of a network that is known; empty of
        others.

    Raises
    ------
    InvalidInputError
        If the network takes no square image of that size, or of a usual one, with three channels or
        one; if it gives no logits ``(n, k)``, or several; if these are not linear in a feature
        vector ``(n, d)`` that a module is given; or if it has no two blocks whose maps can be read
        safely.

    Notes
    -----
    The output of a block is read by its shape: of ``(n, a, b, c)`` the two equal dimensions are
    those of space, and of ``(n, t, c)`` the last is that of channels. Tokens at the front that the
    image does not change are no positions: class, distillation and register tokens. A size at which
    the number of rows or classes is wrong is not the network's: it folds positions into rows.
    """
    module.eval()
    with contextlib.ExitStack() as restored:
        images, seen, end, channels = _first_pass(
            module, name, side, output=output, classes=classes, restored=restored
        )
        last = end.last
        searched = _blocks(module, seen, last.path)
        if len(searched) < _LEAST_BLOCKS:
            seen = seen.of_first_tensors()
            searched = _blocks(module, seen, last.path)
        known = _listed(seen, () if inventory is None else inventory(module))
        blocks = known or searched
        if len(blocks) < _LEAST_BLOCKS:
            raise InvalidInputError(
                f"{name} has no two repeated units of which each feeds only the next one, so it "
                "has no blocks to take norms of; give each unit a module that returns one tensor"
            )
        layouts = _layouts(module, blocks, name)
        kinds = dict.fromkeys(type(module.get_submodule(call.path)).__name__ for call in blocks)
        text = (
            f"{name}: {len(blocks)} blocks ({', '.join(kinds)}) from {blocks[0].path} to "
            f"{blocks[-1].path}{_positions(layouts)}; last layer {last.path}"
            + (f" ({last.text})" if last.text else "")
            + ("" if last.has_bias else ", which gets a bias of zero")
            + (f"; {end.text}" if end.text else "")
            + ("; images of one channel, the luma of colours" if channels == 1 else "")
        )
        return Anatomy(
            {call.path: call.path for call in blocks},
            layouts,
            last,
            end.output,
            channels,
            _takes_channels_last(module, images),
            images.shape[-1],
            text,
            tuple(call.path for call in searched) if known else (),
        )


@dataclass(frozen=True)
class _End:
    """Which output the logits are, and the layer that they come from."""

    output: str
    last: LastLayer
    text: str


class _OtherSizeError(Exception):
    """The network gives something else than logits at this size."""


def _first_pass(
    module: nn.Module,
    name: str,
    side: int | None,
    *,
    output: str,
    classes: int | None,
    restored: contextlib.ExitStack,
) -> tuple[Tensor, Trace, _End, int]:
    """Follow images of the first size, and number of channels, that the network can be read at."""
    refused: dict[str, list[int]] = {}
    for tried in _SIDES if side is None else (side,):
        images = _noise(tried)
        reasons = []
        for channels in (3, 1):
            with contextlib.ExitStack() as kept:
                if channels == 1:
                    kept.callback(convert_input_to_grey(module).remove)
                try:
                    seen = trace(module, images)
                    end = _end(module, seen, output, classes, name)
                except InvalidInputError:
                    raise
                except Exception as error:  # noqa: BLE001 - the code of others raises anything
                    reasons.append(_line(error)[:_REASON_LETTERS])
                    continue
                restored.enter_context(kept.pop_all())
                return images, seen, end, channels
        refused.setdefault(reasons[0], []).append(tried)
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
        "normalised images (n, 3, h, w) or (n, 1, h, w) and to return logits (n, k); if it wants "
        "another size, name it: --image-size N"
    )


def _noise(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_IMAGES, 3, side, side, generator=generator)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _end(module: nn.Module, seen: Trace, wanted: str, classes: int | None, name: str) -> _End:
    """Find the logits among what a network returned, and the last layer.

    Raises
    ------
    InvalidInputError
        If there are none, or several.
    _OtherSizeError
        If there may be some at another size.
    """
    given = leaves(seen.output)
    if wanted:
        if wanted not in given:
            raise InvalidInputError(
                f"{name} has no output {wanted!r}; it has: {', '.join(given) or 'none'}"
            )
        given = {wanted: given[wanted]}
    shaped = {key: tensor for key, tensor in given.items() if _is_shaped(tensor)}
    if not shaped:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given.values()) or "no tensor"
        raise _OtherSizeError(f"gives {shapes} for {_IMAGES} images, not logits (n, k)")
    found: dict[str, LastLayer] = {}
    refused: InvalidInputError | None = None
    for key, tensor in shaped.items():
        try:
            found[key] = find_last_layer(module, seen, tensor, name)
        except InvalidInputError as error:
            refused = refused or error
    if not found:
        counts = {tensor[0].numel() for tensor in shaped.values()}
        if classes is not None and not counts & {classes, 1}:
            raise _OtherSizeError(f"gives {min(counts)} outputs, not one for each class")
        assert refused is not None  # each was found or refused
        raise refused
    key = _chosen(found, given, classes, seen.output, name)
    return _End(key, found[key], _which(key, found, wanted, seen.output))


def _is_shaped(tensor: Tensor) -> bool:
    """Tell whether a tensor may be logits: a row, or a number, for each image."""
    return (
        tensor.is_floating_point()
        and 0 < tensor.dim() <= 4
        and len(tensor) == _IMAGES
        and tensor.dim() != 3
        and tensor.shape[2:].numel() == 1
    )


def _chosen(
    found: Mapping[str, LastLayer],
    given: Mapping[str, Tensor],
    classes: int | None,
    returned: object,
    name: str,
) -> str:
    """Return the name of the output that is the logits."""
    # One tensor may have two names.
    first: dict[int, str] = {}
    for key in found:
        first.setdefault(given[key].data_ptr(), key)
    keys = list(first.values())
    fitting = [key for key in keys if classes is not None and given[key][0].numel() == classes]
    keys = fitting or keys
    usual = [key for key in _USUAL_OUTPUTS if key in keys]
    if len(keys) == 1 or usual:
        return usual[0] if usual else keys[0]
    if isinstance(returned, tuple | list):
        return keys[0]
    raise InvalidInputError(
        f"{name} has several heads ({', '.join(keys)}); name one: --output NAME"
    )


def _which(
    key: str,
    found: Mapping[str, LastLayer],
    wanted: str,
    returned: object,
) -> str:
    """Say which output was taken of what, where there was a choice."""
    if not key:
        return ""
    kind = type(returned).__name__
    if wanted:
        return f"output {key} of the {kind}, as named"
    others = [other for other in found if other != key]
    return f"output {key} of the {kind} that it returns" + (
        f"; another head: --output {' or '.join(others)}" if others else ""
    )


def _blocks(module: nn.Module, seen: Trace, head: str) -> list[Call]:
    """Return the calls of the blocks in forward order."""
    times = {path: sum(call.path == path for call in seen.calls) for path in _paths(seen)}
    cuts = [
        call
        for call in seen.calls
        if times[call.path] == 1
        and call.path != head
        and not _inside(call.path, head)
        and not _inside(head, call.path)
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


def _listed(seen: Trace, paths: Sequence[str]) -> list[Call]:
    """Return the calls of listed modules; none if one of them is no block."""
    calls = [[call for call in seen.calls if call.path == path] for path in paths]
    known = [each[0] for each in calls if len(each) == 1 and seen.is_cut(each[0])]
    return known if len(known) == len(paths) else []


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
