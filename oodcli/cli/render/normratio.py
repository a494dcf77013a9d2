"""NormRatio of the blocks of a network."""

from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, write_csv, write_json, write_tables

if TYPE_CHECKING:
    from oodcli.scoring.block_ratios import NormRatioResult


def render_normratio(result: "NormRatioResult", how: Format, *, to_file: bool) -> str:
    """Render NormRatio of every block."""
    if how is Format.JSON:
        return write_json(result.to_json())
    if how is Format.CSV:
        header = ["index", "name", "shape", "ratio", "stderr", "excluded", "selected"]
        lines = [
            [
                block.index,
                block.name,
                "x".join(map(str, block.shape)),
                "" if block.ratio is None else repr(block.ratio),
                "" if block.stderr is None else repr(block.stderr),
                block.excluded,
                int(block.index == result.selected),
            ]
            for block in result.blocks
        ]
        return write_csv(header, lines)
    heading = f"NormRatio of {result.run}"
    return write_tables([normratio_table(result)], how, to_file=to_file, heading=heading)


def normratio_table(result: "NormRatioResult") -> Table:
    """Return a table of the blocks, with the selected one marked."""
    ratios = [block.ratio for block in result.blocks if block.ratio is not None]
    top = max(ratios)
    rows = []
    for block in result.blocks:
        chosen = block.index == result.selected
        value = "-" if block.ratio is None else f"{block.ratio:.4f}"
        spread = "-" if block.stderr is None else f"{block.stderr:.4f}"
        length = 0.0 if block.ratio is None else block.ratio / top
        rows.append(
            {
                "index": Cell(str(block.index), bold=chosen, value=block.index),
                "name": Cell(block.name, bold=chosen),
                "shape": Cell("×".join(map(str, block.shape)), bold=chosen),
                "ratio": Cell(value, bold=chosen, value=block.ratio),
                "stderr": Cell(spread, bold=chosen, value=block.stderr),
                "bar": Cell("", value=length),
                "mark": Cell("selected" if chosen else "", bold=chosen),
            }
        )
    notes = []
    if not result.clear:
        notes.append("the selection is not clear: its lead is within two standard errors")
    notes += [
        f"block {block.index}: {block.excluded} images excluded, "
        "since the norm of their jigsaw puzzle is zero"
        for block in result.blocks
        if block.excluded
    ]
    kind = "" if result.normalised else ", not normalised (as in the released script)"
    of = "" if result.n_images == result.of_images else f" of {result.of_images:,}"
    return Table(
        title=(
            f"{result.run}: {result.arch}",
            f"NormRatio of {result.n_images:,}{of} training images of {result.data}{kind}",
        ),
        columns=(
            Column("index", "Block", right=True),
            Column("name", "Name"),
            Column("shape", "Shape"),
            Column("ratio", "NormRatio", right=True),
            Column("stderr", "Std. error", right=True),
            Column("bar", "NormRatio", bar=True),
            Column("mark", ""),
        ),
        rows=rows,
        notes=notes,
        droppable=("shape",),
    )
