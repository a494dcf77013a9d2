"""Reports as tables: their columns and rows, and the best values.

A *long* table has one row per data set and method; a *wide* table has one row per method and
several columns per data set, as in papers.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from oodcli.cli.options import Layout, Per
from oodcli.cli.render.formats import Cell, Column, Table, percent
from oodcli.cli.render.metrics import METRIC_STYLES, MetricStyle
from oodcli.cli.render.papers import PAPERS, Paper
from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.reporting.results import (
    EXTRAS,
    FULL_SPECTRUM,
    METRICS,
    Report,
    ResultRow,
)
from oodcli.store.scores import AVERAGE
from oodcli.text import counted
from oodcli.version import __version__

_MAX_DIGITS = 10
# Order in which columns of a long table are hidden if the terminal is too narrow.
_DROP_ORDER = ("images", "params", "accuracy", *EXTRAS, "aupr_out", "aupr_in", "group")


_IDENTIFYING = {"run": "Run", "arch": "Network", "dataset": "OOD set", "group": "Group"}
_IDENTIFYING |= {"method": "Method"}
_NAMES = (*_IDENTIFYING, *METRIC_STYLES, "images", "params")


# With more methods than this, the default table has averages only.
_MANY_METHODS = 16


@dataclass(frozen=True)
class TableLayout:
    """Layout of a report; None stands for the default of the paper or of the table.

    Parameters
    ----------
    columns
        Keys of the columns, in order. Columns that are needed to identify rows are added in front.
    digits
        Digits after the decimal point of a percentage.
    per
        Whether to show single data sets, averages of groups, or both.
    transpose
        Whether methods are rows, with columns for each data set.
    sort
        Metric to sort methods by, best first.
    paper
        Paper whose table layout is used.
    statistics
        Whether to show tests between methods, mean ranks and calibration below the table.
    shorten
        Whether only averages are shown for many methods if ``per`` is None.
    """

    columns: tuple[str, ...] | None = None
    digits: int = 2
    per: Per | None = None
    transpose: bool = False
    sort: str | None = None
    paper: Layout | None = None
    statistics: bool = False
    shorten: bool = True


def report_tables(reports: Sequence[Report], layout: TableLayout) -> list[Table]:
    """Return the table of a report.

    Parameters
    ----------
    reports
        Reports of the same scores in one or several conventions, shown side by side.
    layout
        Layout of the table.

    Raises
    ------
    UnknownNameError
        If a column or metric does not exist.
    InvalidInputError
        If the digits are out of range, or no rows remain.
    """
    _check_layout(layout)
    paper = None if layout.paper is None else PAPERS[layout.paper]
    wide = layout.transpose or paper is not None
    metrics, fixed = _columns(layout, paper, wide=wide)
    short = layout.per is None and layout.shorten and _is_long(reports[0].rows) and not wide
    per = Per.GROUP if short else layout.per or (Per.BOTH if paper is None else paper.per)
    rows = _select_rows(reports[0].rows, per, overall=paper is None or "all" in paper.groups)
    if not rows:
        raise InvalidInputError(f"there are no rows for --per {per.value}; use --per both")
    by_convention = [{_key(row): row for row in report.rows} for report in reports]
    content = _Content(reports, rows, by_convention, metrics, fixed, layout, paper)
    table = _wide(content) if wide else _long(content)
    if short:
        table = replace(
            table, notes=(*table.notes, "averages only; all sets: ood report --per both")
        )
    return [table]


def _is_long(rows: Sequence[ResultRow]) -> bool:
    """Return whether there are too many methods to show every set by default."""
    sets = {row.dataset for row in rows if row.dataset != AVERAGE}
    return len(sets) > 1 and len({row.method for row in rows}) > _MANY_METHODS


@dataclass(frozen=True)
class _Content:
    """The content of a table, long or wide."""

    reports: Sequence[Report]
    rows: Sequence[ResultRow]
    by_convention: Sequence[Mapping[tuple[str, ...], ResultRow]]
    metrics: tuple[str, ...]
    fixed: tuple[str, ...]
    layout: TableLayout
    paper: Paper | None

    @property
    def several_runs(self) -> bool:
        return len({row.run for row in self.rows}) > 1

    def name(self, row: ResultRow) -> str:
        """Return the name of the method, as in the paper or with the selected block."""
        base, _, given = row.method.partition(":")
        if self.paper is not None and base in self.paper.methods:
            return self.paper.methods[base] + (f" ({given})" if given else "")
        return method_name(row)

    def arch(self, row: ResultRow) -> str:
        runs = {run.name: run.arch for run in self.reports[0].runs}
        return next((runs[name] for name in (row.run, *row.run.split(", ")) if name in runs), "")

    def run_cells(self, row: ResultRow) -> dict[str, Cell]:
        return {"run": Cell(row.run), "arch": Cell(self.arch(row)), "method": Cell(self.name(row))}

    def values(self, row: ResultRow) -> dict[tuple[int, str], float | None]:
        """Return the value of every metric in every convention."""
        return {
            (index, metric): _value(table[_key(row)], metric) if _key(row) in table else None
            for index, table in enumerate(self.by_convention)
            for metric in _per_convention(metric_names=self.metrics, index=index)
        }

    def cells(self, rows: Sequence[ResultRow]) -> list[dict[tuple[int, str], Cell]]:
        """Return the cells of rows on the same set, with the best and second best marked."""
        values = [self.values(row) for row in rows]
        marks = {
            place: _marks([each[place] for each in values], place[1], self.layout.digits)
            for place in values[0]
        }
        return [
            {
                place: Cell(
                    value_text(
                        self.by_convention[place[0]].get(_key(row)), place[1], self.layout.digits
                    ),
                    bold=marks[place][index] == "best",
                    second=marks[place][index] == "second",
                    value=each[place],
                )
                for place in each
            }
            for index, (row, each) in enumerate(zip(rows, values, strict=True))
        ]

    def sorted_rows(self, rows: Sequence[ResultRow]) -> list[ResultRow]:
        """Sort rows on the same set by the metric of the layout."""
        metric = self.layout.sort
        if metric is None:
            return list(rows)
        return sorted(rows, key=lambda row: _sort_key(_value(row, metric), metric))

    def title(self) -> list[str]:
        return report_title(self.reports, self.layout.digits)


def _per_convention(*, metric_names: Sequence[str], index: int) -> list[str]:
    """Return the metrics of a convention; accuracy, the same in all, only for the first."""
    return [name for name in metric_names if index == 0 or name != "accuracy"]


def _check_layout(layout: TableLayout) -> None:
    if not 0 <= layout.digits <= _MAX_DIGITS:
        raise InvalidInputError(f"digits must be from 0 to {_MAX_DIGITS}, not {layout.digits}")
    for name in layout.columns or ():
        if name not in _NAMES:
            raise UnknownNameError.among("column", name, _NAMES)
    if layout.sort is not None and METRIC_STYLES.get(layout.sort, MetricStyle("")).best == "none":
        known = [name for name, metric in METRIC_STYLES.items() if metric.best != "none"]
        raise UnknownNameError.among("metric to sort by", layout.sort, known)


def _columns(
    layout: TableLayout, paper: Paper | None, *, wide: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the metrics, and all requested or default columns, in order."""
    if layout.columns is not None:
        names = tuple(dict.fromkeys(layout.columns))
    elif paper is not None:
        names = paper.columns
    else:
        names = ("fpr95", "auroc") if wide else (*METRICS, "images")
    return tuple(name for name in names if name in METRIC_STYLES), names


def _select_rows(rows: Sequence[ResultRow], per: Per, *, overall: bool) -> list[ResultRow]:
    """Return the rows of single sets, of averages, or both, without redundant averages."""
    n_sets = len({row.dataset for row in rows if row.dataset != AVERAGE})
    groups = {row.group for row in rows if row.dataset != AVERAGE}
    plain = groups - set(FULL_SPECTRUM.values())
    shown = []
    for row in rows:
        if row.dataset != AVERAGE:
            wanted = per is not Per.GROUP
        elif row.group == "all":
            wanted = per is not Per.SET and n_sets > 1 and len(plain) > 1 and overall
        else:
            wanted = per is Per.GROUP or (per is Per.BOTH and n_sets > 1)
        if wanted:
            shown.append(row)
    return shown


def _long(content: _Content) -> Table:
    """Return a table with one row per run, data set and method."""
    kinds = [list(own) for _, own in itertools.groupby(content.rows, key=_kind)]
    n = len(content.reports)
    droppable = [
        tuple(_place_key(index, name) for index in range(n)) if name in METRIC_STYLES else name
        for name in _DROP_ORDER
    ]
    # AUROC is the same in all conventions.
    droppable[1:1] = [_place_key(index, "auroc") for index in range(1, n)]
    return Table(
        title=content.title(),
        columns=_long_columns(content),
        rows=[line for kind in kinds for line in _long_lines(content, kind)],
        sections=_long_sections(content, kinds),
        notes=_notes(content.reports),
        droppable=droppable,
    )


def _long_columns(content: _Content) -> list[Column]:
    """Return the columns that identify rows, the requested columns, and a bar."""
    groups = {row.group for row in content.rows if row.dataset != AVERAGE}
    lead = [
        *(["run"] if content.several_runs else []),
        "dataset",
        *(["group"] if groups - {"ood"} else []),
        "method",
    ]
    lead = [name for name in lead if name not in content.fixed]
    conventions = [report.convention for report in content.reports]
    columns = [Column(name, _IDENTIFYING[name]) for name in lead]
    for name in content.fixed:
        if name in METRIC_STYLES:
            columns += [
                Column(
                    _place_key(index, name),
                    METRIC_STYLES[name].heading,
                    right=True,
                    over=convention if len(conventions) > 1 and name != "accuracy" else "",
                )
                for index, convention in enumerate(conventions)
                if name in _per_convention(metric_names=content.metrics, index=index)
            ]
        elif name == "images":
            columns.append(Column("images", "Images", right=True))
        elif name == "params":
            columns.append(Column("params", "Parameters"))
        else:
            columns.append(Column(name, _IDENTIFYING[name]))
    if len(conventions) > 1:
        # Columns of one convention are adjacent, under its name.
        order = {name: index for index, name in enumerate(["", *conventions])}
        last = [c for c in columns if c.key in ("images", "accuracy")]
        columns = sorted((c for c in columns if c not in last), key=lambda c: order[c.over]) + last
    if "auroc" in content.metrics:
        columns.append(Column("bar", "AUROC", bar=True))
    return columns


def _long_lines(content: _Content, kind: Sequence[ResultRow]) -> list[dict[str, Cell]]:
    """Return the table rows of one set."""
    rows = content.sorted_rows(kind)
    return [
        {
            **content.run_cells(row),
            "dataset": Cell(_dataset(row, content.paper)),
            "group": Cell("" if row.dataset == AVERAGE else row.group),
            "images": Cell(f"{row.n_ood:,}", value=row.n_ood),
            "params": Cell(_parameters(row)),
            "bar": Cell("", value=row.auroc),
            **{_place_key(*place): cell for place, cell in cells.items()},
        }
        for row, cells in zip(rows, content.cells(rows), strict=True)
    ]


def _long_sections(content: _Content, kinds: Sequence[Sequence[ResultRow]]) -> frozenset[int]:
    """Return the indices of rows followed by a rule: the last row of every set but the last."""
    ends = {count - 1 for count in itertools.accumulate(len(kind) for kind in kinds)}
    if all(len(kind) == 1 for kind in kinds):
        # With one method, rules separate groups, not sets.
        ends = {
            index
            for index, (row, after) in enumerate(itertools.pairwise(content.rows))
            if (row.run, row.group) != (after.run, after.group)
        }
    return frozenset(ends - {len(content.rows) - 1})


def _wide(content: _Content) -> Table:
    """Return a table with one row per run and method, and columns for each set and average."""
    places = _places(content)
    conventions = [report.convention for report in content.reports]
    set_metrics = [name for name in content.metrics if name != "accuracy"]
    by_arch = content.paper is not None and content.paper.by_arch
    archs = {content.arch(row) for row in content.rows}
    # Names of runs are shown unless the architecture identifies the run.
    identified = by_arch and len(archs) == len({row.run for row in content.rows})
    lead = [*(["run"] if content.several_runs and not identified else []), "method"]
    if by_arch and archs - {""}:
        lead.insert(0, "arch")
    lead = [name for name in ("arch", "run") if name in content.fixed and name not in lead] + lead
    columns = [Column(name, _IDENTIFYING[name]) for name in lead]
    for place, heading in places.items():
        for index, convention in enumerate(conventions):
            over = heading if len(conventions) == 1 else f"{heading}, {convention}"
            columns += [
                Column(
                    _wide_key(place, index, name),
                    METRIC_STYLES[name].heading,
                    right=True,
                    over=over,
                )
                for name in set_metrics
            ]
    if "accuracy" in content.metrics:
        columns.append(Column("accuracy", METRIC_STYLES["accuracy"].heading, right=True))
    body: list[dict[str, Cell]] = []
    ends: set[int] = set()
    runs = dict.fromkeys(row.run for row in content.rows)
    for run in runs:
        own = [row for row in content.rows if row.run == run]
        methods = {row.method: row for row in own}
        lines = {name: content.run_cells(row) for name, row in methods.items()}
        for line in lines.values():
            line |= {column.key: Cell("") for column in columns if column.key not in line}
        for place in places:
            rivals = [row for row in own if (row.dataset, row.group) == place]
            if not rivals:
                continue
            for row, cells in zip(rivals, content.cells(rivals), strict=True):
                plain = place[1] not in FULL_SPECTRUM.values()
                for (index, name), cell in cells.items():
                    if name != "accuracy":
                        lines[row.method][_wide_key(place, index, name)] = cell
                    elif plain:
                        # The accuracy on full-spectrum images is a different value.
                        lines[row.method]["accuracy"] = cell
        body += [lines[name] for name in _sorted_methods(own, content.layout.sort)]
        ends.add(len(body) - 1)
    return Table(
        title=content.title(),
        columns=columns,
        rows=body,
        sections=frozenset(ends - {len(body) - 1}),
        notes=_notes(content.reports),
        droppable=_wide_droppable(places, len(conventions), set_metrics),
    )


def _places(content: _Content) -> dict[tuple[str, str], str]:
    """Return data sets and averages with their headings, in the order of the table."""
    places = list(dict.fromkeys((row.dataset, row.group) for row in content.rows))
    first = {(row.dataset, row.group): row for row in reversed(content.rows)}
    if content.paper is not None:
        order = {name: index for index, name in enumerate(content.paper.sets)}
        groups = list(dict.fromkeys(group for _, group in places))
        places.sort(
            key=lambda p: (groups.index(p[1]), p[0] == AVERAGE, order.get(p[0], len(order)))
        )
    return {place: _dataset(first[place], content.paper) for place in places}


def _wide_droppable(
    places: Mapping[tuple[str, str], str], n: int, metrics: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return the order of hiding: single sets, from the last, then all metrics but one."""

    def keys(place: tuple[str, str], names: Sequence[str]) -> tuple[str, ...]:
        return tuple(_wide_key(place, index, name) for index in range(n) for name in names)

    averages = [place for place in places if place[0] == AVERAGE]
    sets = [place for place in places if place[0] != AVERAGE]
    last = averages or sets[:1]
    return [
        *(keys(place, metrics) for place in reversed(sets) if place not in last),
        ("accuracy",),
        *(keys(place, metrics[:-1]) for place in reversed(last)),
        *(keys(place, metrics) for place in reversed(last[:-1])),
    ]


def _sorted_methods(rows: Sequence[ResultRow], sort: str | None) -> list[str]:
    """Sort methods by the mean of a metric over the shown rows."""
    methods = list(dict.fromkeys(row.method for row in rows))
    if sort is None:
        return methods

    def mean(method: str) -> float | None:
        values = [_value(row, sort) for row in rows if row.method == method]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return sorted(methods, key=lambda method: _sort_key(mean(method), sort))


def _sort_key(value: float | None, metric: str) -> tuple[bool, float]:
    """Return a sort key: the best value first, missing values last."""
    sign = 1 if METRIC_STYLES[metric].best == "least" else -1
    return value is None, 0.0 if value is None else sign * value


def _place_key(index: int, name: str) -> str:
    return name if index == 0 else f"{name}@{index}"


def _wide_key(place: tuple[str, str], index: int, name: str) -> str:
    return f"{place[1]}/{place[0]}/{index}/{name}"


def _key(row: ResultRow) -> tuple[str, ...]:
    return row.run, row.dataset, row.group, row.method


def _kind(row: ResultRow) -> tuple[str, str, str]:
    return row.run, row.dataset, row.group


def _value(row: ResultRow, metric: str) -> float | None:
    if metric in METRICS:
        return float(getattr(row, metric))
    if metric == "accuracy":
        return row.id_accuracy
    return row.extras.get(metric)


def value_text(row: ResultRow | None, metric: str, digits: int) -> str:
    """Return a value with its spread over runs and its interval."""
    value = None if row is None else _value(row, metric)
    if row is None or value is None:
        return ""
    name = "id_accuracy" if metric == "accuracy" else metric
    text = _number(value, metric, digits)
    if name in row.std:
        text += f" ± {_number(row.std[name], metric, digits)}"
    if name in row.intervals:
        ends = ", ".join(_number(end, metric, digits) for end in row.intervals[name])
        text += f" [{ends}]"
    return text


def _number(value: float, metric: str, digits: int) -> str:
    if METRIC_STYLES[metric].unit == "score":
        return f"{value:.5g}"
    return percent(value, digits)


def _marks(values: Sequence[float | None], metric: str, digits: int) -> list[str]:
    """Mark the best and second best of the printed values; the second of at least three only."""
    best = METRIC_STYLES[metric].best
    printed = [None if value is None else float(percent(value, digits)) for value in values]
    known = sorted({value for value in printed if value is not None}, reverse=best == "most")
    if best == "none" or len(printed) - printed.count(None) < 2:
        return ["" for _ in values]
    first = known[0]
    second = known[1] if len(values) > 2 and len(known) > 1 else None
    return [
        "" if value is None else "best" if value == first else "second" if value == second else ""
        for value in printed
    ]


def _dataset(row: ResultRow, paper: Paper | None) -> str:
    spectrum = row.group in FULL_SPECTRUM.values()
    if row.dataset != AVERAGE:
        name = row.dataset if paper is None else paper.sets.get(row.dataset, row.dataset)
        return f"{name} (full spectrum)" if spectrum and paper is not None else name
    if paper is not None and row.group in paper.groups:
        return paper.groups[row.group]
    return "average" if row.group in ("all", "ood") else f"{row.group} average"


def method_name(row: ResultRow) -> str:
    """Return the name of the method, with the block if NormRatio selected it."""
    blocks = [value for key, value in row.params.items() if key.rpartition(".")[2] == "block"]
    if blocks and "block=" not in row.method:
        chosen = "/".join(map(str, blocks[0])) if isinstance(blocks[0], list) else blocks[0]
        return f"{row.method} (block {chosen})"
    return row.method


def _parameters(row: ResultRow) -> str:
    """Return the parameters of the method, including those chosen in fitting."""
    return ", ".join(
        f"{name}={f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in row.params.items()
    )


def _notes(reports: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(note for report in reports for note in report.notes))


def report_title(reports: Sequence[Report], digits: int = 2) -> list[str]:
    """Return the title: runs, accuracy, image lists, benchmark, convention and versions."""
    report = reports[0]
    lines = []
    for run in report.runs:
        accuracy = (
            "" if run.id_accuracy is None else f", accuracy {percent(run.id_accuracy, digits)} %"
        )
        full = next(
            (row for row in report.rows if row.run == run.name and _is_full_spectrum(row)), None
        )
        if full is not None and full.id_accuracy is not None:
            accuracy += f", full-spectrum accuracy {percent(full.id_accuracy, digits)} %"
        arch = f"{run.arch}, " if run.arch else ""
        lines.append(
            f"{run.name}: {arch}ID {run.id_name} ({counted(run.n_id, 'test image')}{accuracy})"
        )
        if run.chance is not None:
            lines.append(
                f"warning: {run.name} classifies hardly better than chance "
                f"({percent(run.chance, digits)} %), so its scores are not informative"
            )
    averaged = [row for row in report.rows if row.n_runs > 1]
    for joined in dict.fromkeys(row.run for row in averaged):
        own = [row for row in averaged if row.run == joined]
        spread = f"mean ± population standard deviation of {own[0].n_runs} runs"
        # The accuracy on full-spectrum images is a different value.
        for name, wanted in (("accuracy", False), ("full-spectrum accuracy", True)):
            row = next((row for row in own if _is_full_spectrum(row) is wanted), None)
            if row is not None and row.id_accuracy is not None and "id_accuracy" in row.std:
                spread += (
                    f", {name} {percent(row.id_accuracy, digits)} "
                    f"± {percent(row.std['id_accuracy'], digits)} %"
                )
        lines.append(spread)
    if report.splits:
        lists = (f"{name} {split.sha256[:8]}" for name, split in report.splits.items())
        lines.append(f"images of OpenOOD's lists (sha256): {', '.join(lists)}")
    benchmark = f"benchmark {report.benchmark}, " if report.benchmark else ""
    for index, each in enumerate(reports):
        lead = benchmark if index == 0 else ""
        lines.append(f"{lead}convention {each.convention}: {each.description}; in percent")
    lines.append(_versions(report))
    return lines


def _is_full_spectrum(row: ResultRow) -> bool:
    return row.group in FULL_SPECTRUM.values()


def _versions(report: Report) -> str:
    """Return the version of ood that made the table, and the versions that made the networks."""
    line = f"tabulated by ood {__version__}"
    made = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in run.versions.items())
        for run in report.runs
        if run.versions
    )
    return line + "".join(f"; run created by {versions}" for versions in made)
