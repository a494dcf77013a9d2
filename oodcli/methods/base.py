"""The three shapes a method can have, and how one is named on the command line.

A *detector* scores activations. A *logit scorer* is a detector that needs the logits alone. A
*shaper* makes new logits from activations; joined with a logit scorer, as in ``norm+energy``, it is
a detector. ``fit`` is a named constructor: an unfitted method does not exist. The keyword-only
parameters of ``fit``, with their annotations and defaults, are what a user can choose.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Protocol, Self, get_args, get_type_hints

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError, UnknownNameError

Value = float | int | str | bool | None


class Scorer(Protocol):
    """Scores images by their activations."""

    def score(self, batch: Activations, /) -> Tensor:
        """Return one score per image, ``(n,)``, larger for more in-distribution."""


class Detector(Scorer, Protocol):
    """A scorer that learns from in-distribution activations."""

    @classmethod
    def fit(cls, reference: Reference, /) -> Self:
        """Learn from in-distribution activations."""


class LogitScorer(Detector, Protocol):
    """Scores images by their logits."""

    def score_logits(self, logits: Tensor, /) -> Tensor:
        """Return one score per row of logits ``(n, k)``, larger for more in-distribution."""


class Shaper(Protocol):
    """Makes new logits from activations."""

    @classmethod
    def fit(cls, reference: Reference, /) -> Self:
        """Learn from in-distribution activations."""

    def logits(self, batch: Activations, /) -> Tensor:
        """Return new logits, ``(n, k)``."""


@dataclass(frozen=True, slots=True)
class Method:
    """What the registry knows of a method.

    Parameters
    ----------
    type
        The class.
    title
        Its name in papers.
    paper
        Authors, venue and year.
    """

    type: type[Detector] | type[Shaper]
    title: str
    paper: str

    @property
    def is_shaper(self) -> bool:
        """Whether it makes logits and needs a scorer to follow."""
        return hasattr(self.type, "logits")

    @property
    def is_logit_scorer(self) -> bool:
        """Whether it can follow a shaper."""
        return hasattr(self.type, "score_logits")

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return the keyword-only parameters of ``fit`` with their types and defaults."""
        hints = get_type_hints(self.type.fit)
        return {
            name: parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(self.type.fit).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }


@dataclass(frozen=True)
class MethodPart:
    """One half of a method, with the parameters it was given.

    Parameters
    ----------
    name
        Key in the registry.
    method
        The registry entry.
    given
        Parameters that differ from their defaults.
    """

    name: str
    method: Method
    given: Mapping[str, Value]

    @property
    def canonical(self) -> str:
        """The name with its parameters, defaults left out and keys sorted."""
        if not self.given:
            return self.name
        pairs = ",".join(f"{key}={_written(self.given[key])}" for key in sorted(self.given))
        return f"{self.name}:{pairs}"

    def fit(self, reference: Reference) -> "Detector | Shaper":
        """Fit this half."""
        return self.method.type.fit(reference, **self.given)

    def effective(self, fitted: object) -> dict[str, Value]:
        """Return the value of every parameter, those that fitting chose included."""
        values: dict[str, Value] = {}
        for name, parameter in self.method.parameters().items():
            value = self.given.get(name, parameter.default)
            values[name] = getattr(fitted, name) if value is None else value
        return values


@dataclass(frozen=True)
class Fitted:
    """A fitted method, ready to score.

    Parameters
    ----------
    canonical
        Its canonical name.
    params
        The value of every parameter, those that fitting chose included.
    detector
        What scores.
    """

    canonical: str
    params: Mapping[str, Value]
    detector: Scorer


@dataclass(frozen=True, slots=True)
class Combined:
    """A shaper followed by a logit scorer.

    Parameters
    ----------
    shaper
        Makes the logits.
    scorer
        Scores them.
    """

    shaper: Shaper
    scorer: LogitScorer

    def score(self, batch: Activations) -> Tensor:
        """Return the scorer's scores of the shaper's logits, ``(n,)``."""
        return self.scorer.score_logits(self.shaper.logits(batch))


@dataclass(frozen=True)
class MethodSpec:
    """A method as named on the command line: one detector, or a shaper and a logit scorer.

    Parameters
    ----------
    parts
        The halves in order.
    """

    parts: tuple[MethodPart, ...]

    @property
    def canonical(self) -> str:
        """The whole name, defaults left out and keys sorted."""
        return "+".join(part.canonical for part in self.parts)

    def fit(self, reference: Reference) -> Fitted:
        """Fit the method on in-distribution activations."""
        fitted = [part.fit(reference) for part in self.parts]
        if len(self.parts) == 1:
            params = self.parts[0].effective(fitted[0])
            return Fitted(self.canonical, params, fitted[0])  # type: ignore[arg-type]
        params = {
            f"{part.name}.{key}": value
            for part, half in zip(self.parts, fitted, strict=True)
            for key, value in part.effective(half).items()
        }
        shaper, scorer = fitted
        return Fitted(self.canonical, params, Combined(shaper, scorer))  # type: ignore[arg-type]


def parse_method(text: str, registry: Mapping[str, Method]) -> MethodSpec:
    """Read ``name[:key=value,…]`` or ``shaper[:…]+scorer[:…]``.

    A shaper alone is followed by ``energy``, as its paper has it.

    Parameters
    ----------
    text
        What the user wrote.
    registry
        The methods there are.

    Raises
    ------
    UnknownNameError
        If there is no such method.
    InvalidInputError
        If a parameter is unknown or has a value it cannot have, or the halves do not fit together.
    """
    parts = tuple(_parse_part(half.strip(), registry) for half in text.split("+"))
    if len(parts) == 1 and parts[0].method.is_shaper:
        parts = (parts[0], _parse_part("energy", registry))
    if len(parts) > 2:
        raise InvalidInputError(f"method {text!r} has {len(parts)} parts; write SHAPER+SCORER")
    if len(parts) == 2:
        shapers = [name for name, method in registry.items() if method.is_shaper]
        scorers = [name for name, method in registry.items() if method.is_logit_scorer]
        if not parts[0].method.is_shaper:
            raise InvalidInputError(
                f"{parts[0].name!r} in {text!r} makes no logits; before the + goes one of: "
                f"{', '.join(shapers)}"
            )
        if not parts[1].method.is_logit_scorer:
            raise InvalidInputError(
                f"{parts[1].name!r} in {text!r} does not score logits; after the + goes one of: "
                f"{', '.join(scorers)}"
            )
    return MethodSpec(parts)


def _parse_part(text: str, registry: Mapping[str, Method]) -> MethodPart:
    name, colon, pairs = text.partition(":")
    if name not in registry:
        raise UnknownNameError.among("method", name, registry)
    method = registry[name]
    parameters = method.parameters()
    given: dict[str, Value] = {}
    for pair in pairs.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not equals or not value:
            raise InvalidInputError(f"{pair!r} in method {text!r} is not KEY=VALUE")
        if key not in parameters:
            if not parameters:
                raise InvalidInputError(f"method {name!r} has no parameters, so not {key!r} either")
            raise UnknownNameError.among(f"parameter of {name}", key, parameters)
        if key in given:
            raise InvalidInputError(f"parameter {key!r} stands twice in method {text!r}")
        given[key] = _typed(f"{name}:{key}", value, parameters[key].annotation)
    kept = {key: value for key, value in given.items() if value != parameters[key].default}
    return MethodPart(name, method, kept)


def _typed(what: str, text: str, annotation: object) -> Value:
    choices = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    for choice in choices:
        try:
            if choice is bool:
                return {"true": True, "false": False}[text.lower()]
            if choice is int or choice is float or choice is str:
                return choice(text)
        except (ValueError, KeyError):
            continue
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    wanted = " or ".join(
        kinds[c] for c in choices if isinstance(c, type) and c is not NoneType and c in kinds
    )
    raise InvalidInputError(f"{what} must be {wanted}, not {text!r}")


def _written(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def positive(name: str, value: float) -> float:
    """Return ``value`` if it is a positive, finite number.

    Raises
    ------
    InvalidInputError
        If it is not.
    """
    if not 0 < value < float("inf"):
        raise InvalidInputError(f"{name} must be a positive number, not {_written(value)}")
    return value
