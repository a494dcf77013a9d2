"""An exported file: what goes in, what comes out."""

from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, human_bytes, write_table

if TYPE_CHECKING:
    from oodcli.workflows.export import Exported


def render_export(found: "Exported", how: Format) -> str:
    """Write what was exported."""
    return write_table(_table(found), how, json_content=found.to_json())


def _table(found: "Exported") -> Table:
    """Lay out what goes in, what comes out, and how that compares with ood's own results."""
    about = found.description
    checked = found.verification
    differences = {
        "logits": checked.logits,
        "probability": checked.probability,
        "score": checked.score,
    }
    rows = []
    for each in (*about["inputs"], *about["outputs"]):
        difference = differences.get(each["name"])
        rows.append(
            {
                "name": Cell(each["name"]),
                "type": Cell(each["type"]),
                "shape": Cell("×".join(map(str, each["shape"]))),
                "meaning": Cell(each["meaning"]),
                "difference": Cell(
                    "" if difference is None else f"{difference.relative:.1e}",
                    value=None if difference is None else difference.relative,
                ),
            }
        )
    threshold = about["threshold"]
    size = human_bytes(about["file"]["bytes"])
    return Table(
        title=(
            f"{found.folder / about['file']['name']}: {size}, run {about['run']}, "
            f"{about['method']}",
            f"threshold {threshold['value']:.6g}, reached by {100 * threshold['tpr']:.1f} % of "
            f"{threshold['n']:,} ID images",
        ),
        columns=(
            Column("name", "Name"),
            Column("type", "Type"),
            Column("shape", "Shape"),
            Column("meaning", "Meaning"),
            Column("difference", "Difference", right=True),
        ),
        rows=rows,
        sections=frozenset({0}),
        notes=(
            f"Difference: the largest one from ood's own results on {checked.real} test images "
            f"and {checked.noise} of noise, as a share of their standard deviation; "
            f"{checked.tolerance:g} is accepted",
        ),
    )
