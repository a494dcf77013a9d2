"""Programs of ``torch.export`` and of TorchScript, written as ONNX graphs.

``torch.export.load`` runs what a file holds: pickled weights, compiled libraries, and expressions
of sizes, which SymPy evaluates as Python. So a file is not given to it, but a copy of which every
text has been looked at, with weights as plain bytes and operators of torch alone.
``torch.jit.load`` reads pickles without Python and interprets code of TorchScript, which can open
files only by operators that are looked for.
"""

import contextlib
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodcli.errors import InvalidInputError
from oodcli.files import check_file, reason_of
from oodcli.models.discovery import noise
from oodcli.models.onnx_files import checked, onnx_package
from oodcli.models.outputs import luma
from oodcli.text import printable

_OPSET = 18
_EXPORT_AGAIN = "write it as an ONNX file with your own code (torch.onnx.export), and import that"
# A text that no reader could take for code; in an expression of sizes also its usual signs.
_PLAIN = re.compile(r"[\w.+\- ]*", re.ASCII)
_MODULES = re.compile(r"[\w.,;@()\[\]' \-]*", re.ASCII)
_SIZES = re.compile(r"[\w.\- (),=+*/<>']*", re.ASCII)
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_IN_SIZES = frozenset({
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq", "Ne",
    "Ge", "Gt", "Le", "Lt", "Equality", "Unequality", "GreaterThan", "LessThan",
    "StrictGreaterThan", "StrictLessThan", "FloorDiv", "CleanDiv", "CeilDiv", "PythonMod",
    "ModularIndexing", "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "positive", "nonnegative",
    "negative", "integer", "True", "False", "evaluate", "precision",
})  # fmt: skip
_SYMBOL = re.compile(r"[su]\d+", re.ASCII)
_OPERATORS = ("torch.ops.aten.", "_operator.", "math.")
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_MEMBERS = re.compile(
    r"[^/]+/(models/[^/]+\.json|data/(weights|constants|sample_inputs)/[^/]+|\.data/[^/]+"
    r"|archive_format|archive_version|byteorder|version|extra/.*)"
)
# What TorchScript can open files with, and operators that torch itself does not have.
_FILES_IN_SCRIPT = re.compile(
    r"\btorch\.(save|from_file)\(|\bops\.(?!aten\b|prim\b|prims\b)\w+", re.ASCII
)
_MAX_UNPACKED = 1 << 26


def read_exported(path: Path) -> tuple[Any, int | None]:
    """Read a program of ``torch.export``, without running code that it may hold.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    model
        The same as an ONNX model, a ModelProto.
    side
        Height and width of the images that it takes, in pixels; None where that is open.

    Raises
    ------
    InvalidInputError
        If it is damaged, holds more than a program and its weights, or cannot be written so.
    MissingArtifactError
        If the extra ``onnx`` is not installed.
    """
    onnx_package("onnxscript")
    content = _looked_through(path)
    with _quiet(), _turning(path, "is no program that this torch can read"):
        program = torch.export.load(io.BytesIO(content))
    given = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(given) != 1 or not isinstance(given[0], Tensor) or given[0].dim() != 4:
        raise InvalidInputError(
            f"{path} takes {len(given)} inputs, not images (n, 3, h, w) alone; export a network"
        )
    sides = given[0].shape[2:]
    side = int(sides[0]) if all(isinstance(each, int) for each in sides) else None
    with _quiet(), _turning(path, "cannot be written as an ONNX graph"):
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None  # it is None with other options
        model = made.model_proto
    return checked(model, path.name), side


def script_graph(path: Path, side: int) -> Any:  # noqa: ANN401 - a ModelProto
    """Read a TorchScript file, and write it as an ONNX model for images of a size.

    Parameters
    ----------
    path
        The file.
    side
        Height and width of the images, in pixels.

    Raises
    ------
    InvalidInputError
        If it is damaged, opens files, takes no such images, or cannot be written so.
    MissingArtifactError
        If the extra ``onnx`` is not installed.
    """
    onnx_package()
    check_script(path)
    with _quiet(), _turning(path, "is no TorchScript that this torch can read"):
        module = torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu")
        module.eval()
    with _quiet(), torch.no_grad():
        with _turning(path, f"takes no images of {side} x {side} pixels"):
            images = _taken(module, noise(side))
        with _turning(path, "cannot be written as an ONNX graph"):
            return checked(_written(module, images), path.name)


def _taken(module: Any, images: Tensor) -> Tensor:  # noqa: ANN401 - a ScriptModule
    """Return images of three channels, or else of one, as a network takes them."""
    try:
        module(images)
    except Exception as error:  # noqa: BLE001 - the code of others raises anything
        grey = luma(images)
        try:
            module(grey)
        except Exception:  # noqa: BLE001 - the first reason is the likelier one
            raise error from None
        return grey
    return images


def _written(module: Any, images: Tensor) -> Any:  # noqa: ANN401 - a ModelProto
    stream = io.BytesIO()
    # The exporter that follows torch.export takes no TorchScript.
    torch.onnx.export(
        module,
        (images,),
        stream,  # type: ignore[arg-type]
        dynamo=False,
        opset_version=_OPSET,
        input_names=["images"],
        dynamic_axes={"images": {0: "batch"}},
    )
    return onnx_package().load_model_from_string(stream.getvalue())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let torch announce nothing: what it deprecates, and what it would rather have been given."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _turning(path: Path, what: str) -> Iterator[None]:
    """Turn whatever torch raises into one line."""
    try:
        yield
    except InvalidInputError:
        raise
    except Exception as error:  # noqa: BLE001 - torch and its C++ code raise anything
        cause = error.__cause__ or error
        reason = printable(str(cause).strip().partition("\n")[0][:200]) or type(cause).__name__
        raise InvalidInputError(f"{path} {what} ({reason}); {_EXPORT_AGAIN}") from None


def _members(path: Path) -> zipfile.ZipFile:
    """Open the archive that a program is, and refuse one that unpacks to far more than it is."""
    check_file(path, "name the file of a network")
    try:
        archive = zipfile.ZipFile(path)
        unpacked = sum(each.file_size for each in archive.infolist())
    except Exception as error:  # noqa: BLE001 - a malformed archive makes its reader raise anything
        raise InvalidInputError(f"{path} is damaged: {reason_of(error)}; get it again") from None
    if unpacked > 4 * path.stat().st_size + _MAX_UNPACKED:
        archive.close()
        raise InvalidInputError(
            f"{path} is not read: its {path.stat().st_size:,} bytes would unpack to {unpacked:,}"
        )
    return archive


def check_script(path: Path) -> None:
    """Refuse TorchScript that could open files.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InvalidInputError
        If it could, or is damaged.
    """
    with _members(path) as archive, _turning(path, "is damaged"):
        for name in archive.namelist():
            if name.endswith(".py"):
                found = _FILES_IN_SCRIPT.search(archive.read(name).decode("utf-8", "replace"))
                if found:
                    raise InvalidInputError(
                        f"{path} is not run: it calls {printable(found[0].rstrip('('))}, which "
                        f"opens files or is no operator of torch's own; {_EXPORT_AGAIN}"
                    )


def _looked_through(path: Path) -> bytes:
    """Return a copy of an exported program that holds nothing but a graph and plain weights.

    Raises
    ------
    InvalidInputError
        If there is more in it, or it was written before torch 2.8.
    """
    made = io.BytesIO()
    with (
        _members(path) as archive,
        zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as copy,
        _turning(path, "is damaged"),
    ):
        names = archive.namelist()
        if any(name.endswith("serialized_exported_program.json") for name in names):
            raise InvalidInputError(
                f"{path} was saved before torch 2.8, with pickled weights; save it again with a "
                f"newer torch, or {_EXPORT_AGAIN}"
            )
        for name in names:
            if not _MEMBERS.fullmatch(name):
                raise _held(path, printable(name))
            content = archive.read(name)
            place = name.partition("/")[2]
            if place.startswith("models/"):
                content = json.dumps(_looked_at(path, json.loads(content))).encode()
            elif place.endswith("_config.json"):
                _check_plain(path, json.loads(content))
            elif place.startswith("data/sample_inputs/"):
                # What it reads with this, it does not read without.
                torch.load(io.BytesIO(content), weights_only=True)
            copy.writestr(name, content)
    return made.getvalue()


def _held(path: Path, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is not read: beside a graph of torch's operators and its weights it holds {what}, "
        f"which may be code; {_EXPORT_AGAIN}"
    )


def _check_plain(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are pickled, and constants that are objects."""
    for name, each in config["config"].items():
        if each.get("use_pickle") or not re.fullmatch(
            r"(weight|tensor)_\d+(_[a-z]+)?", each["path_name"], re.ASCII
        ):
            raise _held(path, f"{printable(name)} as a pickled object")


def _looked_at(path: Path, program: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a program without what is for people and for guards."""
    program["guards_code"] = []
    return {key: _value(path, key, value) for key, value in program.items()}


def _value(path: Path, key: str, value: Any) -> Any:  # noqa: ANN401 - of JSON
    """Return a value of JSON whose texts have been looked at."""
    if isinstance(value, dict):
        if key == "metadata":
            modules = value.get("nn_module_stack", "")
            return {"nn_module_stack": modules} if modules and _MODULES.fullmatch(modules) else {}
        return {_text(path, "", inner): _value(path, inner, each) for inner, each in value.items()}
    if isinstance(value, list):
        return [_value(path, key, each) for each in value]
    return _text(path, key, value) if isinstance(value, str) else value


def _text(path: Path, key: str, text: str) -> str:
    """Return a text that no reader could take for code.

    Raises
    ------
    InvalidInputError
        If it is another.
    """
    if key in ("in_spec", "out_spec"):
        _check_tree(path, json.loads(text))
    elif key == "expr_str":
        words = _WORD.findall(text)
        if not _SIZES.fullmatch(text) or not all(
            word in _IN_SIZES or _SYMBOL.fullmatch(word) for word in words
        ):
            raise _held(path, f"the size {printable(text[:60])!r}")
    elif not _PLAIN.fullmatch(text) or (key == "target" and not text.startswith(_OPERATORS)):
        raise _held(path, printable(text[:60]))
    return text


def _check_tree(path: Path, spec: Any) -> None:  # noqa: ANN401 - of JSON
    """Refuse inputs and outputs of other kinds than tuples, lists and dictionaries."""
    for each in spec if isinstance(spec, list) else [spec]:
        if isinstance(each, dict):
            if each.get("type") not in _TREES:
                raise _held(path, f"objects of {printable(str(each.get('type')))}")
            _check_tree(path, each.get("children_spec", []))
