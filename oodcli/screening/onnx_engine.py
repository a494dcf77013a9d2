"""ONNX Runtime as an engine: verdicts from an exported graph, without torch.

Images are decoded and resized as for torch; the graph takes the pixels at the size of the network.
Class and score are those of the graph, probability, percentile and verdict are computed from them
as for torch.
"""

import base64
import contextlib
import functools
import importlib
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.files import check_file, expanded, reading, reason_of
from oodcli.screening.base import About, BaseDetector, IdScores, Outputs, Reference
from oodcli.screening.packed import (
    GRAPH,
    PackedFile,
    checked_scores,
    checked_threshold,
    preprocess_of,
    read_packed,
)
from oodcli.screening.thresholds import Threshold, ThresholdRule
from oodcli.store.store import digest_of_bytes, read_json
from oodcli.text import printable

EXPORT_SCHEMA = 1
KIND = "ood-export"
MODEL = "model.onnx"
DESCRIPTION = "model.json"
ENGINE = "onnx"
_AGAIN = "export it again: ood export"
_REASON_LETTERS = 200


@dataclass(frozen=True)
class OnnxOptions:
    """How ONNX Runtime computes.

    Parameters
    ----------
    device
        ``auto`` or ``cpu`` for the CPU, ``cuda`` or ``cuda:N``.
    batch_size
        Largest number of images of a pass; None: the batches in which images are read.
    """

    device: str = "auto"
    batch_size: int | None = None

    def providers(self, available: Iterable[str]) -> list[Any]:
        """Return the execution providers of ONNX Runtime.

        Raises
        ------
        InvalidInputError
            If there is no such device.
        """
        if self.device in ("auto", "cpu"):
            return ["CPUExecutionProvider"]
        kind, colon, number = self.device.partition(":")
        if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
            raise InvalidInputError(
                f"--engine onnx has no device {self.device!r}; there are: auto, cpu, cuda, cuda:N"
            )
        if "CUDAExecutionProvider" not in available:
            raise InvalidInputError(
                f"device {self.device} does not exist: the ONNX Runtime that is installed does not "
                "compute on CUDA GPUs (pip install onnxruntime-gpu); use --device cpu"
            )
        options = {"device_id": int(number or 0), "use_tf32": 0}
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


class OnnxSession:
    """A graph in ONNX Runtime, loaded when it is first run.

    Parameters
    ----------
    content
        Returns the content of ``model.onnx``.
    description
        The content of ``model.json``.
    where
        The file, for messages.
    options
        How ONNX Runtime computes.

    Raises
    ------
    CorruptArtifactError
        If the description does not fit a graph that takes images of the size of its network.
    InvalidInputError
        If the graph takes images of another size.
    MissingArtifactError
        If ONNX Runtime is not installed.
    """

    def __init__(
        self,
        content: Any,  # noqa: ANN401 - a function
        description: Mapping[str, Any],
        where: Path,
        options: OnnxOptions,
    ) -> None:
        self._content = content
        self._where = where
        self._options = options
        self._lock = threading.Lock()
        self._session: Any = None
        self._runtime = _onnxruntime()
        self._providers = options.providers(self._runtime.get_available_providers())
        with reading(where, wrong="is damaged", cure=_AGAIN):
            (given,) = description["inputs"]
            rows, channels, *size = given["shape"]
            self._float = {"uint8": False, "float32": True}[given["type"]]
            self._batch = rows if isinstance(rows, int) else None
            self._names = [each["name"] for each in description["outputs"]]
            wanted = list(description["preprocess"]["size"])
            if channels != 3 or not {"score"} <= set(self._names):
                raise ValueError("inputs")
        if size != wanted:
            raise InvalidInputError(
                f"{where} takes images of {size[0]} x {size[1]} pixels and resizes them itself; "
                "export it again without --input-size"
            )

    @property
    def _ready(self) -> Any:  # noqa: ANN401 - an InferenceSession
        with self._lock:
            if self._session is None:
                options = self._runtime.SessionOptions()
                options.log_severity_level = 3
                content = self._content()
                with reading(self._where, wrong="holds no graph for ONNX Runtime", cure=_AGAIN):
                    self._session = self._runtime.InferenceSession(
                        content, options, providers=self._providers
                    )
            return self._session

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the results of images, uint8 ``(n, 3, h, w)``.

        Raises
        ------
        InvalidInputError
            If ONNX Runtime cannot compute them.
        """
        session = self._ready
        step = self._batch or self._options.batch_size or max(len(pixels), 1)
        parts = []
        for at in range(0, len(pixels), step):
            part = pixels[at : at + step]
            if self._batch is not None and len(part) < step:
                part = np.concatenate([part, np.zeros((step - len(part), *part.shape[1:]), "u1")])
            given = part.astype(np.float32) / np.float32(255) if self._float else part
            try:
                parts.append(session.run(self._names, {"images": given}))
            except Exception as error:  # noqa: BLE001 - of its C++ code
                reason = printable(reason_of(error).rpartition(" : ")[2][:_REASON_LETTERS])
                raise InvalidInputError(
                    f"ONNX Runtime cannot compute {len(given)} images with {self._where}: "
                    f"{reason}; use fewer images per forward pass: --score-batch-size N"
                ) from None
        values = {
            name: np.concatenate([part[place] for part in parts])[: len(pixels)]
            for place, name in enumerate(self._names)
        }
        return _outputs(values, len(pixels))


def _outputs(values: Mapping[str, NDArray[Any]], count: int) -> Outputs:
    score = values["score"].astype(np.float64)
    if "class" not in values:
        return Outputs(np.full(count, -1), np.full(count, np.nan), score)
    logits, classes = values["logits"].astype(np.float64), values["class"].astype(np.int64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances = powers[np.arange(count), classes] / powers.sum(axis=1)
    return Outputs(classes, chances, score)


@dataclass(frozen=True, eq=False)
class OnnxDetector(BaseDetector):
    """A detector that runs in ONNX Runtime; imports no torch.

    Parameters
    ----------
    session
        The graph.
    tolerance
        Largest accepted difference from the scores of torch, relative to their standard deviation.
    found_in
        How another process finds it.
    """

    session: OnnxSession
    tolerance: float
    found_in: Reference

    @property
    def engine(self) -> str:
        """What runs network and method."""
        return ENGINE

    @property
    def margin(self) -> float:
        """How far from the threshold a score can have another verdict than in torch."""
        return self.tolerance * float(self.id.values.std())

    @contextlib.contextmanager
    def outputs(self, shards: Iterable[NDArray[np.uint8]]) -> Iterator[Iterator[Outputs]]:
        """Run network and method; see :meth:`BaseDetector.outputs`."""
        yield map(self.session.run, shards)

    def reference(self) -> Reference:
        """Return how another process finds this detector."""
        return replace(self.found_in, threshold=self.threshold)  # type: ignore[type-var]


@dataclass(frozen=True)
class OnnxReference:
    """A graph in a packed file or an exported folder; see :class:`Reference`."""

    path: Path
    digest: str
    options: OnnxOptions
    threshold: Threshold | None = None

    def load(self) -> OnnxDetector:
        """Return the detector; its graph is loaded once in a process."""
        with _LOADING:
            found = _loaded(self.path, self.digest, self.options)
        return found if self.threshold is None else replace(found, threshold=self.threshold)


_LOADING = threading.Lock()


def load_onnx(
    path: Path, *, rule: ThresholdRule | None = None, options: OnnxOptions | None = None
) -> OnnxDetector:
    """Return the detector of a packed file or an export, for ONNX Runtime.

    Parameters
    ----------
    path
        A packed detector; or ``model.onnx`` with ``model.json`` beside it, or their folder.
    rule
        Rule for the threshold; if None, that of the file.
    options
        How ONNX Runtime computes.

    Raises
    ------
    InvalidInputError
        If there is no such file, it has no graph, or another version of ood has written it.
    MissingArtifactError
        If ONNX Runtime is not installed.
    CorruptArtifactError
        If it is damaged.
    """
    place = expanded(path).absolute()
    exported = export_at(place)
    digest = read_packed(place).digest if exported is None else _digest_of(exported)
    found = OnnxReference(exported or place, digest, options or OnnxOptions()).load()
    return found if rule is None else found.with_rule(rule)


def export_at(path: Path) -> Path | None:
    """Return the folder of an export; None if the path is neither such a folder nor its model.

    Parameters
    ----------
    path
        A folder, or a file.
    """
    return path if path.is_dir() else path.parent if path.suffix == ".onnx" else None


def _digest_of(folder: Path) -> str:
    return str(_description(folder)["file"]["digest"])


def _description(folder: Path) -> dict[str, Any]:
    """Return the content of ``model.json``.

    Raises
    ------
    InvalidInputError
        If it is missing, or another version of ood has written it.
    CorruptArtifactError
        If it is damaged.
    """
    path = folder / DESCRIPTION
    check_file(path, "name a folder written by ood export, or a packed detector")
    content = read_json(path, cure=_AGAIN)
    with reading(path, wrong="is damaged", cure=_AGAIN):
        if content["kind"] != KIND:
            raise InvalidInputError(f"{path} was not written by ood export; name another folder")
        if content["schema"] != EXPORT_SCHEMA or "id" not in content:
            version = printable(str(content["versions"]["ood"]))
            raise InvalidInputError(
                f"{path} was written by ood {version}, another version; {_AGAIN}"
            )
    return content


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, digest: str, options: OnnxOptions) -> OnnxDetector:
    """Return the detector of a packed file or an exported folder, loaded once in a process."""
    reference = OnnxReference(path, digest, options)
    if path.is_dir():
        description, file = _description(path), path / MODEL
        if description["file"]["digest"] != digest:
            raise _changed(path)
        content = functools.partial(_model, file, digest)
        return detector_of(description, content, file, options, reference)
    packed = read_packed(path)
    if packed.digest != digest:
        raise _changed(path)
    return _of_packed(packed, options, reference)


def read_export(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the content of ``model.onnx``, verified, and of ``model.json`` in a folder.

    Raises
    ------
    InvalidInputError
        If a file is missing, or another version of ood has written them.
    CorruptArtifactError
        If one is damaged.
    """
    description = _description(folder)
    return _model(folder / MODEL, str(description["file"]["digest"])), description


def _model(path: Path, digest: str) -> bytes:
    check_file(path, _AGAIN)
    raw = path.read_bytes()
    if digest_of_bytes(raw) != digest:
        raise CorruptArtifactError(
            f"{path} is damaged: its digest is not that in {DESCRIPTION}; {_AGAIN}"
        )
    return raw


def _changed(path: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is not the file that it was when the detector was loaded or pickled"
    )


def _of_packed(packed: PackedFile, options: OnnxOptions, reference: OnnxReference) -> OnnxDetector:
    packed.check_engine(ENGINE)
    return detector_of(
        packed.content["onnx"], lambda: packed.array(GRAPH).tobytes(), packed.path, options,
        reference, id_scores=packed.id, threshold=packed.threshold(None),
    )  # fmt: skip


def detector_of(
    description: Mapping[str, Any],
    content: Any,  # noqa: ANN401 - a function
    where: Path,
    options: OnnxOptions,
    reference: OnnxReference,
    *,
    id_scores: IdScores | None = None,
    threshold: Threshold | None = None,
) -> OnnxDetector:
    """Return the detector of a graph.

    Parameters
    ----------
    description
        The content of ``model.json``.
    content
        Returns the content of ``model.onnx``, verified.
    where
        The file, for messages.
    options
        How ONNX Runtime computes.
    reference
        How another process finds it.
    id_scores, threshold
        Those to use; if None, those of the description.

    Raises
    ------
    CorruptArtifactError
        If the description is damaged.
    InvalidInputError
        If the graph takes images of another size than its network.
    """
    with reading(where, wrong="is damaged", cure=_AGAIN):
        scores = id_scores or _id_scores(description["id"])
        about = _about(description)
        kept = {k: v for k, v in description["threshold"].items() if k != "id_part"}
        minimum = threshold or checked_threshold(kept, description["classes"])
        tolerance = float(description["verification"]["tolerance"])
        if not math.isfinite(tolerance):
            raise ValueError("tolerance")
    session = OnnxSession(content, description, where, options)
    return OnnxDetector(about, scores, minimum, session, tolerance, reference)


def detector_in_memory(
    description: Mapping[str, Any],
    content: bytes,
    where: Path,
    options: OnnxOptions,
    rule: ThresholdRule,
) -> OnnxDetector:
    """Return the detector of a graph that is in no file, and so cannot be pickled.

    Parameters
    ----------
    description, content
        The content of ``model.json`` and of ``model.onnx``.
    where
        Where they would be, for messages.
    options
        How ONNX Runtime computes.
    rule
        Rule for the threshold.
    """
    reference = OnnxReference(where, str(description["file"]["digest"]), options)
    found = detector_of(description, lambda: content, where, options, reference)
    return found.with_rule(rule)


def described_detector(folder: Path) -> tuple[About, IdScores]:
    """Return network, method and ID scores of an export; needs no ONNX Runtime.

    Parameters
    ----------
    folder
        The folder with ``model.json``.

    Raises
    ------
    InvalidInputError
        If there is no such file, or another version of ood has written it.
    CorruptArtifactError
        If it is damaged.
    """
    description = _description(folder)
    with reading(folder / DESCRIPTION, wrong="is damaged", cure=_AGAIN):
        return _about(description), _id_scores(description["id"])


def _about(description: Mapping[str, Any]) -> About:
    return About(
        run=description["run"],
        network=description["network"],
        method=description["method"],
        params=dict(description["params"]),
        precision="float32",
        created=description["fitted"],
        classes=tuple(map(str, description["classes"])),
        preprocess=preprocess_of(description["preprocess"]),
    )


def described_scores(found: IdScores) -> dict[str, Any]:
    """Return scores of ID images for ``model.json``; features are left out.

    Scores and classes are base64 of little-endian float64 and int64, so that every bit is kept.
    """
    return {
        "data": found.data,
        "part": found.part,
        "images": len(found.values),
        "digest": found.digest,
        "scores": base64.b64encode(found.values.astype("<f8").tobytes()).decode("ascii"),
        "classes": base64.b64encode(found.classes.astype("<i8").tobytes()).decode("ascii"),
    }


def _id_scores(known: Mapping[str, Any]) -> IdScores:
    """Return the scores of :func:`described_scores`.

    Raises
    ------
    ValueError, KeyError, TypeError
        If the description is something else.
    """
    raw = {name: base64.b64decode(known[name], validate=True) for name in ("scores", "classes")}
    return checked_scores(
        IdScores(
            np.frombuffer(raw["scores"], "<f8").astype(np.float64),
            known["part"],
            known["data"],
            known["digest"],
            np.frombuffer(raw["classes"], "<i8").astype(np.int64),
            np.zeros((0, 0), np.float32),
        )
    )


def _onnxruntime() -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise MissingArtifactError(
            '--engine onnx needs onnxruntime, which is not installed; pip install "oodcli[onnx]"'
        ) from None
