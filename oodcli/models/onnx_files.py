"""ONNX files as they lie about, read whole and checked before anything in them is used.

What comes out is one model without functions, without data beside it and without loops, whose
nodes stand in the order in which they can run. ONNX Runtime gets it as bytes, so that no path that
a file names is ever opened but by :func:`read_onnx`.
"""

import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from oodcli.errors import InvalidInputError, MissingArtifactError
from oodcli.files import check_file, reason_of
from oodcli.text import printable

# What protocol buffers allow for one message.
MAX_BYTES = 2**31 - 2**20
# Operators of these domains come with ONNX Runtime.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_LOOPS = ("Loop", "Scan", "SequenceMap")
_AGAIN = "export it again"
# The oldest set of operators that is read: exporters have written it since 2019.
_LEAST_OPSET = 9
_SHOWN = 3


def onnx_package(name: str = "onnx") -> Any:  # noqa: ANN401 - a module
    """Return a module of the extra ``onnx``.

    Raises
    ------
    MissingArtifactError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingArtifactError(
            f"networks in ONNX files need {name}, which is not installed; "
            'pip install "oodcli[onnx]"'
        ) from None


def read_onnx(path: Path) -> Any:  # noqa: ANN401 - a ModelProto
    """Read an ONNX file with the data that lie beside it.

    Parameters
    ----------
    path
        The file. Files of data that it names must lie in its folder, or below.

    Returns
    -------
    ModelProto
        With all data inside, and its functions written out.

    Raises
    ------
    InvalidInputError
        If the file, or a file of data, is damaged, too large or not there; if data would come from
        outside of the folder; or if the graph is none that can be followed (a cycle, a loop,
        operators that ONNX Runtime has not).
    MissingArtifactError
        If the extra ``onnx`` is not installed.
    """
    onnx = onnx_package()
    check_file(path, "name an ONNX file")
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInputError(
            f"{path} has more than 2 GiB, which no ONNX file may have; {_AGAIN}"
        )
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {reason_of(error)}") from None
    except Exception:  # noqa: BLE001 - its reader has errors of its own for what is no message
        raise InvalidInputError(
            f"{path} is no ONNX file, or only a part of one; get it again, or {_AGAIN}"
        ) from None
    _read_data(model, path)
    return checked(model, str(path))


def checked(model: Any, where: str) -> Any:  # noqa: ANN401 - a ModelProto
    """Return a model whose functions are written out, and refuse one that cannot be followed.

    Parameters
    ----------
    model
        With all data inside.
    where
        What it is called in messages.

    Raises
    ------
    InvalidInputError
        As for :func:`read_onnx`.
    """
    onnx = onnx_package()
    _check_versions(model, where)
    if model.functions:
        try:
            model = onnx_package("onnx.inliner").inline_local_functions(model)
        except Exception as error:  # noqa: BLE001 - of its C++ code
            raise InvalidInputError(
                f"the functions of {where} cannot be written out ({_line(error)}); {_AGAIN}"
            ) from None
    _check_operators(model, where)
    _check_order(model, where)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # noqa: BLE001 - its kinds of errors differ between versions
        raise InvalidInputError(f"{where} is damaged: {_line(error)}; {_AGAIN}") from None
    return model


def _line(error: Exception) -> str:
    return printable(reason_of(error)[:200])


def _check_versions(model: Any, where: str) -> None:  # noqa: ANN401 - a ModelProto
    if not model.graph.node:
        raise InvalidInputError(f"{where} has a graph without nodes; {_AGAIN}")
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if version < _LEAST_OPSET:
        raise InvalidInputError(
            f"{where} uses version {version} of ONNX's operators, and {_LEAST_OPSET} is the oldest "
            f"that is read; {_AGAIN} with a newer one"
        )


def graphs(graph: Any) -> Iterator[Any]:  # noqa: ANN401 - GraphProtos
    """Yield a graph and the graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from graphs(inner)


def _check_operators(model: Any, where: str) -> None:  # noqa: ANN401 - a ModelProto
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    unknown = [f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in _DOMAINS]
    unknown = [printable(name) for name in dict.fromkeys(unknown)]
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise InvalidInputError(
            f"{where} needs operators that ONNX Runtime does not have: "
            f"{', '.join(unknown[:_SHOWN])}{more}; export it with standard operators"
        )
    loops = [node.op_type for node in nodes if node.op_type in _LOOPS]
    if loops:
        raise InvalidInputError(
            f"{where} has a loop ({loops[0]}), through which images cannot be followed; export it "
            "without"
        )


def inputs_of(node: Any) -> Iterator[str]:  # noqa: ANN401 - a NodeProto
    """Yield the names of the values that a node reads, those inside its graphs among them."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {each.name for each in (*inner.input, *inner.initializer)}
            for each in inner.node:
                yield from (name for name in inputs_of(each) if name not in own)
                own.update(each.output)
            yield from (each.name for each in inner.output if each.name not in own)


def _check_order(model: Any, where: str) -> None:  # noqa: ANN401 - a ModelProto
    """Refuse a graph in which a value is read before it is made: a cycle, or a missing one."""
    graph = model.graph
    if graph.sparse_initializer:
        raise InvalidInputError(f"{where} has sparse weights, which are not read; {_AGAIN}")
    known = {each.name for each in (*graph.input, *graph.initializer)}
    made = [name for node in graph.node for name in node.output if name]
    twice = {name for name, times in Counter(made).items() if times > 1}
    for node in graph.node:
        lacking = next((name for name in inputs_of(node) if name not in known), None)
        if lacking is not None or twice & set(node.output):
            what = "is made twice" if lacking is None else (
                "is made of itself (a cycle)" if lacking in made else "is never made"
            )  # fmt: skip
            name = lacking or next(iter(twice & set(node.output)))
            raise InvalidInputError(
                f"{where} is damaged: in its graph {printable(name)!r} {what}; {_AGAIN}"
            )
        known.update(node.output)


def _tensors(model: Any) -> Iterator[Any]:  # noqa: ANN401 - TensorProtos
    """Yield all tensors of a model, wherever they stand."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for each in graph.sparse_initializer:
            yield from (each.values, each.indices)
        yield from (tensor for node in graph.node for tensor in _of_node(node))
    for function in model.functions:
        yield from (tensor for node in function.node for tensor in _of_node(node))


def _of_node(node: Any) -> Iterator[Any]:  # noqa: ANN401 - TensorProtos
    for attribute in node.attribute:
        yield from attribute.tensors
        if attribute.HasField("t"):
            yield attribute.t


def _read_data(model: Any, path: Path) -> None:  # noqa: ANN401 - a ModelProto
    """Bring data that lie beside a file into the model."""
    onnx = onnx_package()
    outside = onnx.TensorProto.EXTERNAL
    total = model.ByteSize()
    for tensor in _tensors(model):
        if tensor.data_location != outside:
            continue
        told = {each.key: each.value for each in tensor.external_data}
        file = _beside(path, told.get("location", ""))
        start, length = _range(file, told, path)
        total += length
        if total > MAX_BYTES:
            raise InvalidInputError(
                f"{path} and its data have more than 2 GiB, and so much does not fit into one "
                "graph; use a smaller network"
            )
        with file.open("rb") as stream:
            stream.seek(start)
            tensor.raw_data = stream.read(length)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT


def _beside(path: Path, location: str) -> Path:
    """Return a file of data by the name that a model has for it.

    Raises
    ------
    InvalidInputError
        If it is not in the folder of the model, also by a link, or not there.
    """
    folder = path.parent.resolve()
    file = folder / location
    foreign = PureWindowsPath(location)
    leads_out = (
        not location or "\0" in location or foreign.is_absolute() or bool(foreign.drive)
        or ".." in foreign.parts or not file.resolve().is_relative_to(folder)
    )  # fmt: skip
    if leads_out:
        raise InvalidInputError(
            f"{path} names data outside of its folder ({printable(location)!r}), which are not "
            "read; put the files of data beside it"
        )
    check_file(file, f"{path} has its data there: put it beside it")
    return file


def _range(file: Path, told: dict[str, str], path: Path) -> tuple[int, int]:
    """Return where data begin in their file, and how many bytes they are."""
    size = file.stat().st_size
    texts = (told.get("offset", "0"), told.get("length", ""))
    if all(text.isascii() and (text.isdigit() or not text) for text in texts):
        start = int(texts[0] or 0)
        length = int(texts[1]) if texts[1] else size - start
        if 0 <= start <= start + length <= size:
            return start, length
    raise InvalidInputError(
        f"{file} has {size:,} bytes, fewer than {path.name} wants of it; get both files again"
    )
