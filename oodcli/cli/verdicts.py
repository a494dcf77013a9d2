"""``ood verdicts``: merge and summarise files that ``ood predict --output`` wrote."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli.alarms import AlarmLevelOption, CsvSafeOption, FailOnAnyOption, FailOption, exit_by
from oodcli.cli.console import write_result
from oodcli.cli.options import FdrOption, writable_file

if TYPE_CHECKING:
    from oodcli.screening.findings import PredictResult

app = typer.Typer(no_args_is_help=True, help="Merge and summarise files of verdicts.")


class SummaryFormat(StrEnum):
    """Format of a summary."""

    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[SummaryFormat, typer.Option("--format", help="Format of the summary.")]


@app.command("merge")
def merge(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…",
            help="Files of verdicts, folders of them, and patterns such as 'night-*.csv'.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            callback=writable_file,
            help="Write all rows to FILE (.csv, .jsonl or .parquet).",
        ),
    ] = None,
    fdr: FdrOption = None,
    csv_safe: CsvSafeOption = False,
    format_: FormatOption = SummaryFormat.TABLE,
    fail_on_ood: FailOption = False,
    fail_on_any_ood: FailOnAnyOption = False,
    alarm_level: AlarmLevelOption = 0.001,
) -> None:
    """Merge the files of all shards of a screening, and summarise them.

    Refused are files of different runs, methods or thresholds, missing and repeated shards,
    unfinished files, and images with rows in two files. Exit codes: as those of ood predict.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.workflows.verdicts import MergeRequest
    from oodcli.workflows.verdicts import merge as merge_workflow

    request = MergeRequest(files, output, alarm_level, fdr, csv_safe)
    result = merge_workflow(request, progress=TerminalProgress())
    _show(result, format_)
    exit_by(result, fail_on_ood=fail_on_ood, fail_on_any_ood=fail_on_any_ood)


@app.command("summary")
def summary(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A file of verdicts; it may be a shard, or merged.",
            show_default=False,
        ),
    ],
    format_: FormatOption = SummaryFormat.TABLE,
    fail_on_ood: FailOption = False,
    fail_on_any_ood: FailOnAnyOption = False,
    alarm_level: AlarmLevelOption = 0.001,
) -> None:
    """Summarise a file of verdicts: shares, test, and images with the lowest scores.

    Exit codes: as those of ood predict.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.workflows.verdicts import summarise

    result = summarise(file, alarm_level=alarm_level, progress=TerminalProgress())
    _show(result, format_)
    exit_by(result, fail_on_ood=fail_on_ood, fail_on_any_ood=fail_on_any_ood)


def _show(result: "PredictResult", format_: SummaryFormat) -> None:
    from oodcli.cli.render.formats import write_json
    from oodcli.cli.render.verdicts import render_verdicts
    from oodcli.screening.verdict_file import as_object

    if format_ is SummaryFormat.TABLE:
        write_result(render_verdicts(result), None)
        return
    rows = [as_object(each) for each in result.rows]
    write_result(write_json({**result.to_json(), "files": list(result.files), "rows": rows}), None)
