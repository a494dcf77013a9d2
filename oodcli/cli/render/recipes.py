"""Training recipes: a list of them, and every value of one."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, write_table
from oodcli.training.recipes import AUGMENTATIONS, Recipe

RECIPES_SCHEMA = 1


def render_recipes(recipes: Sequence[Recipe], how: Format, *, to_file: bool) -> str:
    """Write a list of recipes."""
    content = {"schema": RECIPES_SCHEMA, "recipes": [recipe.to_json() for recipe in recipes]}
    return write_table(_listed(recipes), how, json_content=content, to_file=to_file)


def render_recipe(recipe: Recipe, how: Format, *, to_file: bool) -> str:
    """Write every value of a recipe."""
    table = Table(
        title=(f"{recipe.name} ({recipe.source})", _in_words(recipe)),
        columns=(Column("key", "Key"), Column("value", "Value")),
        rows=[{"key": Cell(key), "value": Cell(value)} for key, value in _written(recipe).items()],
        notes=(f"change a value: ood train --recipe {recipe.name} --set KEY=VALUE",),
    )
    content = {"schema": RECIPES_SCHEMA, "recipe": recipe.to_json()}
    return write_table(table, how, json_content=content, to_file=to_file)


def _listed(recipes: Sequence[Recipe]) -> Table:
    columns = (
        Column("name", "Recipe"),
        Column("objective", "Objective"),
        Column("arch", "Network"),
        Column("epochs", "Epochs", right=True),
        Column("batch", "Batch", right=True),
        Column("lr", "Rate", right=True),
        Column("schedule", "Schedule"),
        Column("keep", "Counts"),
        Column("source", "Published by"),
    )
    rows = [
        {
            "name": Cell(recipe.name),
            "objective": Cell(recipe.objective),
            "arch": Cell(recipe.arch),
            "epochs": Cell(str(recipe.epochs)),
            "batch": Cell(str(recipe.batch_size)),
            "lr": Cell(f"{recipe.lr:g}"),
            "schedule": Cell(recipe.schedule),
            "keep": Cell(recipe.keep),
            "source": Cell(recipe.source),
        }
        for recipe in recipes
    ]
    return Table(
        title=("training recipes; every value of one: ood recipes show NAME",),
        columns=columns,
        rows=rows,
        droppable=("source", "keep", "schedule", "batch", "arch"),
    )


def _written(recipe: Recipe) -> dict[str, str]:
    """Return every value as ``--set`` takes it."""
    return {
        each.name: _text(getattr(recipe, each.name))
        for each in fields(recipe)
        if each.name not in ("name", "source")
    }


def _text(value: Any) -> str:  # noqa: ANN401 - whatever a recipe holds
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_text(each) for each in value)
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _in_words(recipe: Recipe) -> str:
    """Return what happens to the learning rate and to images, in one line."""
    falls = ", ".join(str(round(share * recipe.epochs)) for share in recipe.milestones)
    schedule = {
        "step": f"the rate is divided by ten after epochs {falls}",
        "cosine": f"the rate falls along a cosine to {recipe.lr_min:g} with every {recipe.per}",
        "warm-cosine": "the rate rises in the first tenth, then falls along a cosine to zero",
    }[recipe.schedule]
    if recipe.warm_up and recipe.batch_size > recipe.warm_up_above:
        epochs = recipe.warm_up * recipe.epochs
        schedule += f", after {epochs:g} epochs of warm-up from {recipe.warm_up_lr:g}"
    images = ", then ".join(AUGMENTATIONS[step] for step in recipe.augmentation)
    return f"{schedule}; images are {images or 'left as they are'}"
