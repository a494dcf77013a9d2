"""The list of methods, the page of a method, and the results of a method check."""

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, write_table

if TYPE_CHECKING:
    from oodcli.methods.pages import (
        ListedMethod,
        ListedParameter,
        MethodList,
        MethodPage,
        MethodText,
        MethodTrial,
    )
    from oodcli.specs import Value

_WIDTH = 96
# Widths of the columns of the list whose texts are wrapped.
_COLUMNS = {"parameters": 26, "cost": 25, "inputs": 24, "grid": 40, "paper": 30, "title": 20}


def render_methods(listing: "MethodList", how: Format) -> str:
    """Render the list of methods."""
    rows = [row for each in listing.methods for row in _rows(each, wrapped=how is Format.TABLE)]
    foreign = any(each.package for each in listing.methods) or how is Format.CSV
    columns = (
        Column("method", "Method"),
        Column("title", "Name in papers"),
        Column("paper", "Paper"),
        Column("year", "Year", right=True),
        Column("inputs", "Inputs"),
        Column("parameters", "Parameters"),
        Column("grid", "Published values"),
        Column("cost", "Forward passes"),
        *([Column("package", "Package")] if foreign else []),
    )
    table = Table(
        title=("methods; formula, source and caveats of one: ood methods show NAME",),
        columns=columns,
        rows=rows,
        notes=(
            *(f"without {name}: {reason}" for name, reason in listing.refused.items()),
            "stored activations need no forward pass",
            "mean rank of several methods: ensemble:A+B+C; see: ood methods show ensemble",
        ),
        droppable=("grid", "paper", "inputs", "title", "year"),
    )
    return write_table(table, how, json_content=listing.to_json())


def render_method(page: "MethodPage", how: Format) -> str:
    """Render the page of one method."""
    if how in (Format.JSON, Format.CSV):
        rows = [
            {"method": Cell(part.listed.name), "field": Cell(name), "value": Cell(text)}
            for part in page.parts
            for name, text in _fields(part)
        ]
        columns = tuple(Column(key, key) for key in ("method", "field", "value"))
        return write_table(
            Table(title=(), columns=columns, rows=rows), how, json_content=page.to_json()
        )
    render_part = _markdown if how is Format.MARKDOWN else _paragraphs
    lines = [render_part(part) for part in page.parts]
    if len(page.parts) > 1:
        combination = (
            "the mean rank of the following methods"
            if page.parts[0].listed.kind == "ensemble"
            else "the second method scores the logits of the first"
        )
        lines.insert(0, f"{page.name}: {page.cost}; {combination}\n")
    if page.followed_by:
        lines.append(
            f"Without a scorer, it is combined with {page.followed_by}; with another scorer of "
            f"logits: {page.name}+NAME\n"
        )
    return "\n".join(lines)


def render_trial(trial: "MethodTrial", how: Format) -> str:
    """Render the results of a method check."""
    rows = [
        {
            "must": Cell(each.what),
            "kept": Cell("yes" if each.broken is None else "NO"),
            "how": Cell(each.broken or ""),
        }
        for each in trial.findings
    ]
    table = Table(
        title=(f"{trial.name}: check of the rules for methods",),
        columns=(Column("must", "It must"), Column("kept", "Passed"), Column("how", "Reason")),
        rows=rows,
    )
    return write_table(table, how, json_content=trial.to_json())


def _rows(method: "ListedMethod", *, wrapped: bool) -> list[dict[str, Cell]]:
    """Return a method as one row, or as several rows with wrapped texts."""
    texts = {
        "method": method.name,
        "title": method.title,
        "paper": method.paper,
        "year": "" if method.year is None else str(method.year),
        "inputs": ", ".join(method.inputs) or "not declared",
        "parameters": ", ".join(_with_default(each) for each in method.parameters),
        "grid": _grid(method),
        "cost": method.cost,
        "package": method.package or "",
    }
    if not wrapped:
        return [{key: Cell(text) for key, text in texts.items()}]
    lines = {key: textwrap.wrap(text, _COLUMNS.get(key, 999)) for key, text in texts.items()}
    return [
        {key: Cell(column[index] if index < len(column) else "") for key, column in lines.items()}
        for index in range(max(map(len, lines.values())))
    ]


def _value(value: "Value") -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_default(parameter: "ListedParameter") -> str:
    if parameter.required:
        return f"{parameter.name}=?"
    chosen = "auto" if parameter.default is None else _value(parameter.default)
    return f"{parameter.name}={chosen}"


def _grid(method: "ListedMethod") -> str:
    return "; ".join(
        f"{each.name} {', '.join(map(_value, each.grid))}"
        for each in method.parameters
        if each.grid
    )


def _parameter_text(parameter: "ListedParameter") -> str:
    """Return the meaning, type, default, given value and values for tuning of a parameter."""
    if parameter.required:
        default = "required"
    elif parameter.default is None:
        default = "chosen in fitting"
    else:
        default = f"default {_value(parameter.default)}"
    facts = [parameter.type, default]
    if parameter.given != parameter.default:
        facts.append(f"here {_value(parameter.given)}")
    if parameter.grid:
        facts.append(f"tuned over {', '.join(map(_value, parameter.grid))}")
    meaning = parameter.meaning.rstrip(".") or "not documented"
    return f"{meaning} ({'; '.join(facts)})"


def _method_fields(part: "MethodText") -> list[tuple[str, str]]:
    listed = part.listed
    return [
        ("paper", listed.paper),
        ("kind", listed.kind),
        ("inputs", ", ".join(listed.inputs) or "not declared"),
        *([("needs", "; ".join(listed.needs))] if listed.needs else []),
        ("forward passes", listed.cost),
        ("class", part.type),
        *([("package", listed.package)] if listed.package else []),
    ]


def _fields(part: "MethodText") -> list[tuple[str, str]]:
    return [
        ("title", part.listed.title),
        *_method_fields(part),
        ("year", "" if part.listed.year is None else str(part.listed.year)),
        ("summary", part.summary),
        ("formula", part.formula),
        *((f"parameter {each.name}", _parameter_text(each)) for each in part.listed.parameters),
        ("source", part.source),
        ("caveats", part.caveats),
    ]


def _texts(part: "MethodText") -> list[tuple[str, str]]:
    return [
        (heading, text)
        for heading, text in (
            ("Formula", part.formula),
            ("Source", part.source),
            ("Caveats", part.caveats),
        )
        if text
    ]


def _paragraphs(part: "MethodText") -> str:
    listed = part.listed

    def plain(text: str) -> str:
        return text.replace("``", "")

    lines = [f"{listed.name}: {listed.title}", plain(part.summary), ""]
    lines += _two_columns(_method_fields(part))
    if listed.parameters:
        lines += ["", "Parameters"]
        lines += _two_columns(
            [(each.name, plain(_parameter_text(each))) for each in listed.parameters]
        )
    for heading, text in _texts(part):
        lines += ["", heading, textwrap.indent(plain(text), "  ")]
    return "\n".join(lines) + "\n"


def _two_columns(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines with names in the first column and wrapped texts in the second."""
    width = max(len(name) for name, _ in pairs) + 4
    wrap: Callable[[str], list[str]] = textwrap.TextWrapper(
        width=_WIDTH - width, break_long_words=False, break_on_hyphens=False
    ).wrap
    lines = []
    for name, text in pairs:
        first, *rest = wrap(text) or [""]
        lines.append(f"  {name:<{width - 2}}{first}".rstrip())
        lines += [" " * width + line for line in rest]
    return lines


def _markdown(part: "MethodText") -> str:
    def code(text: str) -> str:
        return text.replace("``", "`")

    lines = [f"## {part.listed.name}: {part.listed.title}", "", code(part.summary), ""]
    lines += [f"- {name}: {text}" for name, text in _method_fields(part)]
    if part.listed.parameters:
        lines += ["", "### Parameters", ""]
        lines += [
            f"- `{each.name}`: {code(_parameter_text(each))}" for each in part.listed.parameters
        ]
    for heading, text in _texts(part):
        lines += ["", f"### {heading}", "", code(text)]
    return "\n".join(lines) + "\n"
