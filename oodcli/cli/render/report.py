"""A report in all formats: its table, statistical tests and published values."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from oodcli.cli.options import Format
from oodcli.cli.render.formats import (
    EmbeddedApp,
    EmbeddedPicture,
    write_csv,
    write_json,
    write_tables,
)
from oodcli.cli.render.published import published_table
from oodcli.cli.render.report_table import TableLayout, report_tables
from oodcli.cli.render.statistics import statistics_tables
from oodcli.cli.render.summary import summary_table
from oodcli.reporting.explorer.assets import assets_of
from oodcli.reporting.explorer.payload import Payload
from oodcli.reporting.literature import PublishedComparison
from oodcli.reporting.results import METRICS, Report, ResultRow


def render_report(
    report: Report,
    how: Format,
    *,
    to_file: bool,
    summarised: bool = False,
    layout: TableLayout | None = None,
    others: Sequence[Report] = (),
    comparisons: Sequence[PublishedComparison] | None = None,
    pictures: Sequence[EmbeddedPicture] = (),
    app: EmbeddedApp | None = None,
) -> str:
    """Render a report.

    Parameters
    ----------
    report
        The report.
    how
        The format. JSON and CSV contain all columns and all digits, independent of the layout.
    to_file
        Whether the text is written to a file instead of stdout.
    summarised
        Whether the summary precedes the table, in plain text.
    layout
        Layout of the table.
    others
        Reports of the same scores in other conventions, shown in the same table.
    comparisons
        Comparisons with published values, shown below the table; None to omit them.
    pictures
        Pictures to embed into an HTML page, below the tables.
    app
        The explorer of an HTML page, see :func:`explorer_of`.
    """
    reports = (report, *others)
    if how is Format.JSON:
        return write_json(_report_json(reports, comparisons))
    if how is Format.CSV:
        return _report_csv([row for each in reports for row in each.rows], comparisons)
    # An HTML page can be sorted and searched, so it always has all rows and the statistics.
    chosen = replace(layout or TableLayout(), shorten=how is not Format.HTML)
    tables = report_tables(reports, chosen)
    if chosen.statistics or how is Format.HTML:
        tables += statistics_tables(report, chosen.digits)
    if comparisons:
        tables.append(published_table(comparisons, chosen.digits))
    elif comparisons is not None:
        note = "no published values are known for these methods and sets"
        tables[0] = replace(tables[0], notes=(*tables[0].notes, note))
    if summarised and how is Format.TABLE and report.summaries:
        tables.insert(0, summary_table(report, full=None))
    return write_tables(
        tables, how, to_file=to_file, heading=heading_of(report), pictures=pictures, app=app
    )


def explorer_of(payload: Payload) -> EmbeddedApp:
    """Return the explorer of an HTML page with this data."""
    assets = assets_of(payload)
    return EmbeddedApp(
        "explorer", assets.data, assets.style, assets.scripts, assets.styles_of_scripts
    )


def heading_of(report: Report) -> str:
    """Return the title of an HTML page with a report."""
    sets = dict.fromkeys(run.id_name for run in report.runs)
    return f"OOD detection: {report.benchmark or ', '.join(sets)}"


def _report_json(
    reports: Sequence[Report], comparisons: Sequence[PublishedComparison] | None
) -> dict[str, Any]:
    """Return the JSON object of a report, with further conventions and published values."""
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
    """Render one line per run, method and data set, with all values."""
    extras = list(dict.fromkeys(name for row in rows for name in row.extras))
    intervals = list(dict.fromkeys(name for row in rows for name in row.intervals))
    spreads = (*METRICS, "id_accuracy")
    header = [
        "run", "method", "params", "dataset", "group", *METRICS, "n_id", "n_ood", "id_accuracy",
        "convention", "n_runs", *(f"{name}_std" for name in spreads), *extras,
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
            *(repr(row.std[name]) if name in row.std else "" for name in spreads),
            *(repr(row.extras[name]) if name in row.extras else "" for name in extras),
        ]
        for name in intervals:
            line += map(repr, row.intervals[name]) if name in row.intervals else ["", ""]
        for name in compared:
            place = (row.run, row.method, row.dataset, row.group, row.convention, name)
            each = printed.get(place)
            line += ["" for _ in range(5)] if each is None else _published_cells(each)
        lines.append(line)
    return write_csv(header, lines)


def _published_cells(each: PublishedComparison) -> list[object]:
    content = each.to_json()
    tolerance = "" if each.tolerance is None else repr(each.tolerance)
    reasons = "; ".join(each.reasons)
    return [repr(each.theirs), repr(each.difference), tolerance, reasons, content["source"]]
