"""``ood doctor``."""

from typing import Annotated

import typer

from oodcli.cli.console import print_stderr, write_result
from oodcli.cli.options import Format, FormatOption, StoreOption


def doctor(
    format_: FormatOption = Format.TABLE,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First remove leftovers of killed processes from the store.",
        ),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Check the installation and the store.

    Paste the result into a bug report.
    """
    from oodcli.cli.render.doctor import render_diagnosis
    from oodcli.cli.render.formats import human_bytes
    from oodcli.workflows.doctor import diagnose, repair_store

    if repair:
        for path, size in repair_store(store):
            print_stderr(f"removed {path}: {human_bytes(size)}")
    found = diagnose(store)
    write_result(render_diagnosis(found, format_), None)
    if not found.healthy:
        raise typer.Exit(1)
