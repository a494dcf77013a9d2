"""The explorer of ``ood report --format html``: its data from stored scores; needs no torch."""

from collections.abc import Callable

from oodcli.metrics import CONVENTIONS
from oodcli.reporting.evaluate import RunRows, rows_by_convention
from oodcli.reporting.explorer.build import payload_of
from oodcli.reporting.explorer.overview import result_table
from oodcli.reporting.explorer.payload import Payload
from oodcli.reporting.results import ResultRow
from oodcli.reporting.sources import Sources
from oodcli.workflows.report import averaged, grouped


def explore(
    sources: Sources,
    *,
    convention: str,
    digits: int,
    average: bool,
    method_label: Callable[[ResultRow], str],
    column_label: Callable[[ResultRow], str],
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
    """
    conventions = tuple(CONVENTIONS.values())
    rows = [rows_by_convention(run, conventions) for run in sources.runs]
    tables = {
        each.name: [RunRows(run, own[at]) for run, own in zip(sources.runs, rows, strict=True)]
        for at, each in enumerate(conventions)
    }
    places = {run.name: index for index, run in enumerate(sources.runs)}
    by_convention = {name: grouped(own, average=average) for name, own in tables.items()}
    results = []
    for number, group in enumerate(by_convention[convention]):
        merged = {name: averaged(groups[number])[0] for name, groups in by_convention.items()}
        results.append(
            result_table(
                merged,
                [places[table.run.name] for table in group],
                method_label=method_label,
                column_label=column_label,
            )
        )
    return payload_of(sources.runs, results, convention=convention, digits=digits)
