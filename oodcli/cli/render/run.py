"""The result of ``ood run``: a summary, or the blocks and the report."""

import shlex
from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import write_json, write_tables
from oodcli.cli.render.normratio import normratio_table
from oodcli.cli.render.report import heading_of, render_report
from oodcli.cli.render.report_table import TableLayout, report_tables
from oodcli.cli.render.summary import render_summary, summary_table

if TYPE_CHECKING:
    from oodcli.workflows.run import RunResult


def render_run(result: "RunResult", how: Format, *, full: bool, to_file: bool) -> str:
    """Render the result of ``ood run``: a summary; ``full`` or to a file, blocks and report."""
    if how is Format.JSON:
        return write_json(result.to_json())
    if how is Format.CSV:
        return render_report(result.report, how, to_file=to_file)
    if how is Format.TABLE and not (full or to_file):
        line = f"ood report --run {shlex.quote(result.run)} --full"
        return render_summary(result.report, full=line)
    tables = [normratio_table(result.normratio), *report_tables([result.report], TableLayout())]
    if how is Format.TABLE:
        tables.insert(0, summary_table(result.report, full=None))
    return write_tables(tables, how, to_file=to_file, heading=heading_of(result.report))
