"""Tables as one self-contained HTML page, which needs no other files and no network.

The page contains its style, script and pictures, and its security policy allows nothing else to be
loaded. All text is escaped. Tables can be sorted by their headings, which are buttons. The page
follows the light or dark setting of the browser; on narrow screens tables scroll horizontally, with
a fixed first column.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from oodcli.cli.render.formats.table import (
    Cell,
    Column,
    EmbeddedApp,
    EmbeddedPicture,
    Table,
)
from oodcli.text import printable

_HERE = Path(__file__).parent


def write_html(
    tables: Sequence[Table],
    *,
    heading: str = "ood",
    pictures: Sequence[EmbeddedPicture] = (),
    app: EmbeddedApp | None = None,
) -> str:
    """Render a page.

    Parameters
    ----------
    tables
        The tables, one below the other.
    heading
        Title of the page.
    pictures
        Pictures below the tables.
    app
        An interactive part above the tables. Without scripts, the page is the same as without it.
    """
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    scripts = [(_HERE / "page.js").read_text(encoding="utf-8")]
    styles = [f"\n{style}" if app is None else f"\n{style}{app.style}"]
    if app is not None:
        scripts += app.scripts
    allowed = (*styles, *(() if app is None else app.styles_of_scripts))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digests(allowed)}; "
        f"script-src {_digests(scripts)}; base-uri 'none'; form-action 'none'"
    )
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(heading)}</title>",
        *(f"<style>{each}</style>" for each in styles),
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{_text(heading)}</h1>",
        *(() if app is None else _place_of(app)),
        *(line for index, table in enumerate(tables) for line in _section(table, index)),
        *_figures(pictures),
        "</main>",
        *(() if app is None else (_data_of(app),)),
        *(f"<script>{each}</script>" for each in scripts),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _place_of(app: EmbeddedApp) -> tuple[str, ...]:
    return (
        f'<noscript><p class="legend">This page also has an {_text(app.name)}, an interactive part '
        "above the tables, which needs JavaScript: allow scripts for this file.</p></noscript>",
        f'<div id="{app.name}" hidden></div>',
        '<a class="to-top" href="#">\N{UPWARDS ARROW} Top</a>',
    )


def _data_of(app: EmbeddedApp) -> str:
    assert "<" not in app.data
    return f'<script type="application/json" id="{app.name}-data">{app.data}</script>'


def _digests(parts: Sequence[str]) -> str:
    """Return the sources of a security policy that allow exactly these inline parts."""
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in parts)
    return " ".join(f"'sha256-{each.decode()}'" for each in digests)


def _text(text: str) -> str:
    return escape(printable(text), quote=True)


def _section(table: Table, index: int) -> list[str]:
    about = f"about-{index}"
    keys = [column.key for column in table.columns]
    # On narrow screens, the fixed first column shows data set and method.
    both = keys[:1] == ["dataset"] and "method" in keys
    lines = [
        "<section>",
        f'<div class="about" id="{about}">',
        *(f"<p><strong>{_text(line)}</strong></p>" for line in table.lead[:1]),
        *(f"<p>{_text(line)}</p>" for line in (*table.lead[1:], *table.title)),
        "</div>",
        *_marks(table),
        # Scrollable regions must be reachable by keyboard.
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{about}">',
        "<table>",
        "<thead>",
        *_head(table.columns, doubled=both),
        "</thead>",
        "<tbody>",
    ]
    last = len(table.rows) - 1
    for number, row in enumerate(table.rows):
        ends = ' class="ends"' if number in table.sections and number != last else ""
        cells = "".join(
            _cell(
                column,
                row[column.key],
                first=place == 0,
                below=row["method"].text if both and place == 0 else "",
                kind="doubled" if both and column.key == "method" else "",
            )
            for place, column in enumerate(table.columns)
        )
        lines.append(f"<tr{ends}>{cells}</tr>")
    lines += ["</tbody>", "</table>", "</div>", '<p class="legend" aria-live="polite"></p>']
    if table.notes:
        notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
        lines += ['<h3 class="notes">Notes</h3>', f'<ul class="notes">{notes}</ul>']
    return [*lines, "</section>"]


def _marks(table: Table) -> list[str]:
    """Return what the marks of values mean, if there are any."""
    marked = [cell for row in table.rows for cell in row.values() if cell.value is not None]
    if not any(cell.bold or cell.second for cell in marked):
        return []
    return [
        '<p class="legend"><strong>Bold</strong>: best value; <u>underlined</u>: second best.</p>'
    ]


def _head(columns: Sequence[Column], *, doubled: bool) -> list[str]:
    lines = []
    if any(column.over for column in columns):
        spans = []
        for over, members in groupby(columns, key=lambda column: column.over):
            width = len(list(members))
            spans.append(
                f'<th class="over" scope="colgroup" colspan="{width}">{_text(over)}</th>'
                if over
                else f'<td colspan="{width}"></td>'
            )
        lines.append(f"<tr>{''.join(spans)}</tr>")
    headings = "".join(
        _heading(column, "doubled" if doubled and column.key == "method" else "")
        for column in columns
    )
    return [*lines, f"<tr>{headings}</tr>"]


def _heading(column: Column, kind: str) -> str:
    kind = _class_attribute(column, kind)
    if not column.heading:
        return "<td></td>"
    if column.bar:
        return f'<th scope="col" aria-hidden="true">{_text(column.heading)}</th>'
    return (
        f'<th scope="col"{kind} aria-sort="none">'
        f'<button type="button" data-name="{_text(column.full)}">{_text(column.heading)}</button>'
        "</th>"
    )


def _class_attribute(column: Column, kind: str) -> str:
    names = " ".join([*(["number"] if column.right else []), *([kind] if kind else [])])
    return f' class="{names}"' if names else ""


def _cell(column: Column, cell: Cell, *, first: bool, below: str, kind: str) -> str:
    if column.bar:
        if cell.value is None:
            return "<td></td>"
        length = f"{100 * min(1.0, max(0.0, cell.value)):.1f}%"
        return (
            '<td aria-hidden="true"><svg class="bar" preserveAspectRatio="none">'
            f'<rect width="{length}" height="100%"></rect></svg></td>'
        )
    text = _text(cell.text)
    if cell.link:
        text = f'<a href="{_text(cell.link)}">{text}</a>'
    if cell.png is not None:
        # The text beside it says what it shows.
        text = f'<img class="small" src="{_data(cell.png)}" alt="">{text}'
    if cell.bold and text:
        text = f"<strong>{text}</strong>"
    elif cell.second and text:
        text = f"<u>{text}</u>"
    kind = _class_attribute(column, kind)
    if below:
        text += f'<span class="below">{_text(below)}</span>'
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    if first:
        return f'<th scope="row"{kind}{value}>{text}</th>'
    return f"<td{kind}{value}>{text}</td>"


def _figures(pictures: Sequence[EmbeddedPicture]) -> list[str]:
    """Return one picture as it is, and several in a section that is closed at first.

    Pictures in a closed section are not decoded.
    """
    lines = [line for picture in pictures for line in _figure(picture)]
    if len(pictures) < 2:
        return lines
    heading = f"<summary><h2>Pictures ({len(pictures)})</h2></summary>"
    return ['<details class="pictures">', heading, *lines, "</details>"]


def _figure(picture: EmbeddedPicture) -> list[str]:
    return [
        "<figure>",
        f"<figcaption>{_text(picture.title)}</figcaption>",
        f'<img loading="lazy" decoding="async" alt="{_text(picture.alt)}" '
        f'src="{_data(picture.content, picture.kind)}">',
        "</figure>",
    ]


def _data(content: bytes, kind: str = "png") -> str:
    mime = {"png": "image/png", "webp": "image/webp", "svg": "image/svg+xml"}[kind]
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
