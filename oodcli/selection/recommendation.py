"""The stored recommendation of a method for a run, with the results of all candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from oodcli.errors import (
    CorruptArtifactError,
    OodError,
)
from oodcli.methods import MethodSpec, parse_method, parse_methods
from oodcli.methods.ensemble import EnsembleSpec
from oodcli.records import as_json
from oodcli.scoring.open_run import OpenRun
from oodcli.store.store import read_json

RECOMMENDATION_SCHEMA = 1
_SAME = " gives the scores of "


@dataclass(frozen=True)
class RatedMethod:
    """A candidate and its results.

    Parameters
    ----------
    method
        Canonical name.
    family
        The method without its parameters.
    merit
        Mean AUROC over the families of corruptions, a fraction.
    auroc
        AUROC by corruption, a fraction.
    share
        Share of bootstrap samples in which it is the best.
    """

    method: str
    family: str
    merit: float
    auroc: Mapping[str, float]
    share: float


# The fields are those of the stored object, which is flat and part of the JSON contract.
@dataclass(frozen=True)
class Recommendation:
    """The method recommended for a run, with the results of all candidates.

    Parameters
    ----------
    run
        Name of the run.
    network, weights
        Digests of the network and of the file of its weights.
    created
        Time of the choice, UTC.
    data, part
        Data set and part of the ID images.
    n
        Number of the ID images.
    digest
        Digest of their pixels.
    precision
        ``float32`` or ``bfloat16``.
    seed
        Seed of the corruptions and of the bootstrap samples.
    draws
        Number of bootstrap samples.
    families
        Family of each corruption, by its name.
    method
        Canonical name of the recommended method.
    share
        Share of bootstrap samples in which it is best, with any setting of its parameters.
    runner_up
        The best other method; None if there is none.
    lead
        Mean AUROC of the recommended method minus that of the runner-up, a fraction.
    lead_low, lead_high
        2.5th and 97.5th percentile of the lead over bootstrap samples.
    candidates
        All evaluated candidates, best first.
    left_out
        Why a candidate could not be evaluated, by name.
    restricted
        Whether candidates or images were restricted; such a recommendation is not stored.
    """

    run: str
    network: str
    weights: str
    created: str
    data: str
    part: str
    n: int
    digest: str
    precision: str
    seed: int
    draws: int
    families: Mapping[str, str]
    method: str
    share: float
    runner_up: str | None
    lead: float | None
    lead_low: float | None
    lead_high: float | None
    candidates: tuple[RatedMethod, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    restricted: bool = False

    @property
    def sureness(self) -> str:
        """Confidence of the choice: ``sure``, ``likely`` or ``a toss-up with`` the runner-up."""
        if self.runner_up is None:
            return "the only candidate"
        if self.share >= 0.95:
            return "sure"
        return "likely" if self.share >= 0.7 else f"a toss-up with {self.runner_up}"

    def rated(self, method: str) -> RatedMethod | None:
        """Return the results of a candidate, by its canonical name; None if there are none."""
        return next((each for each in self.candidates if each.method == method), None)

    def undefined(self, methods: Sequence[str]) -> dict[str, str]:
        """Return why requested methods could not be evaluated, by canonical name."""
        rated = {each.family for each in self.candidates}
        named = [spec.canonical for spec in parse_methods(methods) if family_of(spec) not in rated]
        reasons = {name: self.left_out[name] for name in named if name in self.left_out}
        return {name: reason for name, reason in reasons.items() if _SAME not in reason}

    @property
    def best_of_each(self) -> tuple[RatedMethod, ...]:
        """The best candidate of every method, best first."""
        found: dict[str, RatedMethod] = {}
        for each in self.candidates:
            found.setdefault(each.family, each)
        return tuple(found.values())

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that is stored and that ``--format json`` prints."""
        return {
            "kind": "ood-recommendation",
            "schema": RECOMMENDATION_SCHEMA,
            "sureness": self.sureness,
            **as_json(self),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """Build the recommendation from its stored object.

        Raises
        ------
        CorruptArtifactError
            If the object is damaged or has another schema.
        """
        if content.get("schema") != RECOMMENDATION_SCHEMA:
            raise CorruptArtifactError(
                f"{where} has schema {content.get('schema')!r}, not {RECOMMENDATION_SCHEMA}; "
                "create it again: ood recommend"
            )
        derived = ("kind", "schema", "sureness")
        fields = {name: value for name, value in content.items() if name not in derived}
        try:
            candidates = tuple(RatedMethod(**each) for each in fields.pop("candidates"))
            return cls(**fields, candidates=candidates)
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(
                f"{where} is damaged: {error}; create it again: ood recommend"
            ) from None


def family_of(spec: MethodSpec) -> str:
    """Return the name of a method without parameters; the full name of an ensemble."""
    if isinstance(spec, EnsembleSpec):
        return spec.canonical
    return "+".join(part.name for part in spec.parts)


def same_scores(name: str, other: str) -> str:
    """Return the reason for skipping a candidate with the same scores as another."""
    return f"{name}{_SAME}{other}"


def stored_recommendation(run: OpenRun) -> Recommendation | None:
    """Return the stored recommendation if it belongs to these weights and is valid.

    A note reports an invalid one; it is recomputed when it is needed.
    """
    place = run.folder.recommendation
    if not place.is_file():
        return None
    try:
        found = Recommendation.from_json(read_json(place), place)
        parse_method(found.method)
    except OodError as error:
        run.progress.note(f"the recommendation of run {run.name} is not used: {error}")
        return None
    fits = (found.weights, found.precision) == (run.record.weights, run.compute.precision)
    return found if fits else None
