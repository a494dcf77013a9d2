"""``ood methods``: list and show methods, and check that they satisfy the method contract."""

from typing import Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import write_result
from oodcli.cli.options import Format, FormatOption, OutputOption

app = typer.Typer(help="List, show and check methods.")

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=completion.methods,
        help="A method as written for --method, such as energy:temperature=2 or norm+msp.",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def methods(
    context: typer.Context, format_: FormatOption = Format.TABLE, output: OutputOption = None
) -> None:
    """List, show and check methods; without a command, list them."""
    if context.invoked_subcommand is None:
        list_(format_, output)


@app.command("list")
def list_(format_: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """List all methods with paper, year, inputs, parameters and cost."""
    from oodcli.cli.render.methods import render_methods
    from oodcli.methods.pages import list_methods

    write_result(render_methods(list_methods(), format_), output)


@app.command("show")
def show(
    name: NameArgument, format_: FormatOption = Format.TABLE, output: OutputOption = None
) -> None:
    """Show formula, parameters, source and caveats of a method."""
    from oodcli.cli.render.methods import render_method
    from oodcli.methods.pages import show_method

    write_result(render_method(show_method(name), format_), output)


@app.command("check")
def check(
    name: NameArgument, format_: FormatOption = Format.TABLE, output: OutputOption = None
) -> None:
    """Test a method on a toy problem; exit code 1 if it breaks a rule of methods."""
    from oodcli.cli.render.methods import render_trial
    from oodcli.methods.pages import check_method

    trial = check_method(name)
    write_result(render_trial(trial, format_), output)
    if not trial.is_sound:
        raise typer.Exit(1)
