"""``ood runs``: what has been trained or imported, and how much room everything takes."""

from typing import Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.options import Format, FormatOption, RunOption, StoreOption
from oodcli.cli.speech import deliver, say, tell

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

    deliver(render_runs(list_runs(Store.at(store)), format_), None)


@app.command("show")
def show(run: NameArgument, store: StoreOption = None) -> None:
    """Print everything that is stored about a run, as JSON."""
    from oodcli.cli.render.formats import write_json
    from oodcli.store.store import Store
    from oodcli.workflows.runs import show_run

    deliver(write_json(show_run(Store.at(store), run)), None)


@app.command("use")
def use(
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
    from oodcli.store.runs import RUN_VARIABLE, default_run, find_run, set_default_run
    from oodcli.store.store import Store

    if (run is None) is not last:
        raise typer.BadParameter("name a run, or use --last", param_hint="RUN")
    kept = Store.at(store)
    set_default_run(kept, run)
    choice = default_run(kept)
    if choice is not None and choice[1] == RUN_VARIABLE:
        say(f"{RUN_VARIABLE} is set and takes precedence over this choice")
    tell(find_run(kept, None).name)


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
    from oodcli.store.runs import RunFolder, find_run
    from oodcli.store.scores import drop_sets, read_scorings
    from oodcli.store.store import Store

    kept = Store.at(store)
    folder = find_run(kept, run)
    known = {entry.name for each in read_scorings(folder.scores) for entry in each.sets}
    for name in sets:
        if name not in known:
            if RunFolder(kept.runs / name).is_run and run is None:
                raise InvalidInputError(
                    f"{name} is a run, not an OOD set; name its sets: "
                    f"ood runs drop --run {name} SET"
                )
            raise UnknownNameError.among("OOD set with scores", name, known)
    drop_sets(kept, folder.scores, sets)
    say(f"dropped from run {folder.name}: {', '.join(dict.fromkeys(sets))}")


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
    tell(new)


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

    kept = Store.at(store)
    for run in runs:
        check_removable(kept, run)  # all names are right, or nothing is removed
    for run in dict.fromkeys(runs):
        freed, left = remove_run(kept, run)
        say(f"removed {run}: {human_bytes(freed)}")
        if left:
            names = ", ".join(path.name for path in left)
            say(f"not removed from {left[0].parent}: {names}")
