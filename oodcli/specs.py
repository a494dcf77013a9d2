"""The grammar ``name:key=value,…`` of methods, objectives and architectures."""

from collections.abc import Collection, Mapping
from types import UnionType
from typing import Literal, Union, get_args, get_origin

from oodcli.errors import InvalidInputError, UnknownNameError

Value = float | int | str | bool | None


# Prefixes of architectures that are folders; the folder after the prefix may hold any character.
_CLIP = "open_clip:"
_FOLDERS = ("hf:", "timm:local-dir:", "timm:hf-hub:", "timm:hf_hub:", _CLIP)


def names_folder(spec: str) -> bool:
    """Return whether an architecture is given as a folder of weights and configuration.

    Examples
    --------
    >>> names_folder("hf:vit"), names_folder("timm:local-dir:vit"), names_folder("timm:vit")
    (True, True, False)
    """
    return spec.startswith(_FOLDERS)


def names_clip(spec: str) -> bool:
    """Return whether a written architecture names a CLIP network, which classifies by text.

    Examples
    --------
    >>> names_clip("open_clip:ViT-B-32:openai"), names_clip("hf:vit")
    (True, False)
    """
    return spec.startswith(_CLIP)


def parse_pairs(
    kind: str, whole: str, name: str, pairs: str | None, known: Collection[str] | None
) -> dict[str, str]:
    """Parse ``key=value,…`` into a dictionary of text values.

    Parameters
    ----------
    kind
        Kind of thing that is specified, such as ``method``; for messages.
    whole
        The complete specification; for messages.
    name
        The name before the colon; for messages.
    pairs
        The text after the colon; None if there is no colon.
    known
        Names of the existing parameters; None if any name is allowed.

    Returns
    -------
    dict
        The value of each parameter, as text.

    Raises
    ------
    UnknownNameError
        If a parameter is not in ``known``.
    InvalidInputError
        If a parameter has no value or is given twice.

    Examples
    --------
    >>> parse_pairs("method", "knn:k=50", "knn", "k=50", {"k"})
    {'k': '50'}
    """
    texts: dict[str, str] = {}
    for pair in () if pairs is None else pairs.split(","):
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not equals or not value:
            raise InvalidInputError(f"{pair!r} in {kind} {whole!r} is not KEY=VALUE")
        if known is not None and key not in known:
            if not known:
                raise InvalidInputError(f"{kind} {name!r} has no parameters, so not {key!r} either")
            raise UnknownNameError.among(f"parameter of {name}", key, known)
        if key in texts:
            raise InvalidInputError(f"parameter {key!r} appears twice in {kind} {whole!r}")
        texts[key] = value
    return texts


def allowed_values(annotation: object) -> tuple[tuple[str, ...], tuple[object, ...]]:
    """Return the literal words and the types that the annotation of a parameter allows.

    Examples
    --------
    >>> allowed_values(Literal["auto"] | int)
    (('auto',), (<class 'int'>,))
    """
    if get_origin(annotation) is Literal:
        return get_args(annotation), ()
    if not isinstance(annotation, UnionType) and get_origin(annotation) is not Union:
        return (), () if annotation is None else (annotation,)
    words: tuple[str, ...] = ()
    kinds: tuple[object, ...] = ()
    for each in get_args(annotation):
        more_words, more_kinds = allowed_values(each)
        words, kinds = words + more_words, kinds + more_kinds
    return words, kinds


def parse_value(what: str, text: str, annotation: object) -> Value:
    """Parse the text of a parameter's value according to the parameter's annotation.

    Parameters
    ----------
    what
        Name and parameter, such as ``knn:k``; for messages.
    text
        The value as text.
    annotation
        A ``Literal`` of words, ``bool``, ``int``, ``float`` or ``str``, or a union of these.

    Raises
    ------
    InvalidInputError
        If the text is no value of the annotated type.

    Examples
    --------
    >>> parse_value("knn:k", "50", int)
    50
    """
    words, choices = allowed_values(annotation)
    if text in words:
        return text
    for choice in choices:
        try:
            if choice is bool:
                return {"true": True, "false": False}[text.lower()]
            if choice is int or choice is float or choice is str:
                return choice(text)
        except (ValueError, KeyError):
            continue
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    wanted = [*words, *(kinds[c] for c in choices if isinstance(c, type) and c in kinds)]
    raise InvalidInputError(f"{what} must be {' or '.join(wanted)}, not {text!r}")


def format_value(value: Value) -> str:
    """Return a value as text, as it is written in a specification.

    Examples
    --------
    >>> format_value(True), format_value(2.0), format_value(0.05)
    ('true', '2', '0.05')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def canonical(name: str, given: Mapping[str, Value]) -> str:
    """Return a specification with its parameters sorted by name.

    Examples
    --------
    >>> canonical("gen", {"m": 10, "gamma": 0.1})
    'gen:gamma=0.1,m=10'
    """
    pairs = ",".join(f"{key}={format_value(given[key])}" for key in sorted(given))
    return f"{name}:{pairs}" if pairs else name


def positive(what: str, value: float) -> float:
    """Return ``value`` if it is a positive, finite number.

    Raises
    ------
    InvalidInputError
        If it is not.
    """
    if not 0 < value < float("inf"):
        raise InvalidInputError(f"{what} must be a positive number, not {format_value(value)}")
    return value
