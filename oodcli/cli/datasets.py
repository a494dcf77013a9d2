"""``ood datasets``: list, download, verify, add, remove and show data sets."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import print_stderr, print_stdout, write_result
from oodcli.cli.options import (
    ColumnsOption,
    Format,
    FormatOption,
    OutputOption,
    StoreOption,
    WindowOption,
)

if TYPE_CHECKING:
    from oodcli.data.download import MissingFile

app = typer.Typer(no_args_is_help=True, help="List, download, verify, add and show data sets.")

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=completion.datasets,
        help="Name of the data set.",
        show_default=False,
    ),
]


class ViewKind(StrEnum):
    """Transformation of the shown images."""

    PLAIN = "plain"
    JIGSAW = "jigsaw"


@app.command("list")
def list_(
    urls: Annotated[
        bool, typer.Option("--urls", help="List the files to download and their addresses.")
    ] = False,
    format_: FormatOption = Format.TABLE,
    store: StoreOption = None,
) -> None:
    """List known data sets and benchmarks, and which are present."""
    from oodcli.cli.render.datasets import render_listing
    from oodcli.data.catalogue import list_datasets
    from oodcli.store.store import Store

    write_result(render_listing(list_datasets(Store.at(store)), format_, urls=urls), None)


@app.command("download")
def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME…",
            autocompletion=completion.datasets,
            help="Names of data sets.",
            show_default=False,
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            autocompletion=completion.benchmarks,
            metavar="NAME",
            help="Download all sets of a benchmark.",
            show_default=False,
        ),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DIR|URL",
            help="Folder of files downloaded by hand, or a mirror, instead of the published "
            "addresses.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", min=1, max=16, metavar="N", help="Number of parallel downloads."),
    ] = 4,
    store: StoreOption = None,
) -> None:
    """Download data sets into the store; interrupted downloads resume.

    Prints the folder of every complete set. Files that cannot be downloaded are listed at the end.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.errors import DownloadError
    from oodcli.store.store import Store
    from oodcli.workflows.datasets import download_datasets

    result = download_datasets(
        Store.at(store),
        names or [],
        benchmark=benchmark,
        origin=origin,
        jobs=jobs,
        progress=TerminalProgress(),
    )
    for folder in dict.fromkeys(result.folders.values()):
        print_stdout(folder)
    if result.missing:
        sys.stdout.flush()
        _print_missing(result.missing)
        sets = dict.fromkeys(entry.dataset for entry in result.missing)
        raise DownloadError(
            f"incomplete: {', '.join(sets)}; put the missing files into these places, or run the "
            "same command again"
        )


def _print_missing(missing: "tuple[MissingFile, ...]") -> None:
    """Print for every missing file the reason, its source and the place for it."""
    for entry in missing:
        print_stderr(f"{entry.dataset}: no {entry.file}")
        print_stderr(f"  why:      {entry.reason}")
        print_stderr(f"  get it:   {entry.by_hand}")
        print_stderr(f"  put it:   {entry.place}")


@app.command("path")
def path(name: NameArgument, store: StoreOption = None) -> None:
    """Print the folder of the files of a data set."""
    from oodcli.store.store import Store
    from oodcli.workflows.datasets import dataset_path

    print_stdout(dataset_path(Store.at(store), name))


@app.command("verify")
def verify(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            autocompletion=completion.datasets,
            help="Name of a data set [default: all that are present].",
        ),
    ] = None,
    format_: FormatOption = Format.TABLE,
    store: StoreOption = None,
) -> None:
    """Verify counts and checksums; exit code 1 if anything is wrong or missing."""
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.datasets import render_verification
    from oodcli.data.verification import verify_datasets
    from oodcli.store.store import Store

    found = verify_datasets(Store.at(store), name, progress=TerminalProgress())
    write_result(render_verification(found, format_), None)
    if not found.is_right:
        raise typer.Exit(1)


@app.command("add")
def add(
    name: NameArgument,
    path_: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A folder, an archive, a list or table of images, .npz or .npy.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="Labels of an .npy file (also .npy), or a list of the images in a folder.",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Root of the paths in a list or table [default: its folder].",
            show_default=False,
        ),
    ] = None,
    columns: ColumnsOption = None,
    store: StoreOption = None,
) -> None:
    """Name your own images, or point a known name to your copy; copies nothing."""
    from oodcli.data.columns import Columns
    from oodcli.store.store import Store
    from oodcli.workflows.datasets import add_dataset, published_count_warning

    added = add_dataset(
        Store.at(store),
        name,
        path_,
        labels=labels,
        root=root,
        columns=None if columns is None else Columns.of(columns),
    )
    parts = ", ".join(f"{part} {len(images):,}" for part, images in added.parts.items())
    classes = f" in {len(added.class_names)} classes" if added.class_names else ", no classes"
    if parts:
        print_stderr(f"{name}: {parts} images{classes}")
    for note in added.notes:
        print_stderr(f"note: {note}")
    if added.layout:
        print_stderr(f"found {added.layout}")
    remark = published_count_warning(added)
    if remark is not None:
        print_stderr(f"warning: {remark}")
    print_stdout(added.location)


@app.command("remove")
def remove(name: NameArgument, store: StoreOption = None) -> None:
    """Remove a name given by add; the images are not touched."""
    from oodcli.store.store import Store
    from oodcli.workflows.datasets import remove_dataset

    location = remove_dataset(Store.at(store), name)
    print_stderr(f"removed the name {name}; its images remain at {location}")


@app.command("show")
def show(
    name: NameArgument,
    output: OutputOption = None,
    view: Annotated[
        ViewKind,
        typer.Option("--view", help="Show plain images, or the jigsaws that NormRatio uses."),
    ] = ViewKind.PLAIN,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            autocompletion=completion.benchmarks,
            metavar="NAME",
            help="Benchmark whose preprocessing is used [default: the first that has this set].",
            show_default=False,
        ),
    ] = None,
    window: WindowOption = None,
    store: StoreOption = None,
) -> None:
    """Draw many images of a set as a network sees them, with their classes."""
    from oodcli.data import View
    from oodcli.store.store import Store
    from oodcli.workflows.datasets import write_contact_sheet

    suffix = "" if view is ViewKind.PLAIN else f"-{view.value}"
    target = output or Path(f"{Path(name).stem}{suffix}.png")
    print_stdout(
        write_contact_sheet(
            Store.at(store),
            name,
            target,
            view=View(view.value),
            benchmark=benchmark,
            window=window,
        )
    )
