"""``ood runs``: the list of all runs, and all stored information on one; imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodcli.errors import CorruptArtifactError, OodError
from oodcli.records import as_json
from oodcli.store.ensembles import Ensemble, read_ensemble
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.removal import Leftover, leftovers
from oodcli.store.run_names import find_run, run_folders
from oodcli.store.runs import Job, Run, RunFolder, TrainingRecord
from oodcli.store.scores import read_scorings
from oodcli.store.store import Store, read_json, size_of

RUNS_SCHEMA = 1


@dataclass(frozen=True)
class ListedRun:
    """A run in the list of all runs.

    Parameters
    ----------
    name
        Name of the run.
    finished
        Whether its training has ended; true for an ensemble.
    default
        Whether it is the run of commands without ``--run``.
    origin
        ``trained``, ``imported``, ``unfinished`` or ``damaged``; ``ensemble`` for an ensemble of
        runs, which has no network of its own.
    created
        Time of completion, or of the start for an unfinished run, UTC; empty for a damaged run, as
        are ``arch`` and ``data``.
    arch
        Canonical architecture, or the members of an ensemble.
    data
        Name of the data set.
    seed
        Seed of training; None for an imported network.
    val_accuracy
        Accuracy on validation images, a fraction; None if there are none.
    bytes
        Size of its folder in bytes.
    objective
        Objective of training with parameters; empty for an imported or damaged run.
    outliers
        Name of the outliers that it is trained with; empty without outliers.
    """

    name: str
    finished: bool
    default: bool
    origin: str
    created: str
    arch: str
    data: str
    seed: int | None
    val_accuracy: float | None
    bytes: int
    objective: str = ""
    outliers: str = ""


@dataclass(frozen=True)
class RunList:
    """All runs of a store, and its disk usage.

    Parameters
    ----------
    store
        Folder of the store.
    usage
        Size of each part of the store in bytes.
    runs
        The runs, oldest first.
    leftovers
        Files and folders that belong to no run; in JSON with paths relative to the store.
    no_default
        Why ``--run`` is required, if there are runs but none is the default; otherwise empty.
    """

    store: Path
    usage: Mapping[str, int]
    runs: Sequence[ListedRun]
    leftovers: Sequence[Leftover]
    no_default: str = ""

    @property
    def default(self) -> str | None:
        """Name of the run of commands without ``--run``; None if there is none."""
        return next((run.name for run in self.runs if run.default), None)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        own = as_json(self)
        return {
            "schema": RUNS_SCHEMA,
            **{name: own[name] for name in ("store", "usage", "runs")},
            "leftovers": [
                as_json(each) | {"path": each.path.relative_to(self.store).as_posix()}
                for each in self.leftovers
            ],
        }


def list_runs(store: Store) -> RunList:
    """Return all runs, oldest first, with the disk usage of the store and leftovers in it."""
    folders = run_folders(store)
    default, no_default = None, ""
    try:
        default = find_run(store, None).name
    except OodError as error:
        no_default = str(error) if folders else ""
    return RunList(
        store=store.root,
        usage=store.usage(),
        runs=[_listed(folder, default=folder.name == default) for folder in folders],
        leftovers=leftovers(store),
        no_default=no_default,
    )


def _listed(folder: RunFolder, *, default: bool) -> ListedRun:
    try:
        described = _described(folder)
    except (CorruptArtifactError, KeyError):
        nothing = dict.fromkeys(("created", "arch", "data"), "")
        described = {"origin": "damaged", **nothing, "seed": None, "val_accuracy": None}
    return ListedRun(
        name=folder.name,
        finished=folder.finished or folder.is_ensemble,
        default=default,
        **described,
        bytes=size_of(folder.path),
    )


def _described(folder: RunFolder) -> dict[str, Any]:
    """Return the fields of :class:`ListedRun` that depend on the run's record."""
    if folder.finished:
        record = folder.read()
        return {
            "origin": record.origin,
            "created": record.created,
            "arch": record.arch,
            "data": record.data_name,
            "seed": record.seed,
            "val_accuracy": record.training.get("val_accuracy"),
            **_training(record.job),
        }
    if folder.is_ensemble:
        ensemble = read_ensemble(folder)
        return {
            "origin": "ensemble",
            "created": ensemble.created,
            "arch": ensemble.arch,
            "data": ensemble.data_name,
            "seed": None,
            "val_accuracy": None,
            "objective": "",
            "outliers": "",
        }
    training = folder.read_training()
    return {
        "origin": "unfinished",
        "created": training.created,
        "arch": training.job.arch,
        "data": training.job.data,
        "seed": training.job.seed,
        "val_accuracy": None,
        **_training(training.job),
    }


def _training(job: Job) -> dict[str, str]:
    """Return the objective of a job, and the name of its outliers."""
    outliers = OutlierSource.of(job.outliers)
    return {
        "objective": str(job.recipe.get("objective", "")),
        "outliers": "" if outliers is None else outliers.name,
    }


def _record(folder: RunFolder) -> Run | TrainingRecord | Ensemble:
    if folder.is_ensemble:
        return read_ensemble(folder)
    return folder.read() if folder.finished else folder.read_training()


def show_run(store: Store, name: str) -> dict[str, Any]:
    """Return all stored information on a run, as a JSON object.

    Raises
    ------
    OodError
        If the run does not exist or is damaged.
    """
    folder = find_run(store, name)
    content: dict[str, Any] = {"name": folder.name, "folder": str(folder.path)}
    content |= _record(folder).to_json()
    content["normratio"] = {
        path.stem: read_json(path) for path in sorted(folder.normratio.glob("*.json"))
    }
    content["scores"] = [
        {
            "limit": scoring.limit,
            "precision": scoring.precision,
            "updated": scoring.updated,
            "id": scoring.id_set.name,
            "sets": [entry.name for entry in scoring.sets],
            "methods": list(scoring.methods or {}),
        }
        for scoring in read_scorings(folder.scores)
    ]
    return content
