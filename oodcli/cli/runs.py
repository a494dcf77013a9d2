"""``ood runs``: list, show, rename and remove runs, and set the default run."""

from typing import Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import print_stderr, print_stdout, write_result
from oodcli.cli.options import Format, FormatOption, RunOption, StoreOption

app = typer.Typer(no_args_is_help=True, help="List, show, rename and remove runs.")

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", autocompletion=completion.runs, help="Name of the run.", show_default=False
    ),
]


@app.command("list")
def list_(format_: FormatOption = Format.TABLE, store: StoreOption = None) -> None:
    """List all runs, oldest first, with the size of the store and leftovers."""
    from oodcli.cli.render.runs import render_runs
    from oodcli.store.store import Store
    from oodcli.workflows.runs import list_runs

    write_result(render_runs(list_runs(Store.at(store)), format_), None)


@app.command("show")
def show(run: NameArgument, store: StoreOption = None) -> None:
    """Print everything that is stored about a run, as JSON."""
    from oodcli.cli.render.formats import write_json
    from oodcli.store.store import Store
    from oodcli.workflows.runs import show_run

    write_result(write_json(show_run(Store.at(store), run)), None)


@app.command("use")
def use(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.runs,
            help="Name of the run.",
            show_default=False,
        ),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Use the run created last again.")] = False,
    store: StoreOption = None,
) -> None:
    """Choose the run that commands use without --run; OOD_RUN has priority."""
    from oodcli.store.run_names import RUN_VARIABLE, default_run, find_run, set_default_run
    from oodcli.store.store import Store

    if (run is None) is not last:
        context.fail("Give either a RUN or --last.")
    opened_store = Store.at(store)
    set_default_run(opened_store, run)
    default = default_run(opened_store)
    if default is not None and default[1] == RUN_VARIABLE:
        print_stderr(f"{RUN_VARIABLE} is set and takes precedence over this default")
    print_stdout(find_run(opened_store, None).name)


@app.command("drop")
def drop(
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="SET…",
            autocompletion=completion.scored_sets,
            help="Names of OOD sets.",
            show_default=False,
        ),
    ],
    run: RunOption = None,
    store: StoreOption = None,
) -> None:
    """Remove OOD sets from the scores and tables of a run."""
    from oodcli.errors import InvalidInputError, UnknownNameError
    from oodcli.store.run_names import find_run
    from oodcli.store.runs import RunFolder
    from oodcli.store.scores import drop_sets, read_scorings
    from oodcli.store.store import Store

    opened_store = Store.at(store)
    folder = find_run(opened_store, run)
    known = {entry.name for each in read_scorings(folder.scores) for entry in each.sets}
    for name in sets:
        if name not in known:
            if RunFolder(opened_store.runs / name).is_run and run is None:
                raise InvalidInputError(
                    f"{name} is a run, not an OOD set; give one of its sets: "
                    f"ood runs drop --run {name} SET"
                )
            raise UnknownNameError.among("OOD set with scores", name, known)
    drop_sets(opened_store, folder.scores, sets)
    print_stderr(f"dropped from run {folder.name}: {', '.join(dict.fromkeys(sets))}")


@app.command("rename")
def rename(
    run: NameArgument,
    new: Annotated[str, typer.Argument(help="New name of the run.", show_default=False)],
    store: StoreOption = None,
) -> None:
    """Rename a run."""
    from oodcli.store.removal import rename_run
    from oodcli.store.store import Store

    rename_run(Store.at(store), run, new)
    print_stdout(new)


@app.command("remove")
def remove(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…",
            autocompletion=completion.runs,
            help="Names of runs.",
            show_default=False,
        ),
    ],
    store: StoreOption = None,
) -> None:
    """Remove runs, and activations that no other run uses.

    A run that another process uses is not removed. The rest of a partly removed run is removed
    by its name as well.
    """
    from oodcli.cli.render.formats import human_bytes
    from oodcli.store.removal import check_removable, remove_run
    from oodcli.store.store import Store

    opened_store = Store.at(store)
    for run in runs:
        check_removable(opened_store, run)  # nothing is removed if one name is wrong
    for run in dict.fromkeys(runs):
        freed, remaining = remove_run(opened_store, run)
        print_stderr(f"removed {run}: {human_bytes(freed)}")
        if remaining:
            names = ", ".join(path.name for path in remaining)
            print_stderr(f"not removed from {remaining[0].parent}: {names}")
