"""The modules that an ONNX graph was written as, for the search for blocks.

The exporters of torch write with every node the modules that it comes from. Where nothing does, the
modules are those of the graph's own form: what lies between two values through which all goes, such
as the two branches that a residual addition joins. Either way they become empty modules of torch
with the shapes of their weights, which :mod:`oodcli.models.discovery` searches as it does a
network.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from oodcli.models.onnx_graph import Graph, Scope, is_path, readers, scopes_of

_SEQUENTIAL = "torch.nn.modules.container.Sequential"
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedMatMul", "FusedGemm",
                 "QLinearConv", "ConvInteger", "MatMulInteger")  # fmt: skip
# Parts of a graph's own form.
_UNIT, _PART = "Unit", "Part"
_ACTIVATIONS = frozenset({
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "HardSigmoid", "HardSwish",
    "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "Mish", "Swish", "FastGelu",
    "Cast", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear",
})  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A module of the network.

    Parameters
    ----------
    path
        Its path.
    inputs
        The values made of the image that it reads and does not make.
    output
        The one value that it makes for others.
    end
        Place of the node that makes it, counted from 1.
    """

    path: str
    inputs: tuple[str, ...]
    output: str
    end: int


@dataclass(frozen=True)
class Skeleton:
    """A network without its values.

    Parameters
    ----------
    module
        Its modules; weights have their shapes alone.
    parts
        Its modules that make one value for others, in the order in which they do; inner ones first.
    named
        Whether the modules are those of the network as it was written.
    """

    module: nn.Module
    parts: Sequence[Part]
    named: bool


def as_written(graph: Graph) -> Skeleton | None:
    """Return the modules that the file names; None if it names none."""
    scopes = scopes_of(graph.nodes)
    if not any(
        s.paths for s, node in zip(scopes, graph.nodes, strict=True) if graph.of_pixels(node)
    ):
        return None
    return _skeleton(graph, [*scopes], named=True)


def by_form(graph: Graph) -> Skeleton:
    """Return the modules that the form of a graph shows.

    Notes
    -----
    Between two values through which all goes lies one node of a chain, or branches that join: a
    unit, if a weight is in it. Activations that follow belong to it. What lies between two units is
    one as well if it has two weights or more: an inverted residual without its shortcut.
    """
    ends = [graph.producer[value] for value in graph.cuts]
    steps = [range(start + 1, stop + 1) for start, stop in zip([-1, *ends[:-1]], ends, strict=True)]
    kinds = [_kind_of_step(graph, step) for step in steps]
    scopes = [Scope()] * len(graph.nodes)
    number = 0
    last_unit: int | None = None
    for place, step in enumerate(steps):
        if kinds[place] != "join":
            continue
        stop = place + 1
        while stop < len(steps) and kinds[stop] == "activation":
            stop += 1
        if last_unit is not None:
            between = range(last_unit, place)
            if sum(kinds[each] == "weight" for each in between) > 1:
                number += 1
                _fill(scopes, [steps[each] for each in between], number)
        number += 1
        _fill(scopes, [step, *steps[place + 1 : stop]], number)
        last_unit = stop
    for index, scope in enumerate(scopes):
        if not scope.paths:
            scopes[index] = Scope((_leaf(graph, index),), (graph.nodes[index].op_type,))
    return _skeleton(graph, scopes, named=False)


def _leaf(graph: Graph, index: int) -> str:
    return f"{graph.nodes[index].op_type.lower()}{index + 1}"


def _fill(scopes: list[Scope], steps: Sequence[range], number: int) -> None:
    for step in steps:
        for index in step:
            scopes[index] = Scope(
                (f"unit{number}", f"unit{number}.node{index + 1}"), (_UNIT, _PART)
            )


def _kind_of_step(graph: Graph, step: range) -> str:
    """Tell what lies between two values: a ``join``, a ``weight``, an ``activation``, ``other``."""
    nodes = [graph.nodes[index] for index in step if graph.of_pixels(graph.nodes[index])]
    weighted = any(_has_matrix(graph, node) for node in nodes)
    if len(nodes) > 1 and weighted:
        return "join"
    if weighted:
        return "weight"
    return "activation" if all(node.op_type in _ACTIVATIONS for node in nodes) else "other"


def _has_matrix(graph: Graph, node: Any) -> bool:  # noqa: ANN401 - a NodeProto
    return node.op_type in _WITH_WEIGHTS and any(
        len(shape) > 1 for shape in graph.weights_of(node).values()
    )


def _skeleton(graph: Graph, scopes: Sequence[Scope], *, named: bool) -> Skeleton:
    root = nn.Module()
    kinds = _kinds(scopes)
    for node, scope in zip(graph.nodes, scopes, strict=True):
        if graph.of_pixels(node):
            for path in scope.paths:
                _module_at(root, path, kinds)
    for node, scope in zip(graph.nodes, scopes, strict=True):
        if not graph.of_pixels(node) or not scope.paths:
            continue
        for name, shape in graph.weights_of(node).items():
            matrix = node.op_type in _WITH_WEIGHTS and len(shape) > 1
            holder = root.get_submodule(scope.paths[-1])
            if matrix and "Conv" in node.op_type and not any(True for _ in holder.children()):
                holder.__class__ = _convolution(type(holder).__name__)
            holder.register_parameter(f"of {name}".replace(".", " "), _of_shape(shape))
            # A convolution that has taken in its normalisation has the name of that in its node.
            owner = name.rpartition(".")[0]
            if matrix and named and is_path(owner):
                _module_at(root, owner, kinds)
    return Skeleton(root, _parts(graph, scopes), named)


def _of_shape(shape: tuple[int, ...]) -> nn.Parameter:
    """Return a weight of a shape that takes no memory."""
    return nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)


def _kinds(scopes: Sequence[Scope]) -> Mapping[str, str]:
    """Return the class of every module; where it is not written, what its parts are called."""
    kinds: dict[str, str] = {}
    children: dict[str, set[str]] = defaultdict(set)
    for scope in scopes:
        kinds.update(zip(scope.paths, scope.kinds, strict=False))
        for path in scope.paths:
            outer, _, name = path.rpartition(".")
            children[outer].add(name)
    for path, names in children.items():
        numbered = all(name.isdigit() for name in names)
        kinds.setdefault(path, _SEQUENTIAL if numbered else "+".join(["", *sorted(names)]))
    return kinds


def _module_at(root: nn.Module, path: str, kinds: Mapping[str, str]) -> nn.Module:
    """Return the module at a path, made with those around it where it is not there."""
    holder, whole = root, ""
    for part in path.split("."):
        whole = f"{whole}.{part}" if whole else part
        inner = dict(holder.named_children()).get(part)
        if inner is None:
            inner = _class_of(kinds.get(whole, "Module"))()
            holder.add_module(part, inner)
        holder = inner
    return holder


@cache
def _class_of(kind: str) -> type[nn.Module]:
    if kind == _SEQUENTIAL:
        return nn.Sequential
    name = "unit" if "+" in kind else kind.rpartition(".")[2]
    return type(name, (nn.Module,), {})


@cache
def _convolution(kind: str) -> type[nn.Module]:
    return type(kind, (nn.Conv2d,), {})


def _parts(graph: Graph, scopes: Sequence[Scope]) -> Sequence[Part]:
    """Return the modules that make one value for others, and make it of one place in the graph."""
    nodes: dict[str, list[int]] = defaultdict(list)
    for index, (node, scope) in enumerate(zip(graph.nodes, scopes, strict=True)):
        if graph.of_pixels(node):
            for path in scope.paths:
                nodes[path].append(index)
    read = readers(graph)
    cuts = frozenset(graph.cuts)
    found = []
    for path, own in nodes.items():
        inside = frozenset(own)
        made = {name for index in own for name in graph.nodes[index].output}
        given = [name for index in own for name in graph.made_of(graph.nodes[index])]
        outputs = [
            name
            for name in made
            if name == graph.end or any(index not in inside for index in read.get(name, ()))
        ]
        if len(outputs) == 1 and outputs[0] in cuts:
            inputs = tuple(name for name in dict.fromkeys(given) if name not in made)
            end = graph.producer[outputs[0]] + 1
            found.append(Part(path, inputs, outputs[0], end))
    return sorted(found, key=lambda part: (part.end, -part.path.count(".")))
