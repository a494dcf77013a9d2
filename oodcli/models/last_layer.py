"""Finds the last layer of a network, and converts it to a linear layer if it has another form.

A 1x1 convolution, a cosine classifier, a scaled linear layer, one with a parametrised weight, and a
single logit for two classes are linear in some vector. After its weights are loaded, the linear map
of such a layer is computed, and a :class:`ConvertedLayer`, which contains a plain linear layer,
replaces it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.functional import (
    INSIDE,
    SMALLEST_NORM,
    Ending,
    Found,
    Watch,
    factor_of,
    find_product,
    place_layer,
    read_product,
)
from oodcli.models.tracing import Call, Trace, memory_of

_CLOSE = 1e-4

How = Literal["plain", "weight", "columns", "unit", "placed"]


@dataclass(frozen=True)
class LastLayer:
    """The last layer of a network.

    Parameters
    ----------
    path
        Path of the module in the original network; if there is no module, name of the tensor in the
        product, or empty.
    how
        ``plain`` for a plain linear layer whose output is the logits. Otherwise the way in which
        its linear map is computed: from its ``weight`` and ``bias``; by its ``columns``, the
        outputs for unit vectors; or as a linear layer applied to the ``unit`` vector of its input.
        ``placed`` if there is no module: a linear layer is added at the end of the network.
    width
        Length of a feature vector, ``d``.
    has_bias
        Whether a plain layer has a bias.
    sigmoid
        Whether the network returns the sigmoid of its single logit.
    rows
        Name of the tensor that has one row, or column, per output, and the dimension of these; the
        name is empty if there is no such tensor.
    text
        Description for the user; empty for a plain layer.
    ending
        Where the input of an added layer is found.
    """

    path: str
    how: How
    width: int
    has_bias: bool = True
    sigmoid: bool = False
    rows: tuple[str, int] = ("", 0)
    text: str = ""
    ending: Ending | None = None

    @property
    def linear_path(self) -> str:
        """Path of the plain linear layer after the conversion."""
        if self.ending is not None:
            return INSIDE
        return self.path if self.how == "plain" else f"{self.path}.{INSIDE}"


class ConvertedLayer(nn.Module):
    """A linear last layer applied to the mean over positions, or to its unit vector.

    Parameters
    ----------
    linear
        The linear layer; its input is the feature vector.
    unit
        Whether the input is divided by its length first.
    """

    def __init__(self, linear: nn.Linear, *, unit: bool) -> None:
        super().__init__()
        self.add_module(INSIDE, linear)
        self.unit = unit

    def forward(self, given: Tensor, *_others: object) -> Tensor:
        """Return logits ``(n, k)`` for ``(n, d)``, or ``(n, k, h, w)`` for ``(n, d, h, w)``."""
        rows = _pooled(given)
        if self.unit:
            rows = F.normalize(rows, dim=1, eps=SMALLEST_NORM)
        logits: Tensor = self.get_submodule(INSIDE)(rows)
        if given.dim() == 2:
            return logits
        return logits[:, :, None, None].expand(-1, -1, *given.shape[2:])


def find_last_layer(module: nn.Module, seen: Trace, logits: Tensor, name: str) -> LastLayer:
    """Find the last layer of a network in its traced forward pass.

    Parameters
    ----------
    module
        The network, in evaluation mode.
    seen
        The traced forward pass.
    logits
        Output of the network, ``(n, k)``, ``(n,)`` or ``(n, k, 1, 1)``.
    name
        Name of the network in messages.

    Raises
    ------
    InvalidInputError
        If the logits are not linear in the input of a module.

    Notes
    -----
    A constant positive factor between the layer and the logits (a temperature, a logit scale)
    becomes part of the layer. A single logit becomes two, ``-z / 2`` and ``z / 2``, whose softmax
    equals the sigmoid of ``z``.
    """
    linear = [call for call in seen.calls if isinstance(module.get_submodule(call.path), nn.Linear)]
    ends = [call for call in linear if _is_same(call.output, logits)]
    refusal = ""
    if ends:
        refusal = _why_not_plain(module, seen, ends[-1], logits, name)
        if not refusal and logits.shape[1] > 1:
            layer = module.get_submodule(ends[-1].path)
            assert isinstance(layer, nn.Linear)
            path = ends[-1].path
            return LastLayer(path, "plain", layer.in_features, layer.bias is not None)
    read = _read(module, seen, logits.flatten(1) if logits.dim() > 1 else logits[:, None])
    if read is not None:
        return read
    placed = None if refusal else _placed(module, seen, logits)
    if placed is not None:
        return placed
    raise InvalidInputError(
        refusal or f"the logits of {name} are {_other_end(module, linear, logits)}"
    )


def _is_same(output: object, logits: Tensor) -> bool:
    return (
        isinstance(output, Tensor)
        and output.shape == logits.shape
        and output.dim() == 2
        and memory_of(output) == memory_of(logits)
    )


def _why_not_plain(module: nn.Module, seen: Trace, call: Call, logits: Tensor, name: str) -> str:
    """Explain why a linear layer is not a plain last layer; empty if it is one."""
    path, features = call.path, call.inputs[0] if call.inputs else None
    if not isinstance(features, Tensor) or features.dim() != 2:
        return (
            f"the input of the last layer {path} of {name} is not one feature vector (n, d) per "
            "image; pool before it"
        )
    layer = module.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    if sum(each.path == path for each in seen.calls) > 1:
        return f"{name} uses its last layer {path} twice; use a separate layer for the logits"
    with torch.no_grad():
        plain = F.linear(features, layer.weight, layer.bias)
    if "weight" not in dict(layer.named_parameters(recurse=False)) or not torch.allclose(
        plain, logits, rtol=_CLOSE, atol=_CLOSE
    ):
        return (
            f"the last layer {path} of {name} is not linear in its input with a weight of its own; "
            "only layers that are linear in their input are supported"
        )
    return ""


def _other_end(module: nn.Module, linear: Sequence[Call], logits: Tensor) -> str:
    """Describe the origin of logits that are not the output of a linear layer."""
    like = [
        call.path
        for call in linear
        if isinstance(call.output, Tensor) and call.output.shape == logits.shape
    ]
    if len(like) > 1 and len({type(module.get_submodule(path)) for path in like}) == 1:
        return f"computed from several heads ({', '.join(like)}); build it with one of them"
    if like:
        return (
            f"not the output of the linear layer {like[-1]}, but changed after it; remove that step"
        )
    return (
        "not the output of a linear layer, nor of anything else that was looked for (a 1x1 "
        "convolution, a module that is linear in its input or in its unit vector, a matrix product "
        "or cosine similarity with weights; after it a constant factor, a bias or a sigmoid); end "
        "it with nn.Linear(d, k)"
    )


def _placed(module: nn.Module, seen: Trace, logits: Tensor) -> LastLayer | None:
    """Return the last matrix product that the logits are linear in the input of."""
    rows = logits.flatten(1) if logits.dim() > 1 else logits[:, None]
    found = find_product(seen.products, rows, seen.is_fixed)
    if found is None:
        return None
    held = _name_of(module, found, rows.shape[1])
    return LastLayer(
        held[0],
        "placed",
        found.weight.shape[1],
        sigmoid=found.sigmoid,
        rows=held,
        text=_product_in_words(found, held[0]),
        ending=found.ending,
    )


def _name_of(module: nn.Module, found: Found, count: int) -> tuple[str, int]:
    """Return which tensor has a row for each output, and which dimension that is."""
    state = module.state_dict(keep_vars=True)
    own = [name for name, each in state.items() if memory_of(each) == memory_of(found.held)]
    shape = tuple(found.weight.shape)
    like = [name for name, each in state.items() if tuple(each.shape) in (shape, shape[::-1])]
    for name in (*own, *like):
        for dimension in (0, 1):
            if state[name].dim() > 1 and state[name].shape[dimension] == count:
                return name, dimension
    return "", 0


def _product_in_words(found: Found, name: str) -> str:
    kind = "cosine similarity" if found.cosine else "product"
    said = [f"read as a linear layer: {kind} with {name or 'weights'}"]
    if found.altered:
        said.append("with a factor or bias after it")
    return ", ".join([*said, *_one_logit(len(found.weight), sigmoid=found.sigmoid)])


def _read(module: nn.Module, seen: Trace, logits: Tensor) -> LastLayer | None:
    """Return the last, innermost module in whose input the logits ``(n, k)`` are linear."""
    found: list[LastLayer] = []
    for call in reversed(seen.calls):
        given = call.inputs[0] if call.inputs else None
        once = sum(each.path == call.path for each in seen.calls) == 1
        if not (once and _is_vector(given) and _may_end(call.output, logits)):
            continue
        if any(each.path.startswith(f"{call.path}.") for each in found):
            continue
        assert isinstance(given, Tensor)  # ensured by _is_vector
        read = _measured_kind(module, call.path, given, logits)
        if read is not None:
            found.append(read)
    inner = [each for each in found if not any(o.path.startswith(f"{each.path}.") for o in found)]
    return inner[0] if inner else None


def _is_vector(given: object) -> bool:
    return isinstance(given, Tensor) and given.dim() in (2, 4) and given.is_floating_point()


def _may_end(output: object, logits: Tensor) -> bool:
    """Return whether the logits equal the output of a module, up to a factor or a sigmoid."""
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        return False
    ours = _pooled(output)
    return ours.shape == logits.shape and (
        factor_of(ours, logits) is not None or _is_sigmoid(ours, logits)
    )


def _pooled(given: Tensor) -> Tensor:
    return given.mean(dim=(2, 3)) if given.dim() == 4 else given


def _is_sigmoid(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape[1] == 1 and torch.allclose(ours.sigmoid(), theirs, rtol=0, atol=1e-5)


def _measured_kind(module: nn.Module, path: str, given: Tensor, logits: Tensor) -> LastLayer | None:
    layer, count = module.get_submodule(path), logits.shape[1]
    if not any(parameter.dim() > 1 for parameter in layer.parameters()):
        return None  # pooling, flattening or dropout
    for how in ("weight", "columns", "unit"):
        maps = _linear_map(layer, given, how, count)
        if maps is None:
            continue
        ours = _applied(maps, given, how)
        factor = factor_of(ours, logits)
        sigmoid = factor is None and _is_sigmoid(ours, logits)
        if factor is None and not sigmoid:
            continue
        if how == "weight" and _is_ordinary(layer, given, factor, count):
            return LastLayer(path, "plain", given.shape[1], layer.bias is not None)
        return LastLayer(
            path,
            how,
            given.shape[1],
            sigmoid=sigmoid,
            rows=_rows_in(layer, path, count),
            text=_in_words(layer, given, how, factor or 1.0, count, sigmoid=sigmoid),
        )
    return None


def _is_ordinary(layer: nn.Module, given: Tensor, factor: float | None, count: int) -> bool:
    """Return whether a layer is a plain linear layer, and nothing after it changes a value."""
    return (
        type(layer) is nn.Linear
        and "weight" in dict(layer.named_parameters(recurse=False))
        and given.dim() == 2
        and count > 1
        and factor is not None
        and abs(factor - 1) < _CLOSE
    )


def _linear_map(
    layer: nn.Module, given: Tensor, how: How, count: int
) -> tuple[Tensor, Tensor] | None:
    """Compute weight ``(k, d)`` and bias ``(k,)`` of a layer; None if ``how`` does not apply."""
    width = given.shape[1]
    if how == "weight":
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(weight, Tensor) or weight.numel() != count * width:
            return None
        if len(weight) != count:
            return None
        weight = weight.detach().reshape(count, width)
        bias = bias.detach() if isinstance(bias, Tensor) else weight.new_zeros(count)
        return (weight, bias) if bias.shape == (count,) else None
    vectors = torch.cat([given.new_zeros(1, width), torch.eye(width).to(given)])
    shaped = vectors if given.dim() == 2 else vectors[:, :, None, None]
    try:
        with torch.no_grad():
            made = _pooled(layer(shaped))  # (1 + d, k)
    except Exception:  # noqa: BLE001 - a module that accepts only some map sizes or batch sizes
        return None
    if made.shape != (1 + width, count):
        return None
    bias = made[0].nan_to_num(0.0)  # the unit vector of a zero vector is undefined
    return (made[1:] - bias).T.contiguous(), bias


def _applied(maps: tuple[Tensor, Tensor], given: Tensor, how: How) -> Tensor:
    rows = _pooled(given)
    if how == "unit":
        rows = F.normalize(rows, dim=1, eps=SMALLEST_NORM)
    return F.linear(rows, *maps)


def _rows_in(layer: nn.Module, path: str, count: int) -> tuple[str, int]:
    """Return the name of the tensor with one row (or column) per output, and the dimension."""
    for dimension in (0, 1):
        for name, tensor in layer.state_dict().items():
            if tensor.dim() > 1 and tensor.shape[dimension] == count:
                return f"{path}.{name}", dimension
    return "", 0


def _in_words(
    layer: nn.Module, given: Tensor, how: How, factor: float, count: int, *, sigmoid: bool
) -> str:
    parts = [f"converted to a linear layer: {type(layer).__name__}"]
    if how == "unit":
        parts.append("a cosine classifier, whose features are unit vectors")
    elif given.dim() == 4:
        many = given.shape[2:].numel() > 1
        parts.append("of the mean over positions" if many else "of one pixel")
    if abs(factor - 1) > _CLOSE:
        parts.append("with a factor after it")
    return ", ".join([*parts, *_one_logit(count, sigmoid=sigmoid)])


def _one_logit(count: int, *, sigmoid: bool) -> list[str]:
    if count != 1:
        return []
    before = " before a sigmoid" if sigmoid else ""
    return [f"one logit z{before}", "converted to two, -z/2 and z/2"]


def convert_last_layer(module: nn.Module, last: LastLayer, images: Tensor, name: str) -> None:
    """Replace a last layer of another form by an equivalent linear layer.

    Parameters
    ----------
    module
        The network with its weights, in evaluation mode; changed in place. It returns logits.
    last
        The last layer that was found in it.
    images
        Normalised images that the network accepts, ``(n, 3, h, w)``.
    name
        Name of the network in messages.

    Raises
    ------
    InvalidInputError
        If its logits are not linear with these weights.
    """
    if last.ending is not None:
        _read_placed(module, last, images, name)
        return
    layer = module.get_submodule(last.path)
    given: list[Tensor] = []
    handle = layer.register_forward_pre_hook(
        lambda _module, inputs: given.append(inputs[0].detach().clone())
    )
    try:
        with torch.no_grad():
            output = module(images)
    finally:
        handle.remove()
    logits = output.reshape(len(images), -1)
    maps = _linear_map(layer, given[-1], last.how, logits.shape[1])
    ours = None if maps is None else _applied(maps, given[-1], last.how)
    factor = None if ours is None else 1.0 if last.sigmoid else factor_of(ours, logits)
    if maps is None or ours is None or factor is None:
        raise _not_linear(last, name)
    _put_read(module, last, *(factor * each for each in maps))


def _read_placed(module: nn.Module, last: LastLayer, images: Tensor, name: str) -> None:
    assert last.ending is not None
    with torch.no_grad(), Watch() as watch:
        output = module(images)
    found = read_product(watch.products, last.ending, output.reshape(len(images), -1))
    if found is None:
        raise _not_linear(last, name)
    _put_read(module, last, found.weight, found.bias)


def _put_read(module: nn.Module, last: LastLayer, weight: Tensor, bias: Tensor) -> None:
    """Replace a last layer by a linear one with these weights; one logit becomes two."""
    if len(weight) == 1:
        weight, bias = two_rows(weight), two_rows(bias)
    put_in_place(module, last, weight, bias)


def _not_linear(last: LastLayer, name: str) -> InvalidInputError:
    return InvalidInputError(
        f"the last layer {last.path} of {name} is not linear with these weights; build the "
        "network with a plain linear layer at its end"
    )


def put_in_place(module: nn.Module, last: LastLayer, weight: Tensor, bias: Tensor) -> None:
    """Replace a last layer by a linear layer.

    Parameters
    ----------
    module
        The network, changed in place.
    last
        The last layer.
    weight, bias
        Weight ``(k, d)`` and bias ``(k,)``; they are copied.
    """
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    if last.ending is not None:
        place_layer(module, last.ending, linear)
    else:
        module.set_submodule(last.path, ConvertedLayer(linear, unit=last.how == "unit"))


def two_rows(one: Tensor) -> Tensor:
    """Convert the weight or bias of one logit ``z`` to that of two, ``-z / 2`` and ``z / 2``.

    Parameters
    ----------
    one
        Weight ``(1, d)`` or bias ``(1,)``.

    Returns
    -------
    Tensor
        ``(2, d)`` or ``(2,)``.
    """
    return torch.cat([-one / 2, one / 2])
