"""The three shapes a method can have, and how one is named on the command line.

A *detector* scores activations. A *logit scorer* is a detector that needs the logits alone. A
*shaper* makes new logits from activations; joined with a logit scorer, as in ``norm+energy``, it is
a detector. ``fit`` is a named constructor: an unfitted method does not exist. The keyword-only
parameters of ``fit``, with their annotations and defaults, are what a user can choose.

A fitted method that needs more of the forward pass says so in a field ``probes``, a tuple of
:class:`~oodcli.probes.Probe`; it finds their arrays in ``batch.extra``. A class whose fitted
instances share work may have a static method ``score_all(detectors, batch)``, which returns a
sequence of what ``score`` returns for each.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from types import SimpleNamespace
from typing import Any, Literal, Protocol, Self, TypeGuard, get_type_hints

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError, UnknownNameError
from oodcli.method_names import usual_name
from oodcli.methods._needs import ZERO_SHOT, Need
from oodcli.probes import Probe
from oodcli.specs import Value, canonical, format_value, parse_pairs, parse_value

Find = Callable[[str], tuple[str, "Method"]]

# What joins the halves of a method; the last plus of mds++ joins nothing.
JOIN = re.compile(r"\+(?=\s*\w)")

# What a method may look at; those of the second line cost forward passes of their own.
Input = Literal[
    "logits", "features", "block norms", "head",
    "train", "labels", "jigsaw", "calibration", "calibration labels", "regions", "network",
    "words",
]  # fmt: skip


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


class _Looks:
    """What follows from what a method looks at."""

    __slots__ = ()
    inputs: Any

    @property
    def needs_network(self) -> bool:
        """Whether it needs more of the network than one forward pass gives."""
        return not {"network", "regions"}.isdisjoint(self.inputs)

    @property
    def needs_calibration(self) -> bool:
        """Whether it learns from calibration images."""
        return not {"calibration", "calibration labels"}.isdisjoint(self.inputs)


@dataclass(frozen=True, slots=True)
class Method(_Looks):
    """What the registry knows of a method.

    Parameters
    ----------
    type
        The class.
    title
        Its name in papers.
    paper
        Authors, venue and year.
    inputs
        What it uses with its default parameters.
    grid
        The published values of those parameters that a search may choose.
    passes
        Forward passes per scored image beyond the ordinary one; a backward pass counts 2.
    train_passes
        Forward passes per training image beyond the ordinary one.
    needs
        What it needs to be defined; see :mod:`oodcli.methods._needs`.
    exportable
        Whether a graph can be recorded of its score; a test exports every method that says so.
    """

    type: type[Detector] | type[Shaper]
    title: str
    paper: str
    inputs: tuple[Input, ...]
    grid: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    passes: float = 0.0
    train_passes: float = 0.0
    needs: tuple[Need, ...] = ()
    exportable: bool = False

    @property
    def is_zero_shot(self) -> bool:
        """Whether it is defined for zero-shot classifiers alone."""
        return ZERO_SHOT in self.needs

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
        return choosable(self.type.fit)


def _is_value(value: object) -> TypeGuard[Value]:
    return isinstance(value, (bool, int, float, str))


def choosable(fit: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of ``fit`` with their types and defaults.

    Raises
    ------
    NameError
        If the type of one of them is a name that its module does not know.
    """
    found = {
        name: parameter
        for name, parameter in inspect.signature(fit).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    # The other annotations, such as a class inside a function, may be out of reach.
    annotations = {n: p.annotation for n, p in found.items() if p.annotation is not p.empty}
    hints = get_type_hints(
        SimpleNamespace(__annotations__=annotations), globalns=getattr(fit, "__globals__", {})
    )
    return {n: p.replace(annotation=hints.get(n)) for n, p in found.items()}


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
        """The name with its parameters, defaults omitted and keys sorted."""
        return canonical(self.name, self.given)

    def arguments(self) -> dict[str, Value]:
        """Return the value of every parameter as given or by default, None if fitting chooses."""
        return {
            name: self.given.get(name, parameter.default)
            for name, parameter in self.method.parameters().items()
        }

    def fit(self, reference: Reference) -> "Detector | Shaper":
        """Fit this half.

        Raises
        ------
        UndefinedMethodError
            If the method needs something that is missing, or is not defined for other reasons.
        """
        arguments = self.arguments()
        for need in self.method.needs:
            refusal = need.refusal(reference, arguments)
            if refusal is not None:
                raise UndefinedMethodError(f"{self.name} is not defined here: {refusal}")
        return self.method.type.fit(reference, **self.given)

    def instead(self, params: Mapping[str, Value]) -> dict[str, tuple[Value, Value]]:
        """Return value asked for and value in use, by name, of parameters where the two differ.

        Parameters
        ----------
        params
            What :meth:`effective` returned.
        """
        asked = {name: value for name, value in self.arguments().items() if value is not None}
        return {n: (value, params[n]) for n, value in asked.items() if params[n] != value}

    def effective(self, fitted: object) -> dict[str, Value]:
        """Return every parameter, with the value that is in use, and other values found by fitting.

        A number, word or truth value that the fitted method has under the name of a parameter is
        what it uses: ``k`` of KNN is no more than there are training images. What else fitting
        found stands in the other fields of that kind, such as the temperature of ``tempscale``.
        """
        values: dict[str, Value] = {}
        for name, parameter in self.method.parameters().items():
            value = getattr(fitted, name, None)
            values[name] = value if _is_value(value) else self.given.get(name, parameter.default)
        found = fields(fitted) if is_dataclass(fitted) else ()
        for name in (each.name for each in found if each.name not in values):
            if _is_value(value := getattr(fitted, name)):
                values[name] = value
        return values


@dataclass(frozen=True)
class Fitted:
    """A fitted method, ready to score.

    Parameters
    ----------
    canonical
        Its canonical name.
    params
        The value of every parameter that is in use, and what fitting found.
    detector
        What scores.
    """

    canonical: str
    params: Mapping[str, Value]
    detector: Scorer

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What it needs of the forward pass beyond the ordinary activations."""
        return probes_of(self.detector)


def probes_of(fitted: object) -> tuple[Probe, ...]:
    """Return what a fitted method needs of the forward pass beyond the ordinary activations."""
    return tuple(getattr(fitted, "probes", ()))


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

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What the shaper needs of the forward pass."""
        return probes_of(self.shaper)

    def score(self, batch: Activations) -> Tensor:
        """Return the scorer's scores of the shaper's logits, ``(n,)``."""
        return self.scorer.score_logits(self.shaper.logits(batch))


@dataclass(frozen=True)
class MethodSpec(_Looks):
    """A method as named on the command line: one detector, or a shaper and a logit scorer.

    Parameters
    ----------
    parts
        The halves in order.
    optional
        Whether a group named it, so that it is skipped where it is not defined.
    """

    parts: tuple[MethodPart, ...]
    optional: bool = False

    @property
    def canonical(self) -> str:
        """The whole name, defaults omitted and keys sorted."""
        return "+".join(part.canonical for part in self.parts)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What it uses, without repetitions."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.method.inputs))

    @property
    def passes(self) -> float:
        """Forward passes per scored image beyond the ordinary one."""
        return sum(part.method.passes for part in self.parts)

    @property
    def train_passes(self) -> float:
        """Forward passes per training image beyond the ordinary one."""
        return sum(part.method.train_passes for part in self.parts)

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


def parse_method(text: str, registry: Mapping[str, Method], find: Find | None = None) -> MethodSpec:
    """Read ``name[:key=value,…]`` or ``shaper[:…]+scorer[:…]``.

    A shaper alone is followed by ``energy``, as its paper has it.

    Parameters
    ----------
    text
        What the user wrote.
    registry
        The known methods.
    find
        Returns name and entry of a method that is not in the registry, or raises.

    Raises
    ------
    UnknownNameError
        If there is no such method.
    InvalidInputError
        If a parameter is unknown or has a value it cannot have, or the halves do not fit together.
    """
    parts = tuple(_parse_part(half.strip(), registry, find) for half in JOIN.split(text))
    if len(parts) == 1 and parts[0].method.is_shaper:
        parts = (parts[0], _parse_part("energy", registry, None))
    if len(parts) > 2:
        raise InvalidInputError(f"method {text!r} has {len(parts)} parts; write SHAPER+SCORER")
    if len(parts) == 2:
        shapers = [name for name, method in registry.items() if method.is_shaper]
        scorers = [name for name, method in registry.items() if method.is_logit_scorer]
        if not parts[0].method.is_shaper:
            raise InvalidInputError(
                f"{parts[0].name!r} in {text!r} makes no logits; before the +, write one of: "
                f"{', '.join(shapers)}"
            )
        if not parts[1].method.is_logit_scorer:
            raise InvalidInputError(
                f"{parts[1].name!r} in {text!r} does not score logits; after the +, write one of: "
                f"{', '.join(scorers)}"
            )
    return MethodSpec(parts)


def _parse_part(text: str, registry: Mapping[str, Method], find: Find | None) -> MethodPart:
    name = text.partition(":")[0]
    if name in registry:
        method = registry[name]
    elif find is None:
        raise UnknownNameError.among("method", name, registry, meant=usual_name(name))
    else:
        name, method = find(text)
    _, colon, pairs = text.removeprefix(name).partition(":")
    parameters = method.parameters()
    texts = parse_pairs("method", text, name, pairs if colon else None, parameters)
    given = {
        key: parse_value(f"{name}:{key}", value, parameters[key].annotation)
        for key, value in texts.items()
    }
    kept = {key: value for key, value in given.items() if value != parameters[key].default}
    return MethodPart(name, method, kept)


def not_negative(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number and not below 0.

    Raises
    ------
    InvalidInputError
        If it is not.
    """
    if not 0 <= value < float("inf"):
        raise InvalidInputError(f"{name} must be a number of at least 0, not {format_value(value)}")
    return value


def percentile(name: str, value: float) -> float:
    """Return ``value`` if it is at least 0 and less than 100.

    Raises
    ------
    InvalidInputError
        If it is not.
    """
    if not 0 <= value < 100:
        raise InvalidInputError(
            f"{name} must be at least 0 and less than 100, not {format_value(value)}"
        )
    return value


def at_least(name: str, value: int, least: int) -> int:
    """Return ``value`` if it is not less than ``least``.

    Raises
    ------
    InvalidInputError
        If it is.
    """
    if value < least:
        raise InvalidInputError(f"{name} must be at least {least}, not {value}")
    return value


def score_many(scorers: Sequence[Scorer], batch: Activations) -> Tensor:
    """Return the scores of several fitted methods on one batch, ``(n, len(scorers))``.

    Neighbours of one class that can share work do so: see the head of this module.
    """
    columns: list[Tensor] = []
    for _, run in itertools.groupby(scorers, key=type):
        alike = list(run)
        score_all = getattr(type(alike[0]), "score_all", None)
        columns += (
            [one.score(batch) for one in alike] if score_all is None else score_all(alike, batch)
        )
    return torch.stack([column.double() for column in columns], dim=1)
