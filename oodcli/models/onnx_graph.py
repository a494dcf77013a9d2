"""An ONNX graph: what is made of the image, who reads it, and through what all of it goes."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from oodcli.errors import InvalidInputError
from oodcli.files import reason_of
from oodcli.models.onnx_files import inputs_of, onnx_package
from oodcli.text import printable

# What these give of an image does not depend on its pixels.
_OF_SHAPE = ("Shape", "Size")
# How the exporter of torch.export names the modules around a node; the other one does it by name.
_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"

# No module of torch can be called like what all of them have.
_TAKEN = frozenset(dir(nn.Sequential())) | frozenset(dir(nn.Conv2d))

Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Scope:
    """The modules of the network as it was written, around one node.

    Parameters
    ----------
    paths
        Their paths, the outermost first; empty where nothing says it.
    kinds
        Their classes, in the same order; empty where nothing says it.
    """

    paths: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


class Graph:
    """A graph with one image as its input, and one value that counts.

    Parameters
    ----------
    model
        The model, as :func:`oodcli.models.onnx_files.read_onnx` gives it.
    image
        Name of the input.
    end
        Name of the value that counts; nodes that it does not need are left out.
    """

    def __init__(self, model: Any, image: str, end: str) -> None:  # noqa: ANN401 - a ModelProto
        self.model = model
        self.image = image
        self.end = end
        graph = model.graph
        self.weights = {each.name: each for each in graph.initializer}
        needed, nodes = {end}, []
        for node in reversed(graph.node):
            if needed & set(node.output):
                nodes.append(node)
                needed.update(inputs_of(node))
        self.nodes: Sequence[Any] = nodes[::-1]
        self.producer = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }

    @cached_property
    def content(self) -> frozenset[str]:
        """Values that are made of the pixels of the image."""
        found = {self.image}
        for node in self.nodes:
            if node.op_type not in _OF_SHAPE and any(name in found for name in inputs_of(node)):
                found.update(name for name in node.output if name)
        return frozenset(found)

    @cached_property
    def last_read(self) -> Mapping[str, int]:
        """Place of the node that reads a value last, by value; beyond all of them for the end."""
        found: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            if node.op_type not in _OF_SHAPE:
                found.update(dict.fromkeys(inputs_of(node), index))
        return {**found, self.end: len(self.nodes)}

    @cached_property
    def cuts(self) -> Sequence[str]:
        """Values through which all goes that comes after them, in the order of the graph."""
        live = {self.image}
        found: list[str] = []
        for index, node in enumerate(self.nodes):
            live.update(name for name in node.output if name in self.content)
            live = {name for name in live if self.last_read.get(name, -1) > index}
            if len(live) == 1 and live <= set(node.output):
                found.extend(live)
        return found

    def made_of(self, node: Any) -> list[str]:  # noqa: ANN401 - a NodeProto
        """Return the values made of the image that a node reads, each once."""
        return [name for name in dict.fromkeys(inputs_of(node)) if name in self.content]

    def of_pixels(self, node: Any) -> bool:  # noqa: ANN401 - a NodeProto
        """Tell whether a node makes something of the pixels of the image."""
        return any(name in self.content for name in node.output)

    def weights_of(self, node: Any) -> dict[str, tuple[int, ...]]:  # noqa: ANN401 - a NodeProto
        """Return the shapes of the weights that a node reads, also through other nodes."""
        found: dict[str, tuple[int, ...]] = {}
        waiting = [name for name in inputs_of(node) if name not in self.content]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.weights:
                found[name] = tuple(self.weights[name].dims)
            elif name in self.producer:
                waiting.extend(inputs_of(self.nodes[self.producer[name]]))
        return found

    def constants(self, names: Iterable[str]) -> Values:
        """Return the values of names that do not depend on the image."""
        onnx = onnx_package()
        known = {
            name: onnx.numpy_helper.to_array(self.weights[name])
            for name in names
            if name in self.weights
        }
        others = [name for name in names if name not in known]
        if others:
            part = pruned(self.model, others)
            del part.graph.input[:]
            known |= Session(part.SerializeToString(), "a constant").run({}, others)
        return known


def pruned(model: Any, outputs: Sequence[str]) -> Any:  # noqa: ANN401 - ModelProtos
    """Return a model that gives certain values, with what these need and nothing else.

    Parameters
    ----------
    model
        A model without functions.
    outputs
        Names of values; their types are those that the model has, or open.
    """
    onnx = onnx_package()
    graph = model.graph
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed.update(inputs_of(node))
    typed = {each.name: each for each in (*graph.value_info, *graph.output)}
    made = onnx.helper.make_graph(
        nodes[::-1],
        graph.name or "network",
        [each for each in graph.input if each.name in needed],
        [typed.get(name, onnx.ValueInfoProto(name=name)) for name in outputs],
        [each for each in graph.initializer if each.name in needed],
    )
    return onnx.helper.make_model(
        made,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
    )


class Session:
    """A graph in ONNX Runtime on the CPU, to look at it.

    Parameters
    ----------
    content
        The model, as bytes.
    where
        What it is called in messages.

    Raises
    ------
    InvalidInputError
        If ONNX Runtime does not take it.
    """

    def __init__(self, content: bytes, where: str) -> None:
        self._session = new_session(content, where, ["CPUExecutionProvider"])

    def run(self, feeds: Values, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return values by name."""
        made = self._session.run(list(outputs), dict(feeds))
        return dict(zip(outputs, made, strict=True))


def new_session(content: bytes, where: str, providers: Sequence[Any], *, threads: int = 0) -> Any:  # noqa: ANN401
    """Return a session of ONNX Runtime.

    Parameters
    ----------
    content
        The model, as bytes.
    where
        What it is called in messages.
    providers
        Where to compute, as ONNX Runtime has it.
    threads
        How many compute on a CPU; as many as there are cores if 0.

    Raises
    ------
    InvalidInputError
        If ONNX Runtime does not take the model.
    """
    runtime = onnx_package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Threads that wait would take the cores from what torch does with the result.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(content, options, providers=list(providers))
    except Exception as error:  # noqa: BLE001 - of its C++ code
        reason = printable(reason_of(error).rpartition(" : ")[2][:200])
        raise InvalidInputError(
            f"ONNX Runtime {runtime.__version__} does not take {where} ({reason}); export it "
            "again, or install a newer ONNX Runtime"
        ) from None


def scopes_of(nodes: Sequence[Any]) -> list[Scope]:
    """Return the modules around every node, as the exporters of torch write them.

    Parameters
    ----------
    nodes
        NodeProtos.
    """
    return [_of_metadata(node) or _of_name(node.name) for node in nodes]


def _of_metadata(node: Any) -> Scope | None:  # noqa: ANN401 - a NodeProto
    told = {each.key: each.value for each in node.metadata_props}
    if _SCOPES not in told:
        return None
    try:
        paths, kinds = (ast.literal_eval(told.get(key, "[]")) for key in (_SCOPES, _CLASSES))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return Scope()
    lists = isinstance(paths, list) and isinstance(kinds, list)
    if not (lists and len(paths) == len(kinds) and all(isinstance(p, str) for p in paths)):
        return Scope()
    # The first is the network, the last the operation.
    pairs = [
        (path, str(kind))
        for path, kind in zip(paths[1:-1], kinds[1:-1], strict=True)
        if is_path(path)
    ]
    return Scope(tuple(path for path, _ in pairs), tuple(kind for _, kind in pairs))


def _of_name(name: str) -> Scope:
    """Read ``/layer1/layer1.0/conv1/Conv``."""
    first, *parts = name.split("/")
    if first or len(parts) < 2:
        return Scope()
    paths: list[str] = []
    last = ""
    for part in parts[:-1]:
        outer = f"{paths[-1]}." if paths else ""
        inner = part.removeprefix(f"{last}.") if last else part
        if not is_path(inner):
            return Scope()
        paths.append(f"{outer}{inner}")
        last = part
    return Scope(tuple(paths))


def is_path(path: str) -> bool:
    """Tell whether a text can be the path of a module."""
    return all(
        part and not set(part) & set("/:<> ") and part not in _TAKEN for part in path.split(".")
    )


def readers(graph: Graph) -> Mapping[str, Sequence[int]]:
    """Return the places of the nodes that read a value made of pixels, by value."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.nodes):
        if node.op_type not in _OF_SHAPE:
            for name in graph.made_of(node):
                found[name].append(index)
    return found


def as_input(images: NDArray[np.float32], kind: str, *, channels_last: bool) -> NDArray[Any]:
    """Return normalised images ``(n, c, h, w)`` as a graph takes them.

    Parameters
    ----------
    images
        The images.
    kind
        Name of a type of NumPy.
    channels_last
        Whether channels come last.
    """
    turned = images.transpose(0, 2, 3, 1) if channels_last else images
    return np.ascontiguousarray(turned, dtype=kind)
