"""The result of ``ood run``: the blocks, then the report."""

from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import write_json, write_tables
from oodcli.cli.render.normratio import normratio_table
from oodcli.cli.render.report import heading_of, render_report
from oodcli.cli.render.report_table import TableLayout, report_tables

if TYPE_CHECKING:
    from oodcli.workflows.run import RunResult


def render_run(result: "RunResult", how: Format, *, to_file: bool) -> str:
    """Render the result of ``ood run``: the blocks, then the report."""
    if how is Format.JSON:
        return write_json(result.to_json())
    if how is Format.CSV:
        return render_report(result.report, how, to_file=to_file)
    tables = [normratio_table(result.normratio), *report_tables([result.report], TableLayout())]
    return write_tables(tables, how, to_file=to_file, heading=heading_of(result.report))
