"""The three kinds of methods, and their names on the command line.

A *detector* scores activations. A *logit scorer* is a detector that needs only the logits. A
*shaper* computes new logits from activations; combined with a logit scorer, as in ``norm+energy``,
it forms a detector. ``fit`` is an alternative constructor: there are no unfitted instances. The
keyword-only parameters of ``fit``, with their annotations and defaults, are the parameters that a
user can set.

A fitted method that needs further arrays from the forward pass has a field ``probes``, a tuple of
:class:`~oodcli.probes.Probe`; their arrays are in ``batch.extra``. A class whose fitted instances
share work may have a static method ``score_all(detectors, batch)``, which returns the result of
``score`` for each detector.
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
from oodcli.methods._needs import CLASSIFIER, KEPT_HEADS, ZERO_SHOT, Need
from oodcli.probes import Probe
from oodcli.specs import Value, canonical, format_value, parse_pairs, parse_value

MethodLookup = Callable[[str], tuple[str, "Method"]]

# Separator of the parts of a method; it does not match the plus signs of mds++.
JOIN = re.compile(r"\+(?=\s*\w)")

# Inputs of a method; most of those after the first line need additional forward passes.
Input = Literal[
    "logits", "features", "block norms", "head",
    "train", "labels", "jigsaw", "calibration", "calibration labels", "regions", "network",
    "words", "jigsaw features", "blocks",
]  # fmt: skip


class Scorer(Protocol):
    """Scores images by their activations."""

    def score(self, batch: Activations, /) -> Tensor:
        """Return one score per image, ``(n,)``; larger = more in-distribution."""


class Detector(Scorer, Protocol):
    """A scorer that is fitted on in-distribution activations."""

    @classmethod
    def fit(cls, reference: Reference, /) -> Self:
        """Fit on in-distribution activations."""


class LogitScorer(Detector, Protocol):
    """Scores images by their logits."""

    def score_logits(self, logits: Tensor, /) -> Tensor:
        """Return one score per row of logits ``(n, k)``; larger = more in-distribution."""


class Shaper(Protocol):
    """Computes new logits from activations."""

    @classmethod
    def fit(cls, reference: Reference, /) -> Self:
        """Fit on in-distribution activations."""

    def logits(self, batch: Activations, /) -> Tensor:
        """Return new logits, ``(n, k)``."""


class _InputProperties:
    """Properties that follow from the inputs of a method."""

    __slots__ = ()
    inputs: Any

    @property
    def needs_network(self) -> bool:
        """Whether it needs more than one ordinary forward pass of the network."""
        return not {"network", "regions", "blocks"}.isdisjoint(self.inputs)

    @property
    def needs_calibration(self) -> bool:
        """Whether it is fitted on calibration images."""
        return not {"calibration", "calibration labels"}.isdisjoint(self.inputs)


@dataclass(frozen=True, slots=True)
class Method(_InputProperties):
    """The registry entry of a method.

    Parameters
    ----------
    type
        The class.
    title
        Name in papers.
    paper
        Authors, venue and year.
    inputs
        Inputs used with default parameters.
    grid
        Values of the parameters that can be tuned: the published ones, or, where there are none,
        values of our own, which the docstring of the class says.
    passes
        Forward passes per scored image beyond the ordinary one; a backward pass counts 2.
    train_passes
        Forward passes per training image beyond the ordinary one.
    needs
        Conditions for the method to be defined; see :mod:`oodcli.methods._needs`.
    exportable
        Whether its score can be traced as a graph; a test exports every such method.
    without_classifier
        Whether it is defined without a classifier, though it uses a last layer if there is one.
    on_request
        Whether the method is scored on request only, or with ``all``: because fitting or scoring
        costs much beyond the forward pass, or because it is for networks of one objective.
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
    without_classifier: bool = False
    on_request: bool = False

    @property
    def needs_classifier(self) -> bool:
        """Whether it needs logits, which a network without a classifier does not give.

        Methods that look at the network run it for its logits.
        """
        looks = not {"logits", "head", "network"}.isdisjoint(self.inputs)
        return looks and not self.without_classifier

    @property
    def is_zero_shot(self) -> bool:
        """Whether it is defined for zero-shot classifiers alone."""
        return ZERO_SHOT in self.needs

    @property
    def kept_head(self) -> str:
        """Name of the kept head that it needs, which only one objective leaves in the weights."""
        return next((name for name, need in KEPT_HEADS.items() if need in self.needs), "")

    @property
    def is_shaper(self) -> bool:
        """Whether it computes logits and must be combined with a logit scorer."""
        return hasattr(self.type, "logits")

    @property
    def is_logit_scorer(self) -> bool:
        """Whether it can be combined with a shaper."""
        return hasattr(self.type, "score_logits")

    @property
    def follows_shapers(self) -> bool:
        """Whether it can be fitted on the logits of a shaper, which its ``fit`` takes as ``after``.

        Such a method runs the network and the shaper itself.
        """
        after = inspect.signature(self.type.fit).parameters.get("after")
        return after is not None and after.kind is not inspect.Parameter.KEYWORD_ONLY

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return the keyword-only parameters of ``fit`` with their types and defaults."""
        return user_parameters(self.type.fit)


def _is_value(value: object) -> TypeGuard[Value]:
    return isinstance(value, (bool, int, float, str))


def user_parameters(fit: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of ``fit`` with their types and defaults.

    Raises
    ------
    NameError
        If an annotation contains a name that is undefined in the module.
    """
    found = {
        name: parameter
        for name, parameter in inspect.signature(fit).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    # Other annotations may not be resolvable, such as a class defined inside a function.
    annotations = {n: p.annotation for n, p in found.items() if p.annotation is not p.empty}
    hints = get_type_hints(
        SimpleNamespace(__annotations__=annotations), globalns=getattr(fit, "__globals__", {})
    )
    return {n: p.replace(annotation=hints.get(n)) for n, p in found.items()}


@dataclass(frozen=True)
class MethodPart:
    """One part of a method (shaper or scorer), with its given parameters.

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
        """Return the given or default value of every parameter; None if chosen in fitting."""
        return {
            name: self.given.get(name, parameter.default)
            for name, parameter in self.method.parameters().items()
        }

    def fit(self, reference: Reference, after: Shaper | None = None) -> "Detector | Shaper":
        """Fit this part.

        Parameters
        ----------
        reference
            What it is fitted on.
        after
            The fitted shaper in front of a method that follows shapers.

        Raises
        ------
        UndefinedMethodError
            If a need of the method is not met, or it is undefined for another reason.
        """
        arguments = self.arguments()
        general = (CLASSIFIER,) if self.method.needs_classifier else ()
        for need in (*general, *self.method.needs):
            refusal = need.refusal(reference, arguments)
            if refusal is not None:
                raise UndefinedMethodError(f"{self.name} is not defined here: {refusal}")
        if after is not None:
            return self.method.type.fit(reference, after, **self.given)  # type: ignore[call-arg]
        return self.method.type.fit(reference, **self.given)

    def replaced_values(self, params: Mapping[str, Value]) -> dict[str, tuple[Value, Value]]:
        """Return requested and used value, by name, of the parameters where these differ.

        Parameters
        ----------
        params
            The result of :meth:`effective_parameters`.
        """
        asked = {name: value for name, value in self.arguments().items() if value is not None}
        return {n: (value, params[n]) for n, value in asked.items() if params[n] != value}

    def effective_parameters(self, fitted: object) -> dict[str, Value]:
        """Return the used value of every parameter, and further values determined by fitting.

        If the fitted method has a number, text or boolean with the name of a parameter, this is the
        used value; for instance, ``k`` of KNN is limited to the number of training images. Other
        fields of these types, such as the temperature of ``tempscale``, are values determined by
        fitting.
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
        Canonical name.
    params
        Used value of every parameter, and values determined by fitting.
    detector
        The fitted detector.
    """

    canonical: str
    params: Mapping[str, Value]
    detector: Scorer

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes that the method needs."""
        return probes_of(self.detector)


def probes_of(fitted: object) -> tuple[Probe, ...]:
    """Return the probes that a fitted method needs."""
    return tuple(getattr(fitted, "probes", ()))


@dataclass(frozen=True, slots=True)
class Combined:
    """A shaper combined with a logit scorer.

    Parameters
    ----------
    shaper
        Computes the logits.
    scorer
        Scores these logits.
    """

    shaper: Shaper
    scorer: LogitScorer

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes that the shaper needs."""
        return probes_of(self.shaper)

    def score(self, batch: Activations) -> Tensor:
        """Return the scorer's scores of the shaper's logits, ``(n,)``."""
        return self.scorer.score_logits(self.shaper.logits(batch))


@dataclass(frozen=True)
class MethodSpec(_InputProperties):
    """A method as specified on the command line: a detector, or a shaper and a logit scorer.

    Parameters
    ----------
    parts
        The parts in order.
    optional
        Whether it was requested as part of a group, so that it is skipped if it is not defined.
    """

    parts: tuple[MethodPart, ...]
    optional: bool = False

    @property
    def canonical(self) -> str:
        """The full name, with defaults omitted and parameters sorted."""
        return "+".join(part.canonical for part in self.parts)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Inputs of all parts, without duplicates."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.method.inputs))

    @property
    def needs_classifier(self) -> bool:
        """Whether a part of it needs logits."""
        return any(part.method.needs_classifier for part in self.parts)

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
        if len(self.parts) == 1:
            (part,) = self.parts
            fitted = part.fit(reference)
            params = part.effective_parameters(fitted)
            return Fitted(self.canonical, params, fitted)  # type: ignore[arg-type]
        first, second = self.parts
        shaper = first.fit(reference)
        follows = second.method.follows_shapers
        scorer = second.fit(reference, shaper if follows else None)  # type: ignore[arg-type]
        params = {
            f"{part.name}.{key}": value
            for part, half in ((first, shaper), (second, scorer))
            for key, value in part.effective_parameters(half).items()
        }
        detector = scorer if follows else Combined(shaper, scorer)  # type: ignore[arg-type]
        return Fitted(self.canonical, params, detector)  # type: ignore[arg-type]


def parse_method(
    text: str, registry: Mapping[str, Method], find: MethodLookup | None = None
) -> MethodSpec:
    """Parse ``name[:key=value,…]`` or ``shaper[:…]+scorer[:…]``.

    A shaper alone is combined with ``energy``, as in its paper.

    Parameters
    ----------
    text
        The specification of the method.
    registry
        The known methods.
    find
        Function that returns name and entry of a method that is not in the registry, or raises an
        error.

    Raises
    ------
    UnknownNameError
        If the method or a parameter does not exist.
    InvalidInputError
        If a parameter has an invalid value, or the parts cannot be combined.
    """
    parts = tuple(_parse_part(half.strip(), registry, find) for half in JOIN.split(text))
    if len(parts) == 1 and parts[0].method.is_shaper:
        parts = (parts[0], _parse_part("energy", registry, None))
    if len(parts) > 2:
        raise InvalidInputError(f"method {text!r} has {len(parts)} parts; write SHAPER+SCORER")
    if len(parts) == 2:
        shapers = [name for name, method in registry.items() if method.is_shaper]
        scorers = [
            name
            for name, method in registry.items()
            if method.is_logit_scorer or method.follows_shapers
        ]
        if not parts[0].method.is_shaper:
            raise InvalidInputError(
                f"{parts[0].name!r} in {text!r} does not compute logits; before the +, use one of: "
                f"{', '.join(shapers)}"
            )
        if not (parts[1].method.is_logit_scorer or parts[1].method.follows_shapers):
            raise InvalidInputError(
                f"{parts[1].name!r} in {text!r} does not score logits; after the +, use one of: "
                f"{', '.join(scorers)}"
            )
    return MethodSpec(parts)


def _parse_part(text: str, registry: Mapping[str, Method], find: MethodLookup | None) -> MethodPart:
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
    changed = {key: value for key, value in given.items() if value != parameters[key].default}
    return MethodPart(name, method, changed)


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

    Adjacent methods of one class share work if the class has ``score_all``, see the docstring of
    this module.
    """
    columns: list[Tensor] = []
    for _, group in itertools.groupby(scorers, key=type):
        same = list(group)
        score_all = getattr(type(same[0]), "score_all", None)
        columns += (
            [each.score(batch) for each in same] if score_all is None else score_all(same, batch)
        )
    return torch.stack([column.double() for column in columns], dim=1)
