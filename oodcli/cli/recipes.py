"""``ood recipes``: the published training schedules, to the letter."""

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oodcli.cli import completion
from oodcli.cli.options import Format, FormatOption, OutputOption

if TYPE_CHECKING:
    from oodcli.training.recipes import Recipe

app = typer.Typer(help="List and show published training recipes.")

RECIPES_SCHEMA = 1


@app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List and show published training recipes."""
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_(format_: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """List the recipes that ``ood train --recipe`` knows."""
    from oodcli.cli.render import Cell, Column, Table, deliver, render_table
    from oodcli.training.recipes import RECIPES

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
        for recipe in RECIPES.values()
    ]
    table = Table(
        title=("training recipes; every value of one: ood recipes show NAME",),
        columns=columns,
        rows=rows,
        droppable=("source", "keep", "schedule", "batch", "arch"),
    )
    content = {
        "schema": RECIPES_SCHEMA,
        "recipes": [recipe.to_json() for recipe in RECIPES.values()],
    }
    deliver(render_table(table, format_, json_content=content, to_file=output is not None), output)


@app.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=completion.recipes,
            help="Name of the recipe.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="NAME", help="As its authors have it for this data set."),
    ] = "",
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Show every value of a recipe, as ``ood train --set KEY=VALUE`` takes it."""
    from oodcli.cli.render import Cell, Column, Table, deliver, render_table
    from oodcli.training.recipes import recipe_named

    recipe = recipe_named(name, data)
    texts = _written(recipe)
    table = Table(
        title=(f"{recipe.name} ({recipe.source})", _in_words(recipe)),
        columns=(Column("key", "Key"), Column("value", "Value")),
        rows=[{"key": Cell(key), "value": Cell(value)} for key, value in texts.items()],
        notes=(f"change a value: ood train --recipe {recipe.name} --set KEY=VALUE",),
    )
    content = {"schema": RECIPES_SCHEMA, "recipe": recipe.to_json()}
    deliver(render_table(table, format_, json_content=content, to_file=output is not None), output)


def _written(recipe: "Recipe") -> dict[str, str]:
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


def _in_words(recipe: "Recipe") -> str:
    """Return what happens to the learning rate and to images, in one line."""
    from oodcli.training.recipes import AUGMENTATIONS

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
