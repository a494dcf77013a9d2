"""``ood report``."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oodcli.cli import completion
from oodcli.cli.console import print_stderr, write_result
from oodcli.cli.options import (
    Convention,
    Format,
    FormatOption,
    FullOption,
    Layout,
    OutputOption,
    Per,
    PlotFormat,
    StoreOption,
    command_line,
    given_options,
    writable_folder,
)

# Options that choose what a table contains; with one of them, that table is the result.
_OF_TABLES = {
    "--convention", "--method", "--set", "--layout", "--columns", "--per", "--transpose", "--sort",
    "--digits", "--ci", "--compare", "--published",
}  # fmt: skip

# Largest picture in a page, and all of them together; Base64 adds a third.
_PICTURE_BYTES = 400_000
_PICTURES_BYTES = 1_600_000
# Most drawings are larger as SVG, whose text is outlines.
_SVG_BYTES = 90_000

if TYPE_CHECKING:
    from oodcli.cli.render.formats import EmbeddedApp, EmbeddedPicture
    from oodcli.reporting.literature import PublishedComparison
    from oodcli.reporting.plots import Picture
    from oodcli.reporting.results import Report
    from oodcli.reporting.sources import Sources
    from oodcli.workflows.report import Statistics


def report(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            autocompletion=completion.runs,
            metavar="RUN",
            help="A run; can be repeated, runs that differ in their seed are averaged [default: as "
            "in other commands].",
            show_default=False,
        ),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            "--scores",
            metavar="[NAME=]FILE",
            help="Score file of any program, .npz, .csv or .pkl, instead of a run; can be "
            "repeated, seeds are averaged. NAME is the method if the file does not name it.",
            show_default=False,
        ),
    ] = None,
    id_name: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="NAME", help="The in-distribution set, if --scores does not name it."
        ),
    ] = None,
    higher_is_ood: Annotated[
        bool,
        typer.Option(
            "--higher-is-ood",
            help="In the files of --scores, larger scores are of OOD images [default: of ID "
            "images].",
        ),
    ] = False,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            autocompletion=completion.benchmarks,
            metavar="NAME",
            help="Show the sets of a benchmark [default: what was scored last].",
            show_default=False,
        ),
    ] = None,
    convention: Annotated[
        list[Convention] | None,
        typer.Option(
            "--convention",
            help="Definition of the metrics; can be repeated, the results are shown side by side "
            "[default: that of the benchmark, else neutral].",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            autocompletion=completion.methods,
            metavar="NAME",
            help="Show only this method; can be repeated, sets the order [default: all].",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            autocompletion=completion.datasets,
            metavar="NAME",
            help="Show only this OOD set; can be repeated [default: all].",
        ),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Average all given runs, such as imported seeds.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Use the scores of ood score --limit N."),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option("--layout", help="Show methods as rows, as in the tables of this paper."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="NAME,…",
            help="Columns in their order, such as method,fpr95,auroc; full list: ood help reports.",
        ),
    ] = None,
    per: Annotated[
        Per | None,
        typer.Option(
            "--per",
            help="Show single sets, group averages, or both [default: both; averages if there are "
            "many methods].",
            show_default=False,
        ),
    ] = None,
    transpose: Annotated[
        bool, typer.Option("--transpose", help="Show methods as rows and data sets as columns.")
    ] = False,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="METRIC", help="Sort methods by this metric, best first."),
    ] = None,
    digits: Annotated[
        int,
        typer.Option(
            "--digits", metavar="N", help="Digits after the decimal point of a percentage."
        ),
    ] = 2,
    ci: Annotated[
        bool,
        typer.Option(
            "--ci",
            help="Show 95 % confidence intervals: DeLong's variance for AUROC, bootstrap over "
            "images for the others.",
        ),
    ] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            autocompletion=completion.methods,
            help="Test the AUROC of two methods on every set with DeLong's paired test; all "
            "compares A with every other method.",
            show_default=False,
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Also show published values, or why they are not comparable."
        ),
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots",
            metavar="DIR",
            callback=writable_folder,
            help="Also write plots to DIR: scores, ROC, precision-recall, NormRatio, blocks, "
            "training.",
        ),
    ] = None,
    plot_format: Annotated[
        list[PlotFormat] | None,
        typer.Option(
            "--plot-format",
            help="Format of --plots; can be repeated [default: png].",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Include pictures in --format html.")
    ] = True,
    full: FullOption = False,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Summarise and tabulate FPR95, AUROC and AUPR of stored scores.

    Without options, the terminal shows a summary; options that choose what a table contains, from
    --convention to --published, show that table instead. The layout options, from --layout to
    --digits, apply to tables; json and csv always contain everything in full.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.report import render_report
    from oodcli.cli.render.report_table import TableLayout
    from oodcli.cli.render.summary import render_summary
    from oodcli.reporting.sources import ScoreQuery, Sources
    from oodcli.store.store import Store
    from oodcli.workflows.report import Statistics

    _check_usage(run=run, scores=scores, limit=limit, id_name=id_name, higher_is_ood=higher_is_ood)
    query = ScoreQuery(
        runs=tuple(run or ()),
        files=tuple(scores or ()),
        id_name=id_name,
        higher_is_ood=higher_is_ood,
        benchmark=benchmark,
        methods=tuple(method or ()),
        datasets=tuple(dataset or ()),
        limit=limit,
    )
    statistics = Statistics(ci=ci, compare=(compare,) if compare else ())
    table_layout = TableLayout(
        columns=None if columns is None else tuple(name.strip() for name in columns.split(",")),
        digits=digits,
        per=per,
        transpose=transpose,
        sort=sort,
        paper=layout,
        statistics=ci or compare is not None,
    )
    chosen = bool(_OF_TABLES.intersection(given_options(context)))
    embedded = pictures and format_ is Format.HTML
    drawn: Sequence[Picture] = ()
    app: EmbeddedApp | None = None
    with Sources.open(None if scores else Store.at(store), query) as sources:
        results = _tabulate(sources, convention or (), statistics, average=average)
        if not (run or scores):
            print_stderr(f"run: {sources.runs[0].name}")
        if plots is not None or embedded:
            from oodcli.reporting.pictures import pictures as pictures_workflow

            drawn = pictures_workflow(sources, progress=TerminalProgress())
        render = partial(
            render_report,
            results[0],
            format_,
            to_file=output is not None,
            summarised=not chosen,
            layout=table_layout,
            others=results[1:],
            comparisons=_published_comparisons(results, table_layout.columns or ())
            if published
            else None,
            pictures=_embedded_pictures(drawn, _PICTURES_BYTES) if embedded else (),
        )
        if format_ is Format.HTML:
            app = _explorer(
                sources,
                results[0],
                digits=digits,
                average=average,
                beside=len(render()) if pictures else None,
            )
    if plots is not None:
        _write_plots(drawn, plots, plot_format or (PlotFormat.PNG,))
    if format_ is Format.TABLE and output is None and not full and not chosen:
        line = command_line(context, full=True)
        write_result(render_summary(results[0], full=line), None)
        return
    write_result(render(app=app), output)


def _check_usage(
    *,
    run: Sequence[str] | None,
    scores: Sequence[str] | None,
    limit: int | None,
    id_name: str | None,
    higher_is_ood: bool,
) -> None:
    """Check that options for runs and for score files are not combined."""
    from oodcli.errors import InvalidInputError

    if scores and (run or limit is not None):
        raise InvalidInputError("--scores replaces --run and --limit; give one or the other")
    if id_name is not None and not scores:
        raise InvalidInputError("--id is the ID set of --scores; a run records its own")
    if higher_is_ood and not scores:
        raise InvalidInputError("--higher-is-ood is for --scores; in a run larger scores are ID")


def _tabulate(
    sources: "Sources",
    conventions: Sequence[Convention],
    statistics: "Statistics",
    *,
    average: bool,
) -> "list[Report]":
    """Tabulate the same scores in every convention; tests of AUROC are the same in all."""
    from dataclasses import replace

    from oodcli.workflows.report import report as report_workflow

    names: list[str | None] = list(dict.fromkeys(each.value for each in conventions))
    return [
        report_workflow(
            sources,
            name,
            replace(statistics, compare=()) if index else statistics,
            average=average,
        )
        for index, name in enumerate(names or [None])
    ]


def _explorer(
    sources: "Sources", result: "Report", *, digits: int, average: bool, beside: int | None
) -> "EmbeddedApp":
    """Return the explorer of an HTML page, with the names that its tables have."""
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.metrics import set_name
    from oodcli.cli.render.report import explorer_of
    from oodcli.cli.render.report_table import method_name
    from oodcli.workflows.explore import explore

    return explorer_of(
        explore(
            sources,
            convention=result.convention,
            digits=digits,
            average=average,
            beside=beside,
            method_label=method_name,
            column_label=lambda row: set_name(row.dataset, row.group),
            progress=TerminalProgress(),
        )
    )


def _write_plots(drawn: "Sequence[Picture]", folder: Path, formats: Sequence[PlotFormat]) -> None:
    """Write pictures to a folder, and print the path of every file."""
    from oodcli.reporting.pictures import write_plots

    for path in write_plots(drawn, folder, tuple(each.value for each in formats)):
        print_stderr(f"wrote {path}")


def _embedded_pictures(drawn: "Sequence[Picture]", room: int) -> "list[EmbeddedPicture]":
    """Return pictures to embed into an HTML page, as many as have room, and name the others.

    Photographs are WebP. Others are SVG, or PNG for one that would be larger than
    :data:`_PICTURE_BYTES`, than what is left, or than its share of the page: many pictures leave
    less room for the images of the explorer. All are PNG where a share is below
    :data:`_SVG_BYTES`, so that few are drawn twice.
    """
    from oodcli.cli.render.formats import EmbeddedPicture
    from oodcli.reporting.plots import encoded

    found: list[EmbeddedPicture] = []
    omitted: list[str] = []
    kinds: tuple[Literal["svg", "png", "webp"], ...] = ("svg", "png")
    if len(drawn) * _SVG_BYTES > _PICTURES_BYTES:
        kinds = ("png",)
    for each in drawn:
        for kind in ("webp",) if each.many_colours else kinds:
            content = encoded(each, kind)
            share = _PICTURES_BYTES // len(drawn) if kind == "svg" else room
            if len(content) <= min(_PICTURE_BYTES, share, room):
                found.append(EmbeddedPicture(each.title, each.alt, content, kind))
                room -= len(content)
                break
        else:
            omitted.append(each.name)
    if omitted:
        print_stderr(
            f"note: no room in the page for the pictures {', '.join(omitted)}; write them to a "
            "folder: --plots DIR"
        )
    return found


def _published_comparisons(
    results: Sequence["Report"], columns: Sequence[str]
) -> "list[PublishedComparison]":
    """Compare the shown metrics with published values; AUROC only for the first convention."""
    from oodcli.reporting.literature import compare
    from oodcli.reporting.results import METRICS

    shown = [name for name in METRICS if name in columns] or ["fpr95", "auroc"]
    further = [name for name in shown if name != "auroc"]
    return [
        each
        for index, result in enumerate(results)
        for each in compare(result, further if index else shown)
    ]
