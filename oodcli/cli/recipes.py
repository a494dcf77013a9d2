"""``ood recipes``: list and show the published training recipes."""

from typing import Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import write_result
from oodcli.cli.options import Format, FormatOption, OutputOption

app = typer.Typer(help="List and show published training recipes.")


@app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List and show published training recipes."""
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_(format_: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """List the published training recipes."""
    from oodcli.cli.render.recipes import render_recipes
    from oodcli.training.recipes import RECIPES

    write_result(render_recipes([*RECIPES.values()], format_, to_file=output is not None), output)


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
        typer.Option(
            "--data",
            metavar="NAME",
            help="Show the variant that its authors use for this data set.",
        ),
    ] = "",
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Show every value of a recipe, as ``ood train --set KEY=VALUE`` accepts it."""
    from oodcli.cli.render.recipes import render_recipe
    from oodcli.training.recipe_choice import recipe_named

    recipe = recipe_named(name, data)
    write_result(render_recipe(recipe, format_, to_file=output is not None), output)
