"""``ood detector``: a fitted detector in one file, and what is in such a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from oodcli.errors import InvalidInputError, OodError
from oodcli.files import expanded
from oodcli.progress import SILENT, Progress
from oodcli.records import as_json
from oodcli.screening.base import About
from oodcli.screening.packed import (
    GRAPH,
    KIND,
    METHOD,
    PACKED_SCHEMA,
    WEIGHTS,
    PackedFile,
    read_packed,
)
from oodcli.screening.thresholds import (
    DEFAULT_RULE,
    Threshold,
    ThresholdRule,
    joined_classes,
)
from oodcli.store.store import Store, check_output_file
from oodcli.workflows.engines import stored_graph

if TYPE_CHECKING:
    from oodcli.compute.compute import Compute

Engines = Literal["torch", "onnx", "both"]


@dataclass(frozen=True)
class PackRequest:
    """What to pack.

    Parameters
    ----------
    method
        The method, as on the command line, or ``auto``; if None, the stored recommendation, or
        ``msp`` without one.
    output
        The file.
    compute
        Device, precision and batch size for fitting the method.
    run
        Name of the run; the default run if None.
    rule
        Rule for the threshold.
    engines
        What the file can be used with.
    overwrite
        Whether to replace a file that is not a packed detector.
    skip_unreadable
        Whether to skip images of the run that cannot be decoded.
    """

    method: str | None
    output: Path
    compute: "Compute"
    run: str | None = None
    rule: ThresholdRule = DEFAULT_RULE
    engines: Engines = "torch"
    overwrite: bool = False
    skip_unreadable: bool = False


@dataclass(frozen=True)
class PackedSummary:
    """What is in a packed detector.

    Parameters
    ----------
    file
        The file.
    bytes
        Its size, in bytes.
    packed
        When it was packed, UTC.
    digest
        Digest of its description, and so of all that is in it.
    engines
        What it can be used with: ``torch``, ``onnx`` or both.
    about
        Network and method.
    arch
        Canonical architecture.
    data
        Name of the data set of the run.
    blocks
        Names of the blocks.
    warnings
        Warnings of the check at import.
    threshold
        The threshold.
    id_part
        Part of the ID images behind it: ``val`` or ``test``.
    id_images
        Their number.
    packages
        Version of each package that builds the network, when it was packed; these are needed.
    code
        Builder of the network in the user's own code, which is needed; None if it is not.
    versions
        Versions of ood, Python, torch and NumPy when it was packed.
    sizes
        Bytes of ``weights``, ``method``, ``id`` (of ID images) and ``onnx``.
    """

    file: Path
    bytes: int
    packed: str
    digest: str
    engines: tuple[str, ...]
    about: About
    arch: str
    data: str
    blocks: tuple[str, ...]
    warnings: tuple[str, ...]
    threshold: Threshold
    id_part: str
    id_images: int
    packages: Mapping[str, str] = field(default_factory=dict)
    code: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"kind": KIND, "schema": PACKED_SCHEMA, **as_json(self)}


def show(path: Path) -> PackedSummary:
    """Return what is in a packed detector, after verifying all of it; imports no torch.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OodError
        If it is no packed detector, is damaged, or another version of ood has packed it.
    """
    packed = read_packed(path)
    packed.verify(packed.names())
    return _summary(packed)


def _summary(packed: PackedFile) -> PackedSummary:
    content = packed.content
    parts = {"weights": WEIGHTS, "method": METHOD, "id": "id-", "onnx": GRAPH}
    with packed.parsing():
        record, requires = content["record"], content["requires"]
        plausibility = record.get("imported", {}).get("plausibility", {})
        return PackedSummary(
            file=packed.path,
            bytes=packed.path.stat().st_size,
            packed=content["created"],
            digest=packed.digest,
            engines=packed.engines,
            about=packed.about,
            arch=record["arch"],
            data=record["data_name"],
            blocks=tuple(record["blocks"]),
            warnings=tuple(plausibility.get("warnings", ())),
            threshold=packed.threshold(None),
            id_part=packed.id.part,
            id_images=len(packed.id.values),
            packages=dict(requires["packages"]),
            code=requires["code"],
            versions=dict(content["versions"]),
            sizes={part: packed.bytes_of(name) for part, name in parts.items()},
        )


def pack(store: Store, request: PackRequest, *, progress: Progress = SILENT) -> PackedSummary:
    """Write a detector of a run to one file, with all that verdicts need.

    Parameters
    ----------
    store
        The store that contains the run.
    request
        What to pack.
    progress
        Receives the progress of long work.

    Raises
    ------
    OodError
        If the run, the method or the file cannot be used. Then nothing is written.
    """
    from oodcli.methods import parse_method
    from oodcli.methods._traced import check_traceable
    from oodcli.methods.ensemble import AUTO
    from oodcli.scoring.open_run import OpenRun
    from oodcli.screening.packing import own_code_of, pack_detector
    from oodcli.workflows.recommend import resolve_detector

    _check_output(request.output, overwrite=request.overwrite)
    if request.method not in (None, AUTO):
        spec = parse_method(request.method)
        if request.engines != "torch":
            check_traceable(spec, what="an ONNX file")
    with OpenRun.open(
        store,
        request.run,
        request.compute,
        skip_unreadable=request.skip_unreadable,
        progress=progress,
    ) as run:
        detector = resolve_detector(run, request.method, request.rule)
        graph = None
        if request.engines != "torch":
            graph = stored_graph(run, detector)
        packed = pack_detector(
            detector, request.output, graph=graph, weights=request.engines != "onnx"
        )
    joined = joined_classes(detector.threshold, request.rule)
    if joined is not None:
        progress.note(joined)
    code = own_code_of(detector.record.arch)
    if code is not None and request.engines != "onnx":
        progress.note(
            f"the code of {code} is not in the file: where the file is used, the module must be in "
            "the current folder or installed, and its import allowed: --allow-code"
        )
    return _summary(packed)


def _check_output(path: Path, *, overwrite: bool) -> None:
    """Check, before long work, that the file can be written.

    Raises
    ------
    InvalidInputError
        If its folder cannot be written, or it exists and is not a packed detector.
    """
    check_output_file(path)
    target = expanded(path)
    if overwrite or not target.is_file():
        return
    try:
        read_packed(target)
    except OodError:
        raise InvalidInputError(
            f"{path} exists and is not a packed detector; choose another file, or replace it: "
            "--overwrite"
        ) from None
