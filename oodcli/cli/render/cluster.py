"""Clusters of OOD images as a table."""

import os
from typing import TYPE_CHECKING

from oodcli.cli.console import StyledText
from oodcli.cli.render.formats import Cell, Column, Table, write_json
from oodcli.cli.render.formats.terminal import write_terminal
from oodcli.text import counted

if TYPE_CHECKING:
    from oodcli.workflows.cluster import Cluster, ClusterResult

_COLUMNS = (
    Column("cluster", "Cluster", right=True),
    Column("size", "Images", right=True),
    Column("duplicates", "Near-duplicates", right=True),
    Column("score", "Median score", right=True),
    Column("classes", "Most often seen as"),
    Column("example", "Nearest to the centre"),
)
_CLASSES = 2
_NAMED = 5


def render_clusters(result: "ClusterResult", *, as_json: bool) -> str:
    """Render clusters for stdout: a table, or one JSON object."""
    if as_json:
        return write_json(result.to_json())
    table = Table(
        title=(
            f"{counted(result.n_ood, 'OOD image')} of {result.verdicts} in "
            f"{counted(len(result.clusters), 'cluster')}; {result.method} on run {result.run}",
        ),
        columns=_COLUMNS,
        rows=[_row(each) for each in result.clusters],
        notes=_notes(result),
        droppable=("score", "classes"),
    )
    return StyledText(write_terminal(table, to_file=False))


def _row(cluster: "Cluster") -> dict[str, Cell]:
    frequent = list(cluster.classes.items())[:_CLASSES]
    return {
        "cluster": Cell(str(cluster.number)),
        "size": Cell(f"{cluster.size:,}"),
        "duplicates": Cell(f"{cluster.duplicates:,}"),
        "score": Cell(f"{cluster.median_score:.6g}"),
        "classes": Cell(", ".join(f"{name} {count:,}" for name, count in frequent)),
        "example": Cell(os.path.basename(cluster.examples[0])),  # noqa: PTH119
    }


def _notes(result: "ClusterResult") -> list[str]:
    source = "stored with the verdicts" if result.stored_features else "of a forward pass now"
    notes = [f"features: {source}"]
    if result.silhouette is not None:
        notes.append(
            f"mean silhouette {result.silhouette:.2f} (from -1 to 1; near 0, clusters overlap)"
        )
    if result.missing:
        named = "; ".join(f"{each.path}: {each.missing}" for each in result.missing[:_NAMED])
        more = len(result.missing) - _NAMED
        notes.append(
            f"{counted(len(result.missing), 'image')} cannot be read any more: {named}"
            + (f"; and {more:,} more" if more > 0 else "")
        )
    if result.output is not None:
        notes.append(f"contact sheets and clusters.csv: {result.output}")
    return notes
