"""``ood datasets``: what is known by name, and where it is."""

from typing import Annotated, Any

import typer

from oodcli.cli.options import Format, FormatOption, StoreOption

app = typer.Typer(no_args_is_help=True, help="List, download and locate data sets.")

DATASETS_SCHEMA = 1
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the data set.", show_default=False)
]


@app.command("list")
def list_(format_: FormatOption = Format.TABLE, store: StoreOption = None) -> None:
    """List all data sets known by name, and whether they are here."""
    from oodcli.cli.render import Cell, Column, Table, deliver, human_bytes, render_table
    from oodcli.data import BENCHMARKS, DATASETS
    from oodcli.store import Store

    kept = Store.at(store)
    entries: list[dict[str, Any]] = [
        {
            "name": known.name,
            "title": known.title,
            "role": known.role,
            "images": dict(known.counts),
            "download_bytes": known.download_bytes,
            "licence": known.licence,
            "present": known.is_present(kept),
            "benchmarks": [
                name
                for name, benchmark in BENCHMARKS.items()
                if known.name in (benchmark.id_set, *benchmark.near, *benchmark.far, *benchmark.ood)
            ],
        }
        for known in DATASETS.values()
    ]
    rows = [
        {
            "name": Cell(entry["name"]),
            "role": Cell(entry["role"].upper()),
            "images": Cell(", ".join(f"{part} {n:,}" for part, n in entry["images"].items())),
            "size": Cell(human_bytes(entry["download_bytes"]) if entry["download_bytes"] else ""),
            "present": Cell("yes" if entry["present"] else "no"),
            "title": Cell(entry["title"]),
            "licence": Cell(entry["licence"]),
        }
        for entry in entries
    ]
    table = Table(
        title=(f"data sets, downloads in {kept.datasets}",),
        columns=(
            Column("name", "Name"),
            Column("role", "Role"),
            Column("images", "Images"),
            Column("size", "Download", right=True),
            Column("present", "Here"),
            Column("title", "What it is"),
            Column("licence", "Licence"),
        ),
        rows=rows,
        droppable=("licence", "title", "images"),
    )
    content = {"schema": DATASETS_SCHEMA, "folder": str(kept.datasets), "datasets": entries}
    deliver(render_table(table, format_, json_content=content), None)


@app.command("download")
def download(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="Names of data sets.", show_default=False)
    ],
    store: StoreOption = None,
) -> None:
    """Download data sets into the store; what was cut off goes on where it stopped."""
    from oodcli.cli.progress import TerminalProgress
    from oodcli.data import DATASETS
    from oodcli.data import download as fetch
    from oodcli.errors import UnknownNameError
    from oodcli.store import Store

    kept = Store.at(store)
    for name in names:
        if name not in DATASETS:
            raise UnknownNameError.among("data set", name, DATASETS)
    progress = TerminalProgress()
    for name in dict.fromkeys(names):
        if not DATASETS[name].sources:
            progress.note(f"{name} comes with ood: nothing to download")
            continue
        print(fetch(name, kept, progress=progress))


@app.command("path")
def path(name: NameArgument, store: StoreOption = None) -> None:
    """Print where the files of a data set are, or belong."""
    from oodcli.data import DATASETS
    from oodcli.errors import InvalidInputError, UnknownNameError
    from oodcli.store import Store

    if name not in DATASETS:
        raise UnknownNameError.among("data set", name, DATASETS)
    if not DATASETS[name].sources:
        raise InvalidInputError(f"{name} comes with ood and has no folder; use it by its name")
    print(Store.at(store).datasets / name)
