"""Ensembles of runs: the record of their members; scores are stored as those of a run.

An ensemble is a folder among the runs with ``ensemble.json`` and ``scores/``. It stays valid when a
member is renamed or removed: its scores are its own, and a member is identified by its digests.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.records import as_json
from oodcli.store.run_names import new_name, run_folders
from oodcli.store.runs import ENSEMBLE_RECORD, RunFolder
from oodcli.store.store import Store, read_json, write_json

ENSEMBLE_SCHEMA = 1


@dataclass(frozen=True)
class Member:
    """A run in an ensemble.

    Parameters
    ----------
    name
        Name of the run when the ensemble was scored.
    network
        Digest of architecture and weights.
    weights
        Digest of the weights file.
    arch
        Canonical architecture.
    seed
        Seed of training; None for an imported network.
    outliers
        The outliers that it was trained with, as its job has them; None without outliers.
    """

    name: str
    network: str
    weights: str
    arch: str
    seed: int | None
    outliers: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ensemble:
    """The record of an ensemble of runs.

    Parameters
    ----------
    created
        Time at which it was first scored, UTC.
    members
        The runs, in the order in which they were given; at least two.
    data_name
        Name of the data set of the members.
    class_names
        Names of the classes, in the order of the logits.
    versions
        Versions of the packages in use when the ensemble was created.
    """

    created: str
    members: tuple[Member, ...]
    data_name: str
    class_names: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def networks(self) -> frozenset[str]:
        """Digests of the members; ensembles of the same networks are the same ensemble."""
        return frozenset(each.network for each in self.members)

    @property
    def arch(self) -> str:
        """What stands in place of an architecture: the names of the members."""
        return f"ensemble of {', '.join(each.name for each in self.members)}"

    def to_json(self) -> dict[str, Any]:
        """Return the stored object."""
        return {"kind": "ood-ensemble", "schema": ENSEMBLE_SCHEMA, **as_json(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """Build the record from its stored object.

        Raises
        ------
        CorruptArtifactError
            If the object is not a record of this schema.
        """
        cure = f"remove the ensemble (ood runs remove {where.parent.name}) and score it again"
        if content.get("schema") != ENSEMBLE_SCHEMA:
            raise CorruptArtifactError(f"{where} was written by another version of ood; {cure}")
        values = {k: v for k, v in content.items() if k not in ("kind", "schema")}
        try:
            values["members"] = tuple(Member(**each) for each in values["members"])
            values["class_names"] = tuple(values["class_names"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(f"{where} is damaged: {error}; {cure}") from None


def read_ensemble(folder: RunFolder) -> Ensemble:
    """Read the record of an ensemble.

    Raises
    ------
    CorruptArtifactError
        If it is damaged.
    """
    path = folder.path / ENSEMBLE_RECORD
    cure = f"remove the ensemble (ood runs remove {folder.name}) and score it again"
    return Ensemble.from_json(read_json(path, cure=cure), path)


def begin_ensemble(store: Store, ensemble: Ensemble, name: str | None) -> RunFolder:
    """Return the folder of an ensemble; the record is written if there is none of these networks.

    Parameters
    ----------
    store
        The store.
    ensemble
        The ensemble.
    name
        Requested name; None for that of the stored ensemble of the same networks, or else a new one
        made of what the names of seeds have in common, or of the name of the first member.

    Raises
    ------
    InvalidInputError
        If the requested name is in use for something else, or not valid.
    """
    with store.lock("runs"):
        folder = check_ensemble_name(store, ensemble.networks, name)
        if folder is None:
            # Runs of ``ood train --seeds`` have names that differ in the seed at their end.
            stems = [re.sub(r"-s\d+$", "", each.name) for each in ensemble.members]
            stem = stems[0] if len(set(stems)) == 1 else ensemble.members[0].name
            folder = RunFolder(store.runs / new_name(store, name, f"{stem}-ensemble"))
            write_json(folder.path / ENSEMBLE_RECORD, ensemble.to_json())
        return folder


def check_ensemble_name(
    store: Store, networks: frozenset[str], name: str | None
) -> RunFolder | None:
    """Return the stored ensemble to which scores are added; None for a new one.

    Parameters
    ----------
    store
        The store.
    networks
        Digests of the members.
    name
        Requested name, if any.

    Raises
    ------
    InvalidInputError
        If the name is in use for a run or an ensemble of other networks, or not valid.
    """
    for folder in run_folders(store):
        if folder.is_ensemble and name in (None, folder.name):
            stored = read_ensemble(folder)
            if stored.networks == networks:
                return folder
            if name is not None:
                raise InvalidInputError(
                    f"{name} is an {stored.arch}; choose another name: --name NAME"
                )
    if name is not None:
        new_name(store, name, name, cure="choose another name: --name NAME")
    return None


def score_command(folder: RunFolder) -> str:
    """Return the command that computes the scores of a run or of an ensemble."""
    members = read_ensemble(folder).members if folder.is_ensemble else ()
    return score_command_of([each.name for each in members] or [folder.name])


def score_command_of(runs: Sequence[str]) -> str:
    """Return the command that scores one run, or an ensemble of several."""
    named = " ".join(f"--run {name}" for name in runs)
    return f"ood score {named}" + (" --ensemble" if len(runs) > 1 else "")
