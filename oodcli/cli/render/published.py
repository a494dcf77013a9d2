"""Results compared with values published in papers."""

import itertools
from collections.abc import Mapping, Sequence

from oodcli.cli.render.formats import Cell, Column, Table, percent
from oodcli.cli.render.metrics import METRIC_STYLES, format_signed, set_name
from oodcli.reporting.literature import SOURCES, PublishedComparison


def published_table(comparisons: Sequence[PublishedComparison], digits: int = 2) -> Table:
    """Return a table of results and published values.

    Parameters
    ----------
    comparisons
        Result of `oodcli.reporting.literature.compare`.
    digits
        Digits after the decimal point of a percentage.
    """
    reasons: dict[str, int] = {}
    for each in comparisons:
        for reason in each.reasons:
            reasons.setdefault(reason, len(reasons) + 1)
    several = len({each.run for each in comparisons}) > 1
    conventions = {each.convention for each in comparisons}
    rows = [_row(each, reasons, digits) for each in comparisons]
    ends = {
        index
        for index, (one, after) in enumerate(itertools.pairwise(comparisons))
        if (one.run, one.dataset, one.group) != (after.run, after.dataset, after.group)
    }
    notes = [f"({number}) {reason}" for reason, number in reasons.items()]
    notes += dict.fromkeys(remark for each in comparisons for remark in each.remarks)
    return Table(
        title=("compared with published values, in percent",),
        columns=[
            *([Column("run", "Run")] if several else []),
            Column("dataset", "OOD set"),
            Column("method", "Method"),
            *([Column("convention", "Convention")] if len(conventions) > 1 else []),
            Column("metric", "Metric"),
            Column("ours", "Ours", right=True),
            Column("published", "Published", right=True),
            Column("difference", "Difference", right=True),
            Column("tolerance", "Tolerance", right=True),
            Column("verdict", "Verdict"),
            Column("source", "Source"),
        ],
        rows=rows,
        sections=frozenset(ends),
        notes=notes,
        droppable=("source", "tolerance"),
    )


def _row(each: PublishedComparison, reasons: Mapping[str, int], digits: int) -> dict[str, Cell]:
    verdict, good = _verdict(each, reasons)
    remark = f", {each.published.note}" if each.published.note else ""
    published = percent(each.theirs)
    if each.metric in each.published.std:
        published += f" ± {percent(each.published.std[each.metric])}"
    return {
        "run": Cell(each.run),
        "dataset": Cell(set_name(each.dataset, each.group)),
        "method": Cell(each.method),
        "convention": Cell(each.convention),
        "metric": Cell(METRIC_STYLES[each.metric].heading.rstrip("↓↑ ")),
        "ours": Cell(percent(each.ours, digits), value=each.ours),
        "published": Cell(published, value=each.theirs),
        "difference": (
            Cell("")
            if each.reasons
            else Cell(format_signed(each.difference, digits), value=each.difference)
        ),
        "tolerance": (
            Cell("")
            if each.reasons or each.tolerance is None
            else Cell(f"±{percent(each.tolerance)}", value=each.tolerance)
        ),
        "verdict": Cell(verdict, bold=good),
        "source": Cell(SOURCES[each.published.source].title + remark),
    }


def _verdict(each: PublishedComparison, reasons: Mapping[str, int]) -> tuple[str, bool]:
    if each.reasons:
        numbers = ", ".join(f"{reasons[reason]}" for reason in each.reasons)
        return f"not comparable ({numbers})", False
    if each.within is None:
        return "no tolerance set", False
    return ("within", False) if each.within else ("outside", True)
