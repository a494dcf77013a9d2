"""Scores of a run, one per image, method and data set, stored until the run is removed.

A *scoring* holds all scores that may stand in one table: same ID test images, same number of images
of each set, same precision. Its folder has an index, ``scoring.json``, and one file of scores per
method and data set.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError
from oodcli.store.store import (
    Store,
    digest_of_json,
    file_of_user,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)

SCORING_SCHEMA = 2
LABELS = "@labels"
PREDICTIONS = "@predictions"
AVERAGE = "average"
"""What stands for the mean over sets, and so is no name of a set."""
_INDEX = "scoring.json"

# Whose way to resize images is taken on a benchmark.
ResizedAs = Literal["benchmark", "network"]
Scores = NDArray[np.floating[Any]] | NDArray[np.int64]


@dataclass(frozen=True)
class ScoredSet:
    """A data set that was scored.

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
        Name of the benchmark that named it, or None.
    split
        Name of the published list of its images, or empty.
    split_sha256
        Checksum of that list.
    accuracy
        Accuracy of the plain classifier on a covariate-shifted ID set; None where not known.
    data
        How to open the set again; empty where that is not known.
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


@dataclass(frozen=True)
class Scoring:
    """Scores that may stand in one table.

    Parameters
    ----------
    limit
        Number of images taken of each set; None for all.
    precision
        ``float32`` or ``bfloat16``.
    id_set
        The ID test set.
    id_accuracy
        Accuracy of the plain classifier on it; None without labels.
    sets
        The OOD sets and the covariate-shifted ID sets.
    methods
        Every parameter of each method, by canonical name.
    files
        Digest of the scores by ``method/dataset``.
    updated
        When scores were added last, UTC.
    left_out
        Why a method was not scored, by its name.
    resize
        How images were resized, as ``preprocess.resize`` of the run has it; empty where not known.
    resized_as
        ``benchmark`` or ``network``, whose way that is; None where not known, or both are the same.
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
        """What tells this scoring from others of the run."""
        return digest_of_json([self.limit, self.precision, self.id_set.name, self.id_set.digest])[
            :16
        ]


def read_scorings(folder: Path) -> list[Scoring]:
    """Return all scorings below the folder of a run's scores, the newest first.

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
    """Return the name that scores have: a shaper alone was followed by energy.

    Parameters
    ----------
    method
        What the user wrote.
    known
        Names that there are scores of.

    Examples
    --------
    >>> full_name("react", {"react+energy"})
    'react+energy'
    """
    name, at, tuning = method.partition("@")
    followed = f"{name}+energy{at}{tuning}"
    return followed if method not in known and followed in known else method


def read_scores(folder: Path, scoring: Scoring, method: str, dataset: str) -> Scores | None:
    """Return the scores of one method on one set, or None if it was not scored.

    Raises
    ------
    CorruptArtifactError
        If the file is not what was written.
    """
    digest = (scoring.files or {}).get(f"{method}/{dataset}")
    if digest is None:
        return None
    path = folder / scoring.key / _file_of(method, dataset)
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
    """Add scores to a scoring, in place of those of the same method and set.

    Parameters
    ----------
    store
        Whose lock is held while the index changes.
    folder
        Folder of the run's scores.
    scoring
        The sets and methods at hand; those stored before are kept beside them.
    scores
        The scores by method and name of the set.
    withdrawn
        Methods whose earlier scores no longer count, since they are not defined for the network.
    """
    target = folder / scoring.key
    digests = {
        f"{method}/{dataset}": write_arrays(
            target / _file_of(method, dataset), {"scores": np.asarray(values)}
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
    """Drop data sets from all scorings of a run, with their scores.

    Parameters
    ----------
    store
        Whose lock is held while an index changes.
    folder
        Folder of the run's scores.
    names
        Names of the sets; those of ID test sets are not among them.

    Returns
    -------
    dropped
        Number of scorings that had any of them.

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
            gone = [key for key in files if key.rpartition("/")[2] in names]
            kept = tuple(entry for entry in old.sets if entry.name not in names)
            rest = {key: digest for key, digest in files.items() if key not in gone}
            # The index goes first: from then on nobody looks for the files.
            if kept:
                left = replace(old, sets=kept, files=rest)
                write_json(target / _INDEX, {"schema": SCORING_SCHEMA, **asdict(left)})
            else:
                (target / _INDEX).unlink()
                gone = list(files)
            for key in gone:
                method, _, name = key.rpartition("/")
                (target / _file_of(method, name)).unlink(missing_ok=True)
        dropped += 1
    return dropped


def _merge(old: Scoring, new: Scoring, withdrawn: Collection[str]) -> Scoring:
    fresh = {entry.name: entry for entry in new.sets}
    kept = [entry for entry in old.sets if entry.name not in fresh]
    # A set of the same name with other images makes the old scores on it worthless.
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
        sets=(*kept, *new.sets),
        methods={**methods, **(new.methods or {})},
        left_out={
            name: reason
            for name, reason in {**(old.left_out or {}), **(new.left_out or {})}.items()
            if name not in (new.methods or {})
        },
        files=files,
    )


def _file_of(method: str, dataset: str) -> str:
    return f"{digest_of_json([method, dataset])[:16]}.safetensors"


def check_distinct(names: Sequence[str]) -> str | None:
    """Return the first name that stands twice, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def export_scores(path: Path, scores: Mapping[tuple[str, str], Scores]) -> None:
    """Write scores into a file of the user, as arrays called ``method/dataset``."""
    with file_of_user(path) as stream:
        np.savez(stream, **{f"{m}/{d}": values for (m, d), values in scores.items()})  # type: ignore[arg-type]
