"""Records as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from oodcli.records import as_json


@dataclass(frozen=True)
class Inner:
    ends: tuple[float, float]


@dataclass(frozen=True)
class Own:
    hidden: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"shown": 2}


@dataclass(frozen=True)
class Outer:
    path: Path
    inner: Inner
    each: tuple[Own, ...]
    params: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"k": (1, None)}))

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, **as_json(self)}


def test_a_record_is_its_fields_in_their_order_as_json_has_them() -> None:
    content = Outer(Path("a/b"), Inner((0.1, 0.2)), (Own(), Own())).to_json()
    assert content == {
        "schema": 1,
        "path": "a/b",
        "inner": {"ends": [0.1, 0.2]},
        "each": [{"shown": 2}, {"shown": 2}],
        "params": {"k": [1, None]},
    }
    assert list(content) == ["schema", "path", "inner", "each", "params"]
    assert type(content["params"]) is dict


def test_what_is_returned_shares_nothing_with_the_record() -> None:
    record = Outer(Path(), Inner((0, 1)), (), {"k": [1]})
    as_json(record)["params"]["k"].append(2)
    assert record.params == {"k": [1]}
