"""``ood runs``: what has been trained or imported, and how much room everything takes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from oodcli.cli import completion
from oodcli.cli.options import Format, FormatOption, RunOption, StoreOption
from oodcli.cli.speech import say, tell

if TYPE_CHECKING:
    from oodcli.runs import RunFolder

app = typer.Typer(no_args_is_help=True, help="List, show, rename and remove runs.")

RUNS_SCHEMA = 1
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", autocompletion=completion.runs, help="Name of the run.", show_default=False
    ),
]


@app.command("list")
def list_(format_: FormatOption = Format.TABLE, store: StoreOption = None) -> None:
    """List all runs, the oldest first, the room that the store takes, and leftovers in it."""
    from oodcli.cli.render import Cell, Column, Table, deliver, human_bytes, percent, render_table
    from oodcli.errors import CorruptArtifactError, OodError
    from oodcli.runs import find_run, leftovers, run_folders
    from oodcli.store import Store, size_of

    kept = Store.at(store)
    entries: list[dict[str, Any]] = []
    remarks = []
    try:
        default = find_run(kept, None).name
    except OodError as error:
        default = None
        remarks = [str(error)] if run_folders(kept) else []
    for folder in run_folders(kept):
        entry: dict[str, Any] = {"name": folder.name, "finished": folder.finished}
        entry["default"] = folder.name == default
        try:
            entry |= _described(folder)
        except (CorruptArtifactError, KeyError):
            entry |= dict.fromkeys(("arch", "data", "created"), "") | {"origin": "damaged"}
            entry |= {"seed": None, "val_accuracy": None}
        entries.append({**entry, "bytes": size_of(folder.path)})
    usage = kept.usage()
    rests = leftovers(kept)
    notes = remarks if entries else ["no run yet; train one: ood train --data digits"]
    if default is not None:
        notes.append(f"commands without --run take {default}; another: ood runs use RUN")
    if rests:
        notes.append(
            f"{human_bytes(sum(rest.bytes for rest in rests))} are leftovers that no run has: "
            + ", ".join(str(rest.path.relative_to(kept.root)) for rest in rests)
            + "; remove them: ood doctor --repair"
        )
    rows = [
        {
            "name": Cell(f"{entry['name']} *" if entry["default"] else entry["name"]),
            "origin": Cell(entry["origin"]),
            "created": Cell(entry["created"][:16].replace("T", " ")),
            "arch": Cell(entry["arch"]),
            "data": Cell(entry["data"]),
            "seed": Cell("" if entry["seed"] is None else str(entry["seed"])),
            "val": Cell("" if entry["val_accuracy"] is None else percent(entry["val_accuracy"])),
            "size": Cell(human_bytes(entry["bytes"])),
        }
        for entry in entries
    ]
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in usage.items())
    table = Table(
        title=(f"store {kept.root}: {human_bytes(sum(usage.values()))} ({parts})",),
        columns=(
            Column("name", "Run"),
            Column("origin", "Origin"),
            Column("created", "Created (UTC)"),
            Column("arch", "Network"),
            Column("data", "Data"),
            Column("seed", "Seed", right=True),
            Column("val", "Val. acc. %", right=True),
            Column("size", "Size", right=True),
        ),
        rows=rows,
        notes=notes,
        droppable=("created", "size", "origin", "val"),
    )
    content = {
        "schema": RUNS_SCHEMA,
        "store": str(kept.root),
        "usage": usage,
        "runs": entries,
        "leftovers": [
            {
                "path": rest.path.relative_to(kept.root).as_posix(),
                "kind": rest.kind,
                "bytes": rest.bytes,
            }
            for rest in rests
        ],
    }
    deliver(render_table(table, format_, json_content=content), None)


def _described(folder: "RunFolder") -> dict[str, Any]:
    """Say what a run is."""
    if folder.finished:
        record = folder.read()
        return {
            "origin": record.origin,
            "created": record.created,
            "arch": record.arch,
            "data": record.data_name,
            "seed": record.seed,
            "val_accuracy": record.training.get("val_accuracy"),
        }
    job = folder.read_training()
    return {
        "origin": "unfinished",
        "created": job["created"],
        "arch": job["arch"],
        "data": job["data"],
        "seed": job["seed"],
        "val_accuracy": None,
    }


@app.command("show")
def show(run: NameArgument, store: StoreOption = None) -> None:
    """Print everything that is stored about a run, as JSON."""
    from oodcli.cli.render import deliver
    from oodcli.cli.render.plain import write_json
    from oodcli.runs import find_run
    from oodcli.scores import read_scorings
    from oodcli.store import Store, read_json

    folder = find_run(Store.at(store), run)
    content: dict[str, Any] = {"name": folder.name, "folder": str(folder.path)}
    content |= folder.read().to_json() if folder.finished else folder.read_training()
    content["normratio"] = {
        path.stem: read_json(path) for path in sorted(folder.normratio.glob("*.json"))
    }
    content["scores"] = [
        {
            "limit": scoring.limit,
            "precision": scoring.precision,
            "updated": scoring.updated,
            "id": scoring.id_set.name,
            "sets": [entry.name for entry in scoring.sets],
            "methods": list(scoring.methods or {}),
        }
        for scoring in read_scorings(folder.scores)
    ]
    deliver(write_json(content), None)


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
    last: Annotated[bool, typer.Option("--last", help="The run created last, as before.")] = False,
    store: StoreOption = None,
) -> None:
    """Choose the run that commands take without --run; the variable OOD_RUN goes before it."""
    from oodcli.runs import RUN_VARIABLE, chosen_run, find_run, use_run
    from oodcli.store import Store

    if (run is None) is not last:
        raise typer.BadParameter("name a run, or else --last", param_hint="RUN")
    kept = Store.at(store)
    use_run(kept, run)
    choice = chosen_run(kept)
    if choice is not None and choice[1] == RUN_VARIABLE:
        say(f"{RUN_VARIABLE} is set and goes before this choice")
    tell(find_run(kept, None).name)


@app.command("drop")
def drop(
    sets: Annotated[
        list[str], typer.Argument(metavar="SET…", help="Names of OOD sets.", show_default=False)
    ],
    run: RunOption = None,
    store: StoreOption = None,
) -> None:
    """Drop OOD sets, such as trials, from the scores and tables of a run."""
    from oodcli.errors import UnknownNameError
    from oodcli.runs import find_run
    from oodcli.scores import drop_sets, read_scorings
    from oodcli.store import Store

    kept = Store.at(store)
    folder = find_run(kept, run)
    known = {entry.name for each in read_scorings(folder.scores) for entry in each.sets}
    for name in sets:
        if name not in known:
            raise UnknownNameError.among(f"OOD set in the scores of run {folder.name}", name, known)
    drop_sets(kept, folder.scores, sets)
    say(f"dropped from run {folder.name}: {', '.join(dict.fromkeys(sets))}")


@app.command("rename")
def rename(
    run: NameArgument,
    new: Annotated[str, typer.Argument(help="Its new name.", show_default=False)],
    store: StoreOption = None,
) -> None:
    """Give a run another name."""
    from oodcli.runs import rename_run
    from oodcli.store import Store

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
    """Remove runs, with the activations of their networks where no other run has them.

    A run that another process uses is not removed. What is left of a run that was removed only in
    part is removed by its name as well.
    """
    from oodcli.cli.render import human_bytes
    from oodcli.runs import check_removable, remove_run
    from oodcli.store import Store

    kept = Store.at(store)
    for run in runs:
        check_removable(kept, run)  # all names are right, or nothing is removed
    for run in dict.fromkeys(runs):
        freed, left = remove_run(kept, run)
        say(f"removed {run}: {human_bytes(freed)}")
        if left:
            names = ", ".join(path.name for path in left)
            say(f"left alone in {left[0].parent}: {names}")
