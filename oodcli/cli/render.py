"""Records as tables, Markdown, CSV and JSON. Percent, rounding and bold are made only here."""

import csv
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodcli.cli.options import Format
from oodcli.errors import InvalidInputError
from oodcli.results import AVERAGE, METRICS, Report, ResultRow, best_of

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from oodcli.workflows.normratio import NormRatioResult
    from oodcli.workflows.run import RunResult
    from oodcli.workflows.score import Plan, ScoreResult

_HEADINGS = {
    "fpr95": "FPR95 ↓",
    "auroc": "AUROC ↑",
    "aupr_in": "AUPR-in ↑",
    "aupr_out": "AUPR-out ↑",
}
# In what order columns go when the window is too narrow for all.
_FIRST_TO_GO = ("images", "aupr_out", "aupr_in", "group")
_PIPE_WIDTH = 100
_WIDEST = 1000


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    key
        What it is called in this module.
    heading
        What it is called in print.
    right
        Whether it is set flush right, as numbers are.
    """

    key: str
    heading: str
    right: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Parameters
    ----------
    text
        What it says.
    bold
        Whether it is the best of its kind.
    """

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table before it is drawn.

    Parameters
    ----------
    title
        Lines above it.
    columns
        Its columns.
    rows
        Its rows, a cell a column.
    sections
        Indices of rows that a rule comes after.
    notes
        Lines below it.
    droppable
        Keys of columns that may be left out, in the order in which they go.
    """

    title: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Cell]]
    sections: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    droppable: Sequence[str] = ()


def deliver(text: str, output: Path | None) -> None:
    """Print a result, or write it to a file in one step."""
    if output is not None:
        from oodcli.store import file_of_user

        with file_of_user(output) as stream:
            stream.write(text.encode())
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What could not be written must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InvalidInputError(f"cannot write to stdout: {error.strerror}") from None


def render_report(report: Report, how: Format, *, to_file: bool) -> str:
    """Write a report."""
    if how is Format.JSON:
        return _json(report.to_json())
    if how is Format.CSV:
        return _report_csv(report.rows)
    return _drawn(_report_table(report), how, to_file=to_file)


def render_score(result: "ScoreResult", how: Format, *, to_file: bool) -> str:
    """Write what a call of ``score`` found."""
    if how is Format.JSON:
        return _json(result.to_json())
    return render_report(result.report, how, to_file=to_file)


def render_run(result: "RunResult", how: Format, *, to_file: bool) -> str:
    """Write what the whole job found: the blocks, then the table."""
    if how is Format.JSON:
        return _json(result.to_json())
    table = render_report(result.report, how, to_file=to_file)
    if how is Format.CSV:
        return table
    return f"{render_normratio(result.normratio, how, to_file=to_file)}\n{table}"


def render_normratio(result: "NormRatioResult", how: Format, *, to_file: bool) -> str:
    """Write NormRatio of every block."""
    if how is Format.JSON:
        return _json(result.to_json())
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
        return _csv(header, lines)
    return _drawn(_normratio_table(result), how, to_file=to_file)


def render_plan(plan: "Plan", how: Format, *, to_file: bool) -> str:
    """Write what scoring would take."""
    if how is Format.JSON:
        return _json(plan.to_json())
    header = ["set", "images", "to compute", "seconds", "bytes"]
    if how is Format.CSV:
        lines = [[p.dataset, p.images, p.missing, p.seconds, p.bytes] for p in plan.passes]
        return _csv(header, lines)
    columns = [
        Column("set", "Set"),
        Column("images", "Images", right=True),
        Column("missing", "To compute", right=True),
        Column("time", "Time", right=True),
        Column("disk", "Disk", right=True),
    ]
    total = (
        sum(p.images for p in plan.passes),
        sum(p.missing for p in plan.passes),
        sum(p.seconds or 0 for p in plan.passes),
        sum(p.bytes for p in plan.passes),
    )
    entries = [(p.dataset, p.images, p.missing, p.seconds or 0, p.bytes) for p in plan.passes]
    rows = [
        {
            "set": Cell(name),
            "images": Cell(f"{images:,}"),
            "missing": Cell(f"{missing:,}"),
            "time": Cell(_duration(seconds)),
            "disk": Cell(human_bytes(size)),
        }
        for name, images, missing, seconds, size in (*entries, ("all", *total))
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
    return _drawn(table, how, to_file=to_file)


def render_table(
    table: Table, how: Format, *, json_content: Mapping[str, Any], to_file: bool = False
) -> str:
    """Write a plain table; its JSON is given, its CSV has the columns of the table."""
    if how is Format.JSON:
        return _json(json_content)
    if how is Format.CSV:
        return _csv(
            [column.key for column in table.columns],
            [[row[column.key].text for column in table.columns] for row in table.rows],
        )
    return _drawn(table, how, to_file=to_file)


def human_bytes(size: float) -> str:
    """Return a size in the unit that keeps it short."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def percent(fraction: float) -> str:
    """Return a fraction in percent with two decimals, as the papers print it."""
    return f"{100 * fraction:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _json(content: Mapping[str, Any]) -> str:
    # NaN is not JSON; a value that cannot be had is null.
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return stream.getvalue()


def _report_csv(rows: Sequence[ResultRow]) -> str:
    header = [
        "run", "method", "params", "dataset", "group", *METRICS, "n_id", "n_ood", "id_accuracy",
        "convention", "n_runs", *(f"{name}_std" for name in METRICS),
    ]  # fmt: skip
    lines = [
        [
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
        ]
        for row in rows
    ]
    return _csv(header, lines)


def _report_table(report: Report) -> Table:
    several = len({row.run for row in report.rows}) > 1
    sets = {row.dataset: row.group for row in report.rows if row.dataset != AVERAGE}
    groups = {row.group for row in report.rows if row.dataset != AVERAGE}
    rows = [row for row in report.rows if _worth_showing(row, n_sets=len(sets), groups=groups)]
    best = best_of(rows, _kind)
    columns = [
        *([Column("run", "Run")] if several else []),
        Column("dataset", "OOD set"),
        *([Column("group", "Group")] if groups != {"ood"} else []),
        Column("method", "Method"),
        *(Column(name, _HEADINGS[name], right=True) for name in METRICS),
        Column("images", "Images", right=True),
    ]
    cells = []
    for row in rows:
        values = {
            name: Cell(_value(row, name), bold=getattr(row, name) == best[_kind(row), name])
            for name in METRICS
        }
        cells.append(
            {
                "run": Cell(row.run),
                "dataset": Cell(_dataset(row)),
                "group": Cell("" if row.dataset == AVERAGE else row.group),
                "method": Cell(_method(row)),
                "images": Cell(f"{row.n_ood:,}"),
                **values,
            }
        )
    ends = {
        index
        for index, (row, after) in enumerate(itertools.pairwise(rows))
        if _kind(row) != _kind(after)
    }
    return Table(
        title=_report_title(report),
        columns=columns,
        rows=cells,
        sections=frozenset(ends),
        notes=report.notes,
        droppable=_FIRST_TO_GO,
    )


def _worth_showing(row: ResultRow, *, n_sets: int, groups: set[str]) -> bool:
    """Leave out averages that say again what other rows say: of one set, or of the only group."""
    if row.dataset != AVERAGE:
        return True
    return n_sets > 1 and not (row.group == "all" and len(groups) == 1)


def _kind(row: ResultRow) -> tuple[str, str, str]:
    return row.run, row.dataset, row.group


def _dataset(row: ResultRow) -> str:
    if row.dataset != AVERAGE:
        return row.dataset
    return "average" if row.group in ("all", "ood") else f"{row.group} average"


def _method(row: ResultRow) -> str:
    """Name the method, and the block where NormRatio chose it."""
    blocks = [value for key, value in row.params.items() if key.rpartition(".")[2] == "block"]
    if blocks and "block=" not in row.method:
        chosen = "/".join(map(str, blocks[0])) if isinstance(blocks[0], list) else blocks[0]
        return f"{row.method} (block {chosen})"
    return row.method


def _value(row: ResultRow, name: str) -> str:
    text = percent(getattr(row, name))
    return f"{text} ± {percent(row.std[name])}" if row.std else text


def _report_title(report: Report) -> list[str]:
    lines = []
    for run in report.runs:
        accuracy = "" if run.id_accuracy is None else f", accuracy {percent(run.id_accuracy)} %"
        lines.append(
            f"{run.name}: {run.arch}, ID {run.id_name} ({run.n_id:,} test images{accuracy})"
        )
    means = {row.run: row for row in report.rows if row.n_runs > 1}
    lines += [
        f"mean ± population standard deviation of {row.n_runs} runs, "
        f"accuracy {percent(row.id_accuracy)} ± {percent(row.std['id_accuracy'])} %"
        for row in means.values()
        if row.id_accuracy is not None
    ]
    benchmark = f"benchmark {report.benchmark}, " if report.benchmark else ""
    if report.splits:
        lists = (f"{name} {split.sha256[:8]}" for name, split in report.splits.items())
        lines.append(f"images of OpenOOD's lists (sha256): {', '.join(lists)}")
    lines.append(f"{benchmark}convention {report.convention}: {report.description}; in percent")
    return lines


def _normratio_table(result: "NormRatioResult") -> Table:
    ratios = [block.ratio for block in result.blocks if block.ratio is not None]
    top = max(ratios)
    rows = []
    for block in result.blocks:
        chosen = block.index == result.selected
        value = "-" if block.ratio is None else f"{block.ratio:.4f}"
        spread = "-" if block.stderr is None else f"{block.stderr:.4f}"
        length = 0 if block.ratio is None else round(20 * block.ratio / top)
        rows.append(
            {
                "index": Cell(str(block.index), bold=chosen),
                "name": Cell(block.name, bold=chosen),
                "shape": Cell("×".join(map(str, block.shape)), bold=chosen),
                "ratio": Cell(value, bold=chosen),
                "stderr": Cell(spread, bold=chosen),
                "bar": Cell("▇" * length),
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
            Column("bar", ""),
            Column("mark", ""),
        ),
        rows=rows,
        notes=notes,
        droppable=("bar", "shape"),
    )


def _drawn(table: Table, how: Format, *, to_file: bool) -> str:
    if how is Format.MARKDOWN:
        return _markdown(table)
    return _terminal(table, to_file=to_file)


def _markdown(table: Table) -> str:
    def cell(content: Cell) -> str:
        text = content.text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")
        return f"**{text}**" if content.bold and text else text

    columns = [column for column in table.columns if column.key != "bar"]
    lines = [f"{line}  " for line in table.title[:-1]] + list(table.title[-1:]) + [""]
    lines.append("| " + " | ".join(column.heading for column in columns) + " |")
    lines.append("|" + "|".join("---:" if column.right else "---" for column in columns) + "|")
    lines += [
        "| " + " | ".join(cell(row[column.key]) for column in columns) + " |" for row in table.rows
    ]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _terminal(table: Table, *, to_file: bool) -> str:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    on_terminal = sys.stdout.isatty() and not to_file
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=_WIDEST,
        force_terminal=on_terminal,
        no_color=None if on_terminal else True,
        highlight=False,
    )
    window = _window(on_terminal=on_terminal)
    columns = list(table.columns)
    drawn = _rich_table(table, columns)
    for key in table.droppable:
        if Measurement.get(console, console.options, drawn).maximum <= window:
            break
        columns = [column for column in columns if column.key != key]
        drawn = _rich_table(table, columns)
    for line in table.title:
        console.print(Text(line), soft_wrap=True)
    console.print(drawn)
    for note in table.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _rich_table(table: Table, columns: Sequence[Column]) -> "RichTable":
    """Lay a table out; nothing in it is ever wrapped."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold"
    )
    for column in columns:
        drawn.add_column(
            Text(column.heading), justify="right" if column.right else "left", no_wrap=True
        )
    for index, row in enumerate(table.rows):
        drawn.add_row(
            *(
                Text(row[column.key].text, style="bold" if row[column.key].bold else "")
                for column in columns
            ),
            end_section=index in table.sections,
        )
    return drawn


def _window(*, on_terminal: bool) -> int:
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"])
    return shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if on_terminal else _PIPE_WIDTH
