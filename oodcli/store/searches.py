"""Results of tuning the parameters of a run's methods, stored until the run is removed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from oodcli.errors import CorruptArtifactError
from oodcli.records import as_json
from oodcli.store.store import digest_of_json, read_json, write_json

Tuning = Literal["openood", "pseudo"]
SEARCH_SCHEMA = 1


@dataclass(frozen=True)
class Candidate:
    """One parameter setting of a method.

    Parameters
    ----------
    method
        Canonical name of the method with these parameters.
    auroc
        AUROC on the validation images, a fraction; None if the setting is not defined.
    reason
        Why the setting is not defined; empty if it is.
    fpr95
        FPR95 on the validation images, a fraction, by the neutral convention; None if the setting
        is not defined, or was stored by a version that did not compute it.
    parameters
        Value of every tuned parameter by name; of a combination, with the part, such as
        ``scale.percentile``. Empty if stored by a version that did not record it.
    """

    method: str
    auroc: float | None
    reason: str = ""
    fpr95: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """The tuning of one method's parameters on validation images.

    Parameters
    ----------
    method
        Canonical name of the requested method.
    tuning
        ``openood`` or ``pseudo``.
    id_set, ood_set
        Names of the ID and OOD validation sets.
    n_id, n_ood
        Numbers of ID and OOD images.
    chosen
        Canonical name of the first setting with the maximum AUROC.
    candidates
        All settings, in the order of the grid.
    """

    method: str
    tuning: Tuning
    id_set: str
    ood_set: str
    n_id: int
    n_ood: int
    chosen: str
    candidates: tuple[Candidate, ...]

    @property
    def name(self) -> str:
        """The name of the tuned method in tables, independent of the chosen parameters."""
        return f"{self.method}@{self.tuning}"

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that is stored and printed by ``--format json``."""
        return {"schema": SEARCH_SCHEMA, **as_json(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> "Search":
        """Build the search from its stored object.

        Raises
        ------
        CorruptArtifactError
            If the object is damaged.
        """
        fields = {name: value for name, value in content.items() if name != "schema"}
        try:
            candidates = tuple(Candidate(**each) for each in fields.pop("candidates"))
            return cls(**fields, candidates=candidates)
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(f"{where} is damaged: {error}; remove it") from None


def write_search(scores: Path, search: Search) -> None:
    """Store a search in the folder of a run's scores; replaces one of the same name."""
    write_json(_path(scores, search.name), search.to_json())


def read_searches(scores: Path) -> list[Search]:
    """Return all searches of a run, sorted by name.

    Raises
    ------
    CorruptArtifactError
        If one is damaged.
    """
    folder = scores / "searches"
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    searches = [Search.from_json(read_json(path), path) for path in paths]
    return sorted(searches, key=lambda search: search.name)


def _path(scores: Path, name: str) -> Path:
    return scores / "searches" / f"{digest_of_json(name)[:16]}.json"
