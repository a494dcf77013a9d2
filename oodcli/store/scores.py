"""Scores of a run, one per image, method and data set, stored until the run is removed.

A *scoring* holds all scores that may be compared in one table: same ID test images, same limit on
the number of images per set, same precision. Its folder has an index, ``scoring.json``, and one
file of scores per method and data set.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError
from oodcli.store.store import (
    Store,
    digest_of_json,
    open_output_file,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)

SCORING_SCHEMA = 2
LABELS = "@labels"
PREDICTIONS = "@predictions"
# Why a method was not scored for a network without a classifier.
NO_LOGITS = "it needs logits, and the network has no classifier"
AVERAGE = "average"
"""Name of the mean over sets; reserved, so no set may have it."""
_INDEX = "scoring.json"

# Whether benchmark images are resized as the benchmark or as the network prescribes.
ResizedAs = Literal["benchmark", "network"]
Scores = NDArray[np.floating[Any]] | NDArray[np.int64]


@dataclass(frozen=True)
class ScoredSet:
    """A scored data set.

    Parameters
    ----------
    name
        Name of the set.
    group
        ``id``, ``near``, ``far`` or ``ood``; ``shifted`` for a covariate-shifted ID set.
    n
        Number of images.
    digest
        Digest of their pixels.
    skipped
        Number of unreadable images that were skipped.
    benchmark
        Name of the benchmark that the set belongs to, or None.
    split
        Name of the published list of its images, or empty.
    split_sha256
        SHA-256 checksum of that list.
    accuracy
        Accuracy of the plain classifier on a covariate-shifted ID set; None if not known.
    data
        The set, as it is opened again; empty if not known.
    duplicates
        Numbers of images with the same pixels, see :func:`oodcli.scoring.duplicates.duplicates`.
    """

    name: str
    group: str
    n: int
    digest: str
    skipped: int = 0
    benchmark: str | None = None
    split: str = ""
    split_sha256: str = ""
    accuracy: float | None = None
    data: str = ""
    duplicates: Mapping[str, int] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Scoring:
    """The index of scores that may be compared in one table.

    Parameters
    ----------
    limit
        Number of images used of each set; None for all.
    precision
        ``float32`` or ``bfloat16``.
    id_set
        The ID test set.
    id_accuracy
        Accuracy of the plain classifier on it; None without labels, or without a classifier.
    sets
        The OOD sets and the covariate-shifted ID sets.
    methods
        All parameters of each method, by canonical name.
    files
        Digest of the file of scores, by ``method/dataset``.
    updated
        Time at which scores were last added, UTC.
    left_out
        Reason why a method was not scored, by its name.
    resize
        How images were resized, in the form of ``preprocess.resize`` of the run; empty if not
        known.
    resized_as
        Whether that is the resizing of the ``benchmark`` or of the ``network``; None if not known
        or if both are the same.
    """

    limit: int | None
    precision: str
    id_set: ScoredSet
    id_accuracy: float | None
    sets: tuple[ScoredSet, ...] = ()
    methods: Mapping[str, Mapping[str, Any]] | None = None
    files: Mapping[str, str] | None = None
    updated: str = ""
    left_out: Mapping[str, str] | None = None
    resize: str = ""
    resized_as: ResizedAs | None = None

    @property
    def key(self) -> str:
        """Digest that identifies this scoring within the run."""
        return digest_of_json([self.limit, self.precision, self.id_set.name, self.id_set.digest])[
            :16
        ]


def read_scorings(folder: Path) -> list[Scoring]:
    """Return all scorings in the folder of a run's scores, newest first.

    Raises
    ------
    CorruptArtifactError
        If an index is damaged.
    """
    if not folder.is_dir():
        return []
    paths = [path / _INDEX for path in sorted(folder.iterdir()) if (path / _INDEX).is_file()]
    return sorted((_read(path) for path in paths), key=lambda s: s.updated, reverse=True)


def _read(path: Path) -> Scoring:
    cure = f"restore it, or remove it and score again: ood score --run {path.parents[2].name}"
    content = read_json(path, cure=cure)
    if content.pop("schema", None) != SCORING_SCHEMA:
        raise CorruptArtifactError(f"{path} was written by another version of ood; {cure}")
    try:
        return Scoring(
            id_set=ScoredSet(**content.pop("id_set")),
            sets=tuple(ScoredSet(**entry) for entry in content.pop("sets")),
            **content,
        )
    except (KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}; {cure}") from None


def full_name(method: str, known: Collection[str]) -> str:
    """Return the full name of a scored method: ``+energy`` is added to a shaper alone.

    Parameters
    ----------
    method
        Name given by the user.
    known
        Names of the scored methods.

    Examples
    --------
    >>> full_name("react", {"react+energy"})
    'react+energy'
    """
    name, at, tuning = method.partition("@")
    combined = f"{name}+energy{at}{tuning}"
    return combined if method not in known and combined in known else method


def read_scores(folder: Path, scoring: Scoring, method: str, dataset: str) -> Scores | None:
    """Return the scores of one method on one set, or None if it was not scored.

    Raises
    ------
    CorruptArtifactError
        If the file is missing or damaged.
    """
    digest = (scoring.files or {}).get(f"{method}/{dataset}")
    if digest is None:
        return None
    path = folder / scoring.key / _file_name(method, dataset)
    try:
        return read_arrays(path, digest=digest)["scores"]
    except (FileNotFoundError, KeyError):
        raise CorruptArtifactError(
            f"the scores of {method} on {dataset} are missing; compute them again: ood score"
        ) from None


def add_scores(
    store: Store,
    folder: Path,
    scoring: Scoring,
    scores: Mapping[tuple[str, str], Scores],
    *,
    withdrawn: Collection[str] = (),
) -> None:
    """Add scores to a scoring; scores of the same method and set are replaced.

    Parameters
    ----------
    store
        Store whose lock is held while the index changes.
    folder
        Folder of the run's scores.
    scoring
        The new sets and methods; sets and methods stored before are preserved.
    scores
        The scores, by method and name of the set.
    withdrawn
        Methods whose earlier scores are removed, since they are not defined for the network.
    """
    target = folder / scoring.key
    digests = {
        f"{method}/{dataset}": write_arrays(
            target / _file_name(method, dataset), {"scores": np.asarray(values)}
        )
        for (method, dataset), values in scores.items()
    }
    with store.lock(f"the index of scores in {target}"):
        index = target / _INDEX
        merged = _merge(_read(index), scoring, withdrawn) if index.is_file() else scoring
        merged = replace(
            merged,
            files={**(merged.files or {}), **digests},
            updated=datetime.now(UTC).isoformat(),
        )
        write_json(index, {"schema": SCORING_SCHEMA, **asdict(merged)})


def drop_sets(store: Store, folder: Path, names: Collection[str]) -> int:
    """Remove data sets and their scores from all scorings of a run.

    Parameters
    ----------
    store
        Store whose lock is held while an index changes.
    folder
        Folder of the run's scores.
    names
        Names of the sets; they must not include ID test sets.

    Returns
    -------
    dropped
        Number of scorings that contained any of them.

    Raises
    ------
    CorruptArtifactError
        If an index is damaged.
    """
    dropped = 0
    for scoring in read_scorings(folder):
        if not any(entry.name in names for entry in scoring.sets):
            continue
        target = folder / scoring.key
        with store.lock(f"the index of scores in {target}"):
            old = _read(target / _INDEX)
            files = dict(old.files or {})
            removed = [key for key in files if key.rpartition("/")[2] in names]
            sets = tuple(entry for entry in old.sets if entry.name not in names)
            remaining = {key: digest for key, digest in files.items() if key not in removed}
            # The index is updated first, so that no reader looks for the removed files.
            if sets:
                new = replace(old, sets=sets, files=remaining)
                write_json(target / _INDEX, {"schema": SCORING_SCHEMA, **asdict(new)})
            else:
                (target / _INDEX).unlink()
                removed = list(files)
            for key in removed:
                method, _, name = key.rpartition("/")
                (target / _file_name(method, name)).unlink(missing_ok=True)
        dropped += 1
    return dropped


def _merge(old: Scoring, new: Scoring, withdrawn: Collection[str]) -> Scoring:
    fresh = {entry.name: entry for entry in new.sets}
    others = [entry for entry in old.sets if entry.name not in fresh]
    # Old scores are invalid if the set of this name now has different images.
    stale = {
        entry.name
        for entry in old.sets
        if entry.name in fresh and fresh[entry.name].digest != entry.digest
    }
    files = {
        key: digest
        for key, digest in (old.files or {}).items()
        if key.rpartition("/")[2] not in stale and key.rpartition("/")[0] not in withdrawn
    }
    methods = {k: params for k, params in (old.methods or {}).items() if k not in withdrawn}
    return replace(
        new,
        sets=(*others, *new.sets),
        methods={**methods, **(new.methods or {})},
        left_out={
            name: reason
            for name, reason in {**(old.left_out or {}), **(new.left_out or {})}.items()
            if name not in (new.methods or {})
        },
        files=files,
    )


def _file_name(method: str, dataset: str) -> str:
    return f"{digest_of_json([method, dataset])[:16]}.safetensors"


def first_duplicate(names: Sequence[str]) -> str | None:
    """Return the first name that occurs twice, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def export_scores(path: Path, scores: Mapping[tuple[str, str], Scores]) -> None:
    """Write scores to an .npz file of the user, as arrays named ``method/dataset``."""
    with open_output_file(path) as stream:
        np.savez(stream, **{f"{m}/{d}": values for (m, d), values in scores.items()})  # type: ignore[arg-type]
