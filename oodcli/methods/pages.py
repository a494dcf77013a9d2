"""Descriptions of methods: the list of all, the page of one, and the check of one."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from oodcli.methods import METHODS, parse_method
from oodcli.methods.base import Method, MethodPart, MethodSpec
from oodcli.methods.contract import Finding, findings
from oodcli.methods.ensemble import ENSEMBLE, EnsembleSpec, RankEnsemble
from oodcli.methods.members import ENSEMBLE_METHODS, ensemble_spec
from oodcli.methods.third_party import load_third_party
from oodcli.records import as_json
from oodcli.specs import Value, allowed_values

METHODS_SCHEMA = 1

# Not in the registry: inputs and cost other than calibration images depend on the members.
_ENSEMBLE_METHOD = Method(
    RankEnsemble,  # type: ignore[arg-type]
    "rank-averaged ensemble",
    "members: ensemble:A+B",
    ("calibration",),
)

_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "word"}
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


@dataclass(frozen=True)
class ListedParameter:
    """A parameter of a method.

    Parameters
    ----------
    name
        Its name.
    type
        Allowed values, in words.
    default
        Default value; None if chosen in fitting.
    required
        Whether it has no default.
    grid
        The values for tuning: published ones, unless the notes of the method say otherwise.
    meaning
        Description of the parameter.
    given
        The value in the requested method.
    """

    name: str
    type: str
    default: Value
    required: bool
    grid: tuple[Value, ...]
    meaning: str
    given: Value


@dataclass(frozen=True)
class ListedMethod:
    """A method, or one part of a combination.

    Parameters
    ----------
    name
        Its name on the command line.
    title
        Its name in papers.
    paper
        Authors and venue.
    year
        Year of the paper; None if there is none.
    kind
        ``detector``, ``logit scorer``, ``shaper`` or ``ensemble``.
    inputs
        Inputs; empty if not declared.
    parameters
        Parameters that can be set.
    passes, train_passes
        Forward passes per scored, and per training image, beyond the ordinary one.
    cost
        Required forward passes, in words.
    package
        The package of the method; None for methods of ``ood``.
    needs
        Conditions for the method to be defined, in words.
    """

    name: str
    title: str
    paper: str
    year: int | None
    kind: str
    inputs: tuple[str, ...]
    parameters: tuple[ListedParameter, ...]
    passes: float
    train_passes: float
    cost: str
    package: str | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class MethodList:
    """All known methods.

    Parameters
    ----------
    methods
        Those of ``ood``, then those of installed packages.
    refused
        Why a method of an installed package cannot be used, by name.
    """

    methods: tuple[ListedMethod, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"schema": METHODS_SCHEMA, **as_json(self)}


@dataclass(frozen=True)
class MethodText:
    """The docstring of a method, by section; each text has lines of at most 100 characters.

    Parameters
    ----------
    listed
        The entry of the list.
    type
        Module and name of the class.
    summary
        Description in one line.
    formula
        How scores or new logits are computed.
    source
        The publications.
    caveats
        Departures from the publications, and limits.
    """

    listed: ListedMethod
    type: str
    summary: str
    formula: str
    source: str
    caveats: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        own = as_json(self)
        return own.pop("listed") | own


@dataclass(frozen=True)
class MethodPage:
    """The description of one method.

    Parameters
    ----------
    name
        Canonical name.
    cost
        Required forward passes, in words.
    parts
        The method, the parts of a combination in order, or an ensemble and its members.
    followed_by
        The logit scorer that a shaper without a scorer is combined with; None for other methods.
    """

    name: str
    cost: str
    followed_by: str | None
    parts: tuple[MethodText, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"schema": METHODS_SCHEMA, **as_json(self)}


@dataclass(frozen=True)
class MethodTrial:
    """The results of checking a method.

    Parameters
    ----------
    name
        Canonical name.
    findings
        The result of each check.
    """

    name: str
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether it satisfies every requirement."""
        return all(each.broken is None for each in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {
            "schema": METHODS_SCHEMA,
            "name": self.name,
            "sound": self.is_sound,
            "checks": [{"must": each.what, "broken": each.broken} for each in self.findings],
        }


def list_methods() -> MethodList:
    """Return the list of all methods, including those of installed packages."""
    offered = load_third_party(METHODS)
    return MethodList(
        tuple(
            _listed(MethodPart(name, method, {}), offered.packages.get(name))
            for name, method in {**METHODS, **offered.methods}.items()
        ),
        offered.refused,
    )


def show_method(text: str) -> MethodPage:
    """Return the page of one method, specified as for ``--method``.

    Raises
    ------
    OodError
        If the method does not exist.
    """
    if text == ENSEMBLE:
        part = MethodPart(ENSEMBLE, _ENSEMBLE_METHOD, {})
        return MethodPage(
            name=text, cost=_cost(MethodSpec((part,))), followed_by=None, parts=(_text(part, None),)
        )
    spec = ensemble_spec(text) if text in ENSEMBLE_METHODS else parse_method(text)
    if isinstance(spec, EnsembleSpec):
        return _ensemble_page(spec)
    alone = len(spec.parts) == 2 and "+" not in text
    parts = spec.parts[:1] if alone else spec.parts
    packages = load_third_party(METHODS).packages
    return MethodPage(
        name="+".join(part.canonical for part in parts),
        cost=_cost(spec),
        parts=tuple(_text(part, packages.get(part.name)) for part in parts),
        followed_by=spec.parts[1].name if alone else None,
    )


def _ensemble_page(spec: EnsembleSpec) -> MethodPage:
    packages = load_third_party(METHODS).packages
    every = {part.canonical: part for part in spec.parts}
    return MethodPage(
        name=spec.canonical,
        cost=_cost(spec),
        followed_by=None,
        parts=(
            _text(MethodPart(ENSEMBLE, _ENSEMBLE_METHOD, {}), None),
            *(_text(part, packages.get(part.name)) for part in every.values()),
        ),
    )


def check_method(text: str) -> MethodTrial:
    """Check on a toy problem whether a method satisfies the rules for methods.

    Raises
    ------
    OodError
        If the method does not exist or cannot be checked.
    """
    return MethodTrial(parse_method(text).canonical, findings(text))


def _listed(part: MethodPart, package: str | None) -> ListedMethod:
    method = part.method
    years = _YEAR.findall(method.paper)
    return ListedMethod(
        name=part.name,
        title=method.title,
        paper=method.paper,
        year=int(years[-1]) if years else None,
        kind=_kind(method),
        inputs=method.inputs,
        parameters=_parameters(part),
        passes=method.passes,
        train_passes=method.train_passes,
        cost=_cost(MethodSpec((part,))),
        package=package,
        needs=tuple(need.description for need in method.needs),
    )


def _kind(method: Method) -> str:
    if method is _ENSEMBLE_METHOD:
        return ENSEMBLE
    if method.is_shaper:
        return "shaper"
    return "logit scorer" if method.is_logit_scorer else "detector"


def _cost(spec: MethodSpec) -> str:
    """Return the images that go through the network, and the number of passes, as text."""
    if not spec.inputs:
        return "not declared"
    own = f"{1 + spec.passes:g} pass" + ("es" if spec.passes else "")
    others = []
    if "train" in spec.inputs or spec.train_passes:
        times = f" ×{1 + spec.train_passes:g}" if spec.train_passes else ""
        others.append(f"training images{times}")
    if "jigsaw" in spec.inputs:
        others.append("jigsaws")
    if "calibration" in spec.inputs:
        others.append("calibration images")
    return f"{own}; also {', '.join(others)}" if others else own


def _parameters(part: MethodPart) -> tuple[ListedParameter, ...]:
    meanings = _meanings(part.method.type)
    listed = []
    for name, parameter in part.method.parameters().items():
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        listed.append(
            ListedParameter(
                name=name,
                type=_type_text(parameter.annotation),
                default=default,
                required=required,
                grid=tuple(part.method.grid.get(name, ())),
                meaning=meanings.get(name, ""),
                given=part.given.get(name, default),
            )
        )
    return tuple(listed)


def _type_text(annotation: object) -> str:
    words, kinds = allowed_values(annotation)
    names = [_KINDS[kind] for kind in kinds if isinstance(kind, type) and kind in _KINDS]
    return " or ".join([*words, *names])


def _meanings(kind: type) -> dict[str, str]:
    """Return the descriptions of parameters in the docstrings of a class and of its ``fit``."""
    meanings: dict[str, str] = {}
    # Parameters may be documented with the class or with fit.
    for owner in (getattr(kind, "fit", None), kind):
        meanings |= parameter_texts(sections(docstring(owner)).get("Parameters", ""))
    return meanings


def _text(part: MethodPart, package: str | None) -> MethodText:
    kind = part.method.type
    texts = sections(docstring(kind))
    summary, _, rest = texts[""].partition("\n\n")
    return MethodText(
        listed=_listed(part, package),
        type=f"{kind.__module__}.{kind.__qualname__}",
        summary=_plain(summary).replace("\n", " "),
        formula="\n\n".join(filter(None, [_plain(rest), *_score_text(kind)])),
        source=_plain(texts.get("References", "")),
        caveats=_plain(texts.get("Notes", "")),
    )


def _score_text(kind: type) -> list[str]:
    """Return the summary of the docstring of the scoring function."""
    for name in ("score_logits", "logits", "score"):
        head = sections(docstring(getattr(kind, name, None)))[""]
        if head:
            return [_plain(head)]
    return []


def docstring(owner: object) -> str:
    """Return the docstring of an object without indentation; empty if there is none."""
    return inspect.cleandoc(getattr(owner, "__doc__", None) or "")


def sections(doc: str) -> dict[str, str]:
    """Return the sections of a NumPy docstring by heading; the text before them has key ``""``."""
    lines = doc.splitlines()
    heads = [
        index
        for index in range(len(lines) - 1)
        if len(lines[index + 1]) >= 3 and set(lines[index + 1]) == {"-"}
    ]
    found = {"": "\n".join(lines[: heads[0]] if heads else lines).strip()}
    for start, end in pairwise([*heads, len(lines)]):
        found[lines[start].strip()] = "\n".join(lines[start + 2 : end]).strip()
    return found


def parameter_texts(section: str) -> dict[str, str]:
    """Return the texts of a ``Parameters`` section by name; ``a, b`` describes both."""
    texts: dict[str, list[str]] = {}
    names: Sequence[str] = ()
    for line in section.splitlines():
        if line and not line[0].isspace():
            names = [name.strip() for name in line.partition(":")[0].split(",")]
        else:
            for name in names:
                texts.setdefault(name, []).append(line.strip())
    return {name: _plain(" ".join(lines).strip()) for name, lines in texts.items()}


def _plain(text: str) -> str:
    """Remove the markup of cross-references, but keep the backticks of code."""
    return _ROLE.sub(r"``\1``", text).strip()
