"""Choosing parameters on validation images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import CorruptArtifactError, UndefinedMethodError
from oodcli.methods import Fitted
from oodcli.methods.base import Method, MethodSpec, parse_method
from oodcli.methods.energy import Energy
from oodcli.probes import Probe
from oodcli.progress import Silent
from oodcli.scoring.tune import ValidationSet, parameter_settings, tune
from oodcli.store.searches import Search, read_searches, write_search
from oodcli.store.store import read_json, write_json


@dataclass(frozen=True, slots=True)
class Column:
    """Reads one column of the features; column 9 does not exist, and column 8 is never finite."""

    column: int

    @classmethod
    def fit(cls, _reference: Reference, *, column: int = 1, sign: int = 1) -> Self:
        """Choose the column."""
        del sign
        if column == 9:
            raise UndefinedMethodError("column 9 is not there")
        return cls(column)

    def score(self, batch: Activations) -> Tensor:
        """Return the column."""
        if self.column == 8:
            return batch.features[:, 0] / 0
        return batch.features[:, self.column]


@dataclass(frozen=True, slots=True)
class Times:
    """Multiplies logits."""

    factor: float

    @classmethod
    def fit(cls, _reference: Reference, *, factor: float = 1.0) -> Self:
        """Choose the factor."""
        return cls(factor)

    def logits(self, batch: Activations) -> Tensor:
        """Return the product."""
        return batch.logits * self.factor


def registry(*columns: int) -> dict[str, Method]:
    grid = {"column": columns or (0, 1, 2, 9, 8)}
    return {
        "column": Method(Column, "Column", "nobody", ("features",), grid=grid),
        "times": Method(Times, "Times", "nobody", ("logits",), grid={"factor": (-1.0, 1.0)}),
        "energy": Method(Energy, "Energy", "nobody", ("logits",)),
    }


def part(name: str, values: Sequence[Sequence[float]]) -> ValidationSet:
    """Make a validation set of features, whose logits are the first column."""
    features = torch.tensor(values)

    def observe(_probes: Sequence[Probe]) -> ActivationSet:
        logits = features[:, :1]
        return ActivationSet.of(
            Activations(logits, features, features[:, :1], logits.argmax(dim=1))
        )

    return ValidationSet(name, len(features), observe)


# Column 0 cannot tell them, columns 1 and 2 can equally well.
ID = part("id", [[1.0, 5.0, 7.0], [0.0, 6.0, 8.0]])
OOD = part("ood", [[0.0, 1.0, 1.0], [1.0, 2.0, 2.0]])
REFERENCE = Reference(Head(torch.zeros(1, 3), torch.zeros(1)))


def tuned(*specs: MethodSpec, id_val: ValidationSet = ID) -> list[tuple[object, ...]]:
    return list(
        tune(specs, REFERENCE, tuning="openood", id_val=id_val, ood_val=OOD, progress=Silent())
    )


def test_the_first_maximum_of_the_grid_is_chosen() -> None:
    ((_, search, winner),) = tuned(parse_method("column", registry()))
    assert isinstance(search, Search)
    assert isinstance(winner, Fitted)
    assert search.chosen == "column"  # column 1 is the default, and names leave defaults out
    assert [each.auroc for each in search.candidates] == [0.5, 1.0, 1.0, None, None]
    assert [each.reason for each in search.candidates[3:]] == [
        "column 9 is not there",
        "scores that are not finite",
    ]
    # No OOD score reaches the lowest ID score in columns 1 and 2; in column 0 both do.
    assert [each.fpr95 for each in search.candidates] == [1.0, 0.0, 0.0, None, None]
    assert [each.parameters for each in search.candidates] == [
        {"column": at} for at in (0, 1, 2, 9, 8)
    ]
    assert winner.canonical == search.name == "column@openood"
    assert winner.params == {"column": 1, "sign": 1, "tuned": "openood", "tuned_on": "ood"}
    assert (search.n_id, search.n_ood) == (2, 2)


def test_a_given_parameter_is_not_searched() -> None:
    spec = parse_method("column:column=0", registry())
    assert [each.canonical for each in parameter_settings(spec)] == ["column:column=0"]
    plain = parse_method("energy", registry())
    assert parameter_settings(plain) == [plain]


def test_both_halves_of_a_combination_are_searched() -> None:
    spec = parse_method("times+energy", registry())
    assert [each.canonical for each in parameter_settings(spec)] == [
        "times:factor=-1+energy",
        "times+energy",
    ]
    ((_, search, _),) = tuned(spec)
    assert isinstance(search, Search)
    assert [each.auroc for each in search.candidates] == [0.5, 0.5]
    assert [each.parameters for each in search.candidates] == [
        {"times.factor": -1.0}, {"times.factor": 1.0},
    ]  # fmt: skip


def test_a_method_of_which_no_setting_is_defined_gives_the_reason() -> None:
    @dataclass(frozen=True, slots=True)
    class Never(Column):
        @classmethod
        def fit(cls, _reference: Reference, *, column: int = 1) -> Self:
            """Refuse."""
            raise UndefinedMethodError(f"column {column} is not there")

    never = {"n": Method(Never, "N", "nobody", ("features",), grid={"column": (9, 9)})}
    spec = parse_method("n", never)
    assert tuned(spec) == [(spec, "column 9 is not there")]
    spec = parse_method("column", registry(8))
    ((_, reason),) = tuned(spec)
    assert "not finite" in str(reason)


def test_scores_that_are_not_defined_for_the_images_give_the_reason() -> None:
    class Refusing(Column):
        def score(self, batch: Activations) -> Tensor:
            raise UndefinedMethodError(f"not for {len(batch)} images")

    methods = {"r": Method(Refusing, "R", "nobody", ("features",), grid={"column": (0, 1)})}
    spec = parse_method("r", methods)
    assert tuned(spec) == [(spec, "not for 2 images")]


def test_a_search_is_kept_and_read_back(tmp_path: Path) -> None:
    assert read_searches(tmp_path) == []
    ((_, search, _),) = tuned(parse_method("column", registry()))
    assert isinstance(search, Search)
    write_search(tmp_path, search)
    write_search(tmp_path, search)
    assert read_searches(tmp_path) == [search]
    path = next(tmp_path.rglob("*.json"))
    content = read_json(path)
    for each in content["candidates"]:  # as older versions stored them
        del each["fpr95"], each["parameters"]
    write_json(path, content)
    (older,) = read_searches(tmp_path)
    assert [(each.fpr95, each.parameters) for each in older.candidates] == [(None, {})] * 5
    assert older.chosen == search.chosen
    path.write_text('{"schema": 1}')
    with pytest.raises(CorruptArtifactError, match="is damaged"):
        read_searches(tmp_path)


def test_the_default_is_left_where_no_published_value_is_defined() -> None:
    @dataclass(frozen=True, slots=True)
    class Sized(Column):
        @classmethod
        def fit(cls, _reference: Reference, *, column: int | None = None) -> Self:
            """Take column 1 where none is named; others are too large."""
            if column is not None:
                raise UndefinedMethodError("too large")
            return cls(1)

    methods = {"s": Method(Sized, "S", "nobody", ("features",), grid={"column": (256, 1000)})}
    ((_, search, winner),) = tuned(parse_method("s", methods))
    assert isinstance(search, Search)
    assert isinstance(winner, Fitted)
    assert [each.auroc for each in search.candidates] == [None, None, 1.0]
    assert search.chosen == "s"
