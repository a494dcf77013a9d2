"""The result of an export: inputs and outputs of the file, and its verification."""

from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, human_bytes, write_table
from oodcli.screening.thresholds import Threshold

if TYPE_CHECKING:
    from oodcli.workflows.export import Exported


def render_export(found: "Exported", how: Format) -> str:
    """Render the result of an export."""
    return write_table(_table(found), how, json_content=found.to_json())


def _table(found: "Exported") -> Table:
    """Return a table of inputs and outputs, and of the differences from the results of ood."""
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
    kept = {name: value for name, value in about["threshold"].items() if name != "id_part"}
    size = human_bytes(about["file"]["bytes"])
    return Table(
        title=(
            f"{found.folder / about['file']['name']}: {size}, run {about['run']}, "
            f"{about['method']}",
            f"threshold {Threshold.from_json(kept).text}",
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
            "Difference: the maximum difference from the results of ood on "
            f"{checked.real} test images and {checked.noise} images of noise, divided by the "
            f"standard deviation over these images; at most {checked.tolerance:g} is accepted",
        ),
    )
