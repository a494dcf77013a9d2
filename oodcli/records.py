"""Conversion of dataclasses to JSON objects, for printing and storing."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


def as_json(record: object) -> dict[str, Any]:
    """Return the fields of a dataclass, in order, as a JSON object.

    Mappings become objects, sequences become lists, paths become text; a nested record is converted
    by its ``to_json`` method, if it has one, otherwise by this function.

    Parameters
    ----------
    record
        An instance of a dataclass.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Interval:
    ...     name: str
    ...     ends: tuple[float, float]
    >>> as_json(Interval("auroc", (0.9, 0.95)))
    {'name': 'auroc', 'ends': [0.9, 0.95]}
    """
    assert is_dataclass(record)
    return {each.name: _value(getattr(record, each.name)) for each in fields(record)}


def _value(value: Any) -> Any:  # noqa: ANN401 - whatever a record holds
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return as_json(value)
    if isinstance(value, Mapping):
        return {name: _value(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(each) for each in value]
    return str(value) if isinstance(value, Path) else value
