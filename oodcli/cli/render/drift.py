"""Drift of groups as a table."""

from typing import TYPE_CHECKING

from oodcli.cli.console import StyledText
from oodcli.cli.render.formats import Cell, Column, Table, percent
from oodcli.cli.render.formats.terminal import write_terminal
from oodcli.text import counted, printable

if TYPE_CHECKING:
    from oodcli.screening.drift import DriftResult, GroupDrift

# The statistic of every test, and what its p-value is called.
_STATISTICS = {"scores": "KS", "features": "MMD", "classes": "chi²"}


def render_drift(result: "DriftResult") -> str:
    """Render the groups as a table, with the first that changed below it."""
    names = [test.name for test in max((each.tests for each in result.groups), key=len)]
    columns = [
        Column("group", result.group_by or "group"),
        Column("images", "images", right=True),
        Column("share", "OOD %", right=True),
        Column("interval", "95 % interval", right=True),
        Column("expected", "expected %", right=True),
        Column("share_p", "p", right=True),
    ]
    for name in names:
        if name != "share":
            columns.append(Column(name, _STATISTICS[name], right=True, over=name))
            columns.append(Column(f"{name}_p", "p", right=True, over=name))
    columns.append(Column("changed", ""))
    detector = result.detector
    title = f"drift of {detector['method']} on {detector['run']} against {result.reference}"
    table = Table(
        [title],
        columns,
        [_row(each, columns) for each in result.groups],
        notes=_notes(result),
        droppable=("interval",),
    )
    return StyledText(write_terminal(table, to_file=False))


def _row(group: "GroupDrift", columns: list[Column]) -> dict[str, Cell]:
    cells = {column.key: Cell("") for column in columns}
    cells["group"] = Cell(group.group, bold=group.changed)
    cells["images"] = Cell(f"{group.images:,}")
    if group.share is None or group.share_low is None or group.share_high is None:
        cells["changed"] = Cell(f"{group.errors:,} unreadable")
        return cells
    cells["share"] = Cell(percent(group.share))
    cells["interval"] = Cell(f"{percent(group.share_low)}-{percent(group.share_high)}")
    if group.expected_low is not None and group.expected_high is not None:
        cells["expected"] = Cell(f"{percent(group.expected_low)}-{percent(group.expected_high)}")
    for test in group.tests:
        if test.name != "share":
            cells[test.name] = Cell(f"{test.statistic:.3g}")
        cells[f"{test.name}_p"] = Cell(f"{test.p_adjusted:.2g}")
    cells["changed"] = Cell("changed" if group.changed else "", bold=group.changed)
    return cells


def _notes(result: "DriftResult") -> list[str]:
    tests = sum(len(each.tests) for each in result.groups)
    notes = []
    if result.first is None:
        notes.append("no group changed")
    else:
        number = sum(each.changed for each in result.groups)
        first = next(each for each in result.groups if each.group == result.first)
        reasons = ", ".join(test.name for test in first.tests if test.p_adjusted <= result.level)
        notes.append(
            f"CHANGED: {counted(number, 'group')} of {len(result.groups):,}; the first is "
            f"{printable(result.first)} ({reasons})"
        )
    notes.append(
        f"p: with Holm's correction for {counted(tests, 'test')}; if no group changed, one is "
        f"reported with a probability of at most {percent(result.level)} %"
    )
    if result.groups and result.groups[0].expected_low is not None:
        notes.append(
            f"expected: 95 % interval for as many images like the reference, of which "
            f"{percent(result.expected)} % are OOD"
        )
    if result.ungrouped:
        notes.append(f"{counted(result.ungrouped, 'image')} without a group left out")
    return notes
