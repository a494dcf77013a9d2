"""One ONNX graph of three: what happens to images before a network, the network, and the method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oodcli.errors import InvalidInputError
from oodcli.files import reason_of
from oodcli.models.onnx_files import onnx_package

# The oldest set of operators that torch writes.
LEAST_OPSET = 18
_FLOAT = 1


@dataclass(frozen=True)
class Link:
    """A value that one graph makes and another reads.

    Parameters
    ----------
    made
        Name of the value, with that of the graph that makes it in front.
    read
        Name of the input, likewise.
    kind
        Type of ONNX that it is read as; as it is if None.
    """

    made: str
    read: str
    kind: int | None = _FLOAT


def opset_of(model: Any) -> int:  # noqa: ANN401 - a ModelProto
    """Return the version of ONNX's operators that a model uses."""
    return max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))


def with_opset(model: Any, version: int, *, where: str) -> Any:  # noqa: ANN401
    """Return a model that uses a version of ONNX's operators, newer than its own.

    Parameters
    ----------
    model
        The model.
    version
        The version.
    where
        What it is called in messages.

    Raises
    ------
    InvalidInputError
        If onnx cannot translate an operator.
    """
    if opset_of(model) >= version:
        return model
    try:
        return onnx_package("onnx.version_converter").convert_version(model, version)
    except Exception as error:  # noqa: BLE001 - of its C++ code
        raise InvalidInputError(
            f"{where} uses version {opset_of(model)} of ONNX's operators, and onnx cannot "
            f"translate it to version {version} ({reason_of(error)[:200]}); export the network "
            f"again with opset {version} and import that file"
        ) from None


def merged(
    onnx: Any,  # noqa: ANN401 - a module
    parts: Mapping[str, Any],
    links: Sequence[Link],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Any:  # noqa: ANN401 - a ModelProto
    """Return graphs as one, in which each reads what those before it make.

    Parameters
    ----------
    onnx
        The module.
    parts
        The models in the order in which they run, by a name that goes before the names in them.
    links
        What they read of each other, of the inputs, and what the outputs are.
    inputs, outputs
        ValueInfoProtos of the whole.

    Raises
    ------
    InvalidInputError
        If onnx does not take what comes out.
    """
    nodes: list[Any] = []
    weights: list[Any] = []
    opsets: dict[str, int] = {}
    for name, model in parts.items():
        part = onnx_package("onnx.compose").add_prefix(model, f"{name}/")
        own = {each.name for each in part.graph.input}
        nodes.extend(_node(onnx, link) for link in links if link.read in own)
        nodes.extend(part.graph.node)
        weights.extend(part.graph.initializer)
        for each in part.opset_import:
            opsets[each.domain] = max(each.version, opsets.get(each.domain, 0))
    ends = {each.name for each in outputs}
    nodes.extend(_node(onnx, link) for link in links if link.read in ends)
    graph = onnx.helper.make_graph(nodes, "screening", list(inputs), list(outputs), weights)
    made = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(*each) for each in opsets.items()],
        ir_version=max(model.ir_version for model in parts.values()),
    )
    try:
        onnx.checker.check_model(made)
    except Exception as error:  # noqa: BLE001 - its kinds of errors differ between versions
        raise InvalidInputError(
            f"the network and the method do not make one graph ({reason_of(error)[:200]}); use "
            "another method"
        ) from None
    return made


def _node(onnx: Any, link: Link) -> Any:  # noqa: ANN401
    if link.kind is None:
        return onnx.helper.make_node("Identity", [link.made], [link.read])
    return onnx.helper.make_node("Cast", [link.made], [link.read], to=link.kind)
