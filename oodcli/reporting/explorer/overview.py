"""The rows of a report as the matrix of the explorer: methods by data sets and averages."""

from collections.abc import Callable, Mapping, Sequence

from oodcli.reporting.explorer.payload import Rates, ResultColumn, ResultTable, Rows
from oodcli.reporting.results import FULL_SPECTRUM, GROUPS, ResultRow
from oodcli.store.scores import AVERAGE
from oodcli.text import printable

Names = Callable[[ResultRow], str]


def result_table(
    rows: Mapping[str, Sequence[ResultRow]],
    networks: Sequence[int],
    *,
    method_label: Names,
    column_label: Names,
) -> ResultTable:
    """Return the results of one run, or of runs that are averaged.

    Parameters
    ----------
    rows
        The rows with their averages by convention, see
        :func:`oodcli.reporting.results.with_averages`; at least one of each.
    networks
        Indices of the runs behind them.
    method_label, column_label
        Names of the method and of the data set of a row, as in the table of the report.
    """
    first = next(iter(rows.values()))
    methods = {row.method: method_label(row) for row in first}
    columns = {(row.dataset, row.group): row for row in _distinct(first)}
    cells = {name: {row.place: row for row in own} for name, own in rows.items()}

    def matrix(convention: str, metric: str) -> Rows:
        found = cells[convention]
        return tuple(
            tuple(
                getattr(found[method, *column], metric) if (method, *column) in found else None
                for column in columns
            )
            for method in methods
        )

    spectra = {full: plain for plain, full in FULL_SPECTRUM.items()}
    return ResultTable(
        name=printable(first[0].run),
        networks=tuple(networks),
        methods=tuple(methods),
        labels=tuple(map(printable, methods.values())),
        columns=tuple(
            ResultColumn(
                label=printable(column_label(row)),
                dataset="" if dataset == AVERAGE else printable(dataset),
                group=spectra.get(group, group),
                spectrum="full" if group in spectra else "plain",
                n_ood=row.n_ood,
            )
            for (dataset, group), row in columns.items()
        ),
        auroc=matrix(next(iter(rows)), "auroc"),
        rates={
            name: Rates(*(matrix(name, metric) for metric in ("fpr95", "aupr_in", "aupr_out")))
            for name in rows
        },
    )


def _distinct(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return rows without averages that repeat another column, as in the table of the report."""
    single = [row for row in rows if row.dataset != AVERAGE]
    several_sets = len({row.dataset for row in single}) > 1
    several_groups = len({row.group for row in single if row.group in GROUPS}) > 1
    return [
        row
        for row in rows
        if row.dataset != AVERAGE or (several_sets and (row.group != "all" or several_groups))
    ]
