"""Tables for a terminal or a pipe: as wide as the window, nothing ever wrapped."""

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
_WIDEST = 1000
_LONGEST_BAR = 20
# A shorter bar shows nothing that the number beside it does not say better.
_SHORTEST_BAR = 8
_SHORTEST_NAME = 8
_MARGIN = 2


def write_terminal(table: Table, *, to_file: bool) -> str:
    """Write a table for the window; colour and bold on a terminal alone.

    Columns that find no room are left out, those that the table can best do without first; the
    numbers of the others are never shortened.
    """
    from rich.console import Console
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
    drawn, left_out = _fitted(table, console, window(on_terminal=on_terminal), cut=on_terminal)
    for index, line in enumerate(table.lead):
        console.print(Text(printable(line), style="" if index else "bold"), soft_wrap=True)
    if table.lead:
        console.print()
    for line in table.title:
        console.print(Text(printable(line)), soft_wrap=True)
    console.print(drawn)
    notes = list(table.notes)
    if left_out:
        notes.append(f"hidden, as the terminal is too narrow: {', '.join(left_out)}")
    for note in notes:
        console.print(Text(printable(f"note: {note}")), soft_wrap=True)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).rstrip() + "\n"


def _fitted(
    table: Table, console: "Console", window: int, *, cut: bool
) -> tuple["RichTable", list[str]]:
    """Return what fits, and the headings of what does not."""
    columns = list(table.texts)
    left_out: list[Column] = []
    steps = [(step,) if isinstance(step, str) else step for step in table.droppable]
    for step in steps:
        if _width(console, _drawn(table, columns, table.rows)) <= window:
            break
        left_out += [column for column in columns if column.key in step]
        columns = [column for column in columns if column.key not in step]
    rows = table.rows
    room = window - _width(console, _drawn(table, columns, rows))
    if room < 0 and cut:
        columns, rows = _cut(columns, rows, -room)
    bars = [column for column in table.columns if column.bar]
    length = min(_LONGEST_BAR, room - _MARGIN)
    if bars and length >= _SHORTEST_BAR:
        # Bars stand where the table has them, which is where the eye compares them.
        kept = {column.key for column in columns}
        columns = [c for c in table.columns if c.bar or c.key in kept]
        rows = [
            {**row, **{bar.key: Cell(_bar(row[bar.key], length)) for bar in bars}} for row in rows
        ]
    return _drawn(table, columns, rows), _named(left_out, columns)


def _named(left_out: Sequence[Column], kept: Sequence[Column]) -> list[str]:
    """Name what is left out; columns that went together by the heading they share."""
    shared = {column.over for column in kept}
    names = (
        column.over if column.over and column.over not in shared else column.full.rstrip("↓↑ ")
        for column in left_out
    )
    return list(dict.fromkeys(names))


def _bar(cell: Cell, length: int) -> str:
    return "▇" * round(length * (cell.value or 0.0))


def _cut(
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
        width = max(_SHORTEST_NAME, widths[key] - excess)
        excess -= widths[key] - width
        rows = [{**row, key: _shortened(row[key], width)} for row in rows]
    return list(columns), rows


def _shortened(cell: Cell, width: int) -> Cell:
    if len(cell.text) <= width:
        return cell
    return replace(cell, text=cell.text[: width - 1] + "…")


def _width(console: "Console", drawn: "RichTable") -> int:
    from rich.measure import Measurement

    return Measurement.get(console, console.options, drawn).maximum


def _drawn(
    table: Table, columns: Sequence[Column], rows: Sequence[Mapping[str, Cell]]
) -> "RichTable":
    """Lay a table out; nothing in it is ever wrapped."""
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
            # A bar stands beside its number, which has the heading.
            Text("" if column.bar else heading + printable(column.heading)),
            justify="right" if column.right else "left",
            no_wrap=True,
        )
    for index, row in enumerate(rows):
        drawn.add_row(
            # The style of a span, unlike that of a cell, leaves out what fills the column up.
            *(
                Text.assemble((printable(row[column.key].text), _style(row[column.key])))
                for column in columns
            ),
            end_section=index in table.sections,
        )
    return drawn


def _style(cell: Cell) -> str:
    return "bold" if cell.bold else "underline" if cell.second else ""


def window(*, on_terminal: bool) -> int:
    """Return how many columns there are to write in."""
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"])
    return shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if on_terminal else _PIPE_WIDTH
