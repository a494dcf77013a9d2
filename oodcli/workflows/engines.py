"""Which detector judges: of a run or of a file, in torch or in ONNX Runtime.

Torch is imported only where it is needed: not for a graph that has been written before.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import expanded
from oodcli.progress import Progress
from oodcli.screening.base import BaseDetector
from oodcli.screening.onnx_engine import (
    DESCRIPTION,
    OnnxDetector,
    OnnxOptions,
    detector_in_memory,
    export_at,
    load_onnx,
    read_export,
)
from oodcli.screening.packed import preprocess_of, read_packed
from oodcli.screening.thresholds import DEFAULT_RULE, ThresholdRule
from oodcli.store.preprocess import Preprocess
from oodcli.store.run_locks import locked_run
from oodcli.store.runs import Run, RunFolder
from oodcli.store.store import Store, digest_of_json, read_json, write_json

if TYPE_CHECKING:
    from oodcli.scoring.open_run import OpenRun
    from oodcli.screening.detector import Detector
    from oodcli.screening.packing import Graph

Engine = Literal["torch", "onnx"]
_DETECTOR = "detector.json"


@dataclass(frozen=True)
class DetectorRequest:
    """Which detector to open, and how it computes.

    Parameters
    ----------
    file
        A packed detector or an export; None for a detector of a run.
    run
        Name of the run; the default run if None.
    method
        The method, as on the command line, or ``auto``; if None, the stored recommendation, or
        ``msp`` without one.
    rule
        Rule for the threshold; the default rule leaves the threshold of a file.
    engine
        What runs network and method; None: torch, or ONNX Runtime for a file that has only a graph.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    amp
        Whether the network computes in bfloat16.
    batch_size
        Images per forward pass; None: chosen for the device.
    allow_code
        Whether the module with the user's own network, which the file names, may be imported.
    skip_unreadable
        Whether fitting skips images of the run's own data that cannot be decoded.
    """

    file: Path | None = None
    run: str | None = None
    method: str | None = None
    rule: ThresholdRule = DEFAULT_RULE
    engine: Engine | None = None
    device: str = "auto"
    amp: bool = False
    batch_size: int | None = None
    allow_code: bool = False
    skip_unreadable: bool = False

    def check(self) -> None:
        """Refuse options that exclude each other.

        Raises
        ------
        InvalidInputError
            If there are such.
        """
        if self.file is not None:
            others = {
                "--run": self.run, "--method": self.method,
                "--skip-unreadable": self.skip_unreadable,
            }  # fmt: skip
            given = [name for name, value in others.items() if value]
            if given:
                raise InvalidInputError(
                    f"--detector {self.file} has its run and method; omit {' and '.join(given)}"
                )
        elif self.allow_code:
            raise InvalidInputError(
                "--allow-code is for packed detectors: --detector FILE; the code of a run is "
                "always imported"
            )
        if self.engine == "onnx" and self.amp:
            raise InvalidInputError("--amp is for --engine torch; omit it")

    @property
    def options(self) -> OnnxOptions:
        """How ONNX Runtime computes."""
        return OnnxOptions(self.device, self.batch_size)


@dataclass(frozen=True)
class OpenedDetector:
    """An open run or file with a detector.

    Parameters
    ----------
    name
        What it is, for messages: ``run NAME``, or the file.
    preprocess
        Preprocessing of images before the network.
    detector
        Returns the detector; fits and stores it if necessary.
    """

    name: str
    preprocess: Preprocess
    detector: Callable[[], BaseDetector]


@contextlib.contextmanager
def opened_detector(
    store: Store, request: DetectorRequest, *, progress: Progress
) -> Iterator[OpenedDetector]:
    """Open the run or the file of a detector while the context lasts.

    Parameters
    ----------
    store
        The store that contains the run; not used for a file.
    request
        Which detector.
    progress
        Receives the progress of long work.

    Yields
    ------
    OpenedDetector
        What was opened.

    Raises
    ------
    OodError
        If the run, the file, the method, the engine or the device cannot be used.
    """
    request.check()
    if request.file is not None:
        detector = detector_of_file(request)
        yield OpenedDetector(str(request.file), detector.about.preprocess, lambda: detector)
    elif request.engine == "onnx":
        with locked_run(store, request.run, progress=progress) as folder:
            record = folder.read()
            yield OpenedDetector(
                f"run {folder.name}",
                record.preprocess,
                lambda: _graph_of_run(store, folder, record, request, progress),
            )
    else:
        from oodcli.compute.compute import Compute
        from oodcli.methods import parse_method
        from oodcli.methods.ensemble import AUTO
        from oodcli.scoring.open_run import OpenRun
        from oodcli.workflows.recommend import resolve_detector

        if request.method not in (None, AUTO):
            parse_method(request.method)
        compute = Compute.of(request.device, amp=request.amp, batch_size=request.batch_size)
        with OpenRun.open(
            store, request.run, compute,
            skip_unreadable=request.skip_unreadable, progress=progress,
        ) as run:  # fmt: skip
            yield OpenedDetector(
                f"run {run.name}",
                run.record.preprocess,
                lambda: resolve_detector(run, request.method, request.rule),
            )


def detector_of_file(request: DetectorRequest) -> BaseDetector:
    """Return the detector of a file; see :func:`opened_detector`.

    Raises
    ------
    OodError
        If the file, the engine or the device cannot be used.
    """
    assert request.file is not None
    request.check()
    if request.engine not in (None, "torch", "onnx"):  # callers from Python may give anything
        raise InvalidInputError(f"--engine must be torch or onnx, not {request.engine!r}")
    path = expanded(request.file)
    rule = None if request.rule == DEFAULT_RULE else request.rule
    exported = export_at(path)
    if exported is not None and request.engine == "torch":
        raise InvalidInputError(f"{request.file} is an ONNX graph; use --engine onnx")
    only_graph = exported is not None or read_packed(path).engines == ("onnx",)
    if request.engine == "onnx" or (request.engine is None and only_graph):
        return load_onnx(path, rule=rule, options=request.options)
    from oodcli.compute.compute import Compute
    from oodcli.screening.packing import load_packed

    compute = Compute.of(request.device, amp=request.amp, batch_size=request.batch_size)
    return load_packed(path, rule=rule, compute=compute, allow_code=request.allow_code)


def _graph_of_run(
    store: Store, folder: RunFolder, record: Run, request: DetectorRequest, progress: Progress
) -> OnnxDetector:
    """Return the detector of a run for ONNX Runtime; its graph is written once and stored."""
    path = None if request.method is None else _valid_graph(folder, record, request.method)
    if path is None:
        return _write_graph_of_run(store, folder, record, request, progress)
    for warning in record.warnings:
        progress.note(f"warning: when run {folder.name} was imported, {warning}")
    return load_onnx(path, rule=request.rule, options=request.options)


def _write_graph_of_run(
    store: Store, folder: RunFolder, record: Run, request: DetectorRequest, progress: Progress
) -> OnnxDetector:
    from oodcli.compute.compute import Compute
    from oodcli.methods import parse_method
    from oodcli.methods._traced import check_traceable
    from oodcli.methods.ensemble import AUTO
    from oodcli.scoring.open_run import OpenRun
    from oodcli.workflows.recommend import resolve_detector

    if request.method not in (None, AUTO):
        check_traceable(parse_method(request.method), what="an ONNX file")
    with OpenRun.open(
        store, folder.name, Compute.of("cpu"),
        skip_unreadable=request.skip_unreadable, progress=progress,
    ) as run:  # fmt: skip
        detector = resolve_detector(run, request.method)
        graph = stored_graph(run, detector)
    path = folder.detector(detector.method, detector.about.precision)
    if _valid_graph(folder, record, detector.method) is None:  # the store is not writable
        return detector_in_memory(
            graph.description, graph.content, path, request.options, request.rule
        )
    if request.method not in (None, AUTO, detector.method):
        with contextlib.suppress(OSError):
            write_json(_alias(folder, request.method), {"method": detector.method})
    return load_onnx(path, rule=request.rule, options=request.options)


def stored_graph(run: "OpenRun", detector: "Detector") -> "Graph":
    """Return network and method as a graph: the one that is stored with the run, or a new one.

    Parameters
    ----------
    run
        The run.
    detector
        Its detector.

    Raises
    ------
    OodError
        As for :func:`oodcli.workflows.export.graph_of`.
    """
    from oodcli.screening.packing import Graph
    from oodcli.workflows.export import graph_of, write_graph

    path = _valid_graph(run.folder, run.record, detector.method)
    if path is not None:
        with contextlib.suppress(OSError, CorruptArtifactError):
            return Graph(*read_export(path))
    graph, _ = graph_of(run, detector)
    try:
        write_graph(
            graph,
            run.folder.detector(detector.method, detector.about.precision),
            cure="free some space",
        )
    except OSError:
        run.progress.note(
            f"the store {run.store.root} is not writable: the graph is written in each call"
        )
    return graph


def _alias(folder: RunFolder, text: str) -> Path:
    """Return the file with the canonical name of a method that is written in another way."""
    return folder.detectors / f"{digest_of_json([text, 'onnx'])[:16]}.json"


def _valid_graph(folder: RunFolder, record: Run, text: str) -> Path | None:
    """Return the folder with the graph of a method; None if there is none that is valid."""
    try:
        path = folder.detector(text, "float32")
        if not (path / DESCRIPTION).is_file():
            path = folder.detector(read_json(_alias(folder, text))["method"], "float32")
        description = read_json(path / DESCRIPTION)
        fitted = read_json(path / _DETECTOR)["origin"]["created"]
        same = (
            description["network"] == record.network
            and description["fitted"] == fitted
            and preprocess_of(description["preprocess"]) == record.preprocess
        )
    except (OSError, KeyError, TypeError, ValueError, CorruptArtifactError):
        return None
    return path if same else None
