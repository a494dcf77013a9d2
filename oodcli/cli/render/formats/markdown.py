"""Tables in Markdown, in the dialect of common hosts."""

import re

from oodcli.cli.render.formats.table import Cell, Table
from oodcli.text import printable

# Characters that would be parsed as markup; brackets only where they form a link.
_MARKUP = re.compile(r"[\\|*_`<~]|\](?=[(\[:])")


def write_markdown(table: Table) -> str:
    """Render a table, with the best values in bold and the second best underlined."""
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
    """Return text escaped for Markdown."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.bold and text:
        return f"**{text}**"
    # The largest hosts remove <u> but not <ins>; both are underlined.
    return f"<ins>{text}</ins>" if cell.second and text else text
