"""The explorer of ``ood report --format html``: its data from stored scores; needs no torch."""

from collections.abc import Callable

from oodcli.metrics import CONVENTIONS
from oodcli.reporting.evaluate import RunRows, rows_by_convention
from oodcli.reporting.explorer.build import payload_of
from oodcli.reporting.explorer.overview import result_table
from oodcli.reporting.explorer.payload import Payload, ResultTable
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

    def table_of(group: int, member: int | None = None) -> ResultTable:
        """Return the mean of a group, or one of its runs."""
        shown = {
            name: groups[group] if member is None else [groups[group][member]]
            for name, groups in by_convention.items()
        }
        return result_table(
            {name: averaged(tables)[0] for name, tables in shown.items()},
            [places[table.run.name] for table in shown[convention]],
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
    return payload_of(sources.runs, results, convention=convention, digits=digits)
