"""Third-party methods: entry points of installed packages, and classes given by their module.

A package provides methods by entry points in the group ``ood.methods``; the name of the entry point
is the name of the method, and its object is a class or a :class:`~oodcli.methods.base.Method`.
Without an entry point, a class is specified as ``package.module:Class``.
"""

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import NoneType
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError, OodError, UndefinedMethodError, UnknownNameError
from oodcli.method_names import usual_name
from oodcli.methods.base import Method, MethodPart, MethodSpec, user_parameters
from oodcli.specs import allowed_values

GROUP = "ood.methods"

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_POINT_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_RESERVED = ("all", "auto", "ensemble")


@dataclass(frozen=True)
class ThirdPartyMethods:
    """The methods of installed packages.

    Parameters
    ----------
    methods
        The loaded methods, by name.
    packages
        Name and version of the package of each method.
    refused
        Why a method cannot be used, by name.
    """

    methods: Mapping[str, Method] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def load_third_party(known: Iterable[str]) -> ThirdPartyMethods:
    """Load all methods of installed packages; an error of one does not affect the others.

    Parameters
    ----------
    known
        Names of the methods of ``ood`` itself.
    """
    taken = set(known)
    methods: dict[str, Method] = {}
    packages: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name, points in _points().items():
        if name in taken:
            refused[name] = (
                f"{_packages(points)} provides a method {name!r}, but ood has a method of this "
                "name, which is used; the package must rename its method"
            )
            continue
        try:
            methods[name] = _load(name, points)
        except OodError as error:
            refused[name] = str(error)
        else:
            packages[name] = _packages(points)
    return ThirdPartyMethods(methods, packages, refused)


def find(text: str, known: Iterable[str]) -> tuple[str, Method]:
    """Return name and registry entry of a third-party method.

    Parameters
    ----------
    text
        ``name[:key=value,…]`` of an installed package, or ``package.module:Class[:key=value,…]``.
    known
        Other existing names, for suggestions.

    Raises
    ------
    UnknownNameError
        If the method, or the class in the module, does not exist.
    InvalidInputError
        If it cannot be loaded, or is not a method.
    """
    name, colon, rest = text.partition(":")
    points = _points()
    if name in points:
        return name, _load(name, points[name])
    path = rest.partition(":")[0].strip()
    if colon and _MODULE.fullmatch(name) and _MODULE.fullmatch(path):
        full = f"{name}:{path}"
        return full, method_of(_import_object(name, path), full)
    raise UnknownNameError.among("method", name, [*known, *points], meant=usual_name(name))


def method_of(found: object, name: str) -> Method:
    """Return the registry entry of a class, or the entry itself.

    Parameters
    ----------
    found
        A class, or a :class:`~oodcli.methods.base.Method`.
    name
        Name for messages.

    Raises
    ------
    InvalidInputError
        If it does not have the interface of a method.
    """
    if isinstance(found, Method):
        _check_class(found.type, name)
        return found
    if not isinstance(found, type):
        raise InvalidInputError(
            f"{name} is a {type(found).__name__}, not a class; give a class that has fit and "
            "score, or a Method of oodcli.methods.base"
        )
    if any(base.__module__.startswith("pytorch_ood.") for base in found.__mro__):
        from oodcli.methods.pytorch_ood import method_of_detector

        return method_of_detector(found, name)
    _check_class(found, name)
    return Method(found, found.__name__, f"class {found.__module__}.{found.__qualname__}", ())


def undefined_method(name: str, reason: str) -> MethodSpec:
    """Return an optional method whose fitting raises an error with this reason."""

    class Refused:
        """A method that cannot be loaded."""

        @classmethod
        def fit(cls, _reference: Reference) -> Self:
            """Raise the error.

            Raises
            ------
            UndefinedMethodError
                Always.
            """
            raise UndefinedMethodError(reason)

        def score(self, _batch: Activations, /) -> Tensor:
            """Raise the error; never called, since :meth:`fit` returns no instance."""
            raise UndefinedMethodError(reason)

    return MethodSpec((MethodPart(name, Method(Refused, name, "", ()), {}),), optional=True)


def _points() -> dict[str, list[EntryPoint]]:
    """Return the entry points by name; several packages may use the same name."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        same = found.setdefault(point.name, [])
        # A package may be found twice, for instance if it is also installed in development mode.
        if all(other.value != point.value for other in same):
            same.append(point)
    return found


def _packages(points: Iterable[EntryPoint]) -> str:
    names = [f"{p.dist.name} {p.dist.version}" if p.dist else "of unknown name" for p in points]
    return ("package " if len(names) == 1 else "packages ") + " and ".join(names)


def _load(name: str, points: list[EntryPoint]) -> Method:
    packages = _packages(points)
    if len(points) > 1:
        raise InvalidInputError(
            f"method {name!r} is provided by {packages}; give the class itself: "
            + " or ".join(point.value for point in points)
        )
    if not _POINT_NAME.fullmatch(name) or name in _RESERVED:
        raise InvalidInputError(
            f"{packages} provides a method {name!r}, which is not a valid name for --method; "
            f"give the class itself: {points[0].value}"
        )
    try:
        found = points[0].load()
    except Exception as error:
        raise InvalidInputError(
            f"method {name!r} of {packages} cannot be loaded: {_error_line(error)}; "
            "update the package, or remove it"
        ) from error
    try:
        return method_of(found, points[0].value)
    except InvalidInputError as error:
        raise InvalidInputError(f"method {name!r} of {packages}: {error}") from None


def _import_object(module: str, path: str) -> object:
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not (module == missing or module.startswith(f"{missing}.")):
            raise _import_error(module, path, error) from error
        if missing == "pytorch_ood":
            raise InvalidInputError(
                f"{module}:{path} needs pytorch-ood, which is not installed; "
                "install it: pip install 'oodcli[pytorch-ood]'"
            ) from None
        raise InvalidInputError(
            f"there is no module {missing!r} for method {module}:{path}; install its package, "
            "or give the folder that contains it: PYTHONPATH=FOLDER ood …"
        ) from None
    except Exception as error:
        raise _import_error(module, path, error) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise UnknownNameError.among(f"class in {module}", path, _classes(found))
        found = getattr(found, name)
    return found


def _import_error(module: str, path: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"module {module} of method {module}:{path} cannot be imported: {_error_line(error)}; "
        f"try: python -c 'import {module}'"
    )


def _error_line(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__


def _classes(module: object) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, (type, Method))
    ]


def _check_class(found: type, name: str) -> None:
    """Check that a class has the interface of a method."""
    fit = inspect.getattr_static(found, "fit", None)
    if fit is None:
        raise InvalidInputError(
            f"{name} has no fit; define: @classmethod def fit(cls, reference, *, key: int = 1)"
        )
    if not isinstance(fit, (classmethod, staticmethod)):
        raise InvalidInputError(
            f"fit of {name} is not a classmethod; it is called on the class to create an instance"
        )
    _check_fit(found, name)
    what = "logits" if hasattr(found, "logits") else "score"
    _check_call(found, what, name)
    if hasattr(found, "score_logits"):
        _check_call(found, "score_logits", name)


def _check_fit(found: type, name: str) -> None:
    signature = inspect.signature(found.fit)  # type: ignore[attr-defined]
    positional = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    try:
        chosen = user_parameters(found.fit)  # type: ignore[attr-defined]
    except NameError as error:
        raise InvalidInputError(
            f"the annotations of fit of {name} cannot be resolved: {error}; import their names at "
            "run time"
        ) from None
    if len(positional) != 1 or len(positional) + len(chosen) != len(signature.parameters):
        raise InvalidInputError(
            f"fit of {name} has the parameters {signature}; it must take the reference and, after "
            "a *, the parameters that a user can set"
        )
    for parameter in chosen.values():
        if parameter.default is parameter.empty:
            raise InvalidInputError(
                f"parameter {parameter.name!r} of fit of {name} has no default; give it one"
            )
        words, kinds = allowed_values(parameter.annotation)
        readable = all(kind in (int, float, str, bool, NoneType) for kind in kinds)
        if not readable or not (words or kinds):
            raise InvalidInputError(
                f"parameter {parameter.name!r} of fit of {name} has a type that --method does not "
                "support; use int, float, bool, str, a Literal of words, or one of these or None"
            )


def _check_call(found: type, what: str, name: str) -> None:
    function = getattr(found, what, None)
    if not callable(function):
        raise InvalidInputError(
            f"{name} has no {what}; define: def score(self, batch) that returns one score per "
            "image, or def logits(self, batch) that returns new logits"
        )
    signature = inspect.signature(function)
    try:
        signature.bind(object(), object())
    except TypeError:
        raise InvalidInputError(
            f"{what} of {name} has the parameters {signature}; it must take self and "
            + ("the logits" if what == "score_logits" else "the batch")
        ) from None
