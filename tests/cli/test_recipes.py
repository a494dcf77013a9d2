"""The listing of recipes: every value, in every format."""

import csv
import io
import json
from collections.abc import Callable

import pytest

from oodcli.training.recipes import RECIPES, Recipe

Ood = Callable[..., tuple[int, str, str]]


def test_every_recipe_is_listed(ood: Ood) -> None:
    code, out, _ = ood("recipes")
    assert code == 0
    assert out == ood("recipes", "list")[1]
    for name in RECIPES:
        assert f" {name} " in out
    listed = json.loads(ood("recipes", "list", "--format", "json")[1])
    assert listed["schema"] == 1
    assert [Recipe.from_json(each) for each in listed["recipes"]] == list(RECIPES.values())
    rows = list(csv.DictReader(io.StringIO(ood("recipes", "list", "--format", "csv")[1])))
    assert [row["name"] for row in rows] == list(RECIPES)
    assert ood("recipes", "list", "--format", "markdown")[1].count("\n") >= len(RECIPES) + 2


@pytest.mark.parametrize("name", list(RECIPES))
def test_what_is_shown_can_be_set(ood: Ood, name: str) -> None:
    """Every row, given back as ``--set``, makes the recipe itself of any other."""
    rows = csv.DictReader(io.StringIO(ood("recipes", "show", name, "--format", "csv")[1]))
    settings = [f"{row['key']}={row['value']}" for row in rows]
    other = RECIPES["digits" if name != "digits" else "mode-base"]
    made = other.with_settings(settings)
    assert made.to_json() | {"name": name, "source": ""} == RECIPES[name].to_json() | {"source": ""}


def test_a_recipe_is_shown_for_a_data_set_and_in_words(ood: Ood) -> None:
    out = ood("recipes", "show", "mode-base", "--data", "cifar100")[1]
    assert "resnet34" in out
    assert "0.5071,0.4867,0.4408" in out
    assert "after 10 epochs of warm-up from 0.01" in " ".join(out.split())
    shown = json.loads(ood("recipes", "show", "featurenorm-vgg11", "--format", "json")[1])
    assert shown["recipe"]["lr"] == 0.05
    assert "after epochs 50, 75, 90" in ood("recipes", "show", "featurenorm-vgg11")[1]


def test_an_unknown_recipe_is_refused(ood: Ood) -> None:
    code, _, err = ood("recipes", "show", "mode-bas")
    assert (code, err) == (1, "error: no recipe 'mode-bas'; did you mean 'mode-base'?\n")
