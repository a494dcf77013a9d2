"""What an ONNX graph takes, and the linear layer that it ends in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError
from oodcli.models.onnx_files import onnx_package
from oodcli.models.onnx_graph import Graph
from oodcli.text import printable

_FLOATS = {1: "float32", 10: "float16", 11: "float64"}
# Change no number, or only the form of a row.
_PASSING = ("Identity", "Cast", "CastLike", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze")
_PROBABILITIES = ("Softmax", "LogSoftmax")
_POOLING = ("GlobalAveragePool", "ReduceMean", "AveragePool")
_USUAL_OUTPUTS = ("logits", "out", "output")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ImageInput:
    """The one input of a graph.

    Parameters
    ----------
    name
        Its name.
    kind
        Type of its numbers, as NumPy has it.
    batch
        How many images it takes; None for any number.
    channels
        3, or 1.
    size
        Height and width in pixels; None where it is open.
    channels_last
        Whether channels come last.
    """

    name: str
    kind: str
    batch: int | None
    channels: int
    size: tuple[int, int] | None
    channels_last: bool


@dataclass(frozen=True, eq=False)
class LinearEnd:
    """The linear layer that an output comes from.

    Parameters
    ----------
    output
        Name of the output of the graph.
    logits
        Value before a softmax or sigmoid.
    features
        Value that the layer reads: ``(n, d)``, or maps ``(n, d, h, w)`` whose mean counts.
    weight, bias
        ``(k, d)`` and ``(k,)``.
    has_bias
        Whether the graph has a bias.
    text
        What was left out after the layer, and what is special about it; empty if nothing.
    """

    output: str
    logits: str
    features: str
    weight: Array
    bias: Array
    has_bias: bool
    text: str


def image_input(model: Any, where: str) -> ImageInput:  # noqa: ANN401 - a ModelProto
    """Return the input of a graph.

    Raises
    ------
    InvalidInputError
        If it has several, or its input is no batch of images of one or three channels.
    """
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(printable(each.name) for each in inputs) or "nothing"
        raise InvalidInputError(
            f"{where} takes {len(inputs)} inputs ({names}); export a network that takes images "
            "alone"
        )
    (given,) = inputs
    form = given.type.tensor_type
    kind = _FLOATS.get(form.elem_type)
    dims = [each.dim_value if each.HasField("dim_value") else None for each in form.shape.dim]
    dims = [each if each is None or each > 0 else None for each in dims]
    shown = " x ".join("?" if each is None else str(each) for each in dims) or "no tensor"
    if kind is None:
        known = onnx_package().TensorProto.DataType.items()
        other = next((name for name, n in known if n == form.elem_type), "no tensor").lower()
        raise InvalidInputError(
            f"{where} takes images of {other}, so its own preprocessing is in it; export the "
            "network without that, for normalised images in float32 or float16"
        )
    if not dims and not form.HasField("shape"):
        dims = [None] * 4
    if len(dims) != 4:
        raise InvalidInputError(
            f"{where} takes a tensor of {shown}, not images (n, 3, h, w); export it for images"
        )
    last = dims[3] in (1, 3) and dims[1] not in (1, 3)
    channels, height, width = (dims[3], *dims[1:3]) if last else dims[1:]
    channels = 3 if channels is None else channels
    if channels not in (1, 3):
        raise InvalidInputError(
            f"{where} takes images of {channels} channels ({shown}); 3 or 1 can be used"
        )
    size = None if height is None or width is None else (height, width)
    if size is not None and size[0] != size[1]:
        raise InvalidInputError(
            f"{where} takes images of {height} x {width} pixels; only square ones can be used: "
            "export it with another size"
        )
    return ImageInput(given.name, kind, dims[0], channels, size, last)


def linear_end(model: Any, image: str, wanted: str | None, where: str) -> LinearEnd:  # noqa: ANN401
    """Find the output that the logits are, and the linear layer that they come from.

    Parameters
    ----------
    model
        The model.
    image
        Name of its input.
    wanted
        Name of the output; found if None.
    where
        What the model is called in messages.

    Raises
    ------
    InvalidInputError
        If there is no such output, or none that is linear in something.
    """
    names = [each.name for each in model.graph.output]
    if wanted is not None and wanted not in names:
        raise InvalidInputError(
            f"{where} has no output {wanted!r}; it has: {', '.join(map(printable, names))}"
        )
    found: dict[str, LinearEnd] = {}
    refusals: list[str] = []
    for name in names if wanted is None else [wanted]:
        end = _end(Graph(model, image, name), where)
        if isinstance(end, str):
            refusals.append(end)
        else:
            found[name] = end
    if not found:
        raise InvalidInputError(refusals[0])
    usual = [name for name in _USUAL_OUTPUTS if name in found]
    key = (usual or list(found))[0]
    if len(names) == 1:
        return found[key]
    others = [printable(name) for name in found if name != key]
    chosen = f"output {printable(key)} of {len(names)}" + (
        f"; another: --output {' or '.join(others)}" if others else ""
    )
    end = found[key]
    return replace(end, text="; ".join(text for text in (chosen, end.text) if text))


@dataclass
class _Tail:
    """What was passed on the way back from an output to its linear layer."""

    value: str
    logits: str
    changes: list[tuple[str, Array]]
    said: list[str]
    pools: bool = False
    sigmoid: bool = False


def _end(graph: Graph, where: str) -> LinearEnd | str:
    """Return the linear layer that a value comes from, or why there is none."""
    tail = _Tail(graph.end, graph.end, [], [])
    while tail.value in graph.producer:
        node = graph.nodes[graph.producer[tail.value]]
        given = graph.made_of(node)
        if len(given) != 1:
            break
        read = _linear(graph, node, given[0], pools=tail.pools)
        if read is not None:
            return _folded(graph, tail, given[0], *read, where=where)
        if not _passed(graph, tail, node, given[0]):
            break
    node = graph.nodes[graph.producer[tail.value]] if tail.value in graph.producer else None
    kind = "its input" if node is None else f"made by {printable(node.op_type)}"
    return (
        f"output {printable(graph.end)} of {where} is not that of a linear layer (Gemm, MatMul or "
        f"1x1 Conv with its weights), but {kind}; export the network with logits as output"
    )


def _passed(graph: Graph, tail: _Tail, node: Any, given: str) -> bool:  # noqa: ANN401 - a NodeProto
    """Go back by a node that changes logits in a way that can be undone, or say that it is none."""
    op = node.op_type
    if op in _PROBABILITIES and tail.logits == graph.end and not tail.changes:
        tail.said.append(f"{op} after it left out")
        tail.logits = given
    elif op == "Sigmoid" and not tail.changes and not tail.sigmoid:
        tail.sigmoid = True
        tail.logits = given
    elif op in _POOLING:
        tail.pools = True
    elif op in ("Add", "Sub", "Mul", "Div"):
        (other,) = [name for name in node.input if name not in graph.content] or [""]
        if not other or (op in ("Sub", "Div") and node.input[0] != given):
            return False
        tail.changes.append((op, graph.constants([other])[other].astype(np.float32)))
        if op in ("Mul", "Div"):
            tail.said.append("with a factor after it")
    elif op not in _PASSING:
        return False
    tail.value = given
    return True


def _linear(
    graph: Graph,
    node: Any,  # noqa: ANN401 - a NodeProto
    given: str,
    *,
    pools: bool,
) -> tuple[Array, Array | None] | None:
    """Return weight ``(k, d)`` and bias of a linear layer; None if a node is none."""
    op, others = node.op_type, [name for name in node.input[1:] if name]
    if op not in ("Gemm", "MatMul", "Conv") or node.input[0] != given or pools > (op == "Conv"):
        return None
    told = {each.name: each for each in node.attribute}
    values = graph.constants(others)
    weight = values[others[0]].astype(np.float32)
    bias = values[others[1]].astype(np.float32) if len(others) > 1 else None
    if op == "Conv":
        strides = told["strides"].ints if "strides" in told else ()
        if weight.ndim != 4 or weight.shape[2:] != (1, 1) or any(each != 1 for each in strides):
            return None
        groups = told["group"].i if "group" in told else 1
        return (weight[:, :, 0, 0], bias) if groups == 1 else None
    if weight.ndim != 2 or (told["transA"].i if "transA" in told else 0):
        return None
    if op == "MatMul" or not (told["transB"].i if "transB" in told else 0):
        weight = weight.T
    alpha = told["alpha"].f if "alpha" in told else 1.0
    beta = told["beta"].f if "beta" in told else 1.0
    return alpha * weight, None if bias is None else beta * bias


def _folded(
    graph: Graph, tail: _Tail, features: str, weight: Array, bias: Array | None, *, where: str
) -> LinearEnd | str:
    """Put what comes after a linear layer into its weights."""
    count = len(weight)
    if tail.sigmoid and count > 1:
        return (
            f"{where} ends in a sigmoid for each of {count} classes: it gives several labels to an "
            "image; a network that chooses one class is needed"
        )
    total: NDArray[Any] = np.broadcast_to(0.0 if bias is None else bias, (count,))
    has_bias = bias is not None
    matrix: NDArray[Any] = weight
    for op, values in reversed(tail.changes):
        if values.size not in (1, count):
            return f"{where} changes its logits after the last layer ({op}); export it without"
        row = values.reshape(-1)
        if op in ("Add", "Sub"):
            total = total + row if op == "Add" else total - row
            has_bias = True
        else:
            factor = row if op == "Mul" else 1 / row
            matrix, total = matrix * factor[:, None], total * factor
    return LinearEnd(
        graph.end,
        tail.logits,
        features,
        np.ascontiguousarray(matrix, np.float32),
        np.ascontiguousarray(total, np.float32),
        has_bias,
        ", ".join(_said(tail, weight)),
    )


def _said(tail: _Tail, weight: Array) -> Sequence[str]:
    said = list(dict.fromkeys(tail.said))
    if tail.pools:
        said.append("a 1x1 convolution, read as a linear layer of the mean over positions")
    if len(weight) == 1:
        said.append("one logit z" + (" before a sigmoid" if tail.sigmoid else ""))
    return said
