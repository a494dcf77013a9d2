"""Packing of detectors into one file, and detectors from such files; see ``packed``.

No code of a file is run. The classes of a fitted method are those of this package; a network in the
user's own Python code is imported only with consent, because the file names the module to import.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from oodcli.compute.compute import Compute
from oodcli.compute.devices import find_device, versions
from oodcli.errors import InvalidInputError, MissingArtifactError
from oodcli.files import reading
from oodcli.methods import Fitted
from oodcli.methods._stored import (
    Stored,
    UnstorableError,
    check_dtype,
    digest_of_array,
    pack,
    unpack,
    write_arrays,
)
from oodcli.models import ARCHITECTURES, ONNX, Network, builder_of, is_external, load_weights
from oodcli.models.checkpoint import network_of_weights, stored_config
from oodcli.models.registry import stores_config
from oodcli.screening.base import Reference
from oodcli.screening.detector import Detector, NetworkSource, RunSource
from oodcli.screening.packed import (
    AGAIN,
    GRAPH,
    ID_CLASSES,
    ID_FEATURES,
    ID_SCORES,
    KIND,
    METADATA,
    METHOD,
    PACKED_SCHEMA,
    SEAL,
    WEIGHTS,
    PackedFile,
    read_packed,
)
from oodcli.screening.thresholds import Threshold, ThresholdRule
from oodcli.store.runs import Run, utc_now
from oodcli.store.store import digest_of_json, open_output_file
from oodcli.text import printable

# The module, the package to install and the extra of each prefix of architectures.
_PACKAGES: Mapping[str, tuple[str, str, str]] = {
    "torchvision": ("torchvision", "torchvision", ""),
    "timm": ("timm", "timm", "timm"),
    "hf": ("transformers", "transformers", "hf"),
    "open_clip": ("open_clip", "open_clip_torch", "clip"),
    ONNX: ("onnxruntime", "onnxruntime", "onnx"),
}
# Facts of an import that verdicts or messages depend on; the others may name folders of the user.
_IMPORTED = ("last_layer", "plausibility", "zero_shot", "as_published", "kept_heads")


@dataclass(frozen=True)
class Graph:
    """Network and method as an ONNX graph.

    Parameters
    ----------
    content
        The content of ``model.onnx``.
    description
        The content of ``model.json``.
    """

    content: bytes
    description: Mapping[str, Any]


def package_of(arch: str) -> tuple[str, str, str] | None:
    """Return module, package and extra that build an architecture; None for the built-in ones."""
    return _PACKAGES.get(arch.partition(":")[0])


def own_code_of(arch: str) -> str | None:
    """Return the builder of an architecture in the user's own code, ``module:function``."""
    name = arch.partition(":")[0]
    if arch == ONNX or name in ARCHITECTURES or name in _PACKAGES or not is_external(arch):
        return None
    return f"{name}:{builder_of(arch)[0]}"


def pack_detector(
    detector: Detector, path: Path, *, graph: Graph | None = None, weights: bool = True
) -> PackedFile:
    """Write a detector of a run to one file, atomically.

    Parameters
    ----------
    detector
        The detector, with its threshold.
    path
        The file.
    graph
        Network and method as an ONNX graph, for screening in ONNX Runtime.
    weights
        Whether the file contains weights and fitted method, for screening in torch.

    Raises
    ------
    InvalidInputError
        If the method or the network cannot be stored without code.
    OSError
        If the file cannot be written.
    """
    arrays: dict[str, Stored] = {}
    structure = None
    try:
        if weights:
            structure, fitted = pack(detector.fitted.detector)
            arrays |= {f"{METHOD}{name}": array for name, array in fitted.items()}
            arrays |= _weights_of(detector)
    except UnstorableError as error:
        raise InvalidInputError(
            f"{detector.method} cannot be packed ({error}); use a method of ood"
        ) from None
    known = {ID_SCORES: "values", ID_CLASSES: "classes", ID_FEATURES: "features"}
    for name, attribute in known.items():
        arrays[name] = torch.from_numpy(getattr(detector.id, attribute))
    if graph is not None:
        arrays[GRAPH] = torch.frombuffer(bytearray(graph.content), dtype=torch.uint8)
    content = {
        **_description(detector, structure, graph),
        "digests": {name: digest_of_array(array) for name, array in arrays.items()},
    }
    plain = json.loads(json.dumps(content))
    text = json.dumps({**plain, SEAL: digest_of_json(plain)})
    with open_output_file(path) as stream:
        write_arrays(stream, arrays, {METADATA: text})
    return read_packed(path)


def _weights_of(detector: Detector) -> dict[str, Stored]:
    source = detector.source
    assert isinstance(source, RunSource)  # a packed detector is not packed again
    source.folder.check_weights(detector.record)
    found: dict[str, Stored] = {}
    for name, tensor in load_weights(source.folder.weights).items():
        check_dtype(name, tensor)
        found[f"{WEIGHTS}{name}"] = tensor
    return found


def _description(detector: Detector, structure: object, graph: Graph | None) -> dict[str, Any]:
    """Return the description of a packed detector, without digests."""
    record, source = detector.record, detector.source
    assert isinstance(source, RunSource)
    package = package_of(record.arch)
    return {
        "kind": KIND,
        "schema": PACKED_SCHEMA,
        "created": utc_now(),
        "versions": versions(),
        "requires": {
            "packages": {} if package is None else {package[1]: _version_of(package[1])},
            "code": own_code_of(record.arch) if structure is not None else None,
        },
        "about": {
            **asdict(detector.about),
            "params": dict(detector.about.params),
            "preprocess": record.preprocess.to_json(),
        },
        "id": {
            "part": detector.id.part,
            "data": detector.id.data,
            "digest": detector.id.digest,
            "images": len(detector.id.values),
        },
        "threshold": detector.threshold.to_json(),
        "record": _travelling(record).to_json(),
        "config": stored_config(source.folder.weights) if stores_config(record.arch) else "",
        "method": structure,
        "onnx": None if graph is None else _without_scores(graph.description),
    }


def _without_scores(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a graph without the ID scores, which are an array of the file."""
    arrays = ("scores", "classes")
    known = {name: value for name, value in description["id"].items() if name not in arrays}
    return {**description, "id": known}


def _travelling(record: Run) -> Run:
    """Return the record of a run without the command line and paths of the user."""
    imported = {name: value for name, value in record.imported.items() if name in _IMPORTED}
    return replace(
        record, job=replace(record.job, data=record.data_name, init=None), command="",
        imported=imported, training={},
    )  # fmt: skip


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def load_packed(
    path: Path,
    *,
    rule: ThresholdRule | None = None,
    compute: Compute | None = None,
    allow_code: bool = False,
) -> Detector:
    """Return the detector of a packed file, for torch.

    Parameters
    ----------
    path
        The file.
    rule
        Rule for the threshold; if None, the threshold that was packed.
    compute
        Device, precision and batch size; if None, the device that is available.
    allow_code
        Whether the module with the user's own network, which the file names, may be imported.

    Raises
    ------
    InvalidInputError
        If there is no such file, it is no packed detector, another version of ood has packed it, it
        needs code that is not allowed, or its precision is not that of ``compute``.
    MissingArtifactError
        If it needs a package that is not installed.
    CorruptArtifactError
        If it is damaged.
    """
    packed = read_packed(path)
    with _LOADING:
        found = _loaded(packed.path, packed.digest, compute or Compute.of(), allow_code)
    return replace(found, threshold=packed.threshold(rule))


_LOADING = threading.Lock()


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, digest: str, compute: Compute, allow_code: bool) -> Detector:  # noqa: FBT001
    """Return the detector of a file; loaded once in a process, with its network."""
    packed = read_packed(path)
    if packed.digest != digest:
        raise InvalidInputError(
            f"{path} is not the file that it was when the detector was loaded or pickled"
        )
    packed.check_engine("torch")
    about = packed.about
    if about.precision != compute.precision:
        cure = "omit --amp" if about.precision == "float32" else "add --amp"
        raise InvalidInputError(
            f"the method in {path} was fitted in {printable(about.precision)}; {cure}"
        )
    with packed.parsing():
        record = Run.from_json(packed.content["record"], path)
        classes = tuple(map(str, record.class_names))
        if classes != about.classes or record.preprocess != about.preprocess:
            raise ValueError("record")
        _check_requirements(packed, record.arch, allow_code=allow_code)
        arrays = {
            name.removeprefix(METHOD): tensor for name, tensor in _tensors(packed, METHOD).items()
        }
        scorer: Any = unpack(packed.content["method"], arrays, compute.device)
        if not callable(getattr(scorer, "score", None)):
            raise TypeError("method")
        fitted = Fitted(about.method, about.params, scorer)
        return Detector(
            about=about,
            id=packed.id,
            threshold=packed.threshold(None),
            source=PackedSource(packed, record, allow_code=allow_code),
            record=record,
            fitted=fitted,
            compute=compute,
        )


def _check_requirements(packed: PackedFile, arch: str, *, allow_code: bool) -> None:
    """Check that the network can be built here.

    Raises
    ------
    MissingArtifactError
        If a package is not installed.
    InvalidInputError
        If code of the user is needed and not allowed.
    """
    code = own_code_of(arch)
    if code is not None and not allow_code:
        raise InvalidInputError(
            f"{packed.path} needs the Python code {printable(code)} of its network, which is not "
            "in the file; if you trust it, have the module in the current folder or installed, "
            "and allow its import: --allow-code"
        )
    if code is None and is_external(arch) and any("path" in key for key in builder_of(arch)[1]):
        raise InvalidInputError(f"{packed.path} names a file to be read in its network; {AGAIN}")
    package = package_of(arch)
    if package is not None and importlib.util.find_spec(package[0]) is None:
        known = packed.content.get("requires", {}).get("packages", {}).get(package[1], "unknown")
        install = f'"oodcli[{package[2]}]"' if package[2] else package[1]
        raise MissingArtifactError(
            f"{packed.path} needs the package {package[1]} (version {printable(str(known))} when "
            f"it was packed), which is not installed; pip install {install}"
        )


def _tensors(packed: PackedFile, prefix: str) -> dict[str, Tensor]:
    """Return verified tensors, memory-mapped, by name."""
    names = packed.names(prefix)
    packed.verify(names)
    with safe_open(packed.path, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in names}


class PackedSource(NetworkSource):
    """A packed file.

    Parameters
    ----------
    packed
        The file.
    record
        Record of the run, from the file.
    allow_code
        Whether own code was allowed.
    """

    def __init__(self, packed: PackedFile, record: Run, *, allow_code: bool) -> None:
        super().__init__()
        self._packed = packed
        self._record = record
        self._allow_code = allow_code

    def network(self) -> Network:
        """Load the network; see :meth:`NetworkSource.network`."""
        packed, run = self._packed, self._record
        found = _tensors(packed, WEIGHTS)
        with packed.parsing():
            return network_of_weights(
                {name.removeprefix(WEIGHTS): tensor for name, tensor in found.items()},
                run.arch, run.outputs, config=str(packed.content["config"]),
                size=run.preprocess.size, blocks=run.blocks, where=packed.path, cure=AGAIN,
            )  # fmt: skip

    def scoring(self) -> contextlib.AbstractContextManager[None]:
        """Convert errors of a method whose arrays do not fit the network into one line."""
        return reading(self._packed.path, wrong="holds a method that cannot score", cure=AGAIN)

    def reference(self, detector: Detector) -> Reference:
        """Return how another process finds a detector; see :meth:`NetworkSource.reference`."""
        return _PackedReference(
            self._packed.path, self._packed.digest, detector.threshold,
            str(detector.compute.device), detector.compute.batch_size,
            detector.about.precision == "bfloat16", self._allow_code,
        )  # fmt: skip


@dataclass(frozen=True)
class _PackedReference:
    """A detector in a packed file; see :class:`Reference`."""

    path: Path
    digest: str
    threshold: Threshold
    device: str
    batch_size: int | None
    amp: bool
    allow_code: bool

    def load(self) -> Detector:
        """Return the detector; it and its network are loaded once in a process."""
        compute = Compute(
            find_device(self.device), "bfloat16" if self.amp else "float32", self.batch_size
        )
        with _LOADING:
            found = _loaded(self.path, self.digest, compute, self.allow_code)
        return replace(found, threshold=self.threshold)
