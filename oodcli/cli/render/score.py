"""The result or the plan of a call of ``ood score``."""

from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import (
    Cell,
    Column,
    Table,
    human_bytes,
    write_csv,
    write_json,
    write_tables,
)
from oodcli.cli.render.report import render_report

if TYPE_CHECKING:
    from oodcli.scoring.plan import Plan
    from oodcli.workflows.score import ScoreResult
    from oodcli.workflows.score_file import FileScores


def render_score(result: "ScoreResult | FileScores", how: Format, *, to_file: bool) -> str:
    """Render the result of a call of ``score``."""
    if how is Format.JSON:
        return write_json(result.to_json())
    return render_report(result.report, how, to_file=to_file)


def render_plan(plan: "Plan", how: Format, *, to_file: bool) -> str:
    """Render the expected work and time of scoring."""
    if how is Format.JSON:
        return write_json(plan.to_json())
    header = ["set", "images", "to compute", "seconds", "bytes", "to decode"]
    if how is Format.CSV:
        lines = [
            [p.dataset, p.images, p.missing, p.seconds, p.bytes, p.undecoded] for p in plan.passes
        ]
        return write_csv(header, lines)
    columns = [
        Column("set", "Set"),
        Column("images", "Images", right=True),
        Column("undecoded", "To decode", right=True),
        Column("missing", "To compute", right=True),
        Column("time", "Time", right=True),
        Column("disk", "Disk", right=True),
    ]
    total = (
        sum(p.images for p in plan.passes),
        sum(p.missing for p in plan.passes),
        sum(p.seconds or 0 for p in plan.passes),
        sum(p.bytes for p in plan.passes),
        sum(p.undecoded for p in plan.passes),
    )
    entries = [
        (p.dataset, p.images, p.missing, p.seconds or 0, p.bytes, p.undecoded) for p in plan.passes
    ]
    rows = [
        {
            "set": Cell(name),
            "images": Cell(f"{images:,}", value=images),
            "undecoded": Cell(f"{undecoded:,}", value=undecoded),
            "missing": Cell(f"{missing:,}", value=missing),
            "time": Cell(_duration(seconds), value=seconds),
            "disk": Cell(human_bytes(size), value=size),
        }
        for name, images, missing, seconds, size, undecoded in (*entries, ("all", *total))
    ]
    table = Table(
        title=(
            f"dry run: {plan.run} on {plan.device}, about {plan.images_per_s:,.0f} images/s",
            f"methods: {', '.join(plan.methods)}",
        ),
        columns=columns,
        rows=rows,
        sections=frozenset({len(rows) - 2}),
    )
    return write_tables([table], how, to_file=to_file, heading=f"dry run: {plan.run}")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
