"""Lists of data sets, benchmarks and download URLs, and results of their verification."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oodcli.cli.options import Format
from oodcli.cli.render.formats import Cell, Column, Table, human_bytes, write_table

if TYPE_CHECKING:
    from oodcli.data.catalogue import ListedBenchmark, ListedDataset, Listing
    from oodcli.data.verification import Verification


def render_listing(listing: "Listing", how: Format, *, urls: bool) -> str:
    """Render the data sets (in tables also the benchmarks), or the URLs of all files."""
    content = listing.to_json()
    if urls:
        return write_table(_urls_table(listing), how, json_content=content)
    text = write_table(_sets_table(listing), how, json_content=content)
    if how in (Format.TABLE, Format.MARKDOWN):
        benchmarks = _benchmarks_table(listing.benchmarks)
        text += "\n" + write_table(benchmarks, how, json_content=content)
    return text


def render_verification(found: "Verification", how: Format) -> str:
    """Render the results of a verification."""
    table = Table(
        title=("verification of stored data sets",),
        columns=(
            Column("dataset", "Name"),
            Column("what", "Item"),
            Column("state", "State"),
            Column("detail", "Details"),
        ),
        rows=[
            {
                "dataset": Cell(check.dataset),
                "what": Cell(check.what),
                "state": Cell(check.state),
                "detail": Cell(check.detail),
            }
            for check in found.checks
        ],
        notes=() if found.checks else ("nothing is downloaded, registered or decoded yet",),
    )
    return write_table(table, how, json_content=found.to_json())


def _sets_table(listing: "Listing") -> Table:
    rows = [
        {
            "name": Cell(entry.name),
            "role": Cell(entry.role.upper() if entry.role != "own" else "own"),
            "images": Cell(", ".join(f"{part} {n:,}" for part, n in entry.images.items())),
            "download": Cell(human_bytes(entry.download_bytes) if entry.download_bytes else ""),
            "disk": Cell(human_bytes(entry.disk_bytes) if entry.disk_bytes else ""),
            "present": Cell(_present(entry)),
            "title": Cell(entry.title),
            "licence": Cell(entry.licence),
        }
        for entry in listing.datasets
    ]
    return Table(
        title=(f"data sets, downloads in {listing.folder}",),
        columns=(
            Column("name", "Name"),
            Column("role", "Role"),
            Column("images", "Images"),
            Column("download", "Download", right=True),
            Column("disk", "On disk", right=True),
            Column("present", "Present"),
            Column("title", "Description"),
            Column("licence", "Licence"),
        ),
        rows=rows,
        droppable=("title", "licence", "disk", "images"),
    )


def _present(entry: "ListedDataset") -> str:
    if not entry.present:
        return "gone" if entry.location else "no"
    return "elsewhere" if entry.location else "yes"


def _benchmarks_table(benchmarks: "Sequence[ListedBenchmark]") -> Table:
    rows = [
        {
            "name": Cell(entry.name),
            "sets": Cell(str(len(entry.datasets))),
            "size": Cell(human_bytes(entry.missing_bytes) if entry.missing_bytes else ""),
            "missing": Cell(", ".join(entry.missing) or "nothing"),
            "title": Cell(entry.title),
        }
        for entry in benchmarks
    ]
    return Table(
        title=("benchmarks; download missing sets: ood datasets download --benchmark NAME",),
        columns=(
            Column("name", "Benchmark"),
            Column("sets", "Sets", right=True),
            Column("size", "Download", right=True),
            Column("missing", "Missing"),
            Column("title", "Description"),
        ),
        rows=rows,
        droppable=("title",),
    )


def _urls_table(listing: "Listing") -> Table:
    rows = [
        {
            "name": Cell(entry.name),
            "file": Cell(file.file),
            "md5": Cell(file.md5 or "none published"),
            "url": Cell(url),
        }
        for entry in listing.datasets
        for file in entry.files
        for url in (file.urls or (f"by hand: {file.by_hand}",))
    ]
    return Table(
        title=("files to download",),
        columns=(
            Column("name", "Name"),
            Column("file", "File"),
            Column("md5", "md5"),
            Column("url", "URL"),
        ),
        rows=rows,
    )
