"""The output formats of tables: terminal, Markdown, LaTeX, CSV, JSON and HTML.

Percentages, rounding and bold are applied only in the renderers and in this package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from oodcli.cli.console import StyledText
from oodcli.cli.options import Format
from oodcli.cli.render.formats.html import write_html
from oodcli.cli.render.formats.latex import write_latex
from oodcli.cli.render.formats.markdown import write_markdown
from oodcli.cli.render.formats.plain import write_csv, write_json
from oodcli.cli.render.formats.table import (
    Cell,
    Column,
    EmbeddedApp,
    EmbeddedPicture,
    Table,
    human_bytes,
    percent,
)
from oodcli.cli.render.formats.terminal import write_terminal

__all__ = [
    "Cell",
    "Column",
    "EmbeddedApp",
    "EmbeddedPicture",
    "Table",
    "human_bytes",
    "percent",
    "write_csv",
    "write_json",
    "write_table",
    "write_tables",
]


def write_table(
    table: Table, how: Format, *, json_content: Mapping[str, Any], to_file: bool = False
) -> str:
    """Render one table; JSON is ``json_content``, CSV has the columns of the table."""
    if how is Format.JSON:
        return write_json(json_content)
    if how is Format.CSV:
        return write_csv(
            [column.key for column in table.columns],
            [[row[column.key].text for column in table.columns] for row in table.rows],
        )
    return write_tables([table], how, to_file=to_file, heading="ood")


def write_tables(
    tables: Sequence[Table],
    how: Format,
    *,
    to_file: bool,
    heading: str,
    pictures: Sequence[EmbeddedPicture] = (),
    app: EmbeddedApp | None = None,
) -> str:
    """Render tables below each other, in a format for humans.

    Parameters
    ----------
    tables
        The tables.
    how
        The format; neither JSON nor CSV.
    to_file
        Whether the text is written to a file instead of stdout.
    heading
        Title of an HTML page.
    pictures
        Pictures to embed into an HTML page, below the tables.
    app
        An interactive part of an HTML page, above the tables.
    """
    if how is Format.HTML:
        return write_html(tables, heading=heading, pictures=pictures, app=app)
    if how is Format.MARKDOWN:
        return "\n".join(write_markdown(table) for table in tables)
    if how is Format.LATEX:
        return "\n".join(write_latex(table) for table in tables)
    return StyledText("\n".join(write_terminal(table, to_file=to_file) for table in tables))
