"""Finding the last layer of a network, and reading it as a linear one where it is another.

A 1x1 convolution, a cosine classifier, a scaled one, one with a parametrised weight and one logit
for two classes are linear layers of some vector. Such a layer is measured once its weights are
there, and :class:`ReadLayer`, which has an ordinary linear layer inside, takes its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.tracing import Call, Trace, memory_of

# The linear layer inside a ReadLayer; weights with this name have been read already.
INSIDE = "read_as"
_CLOSE = 1e-4
_SMALLEST_NORM = 1e-12

How = Literal["plain", "weight", "columns", "unit"]


@dataclass(frozen=True)
class LastLayer:
    """The last layer of a network.

    Parameters
    ----------
    path
        Path of the module in the network as it is written.
    how
        ``plain`` for an ordinary linear layer whose output is the logits. Otherwise it is measured:
        by its ``weight`` and ``bias``; by its ``columns``, what it makes of unit vectors; or as a
        linear layer of the ``unit`` vector of its input.
    width
        Length of a feature, ``d``.
    has_bias
        Whether a plain layer has a bias.
    sigmoid
        Whether the network returns the sigmoid of its one logit.
    rows
        Name of the tensor that has a row, or a column, for each output, and which dimension that
        is; the name is empty if there is none.
    text
        What it is, for people to read; empty for a plain one.
    """

    path: str
    how: How
    width: int
    has_bias: bool = True
    sigmoid: bool = False
    rows: tuple[str, int] = ("", 0)
    text: str = ""

    @property
    def linear_path(self) -> str:
        """Path of the ordinary linear layer, once the last layer has been read."""
        return self.path if self.how == "plain" else f"{self.path}.{INSIDE}"


class ReadLayer(nn.Module):
    """A last layer that is a linear one of the mean over positions, or of its unit vector.

    Parameters
    ----------
    linear
        The linear layer; its input is the feature.
    unit
        Whether the feature is what is given, divided by its length.
    """

    def __init__(self, linear: nn.Linear, *, unit: bool) -> None:
        super().__init__()
        self.add_module(INSIDE, linear)
        self.unit = unit

    def forward(self, given: Tensor, *_others: object) -> Tensor:
        """Return logits: ``(n, k)`` of ``(n, d)``, and ``(n, k, h, w)`` of ``(n, d, h, w)``."""
        rows = _pooled(given)
        if self.unit:
            rows = F.normalize(rows, dim=1, eps=_SMALLEST_NORM)
        logits: Tensor = self.get_submodule(INSIDE)(rows)
        if given.dim() == 2:
            return logits
        return logits[:, :, None, None].expand(-1, -1, *given.shape[2:])


def find_last_layer(module: nn.Module, seen: Trace, logits: Tensor, name: str) -> LastLayer:
    """Find the last layer of a network in its forward pass.

    Parameters
    ----------
    module
        The network, in evaluation mode.
    seen
        Its forward pass.
    logits
        What it returned: ``(n, k)``, ``(n,)`` or ``(n, k, 1, 1)``.
    name
        What the network is called in messages.

    Raises
    ------
    InvalidInputError
        If the logits are not linear in the input of a module.

    Notes
    -----
    A constant positive factor between the layer and the logits (a temperature, a logit scale)
    belongs to the layer. One logit becomes two, ``-z / 2`` and ``z / 2``, whose softmax is its
    sigmoid.
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
    """Say why a linear layer, whose output the logits are, is no ordinary last layer."""
    path, features = call.path, call.inputs[0] if call.inputs else None
    if not isinstance(features, Tensor) or features.dim() != 2:
        return (
            f"the last layer {path} of {name} does not see one feature vector (n, d) an image; "
            "pool before it"
        )
    layer = module.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    if sum(each.path == path for each in seen.calls) > 1:
        return f"{name} uses its last layer {path} twice; give it one of its own"
    with torch.no_grad():
        plain = F.linear(features, layer.weight, layer.bias)
    if "weight" not in dict(layer.named_parameters(recurse=False)) or not torch.allclose(
        plain, logits, rtol=_CLOSE, atol=_CLOSE
    ):
        return (
            f"the last layer {path} of {name} is not linear in its input with a weight of its own; "
            "only ordinary linear layers can be read"
        )
    return ""


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


def _read(module: nn.Module, seen: Trace, logits: Tensor) -> LastLayer | None:
    """Return the innermost, last module that the logits ``(n, k)`` are linear in the input of."""
    found: list[LastLayer] = []
    for call in reversed(seen.calls):
        given = call.inputs[0] if call.inputs else None
        once = sum(each.path == call.path for each in seen.calls) == 1
        if not (once and _is_vector(given) and _may_end(call.output, logits)):
            continue
        if any(each.path.startswith(f"{call.path}.") for each in found):
            continue
        assert isinstance(given, Tensor)  # _is_vector has seen to it
        read = _measured_kind(module, call.path, given, logits)
        if read is not None:
            found.append(read)
    inner = [each for each in found if not any(o.path.startswith(f"{each.path}.") for o in found)]
    return inner[0] if inner else None


def _is_vector(given: object) -> bool:
    return isinstance(given, Tensor) and given.dim() in (2, 4) and given.is_floating_point()


def _may_end(output: object, logits: Tensor) -> bool:
    """Tell whether the logits may be a module's output, apart from a factor or a sigmoid."""
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        return False
    ours = _pooled(output)
    return ours.shape == logits.shape and (
        _factor(ours, logits) is not None or _is_sigmoid(ours, logits)
    )


def _pooled(given: Tensor) -> Tensor:
    return given.mean(dim=(2, 3)) if given.dim() == 4 else given


def _factor(ours: Tensor, theirs: Tensor) -> float | None:
    """Return the positive number that one tensor is the other times; None if there is none."""
    square = float(ours.square().sum())
    factor = float((ours * theirs).sum()) / square if square > 0 else 0.0
    scale = float(theirs.abs().max()) + 1e-30
    close = float((factor * ours - theirs).abs().max()) <= _CLOSE * scale
    return factor if factor > 0 and close else None


def _is_sigmoid(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape[1] == 1 and torch.allclose(ours.sigmoid(), theirs, rtol=0, atol=1e-5)


def _measured_kind(module: nn.Module, path: str, given: Tensor, logits: Tensor) -> LastLayer | None:
    layer, count = module.get_submodule(path), logits.shape[1]
    if not any(parameter.dim() > 1 for parameter in layer.parameters()):
        return None  # it pools, flattens or drops
    for how in ("weight", "columns", "unit"):
        maps = _linear_map(layer, given, how, count)
        if maps is None:
            continue
        ours = _applied(maps, given, how)
        factor = _factor(ours, logits)
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
    """Tell whether a layer needs no reading: what comes after it changes no value."""
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
    """Return weight ``(k, d)`` and bias ``(k,)`` of a layer; None if it has none of that kind."""
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
    except Exception:  # noqa: BLE001 - a module that takes only maps of some size, or no other rows
        return None
    if made.shape != (1 + width, count):
        return None
    bias = made[0].nan_to_num(0.0)  # the unit vector of nothing may be anything
    return (made[1:] - bias).T.contiguous(), bias


def _applied(maps: tuple[Tensor, Tensor], given: Tensor, how: How) -> Tensor:
    rows = _pooled(given)
    if how == "unit":
        rows = F.normalize(rows, dim=1, eps=_SMALLEST_NORM)
    return F.linear(rows, *maps)


def _rows_in(layer: nn.Module, path: str, count: int) -> tuple[str, int]:
    """Return which tensor has a row (or a column) for each output."""
    for dimension in (0, 1):
        for name, tensor in layer.state_dict().items():
            if tensor.dim() > 1 and tensor.shape[dimension] == count:
                return f"{path}.{name}", dimension
    return "", 0


def _in_words(
    layer: nn.Module, given: Tensor, how: How, factor: float, count: int, *, sigmoid: bool
) -> str:
    said = [f"read as a linear layer: {type(layer).__name__}"]
    if how == "unit":
        said.append("a cosine classifier, whose features are unit vectors")
    elif given.dim() == 4:
        said.append("of the mean over positions" if given.shape[2:].numel() > 1 else "of one pixel")
    if abs(factor - 1) > _CLOSE:
        said.append("with a factor after it")
    if count == 1:
        said.append("one logit z" + (" before a sigmoid" if sigmoid else ""))
        said.append("made into two, -z/2 and z/2")
    return ", ".join(said)


def read_last_layer(module: nn.Module, last: LastLayer, images: Tensor, name: str) -> None:
    """Put a linear layer in the place of a last layer that is written otherwise.

    Parameters
    ----------
    module
        The network with its weights, in evaluation mode; changed in place. It returns logits.
    last
        What was found in it.
    images
        Normalised images that it takes, ``(n, 3, h, w)``.
    name
        What the network is called in messages.

    Raises
    ------
    InvalidInputError
        If its logits are not linear with these weights.
    """
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
    factor = None if ours is None else 1.0 if last.sigmoid else _factor(ours, logits)
    if maps is None or ours is None or factor is None:
        raise InvalidInputError(
            f"the last layer {last.path} of {name} is not linear with these weights; build the "
            "network with an ordinary linear layer at its end"
        )
    weight, bias = (factor * each for each in maps)
    if len(weight) == 1:
        weight, bias = two_rows(weight), two_rows(bias)
    module.set_submodule(last.path, new_read_layer(last, weight, bias))


def new_read_layer(last: LastLayer, weight: Tensor, bias: Tensor) -> ReadLayer:
    """Return the layer that takes the place of a last layer.

    Parameters
    ----------
    last
        The last layer.
    weight, bias
        ``(k, d)`` and ``(k,)``, copied.
    """
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return ReadLayer(linear, unit=last.how == "unit")


def two_rows(one: Tensor) -> Tensor:
    """Return weight or bias of two logits, ``-z / 2`` and ``z / 2``, for those of one, ``z``.

    Parameters
    ----------
    one
        ``(1, d)`` or ``(1,)``.
    """
    return torch.cat([-one / 2, one / 2])
