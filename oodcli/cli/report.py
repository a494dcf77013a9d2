"""``ood report``."""

from typing import Annotated

import typer

from oodcli.cli.options import Convention, Format, FormatOption, OutputOption, StoreOption


def report(
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="A run; may be repeated, and seeds are averaged [default: the one created last].",
            show_default=False,
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            metavar="NAME",
            help="The sets of a benchmark [default: what was scored last].",
            show_default=False,
        ),
    ] = None,
    convention: Annotated[
        Convention | None,
        typer.Option(
            "--convention",
            help="Whose definition of the metrics [default: the benchmark's, else neutral].",
            show_default=False,
        ),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Average all runs given, such as imported seeds.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Scores of the first N images of each set."),
    ] = None,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Tabulate stored scores: FPR95, AUROC and AUPR per method and OOD set."""
    import sys

    from oodcli.cli.render import deliver, render_report
    from oodcli.store import Store
    from oodcli.workflows.report import report as report_workflow

    result = report_workflow(
        Store.at(store),
        runs=tuple(run or ()),
        convention=None if convention is None else convention.value,
        average=average,
        limit=limit,
        benchmark=benchmark,
    )
    if not run:
        print(f"run: {result.runs[0].name}", file=sys.stderr)
    deliver(render_report(result, format_, to_file=output is not None), output)
