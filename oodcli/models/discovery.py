"""Finds the blocks and the last layer of an unknown network.

One forward pass is traced, operation by operation. The output of a module is a *cut* if everything
after it depends on the image only through that output. A block is a module whose output is a cut
and a feature map, and that contains no other such module with weights: a residual block, an
inverted residual, an encoder layer of a transformer. If a network has no such modules, its blocks
are its convolutions, each with the normalisation and activation that follow it.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.functional import Ending
from oodcli.models.last_layer import LastLayer, find_last_layer
from oodcli.models.layout import Layout
from oodcli.models.outputs import convert_input_to_grey, leaves
from oodcli.models.tracing import Call, Trace, trace

# Image sides in pixels that are tried if the size is unknown: a small one first, then common ones.
_SIDES = (64, 224, 32, 28, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
_IMAGES = 2
_LEAST_BLOCKS = 2
_REASON_LETTERS = 100
# Common names of the logits among several outputs, and of the features of an encoder.
_COMMON_OUTPUTS = ("logits", "out", "output")
_COMMON_FEATURES = ("pooler_output", "features", "embedding", "embeddings", "image_embeds")


@dataclass(frozen=True)
class NetworkStructure:
    """The structure that was found in a network.

    Parameters
    ----------
    blocks
        The blocks in forward order: name, and path of the module whose output is the feature map.
    layouts
        Layouts of the block outputs that are not ``(n, c, h, w)``, by name of the block.
    last
        The last layer.
    output
        Name of the output with the logits, see :func:`oodcli.models.outputs.leaves`; empty if the
        network returns a single tensor.
    channels
        Input channels of the network: 3 or 1.
    channels_last
        Whether the network supports the channels-last memory format.
    side
        Height and width in pixels of the images that the network was traced with.
    text
        A summary, as a line for the user.
    searched
        Names of the blocks that the search finds, if a known list of blocks was used instead.
    bare
        Why no classifier was found; empty if there is one.
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
    bare: str = ""

    @property
    def images(self) -> Tensor:
        """The images that the network was traced with, ``(2, 3, h, w)``."""
        return noise(self.side)


def find_structure(
    module: nn.Module,
    name: str,
    *,
    side: int | None = None,
    output: str = "",
    classes: int | None = None,
    inventory: Callable[[nn.Module], Sequence[str]] | None = None,
    encoder: bool = False,
) -> NetworkStructure:
    """Find the blocks and the last layer of a network.

    Parameters
    ----------
    module
        The network; put into evaluation mode.
    name
        Name of the network in messages.
    side
        Height and width in pixels of the images that the network is used with; only this size is
        tried. None: unknown, common sizes are tried until one works.
    output
        Name of the output with the logits; if empty, the one that ends in a linear layer.
    classes
        Number of classes that the network was built with; None if unknown.
    inventory
        Returns the paths of the blocks of a known network in forward order; empty for other
        networks.
    encoder
        Whether the network has no classifier: its output is the features, and a last layer is
        added after them.

    Raises
    ------
    InvalidInputError
        If the network accepts no square images of that size, or of a common one, with three
        channels or one; if it returns no logits ``(n, k)``, or several; if the logits are not
        linear in a feature vector ``(n, d)`` that is the input of a module; or if it has fewer than
        two blocks whose feature maps can be identified reliably.

    Notes
    -----
    The shape of a block output determines its layout: in ``(n, a, b, c)`` the two equal dimensions
    are height and width, in ``(n, t, c)`` the last one is the channels. Leading tokens that do not
    depend on the image (class, distillation and register tokens) are not positions. A size for
    which the number of rows or classes is wrong is rejected: the network folds positions into rows.
    """
    module.eval()
    with contextlib.ExitStack() as restored:
        images, seen, end, channels = _first_pass(
            module, name, side, output=output, classes=classes, encoder=encoder, restored=restored
        )
        last = end.last
        blocks = find_blocks(module, seen, last.path, name, inventory)
        text = (
            f"{name}: {blocks.text}; "
            + (last.text if encoder else f"last layer {last.path}")
            + (f" ({last.text})" if last.text and not encoder else "")
            + ("" if last.has_bias else ", with a bias of zero added")
            + (f"; {end.text}" if end.text else "")
            + ("; one input channel, the luma of the images" if channels == 1 else "")
        )
        return NetworkStructure(
            {call.path: call.path for call in blocks.calls},
            blocks.layouts,
            last,
            end.output,
            channels,
            _takes_channels_last(module, images),
            images.shape[-1],
            text,
            blocks.searched,
        )


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a network.

    Parameters
    ----------
    calls
        The calls of their modules in forward order.
    layouts
        As in :class:`NetworkStructure`.
    searched
        As in :class:`NetworkStructure`.
    text
        How many they are, of which classes, from where to where.
    """

    calls: Sequence[Call]
    layouts: Mapping[str, Layout]
    searched: tuple[str, ...]
    text: str


def find_blocks(
    module: nn.Module,
    seen: Trace,
    head: str,
    name: str,
    inventory: Callable[[nn.Module], Sequence[str]] | None = None,
) -> Blocks:
    """Find the blocks of a network in its forward pass.

    Parameters
    ----------
    module
        The network.
    seen
        Its forward pass.
    head
        Path of its last layer; empty if the pass ends before it.
    name, inventory
        As for :func:`find_structure`.

    Raises
    ------
    InvalidInputError
        If it has no two blocks whose maps can be read safely.
    """
    searched = _blocks(module, seen, head)
    if len(searched) < _LEAST_BLOCKS:
        seen = seen.of_first_tensors()
        searched = _blocks(module, seen, head)
    known = _listed(seen, () if inventory is None else inventory(module))
    blocks = known or searched
    if len(blocks) < _LEAST_BLOCKS:
        raise InvalidInputError(
            f"{name} has no chain of at least two units in which each output is used only by "
            "the next unit, so it has no blocks for norms; put each unit into a module that "
            "returns one tensor"
        )
    layouts = _layouts(module, blocks, name)
    kinds = dict.fromkeys(type(module.get_submodule(call.path)).__name__ for call in blocks)
    return Blocks(
        blocks,
        layouts,
        tuple(call.path for call in searched) if known else (),
        f"{len(blocks)} blocks ({', '.join(kinds)}) from {blocks[0].path} to "
        f"{blocks[-1].path}{_positions(layouts)}",
    )


@dataclass(frozen=True)
class _End:
    """The output with the logits, and the last layer, which computes them."""

    output: str
    last: LastLayer
    text: str


class _OtherSizeError(Exception):
    """The network does not return logits for this image size."""


def _first_pass(
    module: nn.Module,
    name: str,
    side: int | None,
    *,
    output: str,
    classes: int | None,
    encoder: bool,
    restored: contextlib.ExitStack,
) -> tuple[Tensor, Trace, _End, int]:
    """Trace images of the first size and number of channels that the network accepts.

    Returns
    -------
    tuple
        The images, the trace, the output with its last layer, and the number of input channels.
    """
    refused: dict[str, list[int]] = {}
    for tried in _SIDES if side is None else (side,):
        images = noise(tried)
        reasons = []
        for channels in (3, 1):
            with contextlib.ExitStack() as kept:
                if channels == 1:
                    kept.callback(convert_input_to_grey(module).remove)
                try:
                    seen = trace(module, images)
                    end = (
                        _end_of_encoder(seen, output, classes, name)
                        if encoder
                        else _end(module, seen, output, classes, name)
                    )
                except InvalidInputError:
                    raise
                except Exception as error:  # noqa: BLE001 - third-party code can raise anything
                    reasons.append(_line(error)[:_REASON_LETTERS])
                    continue
                restored.enter_context(kept.pop_all())
                return images, seen, end, channels
        refused.setdefault(reasons[0], []).append(tried)
    if side is not None:
        raise InvalidInputError(
            f"{name} does not accept images of {side} x {side} pixels "
            f"({next(iter(refused))}); specify the size that it was trained with: --image-size N"
        )
    outcomes = "; ".join(
        f"{', '.join(f'{each} x {each}' for each in sides)}: {reason}"
        for reason, sides in refused.items()
    )
    raise InvalidInputError(
        f"{name} does not accept images of the sizes that were tried ({outcomes}); it must accept "
        "normalised images (n, 3, h, w) or (n, 1, h, w) and return logits (n, k); if it needs "
        "another size: --image-size N"
    )


def noise(side: int) -> Tensor:
    """Return the images that are followed, ``(2, 3, h, w)``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_IMAGES, 3, side, side, generator=generator)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _end(module: nn.Module, seen: Trace, wanted: str, classes: int | None, name: str) -> _End:
    """Find the logits in the output of a network, and the last layer.

    Raises
    ------
    InvalidInputError
        If there are no logits, or several.
    _OtherSizeError
        If another image size may give logits.
    """
    given, shaped = _shaped_outputs(seen, wanted, name)
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
            raise _OtherSizeError(f"returns {min(counts)} outputs, not one per class")
        assert refused is not None  # each tensor was found or refused
        raise refused
    key = _chosen(found, given, classes, seen.output, name)
    return _End(key, found[key], _output_text(key, found, wanted, seen.output))


def _end_of_encoder(seen: Trace, wanted: str, classes: int | None, name: str) -> _End:
    """Find the features among what a network without a classifier returned.

    Raises
    ------
    InvalidInputError
        If its outputs are as many as the classes that it was built with, or a single number.
    _OtherSizeError
        If there may be some at another size.
    """
    _, shaped = _shaped_outputs(seen, wanted, name)
    usual = [key for key in _COMMON_FEATURES if key in shaped]
    key = usual[0] if usual else next(iter(shaped))
    width = shaped[key][0].numel()
    if width in (classes, 1):
        raise InvalidInputError(f"{name} returns {width} numbers for an image, not its features")
    which = f"output {key} of the {type(seen.output).__name__} that it returns, " if key else ""
    text = f"no classifier: its features are {which or 'its output, '}{width:,} numbers"
    last = LastLayer("", "placed", width, text=text, ending=Ending("output", output=key))
    others = [other for other in shaped if other != key and shaped[other][0].numel() > 1]
    more = f"other features: --output {' or '.join(others)}" if others and not wanted else ""
    return _End(key if wanted else "", last, more)


def _shaped_outputs(
    seen: Trace, wanted: str, name: str
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Return all tensors that a network returned, and those with a row for each image.

    Raises
    ------
    InvalidInputError
        If there is no output of that name.
    _OtherSizeError
        If none has a row for each image.
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
        raise _OtherSizeError(f"returns {shapes} for {_IMAGES} images, not logits (n, k)")
    return given, shaped


def _is_shaped(tensor: Tensor) -> bool:
    """Return whether a tensor may be logits: one row, or one number, per image."""
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
    """Return the name of the output with the logits."""
    # The same tensor may occur under two names.
    first: dict[int, str] = {}
    for key in found:
        first.setdefault(given[key].data_ptr(), key)
    keys = list(first.values())
    fitting = [key for key in keys if classes is not None and given[key][0].numel() == classes]
    keys = fitting or keys
    common = [key for key in _COMMON_OUTPUTS if key in keys]
    if len(keys) == 1 or common:
        return common[0] if common else keys[0]
    if isinstance(returned, tuple | list):
        return keys[0]
    raise InvalidInputError(
        f"{name} has several heads ({', '.join(keys)}); choose one: --output NAME"
    )


def _output_text(
    key: str,
    found: Mapping[str, LastLayer],
    wanted: str,
    returned: object,
) -> str:
    """Describe the chosen output; empty if the network returns a single tensor."""
    if not key:
        return ""
    kind = type(returned).__name__
    if wanted:
        return f"output {key} of the {kind}, as specified"
    others = [other for other in found if other != key]
    return f"output {key} of the {kind} that it returns" + (
        f"; for another head: --output {' or '.join(others)}" if others else ""
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
    # A few units, such as gates, among many convolutions are not the blocks of the network.
    rare = len(units) < len(between) and (_weights(module, units) < _weights(module, weighted) / 2)
    if len(units) >= _LEAST_BLOCKS and not rare:
        return units
    return [_with_activation(module, call, cuts) for call in convolutions]


def _listed(seen: Trace, paths: Sequence[str]) -> list[Call]:
    """Return the calls of listed modules; empty if one of them is not a block."""
    calls = [[call for call in seen.calls if call.path == path] for path in paths]
    known = [each[0] for each in calls if len(each) == 1 and seen.is_cut(each[0])]
    return known if len(known) == len(paths) else []


def _weights(module: nn.Module, calls: Sequence[Call]) -> int:
    """Count the weights of modules; shared weights count once."""
    found = {id(p): p.numel() for c in calls for p in module.get_submodule(c.path).parameters()}
    return sum(found.values())


def _paths(seen: Trace) -> set[str]:
    return {call.path for call in seen.calls}


def _is_spread(call: Call) -> bool:
    """Return whether a map has several positions; otherwise the layer belongs to the classifier."""
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
    """Return the composite modules without cuts inside them.

    If one instance of a class has no cut inside, all instances of the class are units: an inverted
    residual without a shortcut is a unit like those with a shortcut.
    """

    def indivisible(call: Call) -> bool:
        return not any(_inside(other.path, call.path) for other in weighted)

    parts = [call for call in weighted if not _is_leaf(module, call)]
    kinds = {_kind(module, call) for call in parts if indivisible(call)} - {nn.Sequential}
    units = [call for call in parts if indivisible(call) or _kind(module, call) in kinds]
    return [call for call in units if not any(_inside(call.path, other.path) for other in units)]


def _with_activation(module: nn.Module, conv: Call, cuts: Sequence[Call]) -> Call:
    """Return the last layer after a convolution that only normalises or activates its map."""
    assert isinstance(conv.output, Tensor)  # every cut is a tensor
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
        assert isinstance(call.output, Tensor)  # every cut is a tensor
        shape = tuple(call.output.shape)
        if len(shape) == 4:
            found[call.path] = _layout_of_map(shape)
            continue
        if not _knows_width(module.get_submodule(call.path), shape[2]):
            raise InvalidInputError(
                f"block {call.path} of {name} returns {shape}, whose last dimension is not its "
                "channels; return tokens (n, t, c)"
            )
        # Class tokens may be added by a later block. After a block they depend on the image, and
        # only their position identifies them.
        joined = max(_prefix(call, name) - prefix, 0)
        prefix += joined
        if prefix and count and shape[1] != count + joined:
            raise InvalidInputError(
                f"{name} changes the number of its tokens from {count} to {shape[1]}, so its "
                "class token cannot be identified, and norms would be wrong"
            )
        count = shape[1]
        found[call.path] = Layout("tokens", prefix)
    clear = {layout for layout in found.values() if layout is not None}
    unclear = [path for path, layout in found.items() if layout is None]
    if unclear and len(clear) != 1:
        raise InvalidInputError(
            f"the channels of block {unclear[0]} of {name} cannot be distinguished from its "
            "positions; use a network with more channels"
        )
    settled = {path: layout or next(iter(clear)) for path, layout in found.items()}
    return {path: layout for path, layout in settled.items() if layout != Layout()}


def _layout_of_map(shape: Sequence[int]) -> Layout | None:
    """Return the layout of a 4-d map: the two equal dimensions are the height and width."""
    _, first, second, third = shape
    if second == third and first != second:
        return Layout("nchw")
    if first == second and second != third:
        return Layout("nhwc")
    return None


def _knows_width(block: nn.Module, width: int) -> bool:
    return any(width in parameter.shape for parameter in block.parameters())


def _prefix(call: Call, name: str) -> int:
    """Return the number of leading input tokens of a block that do not depend on the image."""
    if call.constant_tokens is None:
        return 0
    prefix = int(call.constant_tokens.sum())
    if not call.constant_tokens[:prefix].all():
        raise InvalidInputError(
            f"the tokens of {name} that do not depend on the image are not the first ones, so "
            "they cannot be excluded from norms; put class tokens first"
        )
    return prefix


def _positions(layouts: Mapping[str, Layout]) -> str:
    prefix = max((layout.prefix for layout in layouts.values()), default=0)
    if not any(layout.kind == "tokens" for layout in layouts.values()):
        return ""
    skipped = f", the first {prefix} skipped" if prefix else ""
    return f" with tokens as positions{skipped}"


def _takes_channels_last(module: nn.Module, images: Tensor) -> bool:
    """Return whether a network accepts channels-last images; ``view`` may fail on them."""
    with contextlib.suppress(RuntimeError), torch.no_grad():
        module(images.contiguous(memory_format=torch.channels_last))
        return True
    return False
