"""The list of runs, and the disk usage of the store."""

from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, human_bytes, percent, write_table

if TYPE_CHECKING:
    from oodcli.workflows.runs import ListedRun, RunList


def render_runs(listing: "RunList", how: Format) -> str:
    """Render the list of runs."""
    usage = listing.usage
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in usage.items())
    table = Table(
        title=(f"store {listing.store}: {human_bytes(sum(usage.values()))} ({parts})",),
        columns=(
            Column("name", "Run"),
            Column("origin", "Origin"),
            Column("created", "Created (UTC)"),
            Column("arch", "Network"),
            Column("data", "Data"),
            *_training_columns(listing),
            Column("seed", "Seed", right=True),
            Column("val", "Val. acc. %", right=True),
            Column("size", "Size", right=True),
        ),
        rows=[_row(run) for run in listing.runs],
        notes=_notes(listing),
        droppable=("created", "size", "origin", "val", "objective"),
    )
    return write_table(table, how, json_content=listing.to_json())


def _training_columns(listing: "RunList") -> list[Column]:
    """Return columns of objectives and outliers, if any run is trained with outliers."""
    if not any(run.outliers for run in listing.runs):
        return []
    return [Column("objective", "Objective"), Column("outliers", "Outliers")]


def _row(run: "ListedRun") -> dict[str, Cell]:
    return {
        "name": Cell(f"{run.name} *" if run.default else run.name),
        "origin": Cell(run.origin),
        "created": Cell(run.created[:16].replace("T", " ")),
        "arch": Cell(run.arch),
        "data": Cell(run.data),
        "objective": Cell(run.objective),
        "outliers": Cell(run.outliers),
        "seed": Cell("" if run.seed is None else str(run.seed)),
        "val": Cell("" if run.val_accuracy is None else percent(run.val_accuracy)),
        "size": Cell(human_bytes(run.bytes)),
    }


def _notes(listing: "RunList") -> list[str]:
    notes = [listing.no_default] if listing.no_default else []
    if not listing.runs:
        notes.append("there are no runs yet; train one: ood train --data digits")
    if listing.default is not None:
        notes.append(f"commands without --run use {listing.default}; another: ood runs use RUN")
    if listing.leftovers:
        notes.append(
            f"{human_bytes(sum(each.bytes for each in listing.leftovers))} are leftovers that "
            "belong to no run: "
            + ", ".join(str(each.path.relative_to(listing.store)) for each in listing.leftovers)
            + "; remove them: ood doctor --repair"
        )
    return notes
