"""``ood drift``: which groups of judged images differ from ID images, or from other verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError, InvalidInputError, OodError
from oodcli.files import expanded
from oodcli.progress import SILENT, Progress
from oodcli.screening.base import About, IdScores
from oodcli.screening.drift import (
    LEVEL,
    DriftResult,
    GroupRows,
    Reference,
    compare,
    in_natural_order,
    sampled,
)
from oodcli.screening.feature_file import read_features
from oodcli.screening.merging import VerdictPart, find_parts, in_order, open_part
from oodcli.screening.onnx_engine import DESCRIPTION, described_detector, export_at
from oodcli.screening.packed import is_packed, read_packed
from oodcli.screening.verdict_file import ROW_SCHEMA, settings_path
from oodcli.store.run_names import find_run
from oodcli.store.store import Store, digest_of_json, read_arrays, read_json
from oodcli.text import counted, printable
from oodcli.workflows.verdicts import detector_settings

MAX_GROUPS = 1000
ALL = "all"


@dataclass(frozen=True)
class DriftRequest:
    """What to compare.

    Parameters
    ----------
    paths
        Files of verdicts, folders of them, and patterns, as for ``ood verdicts merge``.
    reference
        A file of verdicts, a packed detector, an export, or the name of a run; if None, the run of
        the verdicts.
    level
        Significance level for all tests of all groups together.
    seed
        Seed of samples and permutations.
    """

    paths: Sequence[Path]
    reference: str | None = None
    level: float = LEVEL
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of files as columns: names by their code, -1 for none, and NaN for no score."""

    scores: NDArray[np.float64]
    p_values: NDArray[np.float64]
    ood: NDArray[np.bool_]
    groups: NDArray[np.int32]
    classes: NDArray[np.int32]
    group_names: tuple[str, ...]
    class_names: tuple[str, ...]
    starts: tuple[int, ...]

    @property
    def read(self) -> NDArray[np.bool_]:
        """Which images could be read."""
        return ~np.isnan(self.scores)

    def names_of(self, rows: NDArray[np.int64]) -> NDArray[np.str_] | None:
        """Return the names of the predicted classes of some images; None without a classifier."""
        if not self.class_names or (self.classes[rows] < 0).any():
            return None
        return np.asarray(self.class_names)[self.classes[rows]]


def drift(store: Store, request: DriftRequest, *, progress: Progress = SILENT) -> DriftResult:
    """Compare every group of files of verdicts with a reference.

    Parameters
    ----------
    store
        The store that contains the run of the verdicts.
    request
        What to compare.
    progress
        Receives notes.

    Raises
    ------
    OodError
        If files or the reference cannot be used, or there is no image with a group.
    """
    if not 0 < request.level < 1:
        raise InvalidInputError(f"--level must be above 0 and below 1, not {request.level:g}")
    parts = _parts(request.paths, progress)
    settings = parts[0].settings
    rows = _rows(parts)
    with_features = settings.get("features") == "stored"
    reference = _reference(store, request, settings, with_features=with_features)
    by = settings.get("group_by")
    names = in_natural_order(rows.group_names) if by else [ALL]
    if len(names) > MAX_GROUPS:
        raise InvalidInputError(
            f"there are {len(names):,} groups, and at most {MAX_GROUPS:,} can be compared; group "
            "images by something coarser"
        )
    groups = [
        _group(name, rows, parts, request.seed, settings, with_features=with_features)
        for name in names
    ]
    if not any(len(each.scores) for each in groups):
        raise InvalidInputError(
            f"no image in {parts[0].path} could be read and has a group; check what was screened"
        )
    fdr, by_class = settings.get("fdr"), settings.get("by_class")
    found = compare(
        groups,
        reference,
        level=request.level,
        with_expected=fdr is None and by_class is None,
        seed=request.seed,
    )
    _notes(rows, reference, with_features=with_features, grouped=by is not None, progress=progress)
    return DriftResult(
        detector=detector_settings(settings),
        reference=reference.name,
        reference_images=len(reference.scores),
        expected=reference.below / len(reference.scores),
        group_by=by,
        level=request.level,
        groups=found,
        first=next((each.group for each in found if each.changed), None),
        ungrouped=int((rows.groups < 0).sum()) if by else 0,
        files=tuple(str(part.path) for part in parts),
    )


def _parts(paths: Sequence[Path], progress: Progress) -> list[VerdictPart]:
    parts = find_parts(paths)
    if len(parts) > 1:
        return in_order(parts)
    if not parts[0].finished:
        progress.note(f"{parts[0].path} is not finished; {parts[0].cure}")
    return parts


def _rows(parts: Sequence[VerdictPart]) -> _Rows:
    """Read the columns that are compared; 25 bytes per row.

    Raises
    ------
    InvalidInputError
        If a file was written by an earlier version, or a row is damaged.
    """
    scores, p_values = [], []
    ood, groups, classes, starts = [], [], [], [0]
    group_codes: dict[str, int] = {}
    class_codes: dict[str, int] = {}

    def code(codes: dict[str, int], name: str | None) -> int:
        return -1 if name is None else codes.setdefault(name, len(codes))

    for part in parts:
        if part.settings.get("schema", 1) < ROW_SCHEMA:
            raise InvalidInputError(
                f"{part.path} was written by an earlier version, without groups; run its command "
                "of ood predict again with another file"
            )
        total = starts[-1]
        with part.opened() as blocks:
            for block in blocks:
                nan = float("nan")
                scores.append(np.array([nan if v.score is None else v.score for v in block]))
                p_values.append(np.array([nan if v.p_value is None else v.p_value for v in block]))
                ood.append(np.array([v.verdict == "ood" for v in block], np.bool_))
                groups.append(np.array([code(group_codes, v.group) for v in block], np.int32))
                classes.append(np.array([code(class_codes, v.predicted) for v in block], np.int32))
                total += len(block)
        starts.append(total)
    if not starts[-1]:
        raise InvalidInputError(f"{parts[0].path} has no rows; check what was screened")
    return _Rows(
        np.concatenate(scores), np.concatenate(p_values), np.concatenate(ood),
        np.concatenate(groups), np.concatenate(classes), tuple(group_codes), tuple(class_codes),
        tuple(starts),
    )  # fmt: skip


def _group(
    name: str,
    rows: _Rows,
    parts: Sequence[VerdictPart],
    seed: int,
    settings: Mapping[str, Any],
    *,
    with_features: bool,
) -> GroupRows:
    chosen = np.ones(len(rows.scores), np.bool_)
    if settings.get("group_by"):
        chosen = rows.groups == rows.group_names.index(name)
    at = np.flatnonzero(chosen & rows.read)
    return GroupRows(
        name,
        rows.scores[at],
        int(rows.ood[at].sum()),
        int(chosen.sum()) - len(at),
        rows.names_of(at),
        rows.p_values[at] if settings.get("fdr") is not None else None,
        _features(parts, rows, sampled(at, seed=seed)) if with_features and len(at) else None,
    )


def _features(
    parts: Sequence[VerdictPart], rows: _Rows, at: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the features of some rows, ``(k, d)``."""
    found = []
    for part, start, end in zip(parts, rows.starts, rows.starts[1:], strict=False):
        inside = at[(at >= start) & (at < end)] - start
        if len(inside):
            found.append(np.array(read_features(part.path, rows=end - start)[inside]))
    return np.concatenate(found)


def _reference(
    store: Store, request: DriftRequest, settings: Mapping[str, Any], *, with_features: bool
) -> Reference:
    given = request.reference
    path = None if given is None else expanded(Path(given))
    if path is not None and (exported := export_at(path)) and (exported / DESCRIPTION).is_file():
        found = _Stored.of(*described_detector(exported))
        return _of_detector(found, str(given), settings, request)
    if path is not None and path.is_file():
        if settings_path(path).is_file() or not is_packed(path):
            return _of_verdicts(
                Path(str(given)), settings, request.seed, with_features=with_features
            )
        packed = read_packed(path)
        return _of_detector(_Stored.of(packed.about, packed.id), str(given), settings, request)
    return _of_run(store, settings, request)


def _of_verdicts(
    path: Path, settings: Mapping[str, Any], seed: int, *, with_features: bool
) -> Reference:
    """Return all images of a file of verdicts as reference."""
    part = open_part(path)
    for key in ("network", "method", "precision", "threshold", "by_class", "fdr"):
        if part.settings.get(key) != settings.get(key):
            raise InvalidInputError(
                f"the scores of {path} are of another {key.replace('_', ' ')} "
                f"({part.settings.get(key)}, here {settings.get(key)}); give verdicts of the same "
                "detector"
            )
    rows = _rows([part])
    at = np.flatnonzero(rows.read)
    if not len(at):
        raise InvalidInputError(f"no image of {path} could be read; give another reference")
    features = None
    if with_features and part.settings.get("features") == "stored":
        features = _features([part], rows, sampled(at, seed=seed + 1))
    return Reference(
        f"{counted(len(at), 'image')} of {path}",
        rows.scores[at],
        int(rows.ood[at].sum()),
        rows.names_of(at),
        features,
    )


@dataclass(frozen=True)
class _Stored:
    """The ID images of a stored detector: of a run, a packed file or an export."""

    network: str
    method: str
    precision: str
    class_names: Sequence[str]
    part: str
    data: str
    digest: str
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    features: NDArray[np.float32]

    @classmethod
    def of(cls, about: About, found: IdScores) -> "_Stored":
        """Return those of a file."""
        return cls(
            about.network, about.method, about.precision, about.classes,
            found.part, found.data, found.digest, found.values, found.classes, found.features,
        )  # fmt: skip


def _of_run(store: Store, settings: Mapping[str, Any], request: DriftRequest) -> Reference:
    """Return the ID images behind the threshold, which are stored with the fitted method."""
    name = request.reference
    run = settings["run"] if name is None else name
    method, precision = settings["method"], settings["precision"]
    cure = (
        "give a file of verdicts on ID images: --reference VERDICTS, or judge an image with "
        f"ood predict --run {printable(run)} --method {method}, which stores them"
    )
    try:
        folder = find_run(store, run)
    except OodError as error:
        raise InvalidInputError(
            f"--reference is neither a file of verdicts, a detector nor a run: {error}"
            if name is not None
            else f"the ID images of {settings['run']} are not here ({error}); give the file of the "
            "detector, or verdicts on ID images: --reference FILE"
        ) from None
    path = folder.detectors / digest_of_json([method, precision])[:16]
    try:
        content = read_json(path / "detector.json")
        arrays = read_arrays(path / "detector.safetensors", digest=content["digest"])
        origin = content["origin"]
        found = _Stored(
            content["key"]["network"], method, precision, folder.read().class_names,
            origin["id_part"], origin["id_data"], origin["id_digest"],
            arrays["id-scores"], arrays["id-classes"], arrays["id-features"],
        )  # fmt: skip
    except (FileNotFoundError, CorruptArtifactError, KeyError):
        raise InvalidInputError(
            f"run {run} has no stored ID images of {method} ({precision}); {cure}"
        ) from None
    if found.network != settings["network"] or (
        name is None and found.digest != settings["id_digest"]
    ):
        raise InvalidInputError(
            f"run {run} has another network or other ID images than those of the verdicts; {cure}"
        )
    return _of_stored(found, settings, request.seed)


def _of_detector(
    found: _Stored, where: str, settings: Mapping[str, Any], request: DriftRequest
) -> Reference:
    """Return the ID images in a packed file or an export."""
    for key in ("network", "method", "precision"):
        if getattr(found, key) != settings[key]:
            raise InvalidInputError(
                f"the detector {where} has another {key} ({getattr(found, key)}, here "
                f"{settings[key]}); give the detector that judged the images"
            )
    return _of_stored(found, settings, request.seed)


def _of_stored(found: _Stored, settings: Mapping[str, Any], seed: int) -> Reference:
    below = settings["id_below"]
    if found.digest != settings["id_digest"] and settings["threshold"] is not None:
        below = int(np.searchsorted(found.scores, settings["threshold"]))
    if settings.get("by_class"):
        # A new ID image of a class is below its threshold with (below + 1) / (n + 1).
        below = sum(each["below"] + 1 for each in settings["by_class"]) - 1
    features = found.features
    return Reference(
        f"{len(found.scores):,} {found.part} images of {found.data}",
        found.scores,
        below,
        _class_names(found.class_names, found.classes),
        features[sampled(np.arange(len(features)), seed=seed)] if len(features) else None,
    )


def _class_names(names: Sequence[str], classes: NDArray[np.int64]) -> NDArray[np.str_] | None:
    return None if not names or (classes < 0).any() else np.asarray(names)[classes]


def _notes(
    rows: _Rows, reference: Reference, *, with_features: bool, grouped: bool, progress: Progress
) -> None:
    if not grouped:
        progress.note(
            "the verdicts have no groups, so all images are one; group them with "
            "ood predict --group-by"
        )
    if not with_features or reference.features is None:
        progress.note(
            "features are not compared, since they are not stored; store them with "
            "ood predict --features"
            if not with_features
            else "features are not compared, since the reference has none"
        )
    left = int((rows.groups < 0).sum())
    if grouped and left:
        progress.note(f"{counted(left, 'image')} without a group left out")
