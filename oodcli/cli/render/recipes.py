"""The list of training recipes, and all values of a recipe."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, write_table
from oodcli.training.augmentations.words import AUGMENTATIONS
from oodcli.training.recipes import OUTLIER_OBJECTIVES, SAME, Recipe

RECIPES_SCHEMA = 1


def render_recipes(recipes: Sequence[Recipe], how: Format, *, to_file: bool) -> str:
    """Render a list of recipes."""
    content = {"schema": RECIPES_SCHEMA, "recipes": [recipe.to_json() for recipe in recipes]}
    return write_table(_recipes_table(recipes), how, json_content=content, to_file=to_file)


def render_recipe(recipe: Recipe, how: Format, *, to_file: bool) -> str:
    """Render all values of a recipe."""
    table = Table(
        title=(f"{recipe.name} ({recipe.source})", _description(recipe)),
        columns=(Column("key", "Key"), Column("value", "Value")),
        rows=[{"key": Cell(key), "value": Cell(value)} for key, value in _settings(recipe).items()],
        notes=(
            f"change a value: ood train --recipe {recipe.name} --set KEY=VALUE",
            *((f"its paper scores with {recipe.scorer}",) if recipe.scorer else ()),
        ),
    )
    content = {"schema": RECIPES_SCHEMA, "recipe": recipe.to_json()}
    return write_table(table, how, json_content=content, to_file=to_file)


def _recipes_table(recipes: Sequence[Recipe]) -> Table:
    columns = (
        Column("name", "Recipe"),
        Column("objective", "Objective"),
        Column("arch", "Network"),
        Column("epochs", "Epochs", right=True),
        Column("batch", "Batch", right=True),
        Column("lr", "LR", right=True),
        Column("schedule", "Schedule"),
        Column("keep", "Checkpoint"),
        Column("source", "Published by"),
    )
    rows = [
        {
            "name": Cell(recipe.name),
            "objective": Cell(recipe.objective),
            "arch": Cell(recipe.arch),
            "epochs": Cell(str(recipe.epochs)),
            "batch": Cell(_batch(recipe)),
            "lr": Cell(f"{recipe.lr:g}"),
            "schedule": Cell(recipe.schedule),
            "keep": Cell(recipe.keep),
            "source": Cell(recipe.source),
        }
        for recipe in recipes
    ]
    return Table(
        title=("training recipes; all values of a recipe: ood recipes show NAME",),
        columns=columns,
        rows=rows,
        notes=("Batch A + B: A training images and B outliers per step (ood train --outliers)",),
        droppable=("source", "keep", "schedule", "batch", "arch"),
    )


def _batch(recipe: Recipe) -> str:
    """Return the images of a step: training images, and outliers if the recipe has any."""
    if recipe.objective.partition(":")[0] not in OUTLIER_OBJECTIVES:
        return str(recipe.batch_size)
    return f"{recipe.batch_size} + {recipe.outlier_batch_size or recipe.batch_size}"


def _settings(recipe: Recipe) -> dict[str, str]:
    """Return all values as text, as ``--set`` accepts them."""
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


def _description(recipe: Recipe) -> str:
    """Return the learning-rate schedule and the augmentation in one line."""
    milestones = ", ".join(str(round(share * recipe.epochs)) for share in recipe.milestones)
    schedule = {
        "step": f"the learning rate is divided by ten after epochs {milestones}",
        "cosine": f"the learning rate follows a cosine to {recipe.lr_min:g}, updated every "
        f"{recipe.per}",
        "warm-cosine": "the learning rate rises during the first tenth, then follows a cosine to "
        "zero",
    }[recipe.schedule]
    if recipe.warm_up and recipe.batch_size > recipe.warm_up_above:
        epochs = recipe.warm_up * recipe.epochs
        schedule += f", after {epochs:g} epochs of warm-up from {recipe.warm_up_lr:g}"
    images = ", then ".join(AUGMENTATIONS[step].text for step in recipe.augmentation)
    text = f"{schedule}; images are {images or 'not augmented'}"
    if recipe.objective.partition(":")[0] not in OUTLIER_OBJECTIVES:
        return text
    others = "alike"
    if recipe.outlier_augmentation != SAME:
        steps = ", then ".join(AUGMENTATIONS[step].text for step in recipe.outlier_augmentation)
        others = f"as follows: {steps or 'not at all'}"
    count = recipe.outlier_batch_size or recipe.batch_size
    return f"{text}; {count} outliers per step (--outliers) are augmented {others}"
