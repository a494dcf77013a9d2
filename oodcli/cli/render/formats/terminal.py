"""Tables for a terminal or a pipe: as wide as the terminal, without wrapped lines."""

import io
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from oodcli.cli.render.formats.table import Cell, Column, Table
from oodcli.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_PIPE_WIDTH = 100
_MAX_WIDTH = 1000
_MAX_BAR = 20
# Shorter bars are not informative.
_MIN_BAR = 8
_MIN_NAME = 8
_MARGIN = 2


def write_terminal(table: Table, *, to_file: bool) -> str:
    """Render a table for the terminal; colour and bold only if stdout is a terminal.

    If the table is too wide, columns are hidden in the order of ``table.droppable``; numbers are
    never shortened.
    """
    from rich.console import Console
    from rich.text import Text

    on_terminal = sys.stdout.isatty() and not to_file
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=_MAX_WIDTH,
        force_terminal=on_terminal,
        no_color=None if on_terminal else True,
        highlight=False,
    )
    rich_table, hidden = _fit(table, console, table_width(on_terminal=on_terminal), cut=on_terminal)
    for index, line in enumerate(table.lead):
        console.print(Text(printable(line), style="" if index else "bold"), soft_wrap=True)
    if table.lead:
        console.print()
    for line in table.title:
        console.print(Text(printable(line)), soft_wrap=True)
    console.print(rich_table)
    notes = list(table.notes)
    if hidden:
        notes.append(f"hidden, since the terminal is too narrow: {', '.join(hidden)}")
    for note in notes:
        console.print(Text(printable(f"note: {note}")), soft_wrap=True)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).rstrip() + "\n"


def _fit(
    table: Table, console: "Console", table_width: int, *, cut: bool
) -> tuple["RichTable", list[str]]:
    """Return the table with the columns that fit, and the headings of the hidden columns."""
    columns = list(table.texts)
    hidden: list[Column] = []
    steps = [(step,) if isinstance(step, str) else step for step in table.droppable]
    for step in steps:
        if _width(console, _rich_table(table, columns, table.rows)) <= table_width:
            break
        hidden += [column for column in columns if column.key in step]
        columns = [column for column in columns if column.key not in step]
    rows = table.rows
    room = table_width - _width(console, _rich_table(table, columns, rows))
    if room < 0 and cut:
        columns, rows = _shorten_names(columns, rows, -room)
    bars = [column for column in table.columns if column.bar]
    length = min(_MAX_BAR, room - _MARGIN)
    if bars and length >= _MIN_BAR:
        # Bars are shown at their place among the columns.
        shown = {column.key for column in columns}
        columns = [c for c in table.columns if c.bar or c.key in shown]
        rows = [
            {**row, **{bar.key: Cell(_bar(row[bar.key], length)) for bar in bars}} for row in rows
        ]
    return _rich_table(table, columns, rows), _dropped_names(hidden, columns)


def _dropped_names(hidden: Sequence[Column], shown: Sequence[Column]) -> list[str]:
    """Return the headings of hidden columns; the shared heading if all its columns are hidden."""
    shared = {column.over for column in shown}
    names = (
        column.over if column.over and column.over not in shared else column.full.rstrip("↓↑ ")
        for column in hidden
    )
    return list(dict.fromkeys(names))


def _bar(cell: Cell, length: int) -> str:
    return "▇" * round(length * (cell.value or 0.0))


def _shorten_names(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Cell]], excess: int
) -> tuple[list[Column], Sequence[Mapping[str, Cell]]]:
    """Shorten the longest names, never numbers, until the rows fit."""
    widths = {
        c.key: max([len(c.heading), *(len(row[c.key].text) for row in rows)])
        for c in columns
        if not c.right
    }
    for key in sorted(widths, key=lambda key: widths[key], reverse=True):
        if excess <= 0:
            break
        width = max(_MIN_NAME, widths[key] - excess)
        excess -= widths[key] - width
        rows = [{**row, key: _shorten(row[key], width)} for row in rows]
    return list(columns), rows


def _shorten(cell: Cell, width: int) -> Cell:
    if len(cell.text) <= width:
        return cell
    return replace(cell, text=cell.text[: width - 1] + "…")


def _width(console: "Console", drawn: "RichTable") -> int:
    from rich.measure import Measurement

    return Measurement.get(console, console.options, drawn).maximum


def _rich_table(
    table: Table, columns: Sequence[Column], rows: Sequence[Mapping[str, Cell]]
) -> "RichTable":
    """Return a table of Rich, without wrapping."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold"
    )
    two_lines = any(column.over for column in columns)
    for column in columns:
        heading = f"{printable(column.over)}\n" if two_lines else ""
        drawn.add_column(
            # A bar has no heading: it follows the column of its values.
            Text("" if column.bar else heading + printable(column.heading)),
            justify="right" if column.right else "left",
            no_wrap=True,
        )
    for index, row in enumerate(rows):
        drawn.add_row(
            # The style of a span, unlike that of a cell, does not extend to the padding.
            *(
                Text.assemble((printable(row[column.key].text), _style(row[column.key])))
                for column in columns
            ),
            end_section=index in table.sections,
        )
    return drawn


def _style(cell: Cell) -> str:
    return "bold" if cell.bold else "underline" if cell.second else ""


def table_width(*, on_terminal: bool) -> int:
    """Return the width of the terminal in characters; a fixed width for a file or pipe."""
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"])
    return shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if on_terminal else _PIPE_WIDTH
