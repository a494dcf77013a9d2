"""A run's classifier and detector as one ONNX file, checked against what ood itself computes."""

import importlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oodcli import __version__
from oodcli.activations import Activations
from oodcli.data.bilinear import Matrices, resizing_matrices
from oodcli.data.prepare import Resizing
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.files import expanded
from oodcli.images import evenly_spaced
from oodcli.methods import parse_method
from oodcli.methods.ensemble import AUTO
from oodcli.methods.traced import TracedBatch, bank_bytes, check_traceable, traced
from oodcli.models import Network
from oodcli.models.extraction import extract
from oodcli.models.graph import ActivationsOf
from oodcli.progress import Progress, Silent
from oodcli.runs import Preprocess, RunFolder, now, using_run
from oodcli.store import (
    Store,
    check_folder_of_user,
    digest_of_bytes,
    read_json,
    replacing,
    write_json,
)
from oodcli.workflows.activate import Activator
from oodcli.workflows.detectors import Detector, Threshold, check_threshold, detector_for
from oodcli.workflows.devices import find_device
from oodcli.workflows.own_images import OwnImages
from oodcli.workflows.run_data import RunData

EXPORT_SCHEMA = 1
KIND = "ood-export"
MODEL = "model.onnx"
DESCRIPTION = "model.json"
Input = Literal["uint8", "float32"]

# A bank of training vectors may take this much; the whole file, what protocol buffers allow.
MOST_BANK_BYTES = 512 * 2**20
_MOST_BYTES = 2**31 - 2**20
# Largest difference that is accepted, as a share of the spread of what is compared.
TOLERANCE = 1e-4
# Roundings of float32, at the largest value, that are accepted however little an output varies.
ROUNDINGS = 16
_REAL_IMAGES = 256
_NOISE_IMAGES = 64
_BATCH = 64

_OUTPUTS: Mapping[str, str] = {
    "logits": "logits that are scored",
    "class": "index of the predicted class",
    "probability": "softmax of that class",
    "score": "higher: more in-distribution",
    "verdict": "1: OOD, score < threshold",
}


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
    tpr
        Share of ID images that the threshold lets pass; 0.95 if None.
    threshold
        The threshold itself, instead.
    input
        ``uint8`` for pixels from 0 to 255, ``float32`` for pixels from 0 to 1.
    input_size
        Height and width of the images; those of the network if None.
    overwrite
        Whether to replace files that are no export of ood.
    device
        Where to fit the method.
    skip_unreadable
        Whether to leave out images of the run that cannot be decoded.
    """

    method: str
    output: Path
    run: str | None = None
    tpr: float | None = None
    threshold: float | None = None
    input: Input = "uint8"
    input_size: tuple[int, int] | None = None
    overwrite: bool = False
    device: str = "auto"
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Difference:
    """How far an output of the file is from what ood computes.

    Parameters
    ----------
    largest
        Largest difference.
    relative
        The same as a share of the standard deviation of the output over all compared images, or
        of a floor where the output hardly varies.
    """

    largest: float
    relative: float


@dataclass(frozen=True)
class Verification:
    """What came out of the comparison in ONNX Runtime.

    Parameters
    ----------
    real, noise
        Number of test images of the run, and of images of noise.
    tolerance
        The most that a relative difference may be.
    logits, probability, score
        The differences.
    other_classes, other_verdicts
        Images that got another class or verdict, though logits or scores agree: ties.
    """

    real: int
    noise: int
    tolerance: float
    logits: Difference
    probability: Difference
    score: Difference
    other_classes: int
    other_verdicts: int


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


class _Screening(nn.Module):
    """Images in, verdicts out: what the file holds."""

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        network: Network,
        detector: Detector,
        threshold: float,
        *,
        kind: Input,
        matrices: Matrices | None,
    ) -> None:
        super().__init__()
        pre = detector.record.preprocess
        self.activations = ActivationsOf(network)
        self._score = traced(detector.fitted.detector)
        self._threshold = threshold
        self._kind = kind
        self._matrices = matrices
        self.register_buffer("mean", torch.tensor(pre.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(pre.std).view(3, 1, 1))
        if matrices is not None:
            self.register_buffer("rows", torch.from_numpy(matrices.rows))
            self.register_buffer("columns", torch.from_numpy(matrices.columns))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return all outputs for images ``(n, 3, h, w)``."""
        values = self._scaled(images)
        logits, features, norms, predictions = self.activations((values - self.mean) / self.std)
        score = self._score(TracedBatch(logits, features, norms, predictions))
        least = self._threshold
        if score.dtype == torch.float32:
            least = _not_below(least)
        verdict = (~(score >= least)).to(torch.int64)
        chances = logits.softmax(dim=1).gather(1, predictions[:, None])[:, 0]
        return logits, predictions, chances, score.float(), verdict

    def _scaled(self, images: Tensor) -> Tensor:
        """Return pixels from 0 to 1 at the size of the network."""
        if self._matrices is None:
            return images if self._kind == "float32" else images.float() / 255
        pixels = images.double()
        if self._kind == "float32":
            pixels = (pixels * 255).round()
        if self._matrices.columns_first:
            between = (pixels @ self.columns.T + 0.5).floor()
            done = self.rows @ between
        else:
            between = (self.rows @ pixels + 0.5).floor()
            done = between @ self.columns.T
        return (done + 0.5).floor().float() / 255


def _not_below(value: float) -> float:
    """Return the least float32 that is not below a number, so that comparisons come out alike."""
    near = np.float32(value)
    # As Python's numbers: NumPy would round the other one to float32 first.
    return float(near if float(near) >= value else np.nextafter(near, np.float32(np.inf)))


def export(store: Store, request: ExportRequest, *, progress: Progress | None = None) -> Exported:
    """Write an ONNX file that screens images, after comparing it with ood on real ones.

    Parameters
    ----------
    store
        Where the run is.
    request
        What to export.
    progress
        Told of long work.

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
    watch = progress or Silent()
    onnx = _packages()
    if request.method != AUTO:
        check_traceable(parse_method(request.method), what="an ONNX file")
    folder_out = expanded(request.output).resolve()
    _check_output(folder_out, overwrite=request.overwrite)
    check_threshold(request.tpr, request.threshold)
    with using_run(store, request.run, progress=watch) as folder:
        return _exported(store, folder, request, onnx, into=folder_out, watch=watch)


def _exported(
    store: Store,
    folder: RunFolder,
    request: ExportRequest,
    onnx: Any,  # noqa: ANN401 - a module
    *,
    into: Path,
    watch: Progress,
) -> Exported:
    """Export the detector of a run that is open."""
    record = folder.read()
    size = request.input_size or record.preprocess.size
    matrices = _matrices(record.preprocess, size)
    device = find_device(request.device)
    detector = detector_for(
        store, folder, request.method,
        device=device, skip_unreadable=request.skip_unreadable, progress=watch,
    )  # fmt: skip
    if request.method == AUTO:
        check_traceable(parse_method(detector.method), what="an ONNX file")
    needed = bank_bytes(detector.fitted.detector)
    if needed > MOST_BANK_BYTES:
        raise InvalidInputError(
            f"the training vectors of {detector.method} take {needed / 2**20:,.0f} MiB, and a file "
            f"may hold {MOST_BANK_BYTES // 2**20} MiB of them; take a method without a bank, "
            "such as mds or vim"
        )
    cpu = torch.device("cpu")
    if device != cpu:
        detector = _moved(store, detector, folder, watch)
    threshold = detector.chosen(request.tpr, request.threshold)
    network = detector.network(folder)
    with watch.task("writing the graph", total=1, unit="files") as task:
        model = _recorded(
            _Screening(network, detector, threshold.value, kind=request.input, matrices=matrices),
            request.input,
            size,
            str(network.spec),
        )
        task.advance(1)
    description = _described(detector, threshold, request.input, size, matrices)
    _annotate(onnx, model, description)
    if model.ByteSize() > _MOST_BYTES:
        raise InvalidInputError(
            f"the file would take {model.ByteSize() / 2**30:.1f} GiB, and an ONNX file 2 GiB at "
            "most; take a smaller network or a method without a bank"
        )
    content: bytes = model.SerializeToString()
    data = RunData.of(
        store, folder, record, skip_unreadable=request.skip_unreadable, progress=watch
    )
    activator = Activator(
        store, folder, record, device=cpu, amp=False, batch_size=None, progress=watch
    )
    test = OwnImages(folder, data, activator).test()
    real = test.take(evenly_spaced(len(test), _REAL_IMAGES)).pixels()
    verification = _verified(
        content, network, detector, threshold, kind=request.input, size=size, real=real
    )
    description["verification"] = asdict(verification)
    description["file"] = {
        "name": MODEL,
        "bytes": len(content),
        "digest": digest_of_bytes(content),
    }
    into.mkdir(exist_ok=True)
    with replacing(
        into / MODEL, size=len(content), cure="name a folder elsewhere: --output DIR"
    ) as stream:
        stream.write(content)
    write_json(into / DESCRIPTION, description, cure="name a folder elsewhere: --output DIR")
    return Exported(into, description, verification)


def _moved(store: Store, detector: Detector, folder: RunFolder, progress: Progress) -> Detector:
    """Return the detector on the CPU: as it was stored, or fitted again."""
    return detector_for(
        store, folder, detector.method, device=torch.device("cpu"), progress=progress
    )


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
        raise InvalidInputError(f"there is no folder {folder.parent}; make it first")
    check_folder_of_user(folder, option="--output")
    there = [name for name in (MODEL, DESCRIPTION) if (folder / name).exists()]
    if there and not overwrite and not _ours(folder):
        raise InvalidInputError(
            f"{folder / there[0]} is no export of ood; name another folder, or replace it: "
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


def _recorded(screening: _Screening, kind: Input, size: tuple[int, int], network: str) -> Any:  # noqa: ANN401
    """Return the graph as an ONNX model.

    Raises
    ------
    InvalidInputError
        If the network has something that ONNX has no word for.
    """
    dtype = torch.uint8 if kind == "uint8" else torch.float32
    example = torch.zeros(3, 3, *size, dtype=dtype)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                screening.eval(),
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=list(_OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().partition("\n")[0]
        raise InvalidInputError(
            f"{network} cannot be written as an ONNX file ({reason}); take another network"
        ) from None
    assert program is not None  # it is None with other options
    return program.model_proto


def _described(
    detector: Detector,
    threshold: Threshold,
    kind: Input,
    size: tuple[int, int],
    matrices: Matrices | None,
) -> dict[str, Any]:
    """Return what ``model.json`` says, but for what is measured."""
    record = detector.record
    classes = len(record.class_names)
    shapes: dict[str, list[int | str]] = {name: ["batch"] for name in _OUTPUTS}
    shapes["logits"] = ["batch", classes]
    types = {"class": "int64", "verdict": "int64"}
    versions = {name: _version_of(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    return {
        "kind": KIND,
        "schema": EXPORT_SCHEMA,
        "created": now(),
        "versions": {"ood": __version__, **versions},
        "run": detector.run,
        "arch": record.arch,
        "network": record.network,
        "data": record.data_name,
        "method": detector.method,
        "params": dict(detector.fitted.params),
        "threshold": {**asdict(threshold), "id_part": detector.id_part},
        "classes": list(record.class_names),
        "blocks": list(record.blocks),
        "preprocess": {
            **asdict(record.preprocess),
            "inside": True,
            "resizes": matrices is not None,
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
            for name, meaning in _OUTPUTS.items()
        ],
    }


def _version_of(name: str) -> str:
    return str(importlib.import_module(name).__version__)


def _annotate(onnx: Any, model: Any, description: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Write into the model what it is."""
    model.producer_name = "ood"
    model.producer_version = __version__
    model.doc_string = (
        f"{description['arch']} of run {description['run']} with {description['method']}"
    )
    names = ("kind", "created", "run", "arch", "network", "data", "method", "params", "threshold",
             "classes", "blocks", "preprocess")  # fmt: skip
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in ((name, description[name]) for name in names)
    }
    onnx.helper.set_model_props(model, {f"ood.{name}": text for name, text in texts.items()})


def _verified(
    content: bytes,
    network: Network,
    detector: Detector,
    threshold: Threshold,
    *,
    kind: Input,
    size: tuple[int, int],
    real: NDArray[np.uint8],
) -> Verification:
    """Compare a file with what ood computes.

    Raises
    ------
    InvalidInputError
        If an output differs by more than the tolerance.
    """
    if real.shape[2:] != size:
        up = Resizing(size)
        real = np.stack([up.apply(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in real])
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_IMAGES, 3, *size), dtype=np.uint8)
    pixels = np.concatenate([real, noise])
    wanted, scores = expected(network, detector, pixels)
    got = run_model(content, pixels, kind)
    logits = wanted.logits.numpy()
    classes = wanted.predictions.numpy()
    chances = wanted.logits.softmax(dim=1).numpy()[np.arange(len(classes)), classes]
    compared = {"logits": logits, "probability": chances, "score": scores}
    found = {name: _difference(got[name], values) for name, values in compared.items()}
    for name, difference in found.items():
        if not difference.relative <= TOLERANCE:
            raise InvalidInputError(
                f"the file gives other results than ood: {name} differ by up to "
                f"{difference.largest:.2g}, which is {difference.relative:.2g} of their spread; "
                f"{TOLERANCE:g} is accepted; nothing was written"
            )
    ordered = np.sort(logits, axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if logits.shape[1] > 1 else np.ones(len(logits))
    own_verdicts = ~detector.verdicts(scores, threshold)
    differ = {
        "class": (got["class"] != classes) & (margin > 2 * TOLERANCE * _spread(logits)),
        "verdict": (got["verdict"] != own_verdicts)
        & (np.abs(scores - threshold.value) > TOLERANCE * _spread(scores)),
    }
    for name, bad in differ.items():
        if bad.any():
            raise InvalidInputError(
                f"the file gives other results than ood: the {name} of {int(bad.sum())} of "
                f"{len(pixels)} images; nothing was written"
            )
    return Verification(
        real=len(real),
        noise=len(noise),
        tolerance=TOLERANCE,
        **found,
        other_classes=int((got["class"] != classes).sum()),
        other_verdicts=int((got["verdict"] != own_verdicts).sum()),
    )


def expected(
    network: Network, detector: Detector, pixels: NDArray[np.uint8]
) -> tuple[Activations, NDArray[np.float64]]:
    """Return activations and scores of images of one size, as ood computes them on the CPU.

    Parameters
    ----------
    network, detector
        Of the run.
    pixels
        ``(n, 3, h, w)``; brought to the size of the network as the run does.
    """
    pre = detector.record.preprocess
    resizing = Resizing(pre.size, pre.resize)
    ready = np.stack(
        [resizing.apply(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in pixels]
    )
    activations = next(extract(network, [ready], mean=pre.mean, std=pre.std))
    return activations, detector.score(activations)


def run_model(
    content: bytes | str, pixels: NDArray[np.uint8], kind: Input
) -> dict[str, NDArray[Any]]:
    """Return the outputs of a file for images, by name, computed in ONNX Runtime on the CPU.

    Parameters
    ----------
    content
        The file, or its path.
    pixels
        ``(n, 3, h, w)``.
    kind
        What the file takes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    parts = [session.run(list(_OUTPUTS), {"images": batch}) for batch in _batches(pixels, kind)]
    return {
        name: np.concatenate(values)
        for name, values in zip(_OUTPUTS, zip(*parts, strict=True), strict=True)
    }


def _batches(pixels: NDArray[np.uint8], kind: Input) -> Iterator[NDArray[Any]]:
    """Yield images as a file takes them, the first one alone."""
    starts = [0, *range(1, len(pixels), _BATCH), len(pixels)]
    for start, stop in itertools.pairwise(starts):
        batch = pixels[start:stop]
        yield batch if kind == "uint8" else batch.astype(np.float32) / np.float32(255)


def _spread(values: NDArray[Any]) -> float:
    """Return what a difference is a share of.

    The standard deviation, but no less than makes `ROUNDINGS` of the largest value acceptable: the
    outputs of a degenerate network hardly vary, and differ by a rounding all the same.
    """
    wide = values.astype(np.float64)
    floor = ROUNDINGS * float(np.finfo(np.float32).eps) / TOLERANCE * float(np.abs(wide).max())
    return max(float(wide.std()), floor) or 1.0


def _difference(got: NDArray[Any], wanted: NDArray[Any]) -> Difference:
    largest = float(np.abs(got.astype(np.float64) - wanted).max())
    return Difference(largest, largest / _spread(wanted))
