"""``ood export``: a run's classifier and detector as one ONNX file, verified against ood."""

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oodcli.compute.compute import Compute
from oodcli.data.decoding.bilinear import Matrices, resizing_matrices
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.files import expanded
from oodcli.images import evenly_spaced
from oodcli.methods import parse_method
from oodcli.methods._traced import bank_bytes, check_traceable
from oodcli.methods.ensemble import AUTO
from oodcli.progress import SILENT, Progress
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.detector import Detector, detector_for
from oodcli.screening.onnx_engine import (
    DESCRIPTION,
    EXPORT_SCHEMA,
    KIND,
    MODEL,
    described_scores,
)
from oodcli.screening.onnx_graph import (
    Input,
    Screening,
    annotate,
    batch_of,
    export_onnx,
    outputs_of,
)
from oodcli.screening.onnx_verification import Verification, verify
from oodcli.screening.packing import Graph
from oodcli.screening.thresholds import DEFAULT_RULE, ThresholdRule
from oodcli.store.preprocess import Preprocess
from oodcli.store.runs import utc_now
from oodcli.store.store import (
    Store,
    atomic_write,
    check_output_folder,
    digest_of_bytes,
    read_json,
    write_json,
)
from oodcli.version import __version__
from oodcli.workflows.recommend import resolve_detector

# Maximum size of a bank of training features, and of the file (the limit of protocol buffers).
MAX_BANK_BYTES = 512 * 2**20
_MAX_BYTES = 2**31 - 2**20
_REAL_IMAGES = 256


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Parameters
    ----------
    method
        The method, as on the command line.
    output
        Folder for the files; created if its parent exists.
    run
        Name of the run; the default run if None.
    rule
        Rule for the threshold.
    input
        ``uint8`` for pixels from 0 to 255, ``float32`` for pixels from 0 to 1.
    input_size
        Height and width of the input images; those of the network if None.
    overwrite
        Whether to replace files that are not an export of ood.
    compute
        Device, precision and batch size for fitting the method.
    skip_unreadable
        Whether to skip images of the run that cannot be decoded.
    """

    method: str
    output: Path
    run: str | None = None
    rule: ThresholdRule = DEFAULT_RULE
    input: Input = "uint8"
    input_size: tuple[int, int] | None = None
    overwrite: bool = False
    compute: Compute = field(default_factory=Compute.of)
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Parameters
    ----------
    folder
        Folder of the files.
    description
        The content of ``model.json``.
    verification
        Differences between the outputs of the file and of ood.
    """

    folder: Path
    description: Mapping[str, Any]
    verification: Verification

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {**self.description, "folder": str(self.folder)}


def export(store: Store, request: ExportRequest, *, progress: Progress = SILENT) -> Exported:
    """Write an ONNX file that screens images, after verifying it against ood on real images.

    Parameters
    ----------
    store
        The store that contains the run.
    request
        What to export.
    progress
        Receives the progress of long work.

    Raises
    ------
    MissingArtifactError
        If the extra ``onnx`` is not installed, or the run or its data do not exist.
    InvalidInputError
        If the method, the network or an option cannot be used, or the results of the file differ.
        Then nothing is written.

    Notes
    -----
    The file is verified on 256 test images of the run and 64 images of noise, resized to the input
    size if one is given. Logits, probabilities and scores may differ by 1e-4 of their standard
    deviation over these images.
    """
    _import_onnx()
    if request.method != AUTO:
        check_traceable(parse_method(request.method), what="an ONNX file")
    folder_out = expanded(request.output).resolve()
    _check_output(folder_out, overwrite=request.overwrite)
    with OpenRun.open(
        store,
        request.run,
        request.compute,
        skip_unreadable=request.skip_unreadable,
        progress=progress,
    ) as run:
        return _exported(run, request, into=folder_out)


def _exported(run: OpenRun, request: ExportRequest, *, into: Path) -> Exported:
    """Export the detector of an open run."""
    _matrices(run.record.preprocess, request.input_size or run.record.preprocess.size)
    detector = resolve_detector(run, request.method, request.rule)
    graph, verification = graph_of(run, detector, kind=request.input, size=request.input_size)
    into.mkdir(exist_ok=True)
    write_graph(graph, into, cure="choose another folder: --output DIR")
    return Exported(into, graph.description, verification)


def write_graph(graph: Graph, folder: Path, *, cure: str) -> None:
    """Write the graph and its description into a folder.

    Parameters
    ----------
    graph
        The graph.
    folder
        The folder.
    cure
        What the user can do if the disk is full.
    """
    content = graph.content
    with atomic_write(folder / MODEL, size=len(content), cure=cure) as stream:
        stream.write(content)
    write_json(folder / DESCRIPTION, graph.description, cure=cure)


def graph_of(
    run: OpenRun,
    detector: Detector,
    *,
    kind: Input = "uint8",
    size: tuple[int, int] | None = None,
) -> tuple[Graph, Verification]:
    """Return network and method as an ONNX graph, verified on images of the run.

    Parameters
    ----------
    run
        The run.
    detector
        Its detector.
    kind, size
        Data type of the pixels, and height and width of the images; those of the network if None.

    Raises
    ------
    MissingArtifactError
        If the extra ``onnx`` is not installed.
    InvalidInputError
        If the method or the network cannot be written as a graph, or its results differ.
    """
    onnx = _import_onnx()
    check_traceable(parse_method(detector.method), what="an ONNX file")
    preprocess = run.record.preprocess
    size = size or preprocess.size
    matrices = _matrices(preprocess, size)
    detector = _on_cpu(run, detector)
    network = detector.network()
    with run.progress.task("writing the graph", total=1, unit="files") as task:
        screening = Screening(network, detector, kind=kind, matrices=matrices)
        model = export_onnx(screening, kind, size, str(network.spec))
        task.advance(1)
    description = _description(
        detector, kind, size, batch=batch_of(network), resizes=matrices is not None
    )
    annotate(onnx, model, description)
    if model.ByteSize() > _MAX_BYTES:
        raise InvalidInputError(
            f"the file would take {model.ByteSize() / 2**30:.1f} GiB, but an ONNX file is limited "
            "to 2 GiB; use a smaller network or a method without a bank of features"
        )
    content: bytes = model.SerializeToString()
    verification = verify(
        content, network, detector,
        kind=kind, size=size, real=_real_images(run),
    )  # fmt: skip
    description["verification"] = asdict(verification)
    description["file"] = {
        "name": MODEL,
        "bytes": len(content),
        "digest": digest_of_bytes(content),
    }
    return Graph(content, description), verification


def _on_cpu(run: OpenRun, detector: Detector) -> Detector:
    """Return the same detector on the CPU.

    Raises
    ------
    InvalidInputError
        If its bank of features is too large.
    """
    needed = bank_bytes(detector.fitted.detector)
    if needed > MAX_BANK_BYTES:
        raise InvalidInputError(
            f"the training features of {detector.method} take {needed / 2**20:,.0f} MiB, and a "
            f"file may contain {MAX_BANK_BYTES // 2**20} MiB of them; use a method without a bank "
            "of features, such as mds or vim"
        )
    cpu = torch.device("cpu")
    if run.compute.device == cpu:
        return detector
    # Loads the stored detector, or fits it again.
    cpu_run = replace(run, compute=replace(run.compute, device=cpu))
    return replace(detector_for(cpu_run, detector.method), threshold=detector.threshold)


def _real_images(run: OpenRun) -> NDArray[np.uint8]:
    """Return evenly spaced test images of the run, uint8 ``(n, 3, h, w)``."""
    test = run.test()
    return test.take(evenly_spaced(len(test), _REAL_IMAGES)).pixels()


def _import_onnx() -> Any:  # noqa: ANN401 - a module
    """Return the module ``onnx`` after checking that all packages of the extra are installed.

    Raises
    ------
    MissingArtifactError
        If one is not installed.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingArtifactError(
                f'ood export needs {name}, which is not installed; pip install "oodcli[onnx]"'
            ) from None
    return importlib.import_module("onnx")


def _check_output(folder: Path, *, overwrite: bool) -> None:
    """Check, before long work, that the output folder can be written.

    Raises
    ------
    InvalidInputError
        If the path is a file, its parent does not exist, or the folder has files of these names
        that ood has not exported.
    """
    check_output_folder(folder, option="--output")
    existing = [name for name in (MODEL, DESCRIPTION) if (folder / name).exists()]
    if existing and not overwrite and not _is_export(folder):
        raise InvalidInputError(
            f"{folder / existing[0]} was not exported by ood; choose another folder, or replace "
            "it: --overwrite"
        )


def _is_export(folder: Path) -> bool:
    try:
        return read_json(folder / DESCRIPTION).get("kind") == KIND
    except (OSError, CorruptArtifactError):
        return False


def _matrices(preprocess: Preprocess, size: tuple[int, int]) -> Matrices | None:
    resizing = Resizing(preprocess.size, preprocess.resize)
    if min(size) < 1 or max(size) > 16384:
        raise InvalidInputError(f"--input-size must be 1 to 16384 pixels, not {size[0]}x{size[1]}")
    if size == preprocess.size and resizing.plan(size) == (size, (0, 0)):
        return None
    return resizing_matrices(resizing, size)


def _description(
    detector: Detector,
    kind: Input,
    size: tuple[int, int],
    *,
    batch: int | None,
    resizes: bool,
) -> dict[str, Any]:
    """Return the content of ``model.json``, without the results of the verification."""
    record = detector.record
    outputs = outputs_of(record)
    rows = batch or "batch"
    shapes: dict[str, list[int | str]] = {name: [rows] for name in outputs}
    shapes["logits"] = [rows, record.outputs]
    types = {"class": "int64", "verdict": "int64"}
    versions = {name: _version_of(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    return {
        "kind": KIND,
        "schema": EXPORT_SCHEMA,
        "created": utc_now(),
        "versions": {"ood": __version__, **versions},
        "run": detector.about.run,
        "arch": record.arch,
        "network": record.network,
        "data": record.data_name,
        "method": detector.method,
        "params": dict(detector.fitted.params),
        "fitted": detector.about.created,
        "threshold": {**detector.threshold.to_json(), "id_part": detector.id.part},
        "id": described_scores(detector.id),
        "classes": list(record.class_names),
        "blocks": list(record.blocks),
        "preprocess": {
            **record.preprocess.to_json(),
            "inside": True,
            "resizes": resizes,
        },
        "inputs": [
            {
                "name": "images",
                "type": kind,
                "shape": [rows, 3, *size],
                "meaning": f"RGB, from 0 to {'255' if kind == 'uint8' else '1'}",
            }
        ],
        "outputs": [
            {
                "name": name,
                "type": types.get(name, "float32"),
                "shape": shapes[name],
                "meaning": meaning,
            }
            for name, meaning in outputs.items()
        ],
    }


def _version_of(name: str) -> str:
    return str(importlib.import_module(name).__version__)
