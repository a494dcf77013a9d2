"""``ood export``: a run's classifier and detector as one ONNX file, compared with ood itself."""

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
from oodcli.screening.detector import BY_DEFAULT, Detector, detector_for
from oodcli.screening.onnx_graph import OUTPUTS, Input, Screening, annotate, as_onnx
from oodcli.screening.onnx_verification import Verification, verified
from oodcli.screening.thresholds import ThresholdRule
from oodcli.store.runs import Preprocess, utc_now
from oodcli.store.store import (
    Store,
    atomic_write,
    check_output_folder,
    digest_of_bytes,
    read_json,
    write_json,
)
from oodcli.version import __version__
from oodcli.workflows.recommend import detector_meant

EXPORT_SCHEMA = 1
KIND = "ood-export"
MODEL = "model.onnx"
DESCRIPTION = "model.json"

# A bank of training vectors may take this much; the whole file, what protocol buffers allow.
MAX_BANK_BYTES = 512 * 2**20
_MAX_BYTES = 2**31 - 2**20
_REAL_IMAGES = 256


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Parameters
    ----------
    method
        The method as written on the command line.
    output
        Folder for the files; made where its parent is there.
    run
        Name of the run; the finished one created last if None.
    rule
        How the threshold is set.
    input
        ``uint8`` for pixels from 0 to 255, ``float32`` for pixels from 0 to 1.
    input_size
        Height and width of the images; those of the network if None.
    overwrite
        Whether to replace files that are no export of ood.
    compute
        Where and how to fit the method.
    skip_unreadable
        Whether to leave out images of the run that cannot be decoded.
    """

    method: str
    output: Path
    run: str | None = None
    rule: ThresholdRule = BY_DEFAULT
    input: Input = "uint8"
    input_size: tuple[int, int] | None = None
    overwrite: bool = False
    compute: Compute = field(default_factory=Compute.of)
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written.

    Parameters
    ----------
    folder
        Where.
    description
        The content of ``model.json``.
    verification
        How it compares.
    """

    folder: Path
    description: Mapping[str, Any]
    verification: Verification

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {**self.description, "folder": str(self.folder)}


def export(store: Store, request: ExportRequest, *, progress: Progress = SILENT) -> Exported:
    """Write an ONNX file that screens images, after comparing it with ood on real ones.

    Parameters
    ----------
    store
        Where the run is.
    request
        What to export.
    progress
        Receives the progress of long work.

    Raises
    ------
    MissingArtifactError
        If the extra ``onnx`` is not installed, or the run or its data are not there.
    InvalidInputError
        If the method, the network or an option cannot be used, or the file gives other results.
        Nothing is written then.

    Notes
    -----
    The file is compared on 256 of the run's test images and 64 images of noise; resized to the
    input size where one is given. Logits, probabilities and scores may differ by 1e-4 of their
    standard deviation over these images.
    """
    onnx = _packages()
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
        return _exported(run, request, onnx, into=folder_out)


def _exported(
    run: OpenRun,
    request: ExportRequest,
    onnx: Any,  # noqa: ANN401 - a module
    *,
    into: Path,
) -> Exported:
    """Export the detector of a run that is open."""
    preprocess = run.record.preprocess
    size = request.input_size or preprocess.size
    matrices = _matrices(preprocess, size)
    detector = _on_cpu(run, request)
    network = detector.network()
    with run.progress.task("writing the graph", total=1, unit="files") as task:
        screening = Screening(network, detector, kind=request.input, matrices=matrices)
        model = as_onnx(screening, request.input, size, str(network.spec))
        task.advance(1)
    description = _described(detector, request.input, size, resizes=matrices is not None)
    annotate(onnx, model, description)
    if model.ByteSize() > _MAX_BYTES:
        raise InvalidInputError(
            f"the file would take {model.ByteSize() / 2**30:.1f} GiB, but an ONNX file is limited "
            "to 2 GiB; use a smaller network or a method without a bank of features"
        )
    content: bytes = model.SerializeToString()
    verification = verified(
        content, network, detector,
        kind=request.input, size=size, real=_real_images(run),
    )  # fmt: skip
    description["verification"] = asdict(verification)
    description["file"] = {
        "name": MODEL,
        "bytes": len(content),
        "digest": digest_of_bytes(content),
    }
    into.mkdir(exist_ok=True)
    with atomic_write(
        into / MODEL, size=len(content), cure="choose another folder: --output DIR"
    ) as stream:
        stream.write(content)
    write_json(into / DESCRIPTION, description, cure="choose another folder: --output DIR")
    return Exported(into, description, verification)


def _on_cpu(run: OpenRun, request: ExportRequest) -> Detector:
    """Return the detector, fitted where that was asked for, on the CPU.

    Raises
    ------
    InvalidInputError
        If its method cannot be written as a graph, or takes too much room.
    """
    detector = detector_meant(run, request.method, request.rule)
    if request.method == AUTO:
        check_traceable(parse_method(detector.method), what="an ONNX file")
    needed = bank_bytes(detector.fitted.detector)
    if needed > MAX_BANK_BYTES:
        raise InvalidInputError(
            f"the training vectors of {detector.method} take {needed / 2**20:,.0f} MiB, and a file "
            f"may hold {MAX_BANK_BYTES // 2**20} MiB of them; use a method without a bank of "
            "features, such as mds or vim"
        )
    cpu = torch.device("cpu")
    if run.compute.device == cpu:
        return detector
    # As it was stored, or fitted again.
    on_cpu = replace(run, compute=replace(run.compute, device=cpu))
    return detector_for(on_cpu, detector.method, request.rule)


def _real_images(run: OpenRun) -> NDArray[np.uint8]:
    """Return test images of the run, ``(n, 3, h, w)``, spread evenly over all of them."""
    test = run.test()
    return test.take(evenly_spaced(len(test), _REAL_IMAGES)).pixels()


def _packages() -> Any:  # noqa: ANN401 - a module
    """Return the module onnx, if all that is needed is installed.

    Raises
    ------
    MissingArtifactError
        If it is not.
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
    """Refuse, before long work, a folder that cannot take the files.

    Raises
    ------
    InvalidInputError
        If it is a file, its parent is not there, or it has such files of something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder} is a file; name a folder: --output DIR")
    if not folder.parent.is_dir():
        raise InvalidInputError(f"there is no folder {folder.parent}; create it first")
    check_output_folder(folder, option="--output")
    there = [name for name in (MODEL, DESCRIPTION) if (folder / name).exists()]
    if there and not overwrite and not _ours(folder):
        raise InvalidInputError(
            f"{folder / there[0]} was not exported by ood; choose another folder, or replace it: "
            "--overwrite"
        )


def _ours(folder: Path) -> bool:
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


def _described(
    detector: Detector, kind: Input, size: tuple[int, int], *, resizes: bool
) -> dict[str, Any]:
    """Return what ``model.json`` says, but for what is measured."""
    record = detector.record
    classes = len(record.class_names)
    shapes: dict[str, list[int | str]] = {name: ["batch"] for name in OUTPUTS}
    shapes["logits"] = ["batch", classes]
    types = {"class": "int64", "verdict": "int64"}
    versions = {name: _version_of(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    return {
        "kind": KIND,
        "schema": EXPORT_SCHEMA,
        "created": utc_now(),
        "versions": {"ood": __version__, **versions},
        "run": detector.folder.name,
        "arch": record.arch,
        "network": record.network,
        "data": record.data_name,
        "method": detector.method,
        "params": dict(detector.fitted.params),
        "threshold": {**asdict(detector.threshold), "id_part": detector.id.part},
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
                "shape": ["batch", 3, *size],
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
            for name, meaning in OUTPUTS.items()
        ],
    }


def _version_of(name: str) -> str:
    return str(importlib.import_module(name).__version__)
