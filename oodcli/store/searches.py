"""How the parameters of a run's methods were chosen, stored until the run is removed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oodcli.errors import CorruptArtifactError
from oodcli.records import as_json
from oodcli.store.store import digest_of_json, read_json, write_json

Tuning = Literal["openood", "pseudo"]
SEARCH_SCHEMA = 1


@dataclass(frozen=True)
class Candidate:
    """One setting of a method.

    Parameters
    ----------
    method
        Canonical name.
    auroc
        On the validation images, a fraction; None where the setting is not defined.
    reason
        Why it is not defined; empty where it is.
    """

    method: str
    auroc: float | None
    reason: str = ""


@dataclass(frozen=True)
class Search:
    """How the parameters of one method were chosen.

    Parameters
    ----------
    method
        Canonical name of the method as it was asked for.
    tuning
        ``openood`` or ``pseudo``.
    id_set, ood_set
        Names of the ID and OOD validation sets.
    n_id, n_ood
        Their numbers of images.
    chosen
        Canonical name of the setting with the first maximum of AUROC.
    candidates
        Every setting in the order of the grid.
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
        """The name of the tuned method in tables; it does not change with what was chosen."""
        return f"{self.method}@{self.tuning}"

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that is stored and that ``--format json`` prints."""
        return {"schema": SEARCH_SCHEMA, **as_json(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> "Search":
        """Read it back.

        Raises
        ------
        CorruptArtifactError
            If it is not what was written.
        """
        fields = {name: value for name, value in content.items() if name != "schema"}
        try:
            candidates = tuple(Candidate(**each) for each in fields.pop("candidates"))
            return cls(**fields, candidates=candidates)
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(f"{where} is damaged: {error}; remove it") from None


def keep_search(scores: Path, search: Search) -> None:
    """Store a search below the folder of a run's scores, in place of the last one like it."""
    write_json(_path(scores, search.name), search.to_json())


def read_searches(scores: Path) -> list[Search]:
    """Return all searches of a run, by name; none where none was made.

    Raises
    ------
    CorruptArtifactError
        If one is damaged.
    """
    folder = scores / "searches"
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    found = [Search.from_json(read_json(path), path) for path in paths]
    return sorted(found, key=lambda search: search.name)


def _path(scores: Path, name: str) -> Path:
    return scores / "searches" / f"{digest_of_json(name)[:16]}.json"
