"""Tables in Markdown, as the usual hosts render it."""

import re

from oodcli.cli.render.formats.table import Cell, Table
from oodcli.text import printable

# What would be taken for markup inside a cell or a line; brackets only where they make a link.
_MARKUP = re.compile(r"[\\|*_`<~]|\](?=[(\[:])")


def write_markdown(table: Table) -> str:
    """Write a table; the best in bold, the second best underlined."""
    columns = table.texts
    title = [escaped(line) for line in table.title]
    lead = [escaped(line) for line in table.lead]
    lines = [f"**{line}**" for line in lead[:1]] + [f"\n{line}" for line in lead[1:]]
    lines += [""] * bool(lead)
    lines += [f"{line}  " for line in title[:-1]] + title[-1:] + [""]
    lines.append("| " + " | ".join(escaped(column.full) for column in columns) + " |")
    lines.append("|" + "|".join("---:" if column.right else "---" for column in columns) + "|")
    lines += [
        "| " + " | ".join(_cell(row[column.key]) for column in columns) + " |" for row in table.rows
    ]
    if table.notes:
        lines += ["", *(f"- {escaped(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.bold and text:
        return f"**{text}**"
    # <u> is removed by the largest hosts, <ins> is not, and both are underlined.
    return f"<ins>{text}</ins>" if cell.second and text else text
