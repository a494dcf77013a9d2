"""Finding features, last layer and blocks of a network that exists only as an ONNX graph."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.errors import InvalidInputError
from oodcli.files import reason_of
from oodcli.models.discovery import Blocks, find_blocks, noise
from oodcli.models.inventories import of_inverted
from oodcli.models.layout import Layout
from oodcli.models.onnx_graph import Graph, Session, as_input, pruned
from oodcli.models.onnx_head import ImageInput, LinearEnd, image_input, linear_end
from oodcli.models.onnx_skeleton import Part, Skeleton, as_written, by_form
from oodcli.models.outputs import luma
from oodcli.models.tracing import Call, Trace, memory_of
from oodcli.text import printable

# What float32 and float16 lose on the way through a network.
_CLOSE = {"float16": 2e-2}
_USUALLY_CLOSE = 1e-3
_REASON_LETTERS = 160

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class OnnxAnatomy:
    """What is found in a graph.

    Parameters
    ----------
    given
        What it takes.
    batch
        How many images it takes at a time; None for any number.
    end
        The last layer.
    blocks
        Values of the blocks in forward order, by name.
    layouts
        How those maps lie, by name, where they are not ``(n, c, h, w)``.
    side
        Height and width of the images that were tried, in pixels.
    text
        All this in a line for the user.
    model
        The graph that gives features and blocks, and nothing else.
    """

    given: ImageInput
    batch: int | None
    end: LinearEnd
    blocks: Mapping[str, str]
    layouts: Mapping[str, Layout]
    side: int
    text: str
    model: Any


def dissect_graph(model: Any, name: str, *, side: int, output: str | None = None) -> OnnxAnatomy:  # noqa: ANN401
    """Find the features, the last layer and the blocks of a graph.

    Parameters
    ----------
    model
        As :func:`oodcli.models.onnx_files.read_onnx` gives it.
    name
        What it is called in messages.
    side
        Height and width of the images it will be used with, in pixels.
    output
        Which of several outputs the logits are; found if None.

    Raises
    ------
    InvalidInputError
        If it takes no such images, does not end in a linear layer of one vector for each image, has
        no two blocks whose maps can be read, or ONNX Runtime does not compute it.
    """
    given = image_input(model, name)
    if given.size is not None and given.size != (side, side):
        raise InvalidInputError(
            f"{name} takes images of {given.size[0]} x {given.size[1]} pixels, not {side} x "
            f"{side}; leave out --image-size, or export it with another size"
        )
    end = linear_end(model, given.name, output, name)
    graph = Graph(model, given.name, end.features)
    looked = _Look(model, given, name, side)
    skeleton, blocks = _found(graph, end, looked, name)
    outputs = {part.path: part.output for part in skeleton.parts}
    taken = {call.path: outputs[call.path] for call in blocks.calls}
    kept = pruned(model, [end.features, *dict.fromkeys(taken.values())])
    found = OnnxAnatomy(given, looked.batch, end, taken, blocks.layouts, side, "", kept)
    return replace(found, text=f"{name}: {_in_words(found, blocks, named=skeleton.named)}")


def _looked_at(part: Part) -> Iterator[str]:
    """Yield the values of a module that the search looks at."""
    yield part.output
    yield from part.inputs[:1]


class _Look:
    """Runs a graph on two images of noise.

    Parameters
    ----------
    model, given, name, side
        As for :func:`dissect_graph`.
    """

    def __init__(self, model: Any, given: ImageInput, name: str, side: int) -> None:  # noqa: ANN401
        self._model, self._given, self._name = model, given, name
        images = noise(side)  # (2, 3, h, w)
        images = luma(images) if given.channels == 1 else images
        self._images = as_input(images.numpy(), given.kind, channels_last=given.channels_last)
        self.batch = given.batch

    def at(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the values of both images that have a row for each, float32."""
        outputs = [each for each in dict.fromkeys(names) if each != self._given.name]
        session = Session(pruned(self._model, outputs).SerializeToString(), self._name)
        # A graph may say that it takes any number and hold a shape of one.
        tries = [1, None] if self.batch is None else [self.batch]
        reason = ""
        while tries:
            batch = tries.pop()
            try:
                values = self._rows(session, outputs, batch)
            except Exception as error:  # noqa: BLE001 - of its C++ code
                reason = reason or reason_of(error).rpartition(" : ")[2][:_REASON_LETTERS]
                continue
            if all(each in values for each in names[:2]) or not tries:
                self.batch = batch
                return values
        side = max(self._images.shape[1:3])
        raise InvalidInputError(
            f"{self._name} takes no images of {side} x {side} pixels ({printable(reason)}); name "
            "the size it was made for: --image-size N"
        )

    def _rows(
        self, session: Session, outputs: Sequence[str], batch: int | None
    ) -> dict[str, NDArray[Any]]:
        count = len(self._images)
        size = count if batch is None else batch
        made: dict[str, list[NDArray[Any]]] = {name: [] for name in outputs}
        for at in range(0, count, size):
            images = self._images[at : at + size]
            rows = len(images)
            images = np.concatenate([images, np.repeat(images[:1], size - rows, axis=0)])
            for name, value in session.run({self._given.name: images}, outputs).items():
                if isinstance(value, np.ndarray) and value.ndim and len(value) == size:
                    made[name].append(value[:rows])
        return {
            name: np.concatenate(parts).astype(np.float32)
            for name, parts in made.items()
            if sum(map(len, parts)) == count and parts[0].dtype.kind == "f"
        }

    def check_end(self, end: LinearEnd, values: Arrays) -> None:
        """Refuse a last layer that does not make the logits of one vector for each image."""
        shown = printable(end.output)
        features, logits = values.get(end.features), values.get(end.logits)
        if features is None or logits is None or features.ndim not in (2, 4):
            shape = "no rows" if features is None else " x ".join(map(str, features.shape))
            raise InvalidInputError(
                f"the last layer of {self._name} (output {shown}) does not see one feature vector "
                f"(n, d) for each image, but {shape} for two; pool before it"
            )
        rows = features.mean(axis=(2, 3)) if features.ndim == 4 else features
        wanted = logits.reshape(len(logits), -1)
        made = rows @ end.weight.T + end.bias
        close = _CLOSE.get(self._given.kind, _USUALLY_CLOSE) * max(
            float(np.abs(wanted).max()), 1e-6
        )
        if made.shape != wanted.shape or not np.abs(made - wanted).max() <= close:
            raise InvalidInputError(
                f"the logits of {self._name} (output {shown}) are not linear in what its last "
                "layer reads; export the network with logits as output"
            )


def _found(graph: Graph, end: LinearEnd, looked: _Look, name: str) -> tuple[Skeleton, Blocks]:
    """Return the first modules among which there are blocks, and these."""
    refused: InvalidInputError | None = None
    for modules_of in (as_written, by_form):
        skeleton = modules_of(graph)
        if skeleton is None:
            continue
        wanted = {value for part in skeleton.parts for value in _looked_at(part)}
        values = looked.at([end.logits, end.features, *sorted(wanted)])
        looked.check_end(end, values)
        try:
            seen = _as_trace(graph, skeleton, values)
            return skeleton, find_blocks(skeleton.module, seen, "", name, of_inverted)
        except InvalidInputError as error:
            refused = refused or error
    assert refused is not None  # the form of a graph is always there
    raise refused


def _as_trace(graph: Graph, skeleton: Skeleton, values: Arrays) -> Trace:
    """Return a forward pass of a graph as one of modules."""
    tensors = {name: torch.from_numpy(array) for name, array in values.items()}
    # What was not looked at has no memory; a number of its own stands for it.
    memory = {name: -number for number, name in enumerate(sorted(graph.content), start=1)}
    memory |= {name: memory_of(tensor) for name, tensor in tensors.items()}
    written = {memory[name]: graph.producer.get(name, -1) for name in graph.content}
    read = {memory[n]: place for n, place in graph.last_read.items() if n in graph.content}
    calls = [
        Call(
            part.path,
            tuple(tensors[name] for name in part.inputs if name in tensors),
            tensors.get(part.output),
            part.end,
            _blind(tensors, part),
        )
        for part in skeleton.parts
    ]
    return Trace(None, calls, written, read)


def _blind(tensors: Mapping[str, Tensor], part: Part) -> Tensor | None:
    given = tuple(tensors[name] for name in part.inputs if name in tensors)
    tokens = next((each for each in given if each.dim() == 3), None)
    return None if tokens is None else (tokens == tokens[:1]).all(dim=2).all(dim=0)


def _in_words(anatomy: OnnxAnatomy, blocks: Blocks, *, named: bool) -> str:
    end, given = anatomy.end, anatomy.given
    return "; ".join(
        text
        for text in (
            blocks.text,
            "" if named else "found by the form of the graph, which names no modules",
            f"last layer {end.weight.shape[1]} to {end.weight.shape[0]}"
            + (f" ({end.text})" if end.text else "")
            + ("" if end.has_bias else ", which gets a bias of zero"),
            "images of one channel, the luma of colours" if given.channels == 1 else "",
            f"it takes {anatomy.batch} at a time" if anatomy.batch is not None else "",
            "it computes in float16" if given.kind == "float16" else "",
        )
        if text
    )
