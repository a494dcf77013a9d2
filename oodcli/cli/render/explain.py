"""Explanations of images: tables for stdout, the page of an image, and the index of all."""

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from oodcli.cli.console import StyledText
from oodcli.cli.render.formats import Cell, Column, EmbeddedPicture, Table, write_json
from oodcli.cli.render.formats.html import write_html
from oodcli.cli.render.formats.terminal import write_terminal
from oodcli.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oodcli.reporting.explanations import Explanation, Neighbour
    from oodcli.workflows.explain import ExplainResult

_METHODS = (
    Column("method", "Method"),
    Column("kind", "Looks at"),
    Column("score", "Score", right=True),
    Column("threshold", "Threshold", right=True),
    Column("percentile", "ID percentile", right=True),
    Column("p_value", "p", right=True),
    Column("verdict", "Verdict"),
)
_NEIGHBOURS = (
    Column("name", "Training image"),
    Column("class", "Class"),
    Column("region", "Region"),
    Column("distance", "Distance", right=True),
)
_INDEX = (
    Column("path", "Image"),
    Column("picture", "Picture"),
    Column("class", "Class"),
    Column("verdict", "Verdict"),
    Column("percentile", "ID percentile", right=True),
    Column("p_value", "p", right=True),
    Column("flagged", "Methods that say ood", right=True),
)


def render_explanations(result: "ExplainResult", *, as_json: bool) -> str:
    """Render explanations for stdout: a table per image, or one JSON object."""
    if as_json:
        return write_json(result.to_json())
    texts = [
        f"{each.path}: cannot be read: {each.error}\n"
        if each.error is not None
        else write_terminal(_table(each), to_file=False)
        for each in result.images
    ]
    return StyledText("\n".join(texts))


def _table(explanation: "Explanation") -> Table:
    """Return the methods of an image, and the rest in notes."""
    return Table(
        lead=(explanation.path,),
        title=(f"{_verdict(explanation)}; {explanation.agreement}",),
        columns=_METHODS,
        rows=_method_rows(explanation),
        notes=_notes(explanation),
        droppable=("threshold", "kind"),
    )


def _verdict(explanation: "Explanation") -> str:
    seen = (
        ""
        if explanation.predicted is None
        else f", seen as {explanation.predicted} (probability {explanation.probability:.4f})"
    )
    return f"{explanation.verdict} by {explanation.main.method}{seen}"


def _method_rows(explanation: "Explanation") -> list[dict[str, Cell]]:
    return [
        {
            "method": Cell(each.method, bold=each.kind == "chosen"),
            "kind": Cell(each.kind),
            "score": Cell(f"{each.score:.6g}", value=each.score),
            "threshold": Cell(f"{each.threshold:.6g}", value=each.threshold),
            "percentile": Cell(f"{each.percentile:.2f}", value=each.percentile),
            "p_value": Cell(f"{each.p_value:.2g}", value=each.p_value),
            "verdict": Cell(each.verdict, bold=each.verdict == "ood"),
        }
        for each in explanation.methods
    ]


def _notes(explanation: "Explanation") -> list[str]:
    notes = []
    if explanation.neighbours:
        near = ", ".join(map(_near, explanation.neighbours[:3]))
        notes.append(f"nearest training images: {near}")
    if explanation.region is not None:
        region = explanation.region
        near = ", ".join(map(_near, region.neighbours[:3]))
        notes.append(f"nearest regions, to {region.region}: {near}")
    block = explanation.block
    if block is not None and block.id_energy:
        mean, of_id = (
            sum(map(sum, rows)) / max(1, sum(map(len, rows)))
            for rows in (block.energy, block.id_energy)
        )
        notes.append(
            f"block {block.block} ({block.name}): mean energy {mean:.4g}, of "
            f"{counted(block.id_images, 'ID image')} {of_id:.4g}"
        )
    notes += [f"not shown: {each}" for each in explanation.missing]
    if explanation.file is not None:
        notes.append(f"picture: {explanation.file}")
    return notes


def _near(each: "Neighbour") -> str:
    label = "" if each.label is None else f"{each.label}, "
    region = "" if each.region is None else f"{each.region}, "
    return f"{os.path.basename(each.name)} ({label}{region}{each.distance:.4g})"  # noqa: PTH119


def explanation_page(explanation: "Explanation", alt: str, png: bytes) -> str:
    """Render the page of one image.

    Parameters
    ----------
    explanation
        The explanation.
    alt
        Text alternative of its picture.
    png
        The picture as a PNG file.
    """
    tables = [
        Table(
            lead=(_verdict(explanation), explanation.agreement or ""),
            title=(),
            columns=_METHODS,
            rows=_method_rows(explanation),
            notes=[f"not shown: {each}" for each in explanation.missing],
        )
    ]
    if explanation.neighbours:
        title = "Nearest training images, by the whole image"
        tables.append(_neighbour_table(title, explanation.neighbours))
    if explanation.region is not None:
        title = f"Nearest regions of training images, to the region {explanation.region.region}"
        tables.append(_neighbour_table(title, explanation.region.neighbours))
    picture = EmbeddedPicture("The image beside what the network knows", alt, png)
    return write_html(tables, heading=explanation.path, pictures=[picture])


def _neighbour_table(title: str, neighbours: "Sequence[Neighbour]") -> Table:
    regions = any(each.region is not None for each in neighbours)
    return Table(
        title=(title,),
        columns=[each for each in _NEIGHBOURS if regions or each.key != "region"],
        rows=[
            {
                "name": Cell(each.name),
                "class": Cell(each.label or ""),
                "region": Cell(each.region or ""),
                "distance": Cell(f"{each.distance:.4g}", value=each.distance),
            }
            for each in neighbours
        ],
        notes=("distance: squared, between unit vectors: from 0 to 4",),
    )


def explanation_index(result: "ExplainResult") -> str:
    """Render the page that lists all images, with links to their pictures."""
    detector = result.detector
    found = [each for each in result.images if each.error is None]
    ood = sum(each.verdict == "ood" for each in found)
    table = Table(
        lead=(f"{counted(len(found), 'image')}: {len(found) - ood:,} id, {ood:,} ood",),
        title=(
            f"{detector['method']} on run {detector['run']}; threshold "
            f"{result.threshold.value:.6g} accepts {100 * result.threshold.tpr:.4g} % of "
            f"{result.threshold.n:,} {detector['id_part']} images of {detector['id_data']}",
        ),
        columns=_INDEX,
        rows=[_index_row(each, result.thumbnails.get(each.file or "")) for each in result.images],
        notes=("p: conformal p-value, the share of ID images that score as low",),
    )
    return write_html([table], heading="Why images are out of distribution")


def _index_row(explanation: "Explanation", thumbnail: bytes | None) -> dict[str, Cell]:
    if explanation.error is not None:
        cells = {column.key: Cell("") for column in _INDEX}
        return cells | {
            "path": Cell(explanation.path),
            "verdict": Cell(f"unreadable: {explanation.error}"),
        }
    main = explanation.main
    return {
        "path": Cell(explanation.path, link=quote(explanation.file or "")),
        "picture": Cell("", png=thumbnail),
        "class": Cell(explanation.predicted or ""),
        "verdict": Cell(explanation.verdict or "", bold=explanation.verdict == "ood"),
        "percentile": Cell(f"{main.percentile:.2f}", value=main.percentile),
        "p_value": Cell(f"{main.p_value:.2g}", value=main.p_value),
        "flagged": Cell(
            f"{explanation.flagged} of {len(explanation.methods)}",
            value=float(explanation.flagged or 0),
        ),
    }
