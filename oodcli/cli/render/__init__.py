"""Records as tables, Markdown, LaTeX, CSV, JSON and HTML.

Percent, rounding and bold are made only in this package.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodcli.cli.options import Format
from oodcli.cli.render.html import write_html
from oodcli.cli.render.latex import write_latex
from oodcli.cli.render.markdown import write_markdown
from oodcli.cli.render.plain import write_csv, write_json
from oodcli.cli.render.results import TableLayout, published_table, report_tables, statistics_tables
from oodcli.cli.render.table import Cell, Column, EmbeddedPicture, Table, human_bytes, percent
from oodcli.cli.render.terminal import write_terminal
from oodcli.cli.speech import Drawn, for_stdout
from oodcli.errors import InvalidInputError
from oodcli.literature import PublishedComparison
from oodcli.results import METRICS, Report, ResultRow

if TYPE_CHECKING:
    from oodcli.workflows.normratio import NormRatioResult
    from oodcli.workflows.run import RunResult
    from oodcli.workflows.score import Plan, ScoreResult

__all__ = [
    "Cell",
    "Column",
    "EmbeddedPicture",
    "Table",
    "TableLayout",
    "deliver",
    "human_bytes",
    "percent",
    "render_normratio",
    "render_plan",
    "render_report",
    "render_run",
    "render_score",
    "render_table",
]


def deliver(text: str, output: Path | None) -> None:
    """Print a result, or write it to a file in one step."""
    if output is not None:
        from oodcli.store import file_of_user

        with file_of_user(output) as stream:
            stream.write(text.encode())
        return
    try:
        sys.stdout.write(for_stdout(text))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What could not be written must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InvalidInputError(f"cannot write to stdout: {error.strerror}") from None


def render_report(
    report: Report,
    how: Format,
    *,
    to_file: bool,
    layout: TableLayout | None = None,
    others: Sequence[Report] = (),
    comparisons: Sequence[PublishedComparison] | None = None,
    pictures: Sequence[EmbeddedPicture] = (),
) -> str:
    """Write a report.

    Parameters
    ----------
    report
        The report.
    how
        The format. JSON and CSV have every column and every digit, whatever the layout.
    to_file
        Whether it goes to a file rather than to the screen.
    layout
        How to lay it out.
    others
        The same scores by other conventions, to stand beside it.
    comparisons
        What papers printed of it, to stand below; None to leave that out.
    pictures
        What goes into a page below the tables.
    """
    reports = (report, *others)
    if how is Format.JSON:
        return write_json(_report_json(reports, comparisons))
    if how is Format.CSV:
        return _report_csv([row for each in reports for row in each.rows], comparisons)
    # A page can be sorted and searched, and has room for what is asked for elsewhere.
    chosen = replace(layout or TableLayout(), shorten=how is not Format.HTML)
    tables = report_tables(reports, chosen)
    if chosen.statistics or how is Format.HTML:
        tables += statistics_tables(report, chosen.digits)
    if comparisons:
        tables.append(published_table(comparisons, chosen.digits))
    elif comparisons is not None:
        none = "no value is known to be published for these methods and sets"
        tables[0] = replace(tables[0], notes=(*tables[0].notes, none))
    return _drawn(tables, how, to_file=to_file, heading=_heading(report), pictures=pictures)


def render_score(result: "ScoreResult", how: Format, *, to_file: bool) -> str:
    """Write what a call of ``score`` found."""
    if how is Format.JSON:
        return write_json(result.to_json())
    return render_report(result.report, how, to_file=to_file)


def render_run(result: "RunResult", how: Format, *, to_file: bool) -> str:
    """Write what the whole job found: the blocks, then the table."""
    if how is Format.JSON:
        return write_json(result.to_json())
    if how is Format.CSV:
        return render_report(result.report, how, to_file=to_file)
    tables = [_normratio_table(result.normratio), *report_tables([result.report], TableLayout())]
    return _drawn(tables, how, to_file=to_file, heading=_heading(result.report))


def render_normratio(result: "NormRatioResult", how: Format, *, to_file: bool) -> str:
    """Write NormRatio of every block."""
    if how is Format.JSON:
        return write_json(result.to_json())
    if how is Format.CSV:
        header = ["index", "name", "shape", "ratio", "stderr", "excluded", "selected"]
        lines = [
            [
                block.index,
                block.name,
                "x".join(map(str, block.shape)),
                "" if block.ratio is None else repr(block.ratio),
                "" if block.stderr is None else repr(block.stderr),
                block.excluded,
                int(block.index == result.selected),
            ]
            for block in result.blocks
        ]
        return write_csv(header, lines)
    heading = f"NormRatio of {result.run}"
    return _drawn([_normratio_table(result)], how, to_file=to_file, heading=heading)


def render_plan(plan: "Plan", how: Format, *, to_file: bool) -> str:
    """Write what scoring would take."""
    if how is Format.JSON:
        return write_json(plan.to_json())
    header = ["set", "images", "to compute", "seconds", "bytes", "to decode"]
    if how is Format.CSV:
        lines = [
            [p.dataset, p.images, p.missing, p.seconds, p.bytes, p.undecoded] for p in plan.passes
        ]
        return write_csv(header, lines)
    columns = [
        Column("set", "Set"),
        Column("images", "Images", right=True),
        Column("undecoded", "To decode", right=True),
        Column("missing", "To compute", right=True),
        Column("time", "Time", right=True),
        Column("disk", "Disk", right=True),
    ]
    total = (
        sum(p.images for p in plan.passes),
        sum(p.missing for p in plan.passes),
        sum(p.seconds or 0 for p in plan.passes),
        sum(p.bytes for p in plan.passes),
        sum(p.undecoded for p in plan.passes),
    )
    entries = [
        (p.dataset, p.images, p.missing, p.seconds or 0, p.bytes, p.undecoded) for p in plan.passes
    ]
    rows = [
        {
            "set": Cell(name),
            "images": Cell(f"{images:,}", value=images),
            "undecoded": Cell(f"{undecoded:,}", value=undecoded),
            "missing": Cell(f"{missing:,}", value=missing),
            "time": Cell(_duration(seconds), value=seconds),
            "disk": Cell(human_bytes(size), value=size),
        }
        for name, images, missing, seconds, size, undecoded in (*entries, ("all", *total))
    ]
    table = Table(
        title=(
            f"dry run: {plan.run} on {plan.device}, about {plan.images_per_s:,.0f} images/s",
            f"methods: {', '.join(plan.methods)}",
        ),
        columns=columns,
        rows=rows,
        sections=frozenset({len(rows) - 2}),
    )
    return _drawn([table], how, to_file=to_file, heading=f"dry run: {plan.run}")


def render_table(
    table: Table, how: Format, *, json_content: Mapping[str, Any], to_file: bool = False
) -> str:
    """Write a plain table; its JSON is given, its CSV has the columns of the table."""
    if how is Format.JSON:
        return write_json(json_content)
    if how is Format.CSV:
        return write_csv(
            [column.key for column in table.columns],
            [[row[column.key].text for column in table.columns] for row in table.rows],
        )
    return _drawn([table], how, to_file=to_file, heading="ood")


def _drawn(
    tables: Sequence[Table],
    how: Format,
    *,
    to_file: bool,
    heading: str,
    pictures: Sequence[EmbeddedPicture] = (),
) -> str:
    if how is Format.HTML:
        return write_html(tables, heading=heading, pictures=pictures)
    if how is Format.MARKDOWN:
        return "\n".join(write_markdown(table) for table in tables)
    if how is Format.LATEX:
        return "\n".join(write_latex(table) for table in tables)
    return Drawn("\n".join(write_terminal(table, to_file=to_file) for table in tables))


def _heading(report: Report) -> str:
    sets = dict.fromkeys(run.id_name for run in report.runs)
    return f"OOD detection: {report.benchmark or ', '.join(sets)}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _report_json(
    reports: Sequence[Report], comparisons: Sequence[PublishedComparison] | None
) -> dict[str, Any]:
    """Return the object of a report; what was asked for besides is added to it."""
    content = reports[0].to_json()
    if len(reports) > 1:
        content["conventions"] = [
            {"name": report.convention, "description": report.description} for report in reports
        ]
        content["rows"] = [row for report in reports for row in report.to_json()["rows"]]
    if comparisons is not None:
        content["published"] = [each.to_json() for each in comparisons]
    return content


def _report_csv(
    rows: Sequence[ResultRow], comparisons: Sequence[PublishedComparison] | None
) -> str:
    """Write one line per run, method and data set, with whatever is known of them."""
    extras = list(dict.fromkeys(name for row in rows for name in row.extras))
    intervals = list(dict.fromkeys(name for row in rows for name in row.intervals))
    header = [
        "run", "method", "params", "dataset", "group", *METRICS, "n_id", "n_ood", "id_accuracy",
        "convention", "n_runs", *(f"{name}_std" for name in METRICS), *extras,
        *(f"{name}_{end}" for name in intervals for end in ("low", "high")),
    ]  # fmt: skip
    printed = {
        (each.run, each.method, each.dataset, each.group, each.convention, each.metric): each
        for each in comparisons or ()
    }
    compared = [name for name in METRICS if any(each.metric == name for each in comparisons or ())]
    header += [
        f"{name}_{what}"
        for name in compared
        for what in ("published", "difference", "tolerance", "not_comparable", "source")
    ]
    lines: list[list[object]] = []
    for row in rows:
        line: list[object] = [
            row.run,
            row.method,
            json.dumps(dict(row.params), sort_keys=True),
            row.dataset,
            row.group,
            *(repr(getattr(row, name)) for name in METRICS),
            row.n_id,
            row.n_ood,
            "" if row.id_accuracy is None else repr(row.id_accuracy),
            row.convention,
            row.n_runs,
            *(repr(row.std[name]) if row.std else "" for name in METRICS),
            *(repr(row.extras[name]) if name in row.extras else "" for name in extras),
        ]
        for name in intervals:
            line += map(repr, row.intervals[name]) if name in row.intervals else ["", ""]
        for name in compared:
            place = (row.run, row.method, row.dataset, row.group, row.convention, name)
            each = printed.get(place)
            line += ["" for _ in range(5)] if each is None else _compared_csv(each)
        lines.append(line)
    return write_csv(header, lines)


def _compared_csv(each: PublishedComparison) -> list[object]:
    content = each.to_json()
    tolerance = "" if each.tolerance is None else repr(each.tolerance)
    reasons = "; ".join(each.reasons)
    return [repr(each.theirs), repr(each.difference), tolerance, reasons, content["source"]]


def _normratio_table(result: "NormRatioResult") -> Table:
    ratios = [block.ratio for block in result.blocks if block.ratio is not None]
    top = max(ratios)
    rows = []
    for block in result.blocks:
        chosen = block.index == result.selected
        value = "-" if block.ratio is None else f"{block.ratio:.4f}"
        spread = "-" if block.stderr is None else f"{block.stderr:.4f}"
        length = 0.0 if block.ratio is None else block.ratio / top
        rows.append(
            {
                "index": Cell(str(block.index), bold=chosen, value=block.index),
                "name": Cell(block.name, bold=chosen),
                "shape": Cell("×".join(map(str, block.shape)), bold=chosen),
                "ratio": Cell(value, bold=chosen, value=block.ratio),
                "stderr": Cell(spread, bold=chosen, value=block.stderr),
                "bar": Cell("", value=length),
                "mark": Cell("selected" if chosen else "", bold=chosen),
            }
        )
    notes = []
    if not result.clear:
        notes.append("the lead of the selected block is within two standard errors: not clear")
    notes += [
        f"block {block.index}: {block.excluded} images left out, "
        "since the norm of their puzzle is zero"
        for block in result.blocks
        if block.excluded
    ]
    kind = "" if result.normalised else ", not normalised (as in the released script)"
    of = "" if result.n_images == result.of_images else f" of {result.of_images:,}"
    return Table(
        title=(
            f"{result.run}: {result.arch}",
            f"NormRatio of {result.n_images:,}{of} training images of {result.data}{kind}",
        ),
        columns=(
            Column("index", "Block", right=True),
            Column("name", "Name"),
            Column("shape", "Map"),
            Column("ratio", "NormRatio", right=True),
            Column("stderr", "Std. error", right=True),
            Column("bar", "NormRatio", bar=True),
            Column("mark", ""),
        ),
        rows=rows,
        notes=notes,
        droppable=("shape",),
    )
