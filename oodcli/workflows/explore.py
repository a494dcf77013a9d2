"""The explorer of ``ood report --format html``: its data from stored scores; needs no torch."""

from collections.abc import Callable
from dataclasses import replace

from oodcli.metrics import CONVENTIONS
from oodcli.progress import SILENT, Progress
from oodcli.reporting.evaluate import RunRows, rows_by_convention
from oodcli.reporting.explorer.assets import assets_of
from oodcli.reporting.explorer.build import payload_of
from oodcli.reporting.explorer.image_panels import image_panels
from oodcli.reporting.explorer.overview import result_table
from oodcli.reporting.explorer.payload import Payload, ResultTable
from oodcli.reporting.results import ResultRow
from oodcli.reporting.sources import Sources
from oodcli.workflows.report import averaged, grouped

# Characters of a page, which is to stay below 8 MB, and of these for images and maps.
_PAGE, _LEAST_FOR_IMAGES, _MOST_FOR_IMAGES = 7_900_000, 600_000, 4_000_000


def explore(
    sources: Sources,
    *,
    convention: str,
    digits: int,
    average: bool,
    method_label: Callable[[ResultRow], str],
    column_label: Callable[[ResultRow], str],
    beside: int | None = None,
    progress: Progress = SILENT,
) -> Payload:
    """Return the data of the explorer: the scores of a report in all conventions.

    Parameters
    ----------
    sources
        The scores, for which :func:`oodcli.workflows.report.report` has made a report.
    convention
        Name of the convention that is shown first.
    digits
        Digits after the decimal point of a percentage.
    average
        Whether all runs are averaged.
    method_label, column_label
        Names of the method and of the data set of a row, as in the table of the report.
    beside
        Number of characters of the page without the explorer, from which follows how many images it
        can show; None for a page without pictures.
    progress
        Receives the progress of maps and pictures.
    """
    conventions = tuple(CONVENTIONS.values())
    rows = [rows_by_convention(run, conventions) for run in sources.runs]
    tables = {
        each.name: [RunRows(run, own[at]) for run, own in zip(sources.runs, rows, strict=True)]
        for at, each in enumerate(conventions)
    }
    # By identity: score files in several folders may have the same name.
    places = {id(run): index for index, run in enumerate(sources.runs)}
    by_convention = {name: grouped(own, average=average) for name, own in tables.items()}

    def table_of(group: int, member: int | None = None) -> ResultTable:
        """Return the mean of a group, or one of its runs."""
        shown = {
            name: groups[group] if member is None else [groups[group][member]]
            for name, groups in by_convention.items()
        }
        return result_table(
            {name: averaged(tables)[0] for name, tables in shown.items()},
            [places[id(table.run)] for table in shown[convention]],
            method_label=method_label,
            column_label=column_label,
        )

    sizes = list(map(len, by_convention[convention]))
    results = [table_of(group) for group in range(len(sizes))]
    # A mean of runs hides them: each is there by itself, too.
    results += [
        table_of(group, member)
        for group, size in enumerate(sizes)
        for member in range(size if size > 1 else 0)
    ]
    payload = payload_of(sources.runs, results, convention=convention, digits=digits)
    return payload if beside is None else _with_images(payload, sources, beside, progress)


def _with_images(payload: Payload, sources: Sources, beside: int, progress: Progress) -> Payload:
    """Add images and features of runs to a page, as many as it has room for."""
    if sources.store is None:
        return payload
    room = _PAGE - beside - assets_of(payload).characters
    most = max(_LEAST_FOR_IMAGES, min(_MOST_FOR_IMAGES, room))
    images, limits = image_panels(sources.runs, sources.store, most, progress=progress)
    return replace(payload, images=images, limits=(*payload.limits, *limits))
