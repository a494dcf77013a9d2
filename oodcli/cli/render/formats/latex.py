r"""Tables in LaTeX, which require the package booktabs only.

The output is a float to be included by ``\input``; it is plain ASCII and compiles with pdfTeX and
newer engines.
"""

import unicodedata
from collections.abc import Sequence
from itertools import groupby

from oodcli.cli.render.formats.table import Cell, Column, Table
from oodcli.text import printable

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "\N{MINUS SIGN}": r"$-$",
    "\N{EN DASH}": "--",
    "—": "---",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
}
_ACCENTS = {
    "\N{COMBINING GRAVE ACCENT}": "`",
    "\N{COMBINING ACUTE ACCENT}": "'",
    "\N{COMBINING CIRCUMFLEX ACCENT}": "^",
    "\N{COMBINING TILDE}": "~",
    "\N{COMBINING DIAERESIS}": '"',
    "\N{COMBINING CEDILLA}": "c",
    "\N{COMBINING CARON}": "v",
}
# With more columns than this, a table spans both columns of a two-column paper.
_WIDE = 6


def write_latex(table: Table) -> str:
    """Render a table, with the best values in bold and the second best underlined."""
    columns = table.texts
    float_ = "table*" if len(columns) > _WIDE else "table"
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{{float_}}}[t]",
        r"\centering",
        r"\small",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_as_sentence('; '.join((*table.lead[:1], *table.title)))}}}",
        rf"\begin{{tabular}}{{@{{}}{''.join('r' if c.right else 'l' for c in columns)}@{{}}}}",
        r"\toprule",
        *_header(columns),
        r"\midrule",
    ]
    last = len(table.rows) - 1
    for index, row in enumerate(table.rows):
        lines.append(" & ".join(_cell(row[column.key]) for column in columns) + r" \\")
        if index in table.sections and index != last:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip{{\footnotesize {_as_sentence(note)}\par}}" for note in table.notes]
    lines.append(rf"\end{{{float_}}}")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return text escaped for LaTeX; characters missing in its fonts become their code points."""
    return "".join(map(_character, unicodedata.normalize("NFC", printable(text))))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii():
        return character
    decomposed = unicodedata.normalize("NFD", character)
    letter, mark = decomposed[0], decomposed[1:]
    if mark in _ACCENTS and letter.isascii():
        return rf"\{_ACCENTS[mark]}{{{letter}}}"
    return f"[U+{ord(character):04X}]"


def _as_sentence(text: str) -> str:
    return escaped(text.rstrip(".")) + "."


def _header(columns: Sequence[Column]) -> list[str]:
    """Return the headings, below those shared by several columns."""
    plain = " & ".join(escaped(column.heading) for column in columns) + r" \\"
    if not any(column.over for column in columns):
        return [plain]
    spans, rules, start = [], [], 1
    for over, members in groupby(columns, key=lambda column: column.over):
        width = len(list(members))
        if over:
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(over)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        else:
            spans.append(" & " * (width - 1))
        start += width
    return [" & ".join(spans) + r" \\", "".join(rules), plain]


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.bold and text:
        return rf"\textbf{{{text}}}"
    if cell.second and text:
        return rf"\underline{{{text}}}"
    # A bracket or star at the start of a row would be parsed as an argument of the previous "\\".
    return f"{{}}{text}" if text.startswith(("[", "*")) else text
