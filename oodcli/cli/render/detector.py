"""What is in a packed detector."""

from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, human_bytes, write_table

if TYPE_CHECKING:
    from oodcli.workflows.packing import PackedSummary


def render_packed(found: "PackedSummary", how: Format, *, to_file: bool) -> str:
    """Render the content of a packed detector."""
    return write_table(_table(found), how, json_content=found.to_json(), to_file=to_file)


def _table(found: "PackedSummary") -> Table:
    about, threshold, pre = found.about, found.threshold, found.about.preprocess
    params = ", ".join(f"{name}={value}" for name, value in about.params.items())
    needs = [f"{name} {version}" for name, version in found.packages.items()]
    needs += [] if found.code is None else [f"your own code {found.code} (--allow-code)"]
    classes = ", ".join(about.classes[:3]) + (", …" if len(about.classes) > 3 else "")
    sizes = [f"{name} {human_bytes(size)}" for name, size in found.sizes.items() if size]
    rows = {
        "run": f"{about.run}, trained on or imported for {found.data}",
        "network": f"{found.arch} ({about.network})",
        "method": f"{about.method}{f' ({params})' if params else ''}, fitted {about.created[:16]}",
        "threshold": threshold.text,
        "ID images": f"{found.id_images:,} scores of the part {found.id_part}",
        "classes": f"{len(about.classes):,}: {classes}",
        "images": f"{pre.size[0]} x {pre.size[1]} pixels, {pre.resize}, {pre.filter}",
        "precision": about.precision,
        "engines": " and ".join(found.engines),
        "needs": "ood" + "".join(f", {each}" for each in needs),
        "packed": f"{found.packed[:16]} with "
        + ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        "size": f"{human_bytes(found.bytes)} ({', '.join(sizes)})",
        "digest": f"{found.digest}, all arrays verified",
    }
    return Table(
        title=(f"{found.file}: {about.method} on {about.run}",),
        columns=(Column("name", "Field"), Column("value", "Value")),
        rows=[{"name": Cell(name), "value": Cell(text)} for name, text in rows.items()],
        notes=[f"warning: when the run was imported, {each}" for each in found.warnings],
    )
