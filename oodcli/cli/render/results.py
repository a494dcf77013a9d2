"""Reports as tables: which columns and rows they have, and what is best.

A *long* table has a row per data set and method, a *wide* one a row per method and a few columns
per data set, as the papers print it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from oodcli import __version__
from oodcli.cli.options import Layout, Per
from oodcli.cli.render.table import Cell, Column, Table, percent
from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.literature import SOURCES, PublishedComparison
from oodcli.results import (
    AVERAGE,
    EXTRAS,
    FULL_SPECTRUM,
    METRICS,
    Calibration,
    Comparison,
    MeanRank,
    Report,
    ResultRow,
)

_MOST_DIGITS = 10
# In what order columns of a long table go when the window is too narrow for all.
_FIRST_TO_GO = ("images", "params", "accuracy", *EXTRAS, "aupr_out", "aupr_in", "group")


@dataclass(frozen=True)
class _Metric:
    """How a value is called and printed, and which of several is best."""

    heading: str
    best: Literal["least", "most", "none"] = "none"
    unit: Literal["percent", "score"] = "percent"


_METRICS: Mapping[str, _Metric] = MappingProxyType(
    {
        "fpr95": _Metric("FPR95 ↓", "least"),
        "auroc": _Metric("AUROC ↑", "most"),
        "aupr_in": _Metric("AUPR-in ↑", "most"),
        "aupr_out": _Metric("AUPR-out ↑", "most"),
        "fpr80": _Metric("FPR80 ↓", "least"),
        "fpr90": _Metric("FPR90 ↓", "least"),
        "fpr99": _Metric("FPR99 ↓", "least"),
        "detection_error": _Metric("Det. error ↓", "least"),
        "tied": _Metric("Ties ↓", "least"),
        "aurc": _Metric("AURC ↓", "least"),
        "accuracy_at_95": _Metric("Acc. at 95 ↑", "most"),
        "threshold_95": _Metric("Threshold", unit="score"),
        "accuracy": _Metric("ID acc. ↑"),
    }
)
_IDENTIFYING = {"run": "Run", "arch": "Network", "dataset": "OOD set", "group": "Group"}
_IDENTIFYING |= {"method": "Method"}
_NAMES = (*_IDENTIFYING, *_METRICS, "images", "params")


# With more methods than this, a table of every method on every set is too long to read.
_MANY_METHODS = 16


@dataclass(frozen=True)
class TableLayout:
    """How a report is laid out; what is None is as the layout has it.

    Parameters
    ----------
    columns
        Keys of the columns, in their order. What is needed to tell rows apart and is not named
        comes first.
    digits
        Digits after the point of a percent.
    per
        Whether to show single data sets, averages of groups, or both.
    transpose
        Whether methods are rows, with columns for each data set.
    sort
        Metric to sort methods by, the best first.
    paper
        Whose tables to follow.
    statistics
        Whether tests between methods, mean ranks and calibration stand below.
    shorten
        Whether many methods may be shown by their averages alone, where ``per`` is None.
    """

    columns: tuple[str, ...] | None = None
    digits: int = 2
    per: Per | None = None
    transpose: bool = False
    sort: str | None = None
    paper: Layout | None = None
    statistics: bool = False
    shorten: bool = True


@dataclass(frozen=True)
class _Paper:
    """What the tables of a paper have, and what they call things."""

    columns: tuple[str, ...]
    per: Per
    sets: Mapping[str, str]
    groups: Mapping[str, str]
    methods: Mapping[str, str]
    by_arch: bool


_SHAPERS = {"react": "ReAct", "dice": "DICE", "scale": "SCALE", "ash-b": "ASH"}
_COMMON_NAMES = {
    # Papers follow these by the energy score; scores of other programs have the name alone.
    **_SHAPERS,
    **{f"{name}+energy": title for name, title in _SHAPERS.items()},
    "msp": "MSP",
    "odin": "ODIN",
    "energy": "Energy",
    "maxlogit": "MaxLogit",
    "knn": "KNN",
    "gen": "GEN",
    "rmds": "RMDS",
    "mds": "MDS",
    "vim": "ViM",
    "t2fnorm": "T2FNorm",
    "mode": "MODE",
    "csd": "MODE",
    "featurenorm": "FeatureNorm",
    "norm+msp": "MSP + norm",
    "norm+odin": "ODIN + norm",
    "norm+energy": "Energy + norm",
}
_LAYOUTS: Mapping[Layout, _Paper] = MappingProxyType(
    {
        Layout.FEATURENORM: _Paper(
            columns=("fpr95", "auroc"),
            per=Per.BOTH,
            sets={
                "svhn": "SVHN",
                "textures": "Textures",
                "lsun-crop": "LSUN-C",
                "lsun-resize": "LSUN-R",
                "isun": "iSUN",
                "places365-sample": "Places365",
                "inaturalist": "iNaturalist",
                "sun": "SUN",
                "places": "Places",
            },
            groups={"ood": "Average", "all": "Average"},
            methods=_COMMON_NAMES,
            by_arch=True,
        ),
        Layout.MODE: _Paper(
            columns=("fpr95", "auroc"),
            per=Per.BOTH,
            sets={
                "svhn-10000": "SVHN",
                "places365-test-sample": "Places365",
                "lsun-crop": "LSUN",
                "isun": "iSUN",
                "inaturalist": "iNaturalist",
                "sun": "SUN",
                "places": "Places",
                "textures": "Texture",
            },
            groups={"ood": "Average", "all": "Average"},
            methods=_COMMON_NAMES,
            by_arch=False,
        ),
        Layout.OPENOOD: _Paper(
            columns=("auroc", "accuracy"),
            per=Per.GROUP,
            sets={
                "cifar10": "CIFAR-10",
                "cifar100": "CIFAR-100",
                "tiny-imagenet": "TIN",
                "ssb-hard": "SSB-hard",
                "ninco": "NINCO",
                "mnist-lossless": "MNIST",
                "svhn-lossless": "SVHN",
                "inaturalist": "iNaturalist",
                "textures": "Textures",
                "places365": "Places365",
                "openimage-o": "OpenImage-O",
            },
            groups={
                "near": "Near-OOD",
                "far": "Far-OOD",
                "ood": "OOD",
                "fs-near": "Near-OOD (full spectrum)",
                "fs-far": "Far-OOD (full spectrum)",
                "fs-ood": "OOD (full spectrum)",
            },
            methods={**_COMMON_NAMES, "energy": "EBO", "maxlogit": "MLS", "vim": "VIM"},
            by_arch=False,
        ),
    }
)


def report_tables(reports: Sequence[Report], layout: TableLayout) -> list[Table]:
    """Return the table of a report.

    Parameters
    ----------
    reports
        The same scores by one convention or by several, which then stand side by side.
    layout
        How to lay it out.

    Raises
    ------
    UnknownNameError
        If there is no column of a name.
    InvalidInputError
        If the digits are out of range, or what is asked for leaves no row.
    """
    _check(layout)
    paper = None if layout.paper is None else _LAYOUTS[layout.paper]
    wide = layout.transpose or paper is not None
    metrics, fixed = _columns(layout, paper, wide=wide)
    short = layout.per is None and layout.shorten and _is_long(reports[0].rows) and not wide
    per = Per.GROUP if short else layout.per or (Per.BOTH if paper is None else paper.per)
    rows = _shown(reports[0].rows, per, overall=paper is None or "all" in paper.groups)
    if not rows:
        raise InvalidInputError(f"nothing to show per {per.value}; use --per both")
    by_convention = [{_key(row): row for row in report.rows} for report in reports]
    content = _Content(reports, rows, by_convention, metrics, fixed, layout, paper)
    table = _wide(content) if wide else _long(content)
    if short:
        table = replace(table, notes=(*table.notes, "averages alone; every set: --per both"))
    return [table]


def _is_long(rows: Sequence[ResultRow]) -> bool:
    """Return whether so many methods on several sets are better shown by their averages."""
    sets = {row.dataset for row in rows if row.dataset != AVERAGE}
    return len(sets) > 1 and len({row.method for row in rows}) > _MANY_METHODS


@dataclass(frozen=True)
class _Content:
    """What both kinds of tables are made of."""

    reports: Sequence[Report]
    rows: Sequence[ResultRow]
    by_convention: Sequence[Mapping[tuple[str, ...], ResultRow]]
    metrics: tuple[str, ...]
    fixed: tuple[str, ...]
    layout: TableLayout
    paper: _Paper | None

    @property
    def several_runs(self) -> bool:
        return len({row.run for row in self.rows}) > 1

    def name(self, row: ResultRow) -> str:
        """Name the method, as the paper does or with what it chose."""
        base, _, given = row.method.partition(":")
        if self.paper is not None and base in self.paper.methods:
            return self.paper.methods[base] + (f" ({given})" if given else "")
        return _method(row)

    def arch(self, row: ResultRow) -> str:
        runs = {run.name: run.arch for run in self.reports[0].runs}
        return next((runs[name] for name in (row.run, *row.run.split(", ")) if name in runs), "")

    def run_cells(self, row: ResultRow) -> dict[str, Cell]:
        return {"run": Cell(row.run), "arch": Cell(self.arch(row)), "method": Cell(self.name(row))}

    def values(self, row: ResultRow) -> dict[tuple[int, str], float | None]:
        """Return the value of every metric by every convention."""
        return {
            (index, metric): _value(table[_key(row)], metric) if _key(row) in table else None
            for index, table in enumerate(self.by_convention)
            for metric in _per_convention(metric_names=self.metrics, index=index)
        }

    def cells(self, rows: Sequence[ResultRow]) -> list[dict[tuple[int, str], Cell]]:
        """Return the cells of rows that compete, with the best and the second best marked."""
        values = [self.values(row) for row in rows]
        marks = {
            place: _marks([each[place] for each in values], place[1], self.layout.digits)
            for place in values[0]
        }
        return [
            {
                place: Cell(
                    _text(
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
        """Sort rows that compete by what was asked for."""
        metric = self.layout.sort
        if metric is None:
            return list(rows)
        return sorted(rows, key=lambda row: _sort_key(_value(row, metric), metric))

    def title(self) -> list[str]:
        return report_title(self.reports, self.layout.digits)


def _per_convention(*, metric_names: Sequence[str], index: int) -> list[str]:
    """Leave out by further conventions what does not depend on one."""
    return [name for name in metric_names if index == 0 or name != "accuracy"]


def _check(layout: TableLayout) -> None:
    if not 0 <= layout.digits <= _MOST_DIGITS:
        raise InvalidInputError(f"digits must be from 0 to {_MOST_DIGITS}, not {layout.digits}")
    for name in layout.columns or ():
        if name not in _NAMES:
            raise UnknownNameError.among("column", name, _NAMES)
    if layout.sort is not None and _METRICS.get(layout.sort, _Metric("")).best == "none":
        known = [name for name, metric in _METRICS.items() if metric.best != "none"]
        raise UnknownNameError.among("metric to sort by", layout.sort, known)


def _columns(
    layout: TableLayout, paper: _Paper | None, *, wide: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the metrics, and all columns in their order; what was not named comes as it does."""
    if layout.columns is not None:
        names = tuple(dict.fromkeys(layout.columns))
    elif paper is not None:
        names = paper.columns
    else:
        names = ("fpr95", "auroc") if wide else (*METRICS, "images")
    return tuple(name for name in names if name in _METRICS), names


def _shown(rows: Sequence[ResultRow], per: Per, *, overall: bool) -> list[ResultRow]:
    """Return single sets, or averages, or both; no average that says again what others say."""
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
    """Make a row per run, data set and method."""
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
        if name in _METRICS:
            columns += [
                Column(
                    _place_key(index, name),
                    _METRICS[name].heading,
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
        # Columns of one convention stand together, under its name.
        order = {name: index for index, name in enumerate(["", *conventions])}
        last = [c for c in columns if c.key in ("images", "accuracy")]
        columns = sorted((c for c in columns if c not in last), key=lambda c: order[c.over]) + last
    if "auroc" in content.metrics:
        columns.append(Column("bar", "AUROC", bar=True))
    kinds = [list(own) for _, own in itertools.groupby(content.rows, key=_kind)]
    body: list[dict[str, Cell]] = []
    ends: set[int] = set()
    for kind in kinds:
        rows = content.sorted_rows(kind)
        for row, cells in zip(rows, content.cells(rows), strict=True):
            body.append(
                {
                    **content.run_cells(row),
                    "dataset": Cell(_dataset(row, content.paper)),
                    "group": Cell("" if row.dataset == AVERAGE else row.group),
                    "images": Cell(f"{row.n_ood:,}", value=row.n_ood),
                    "params": Cell(_parameters(row)),
                    "bar": Cell("", value=row.auroc),
                    **{_place_key(*place): cell for place, cell in cells.items()},
                }
            )
        ends.add(len(body) - 1)
    if all(len(kind) == 1 for kind in kinds):
        # With one method, rules stand between groups, not between sets.
        ends = {
            index
            for index, (row, after) in enumerate(itertools.pairwise(content.rows))
            if (row.run, row.group) != (after.run, after.group)
        }
    n = len(conventions)
    droppable = [
        tuple(_place_key(index, name) for index in range(n)) if name in _METRICS else name
        for name in _FIRST_TO_GO
    ]
    # Of further conventions the area under the ROC curve says nothing new.
    droppable[1:1] = [_place_key(index, "auroc") for index in range(1, n)]
    return Table(
        title=content.title(),
        columns=columns,
        rows=body,
        sections=frozenset(ends - {len(body) - 1}),
        notes=_notes(content.reports),
        droppable=droppable,
    )


def _wide(content: _Content) -> Table:
    """Make a row per run and method, and columns for each data set and average."""
    places = _places(content)
    conventions = [report.convention for report in content.reports]
    set_metrics = [name for name in content.metrics if name != "accuracy"]
    by_arch = content.paper is not None and content.paper.by_arch
    archs = {content.arch(row) for row in content.rows}
    # Where the architecture does not tell two runs apart, their names do.
    told = by_arch and len(archs) == len({row.run for row in content.rows})
    lead = [*(["run"] if content.several_runs and not told else []), "method"]
    if by_arch and archs - {""}:
        lead.insert(0, "arch")
    lead = [name for name in ("arch", "run") if name in content.fixed and name not in lead] + lead
    columns = [Column(name, _IDENTIFYING[name]) for name in lead]
    for place, heading in places.items():
        for index, convention in enumerate(conventions):
            over = heading if len(conventions) == 1 else f"{heading}, {convention}"
            columns += [
                Column(_wide_key(place, index, name), _METRICS[name].heading, right=True, over=over)
                for name in set_metrics
            ]
    if "accuracy" in content.metrics:
        columns.append(Column("accuracy", _METRICS["accuracy"].heading, right=True))
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
                        # On the images of the full spectrum it is another accuracy.
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
    """Return what goes first: single sets, the last one first, then all metrics but one."""

    def keys(place: tuple[str, str], names: Sequence[str]) -> tuple[str, ...]:
        return tuple(_wide_key(place, index, name) for index in range(n) for name in names)

    averages = [place for place in places if place[0] == AVERAGE]
    sets = [place for place in places if place[0] != AVERAGE]
    kept = averages or sets[:1]
    return [
        *(keys(place, metrics) for place in reversed(sets) if place not in kept),
        ("accuracy",),
        *(keys(place, metrics[:-1]) for place in reversed(kept)),
        *(keys(place, metrics) for place in reversed(kept[:-1])),
    ]


def _sorted_methods(rows: Sequence[ResultRow], sort: str | None) -> list[str]:
    """Sort methods by the mean over what is shown of all of them."""
    methods = list(dict.fromkeys(row.method for row in rows))
    if sort is None:
        return methods

    def mean(method: str) -> float | None:
        values = [_value(row, sort) for row in rows if row.method == method]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return sorted(methods, key=lambda method: _sort_key(mean(method), sort))


def _sort_key(value: float | None, metric: str) -> tuple[bool, float]:
    """Put the best first and what has no value last."""
    sign = 1 if _METRICS[metric].best == "least" else -1
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


def _text(row: ResultRow | None, metric: str, digits: int) -> str:
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
    if _METRICS[metric].unit == "score":
        return f"{value:.5g}"
    return percent(value, digits)


def _marks(values: Sequence[float | None], metric: str, digits: int) -> list[str]:
    """Mark the best and the second best of rivals, as printed; the second among three or more."""
    best = _METRICS[metric].best
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


def _dataset(row: ResultRow, paper: _Paper | None) -> str:
    spectrum = row.group in FULL_SPECTRUM.values()
    if row.dataset != AVERAGE:
        name = row.dataset if paper is None else paper.sets.get(row.dataset, row.dataset)
        return f"{name} (full spectrum)" if spectrum and paper is not None else name
    if paper is not None and row.group in paper.groups:
        return paper.groups[row.group]
    return "average" if row.group in ("all", "ood") else f"{row.group} average"


def _method(row: ResultRow) -> str:
    """Name the method, and the block where NormRatio chose it."""
    blocks = [value for key, value in row.params.items() if key.rpartition(".")[2] == "block"]
    if blocks and "block=" not in row.method:
        chosen = "/".join(map(str, blocks[0])) if isinstance(blocks[0], list) else blocks[0]
        return f"{row.method} (block {chosen})"
    return row.method


def _parameters(row: ResultRow) -> str:
    """Write what the method worked with, and what fitting found."""
    return ", ".join(
        f"{name}={f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in row.params.items()
    )


def _notes(reports: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(note for report in reports for note in report.notes))


def report_title(reports: Sequence[Report], digits: int = 2) -> list[str]:
    """Say what a table is of: runs, accuracy, lists of images, benchmark, convention, version."""
    report = reports[0]
    lines = []
    for run in report.runs:
        accuracy = (
            "" if run.id_accuracy is None else f", accuracy {percent(run.id_accuracy, digits)} %"
        )
        arch = f"{run.arch}, " if run.arch else ""
        lines.append(f"{run.name}: {arch}ID {run.id_name} ({run.n_id:,} test images{accuracy})")
        if run.chance is not None:
            lines.append(
                f"warning: {run.name} classifies hardly better than guessing "
                f"({percent(run.chance, digits)} %), so that its scores say little"
            )
    averaged = [row for row in report.rows if row.n_runs > 1]
    for joined in dict.fromkeys(row.run for row in averaged):
        own = [row for row in averaged if row.run == joined]
        spread = f"mean ± population standard deviation of {own[0].n_runs} runs"
        # On the images of the full spectrum it is another accuracy.
        for name, full in (("accuracy", False), ("full-spectrum accuracy", True)):
            row = next((r for r in own if (r.group in FULL_SPECTRUM.values()) is full), None)
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


def _versions(report: Report) -> str:
    """Say what made the table, and what made the networks behind it where that is known."""
    line = f"tabulated by ood {__version__}"
    made = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in run.versions.items())
        for run in report.runs
        if run.versions
    )
    return line + "".join(f"; run made by {versions}" for versions in made)


def published_table(comparisons: Sequence[PublishedComparison], digits: int = 2) -> Table:
    """Return our values beside those that papers printed.

    Parameters
    ----------
    comparisons
        What `oodcli.literature.compare` found.
    digits
        Digits after the point of a percent.
    """
    reasons: dict[str, int] = {}
    for each in comparisons:
        for reason in each.reasons:
            reasons.setdefault(reason, len(reasons) + 1)
    several = len({each.run for each in comparisons}) > 1
    conventions = {each.convention for each in comparisons}
    rows = []
    for each in comparisons:
        verdict, good = _verdict(each, reasons)
        remark = f", {each.published.note}" if each.published.note else ""
        theirs = percent(each.theirs)
        if each.metric in each.published.std:
            theirs += f" ± {percent(each.published.std[each.metric])}"
        rows.append(
            {
                "run": Cell(each.run),
                "dataset": Cell(_dataset_name(each.dataset, each.group)),
                "method": Cell(each.method),
                "convention": Cell(each.convention),
                "metric": Cell(_METRICS[each.metric].heading.rstrip("↓↑ ")),
                "ours": Cell(percent(each.ours, digits), value=each.ours),
                "published": Cell(theirs, value=each.theirs),
                "difference": (
                    Cell("")
                    if each.reasons
                    else Cell(_signed(each.difference, digits), value=each.difference)
                ),
                "tolerance": (
                    Cell("")
                    if each.reasons or each.tolerance is None
                    else Cell(f"±{percent(each.tolerance)}", value=each.tolerance)
                ),
                "verdict": Cell(verdict, bold=good),
                "source": Cell(SOURCES[each.published.source].title + remark),
            }
        )
    ends = {
        index
        for index, (one, after) in enumerate(itertools.pairwise(comparisons))
        if (one.run, one.dataset, one.group) != (after.run, after.dataset, after.group)
    }
    notes = [f"({number}) {reason}" for reason, number in reasons.items()]
    notes += dict.fromkeys(remark for each in comparisons for remark in each.remarks)
    return Table(
        title=("beside what the papers printed, in percent",),
        columns=[
            *([Column("run", "Run")] if several else []),
            Column("dataset", "OOD set"),
            Column("method", "Method"),
            *([Column("convention", "Convention")] if len(conventions) > 1 else []),
            Column("metric", "Metric"),
            Column("ours", "Ours", right=True),
            Column("published", "Published", right=True),
            Column("difference", "Difference", right=True),
            Column("tolerance", "Tolerance", right=True),
            Column("verdict", "Verdict"),
            Column("source", "Source"),
        ],
        rows=rows,
        sections=frozenset(ends),
        notes=notes,
        droppable=("source", "tolerance"),
    )


def _verdict(each: PublishedComparison, reasons: Mapping[str, int]) -> tuple[str, bool]:
    if each.reasons:
        numbers = ", ".join(f"{reasons[reason]}" for reason in each.reasons)
        return f"not comparable ({numbers})", False
    if each.within is None:
        return "no tolerance set", False
    return ("within", False) if each.within else ("outside", True)


def _signed(difference: float, digits: int) -> str:
    text = f"{100 * difference:+.{digits}f}"
    # A difference of nothing has no sign.
    return text[1:] if re.fullmatch(r"[+-]0(\.0+)?", text) else text


def statistics_tables(report: Report, digits: int = 2) -> list[Table]:
    """Return what the tests of a report say in plain words, and what else is known of its methods.

    Parameters
    ----------
    report
        The report.
    digits
        Digits after the point of a percent.
    """
    tables = []
    if report.comparisons:
        tables.append(_tests_table(report.comparisons, digits))
    if report.mean_ranks:
        tables.append(_ranks_table(report.mean_ranks))
    if report.calibration:
        tables.append(_calibration_table(report.calibration, digits))
    return tables


def _tests_table(comparisons: Sequence[Comparison], digits: int) -> Table:
    rows = []
    for each in comparisons:
        low, high = (_signed(end, digits) for end in each.interval)
        winner = each.method_a if each.delta > 0 else each.method_b
        says = f"{winner} separates better" if each.significant else "cannot be told apart"
        place = _dataset_name(each.dataset, each.group)
        rows.append(
            {
                "run": Cell(each.run),
                "dataset": Cell(place),
                "a": Cell(each.method_a),
                "b": Cell(each.method_b),
                "delta": Cell(_signed(each.delta, digits), value=each.delta),
                "interval": Cell(f"[{low}, {high}]"),
                "p": Cell(_chance(each.p_holm), value=each.p_holm),
                "says": Cell(says, bold=each.significant),
            }
        )
    n = comparisons[0].n_compared
    corrected = f", p after Holm's correction for {n} comparisons" if n > 1 else ""
    several = len({each.run for each in comparisons}) > 1
    return Table(
        title=(
            "DeLong's paired test: AUROC of A less that of B in points of a percent, "
            f"with its 95 % interval{corrected}",
        ),
        columns=[
            *([Column("run", "Run")] if several else []),
            Column("dataset", "OOD set"),
            Column("a", "A"),
            Column("b", "B"),
            Column("delta", "A - B", right=True),
            Column("interval", "95 % interval", right=True),
            Column("p", "p", right=True),
            Column("says", "At 5 %"),
        ],
        rows=rows,
        droppable=("interval",),
    )


def _chance(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _ranks_table(ranks: Sequence[MeanRank]) -> Table:
    first = ranks[0]
    several = len({rank.run for rank in ranks}) > 1
    rows = [
        {
            "run": Cell(rank.run),
            "method": Cell(rank.method),
            "fpr95": Cell(f"{rank.fpr95:.2f}", value=rank.fpr95),
            "auroc": Cell(f"{rank.auroc:.2f}", value=rank.auroc),
        }
        for rank in ranks
    ]
    return Table(
        title=(
            f"mean rank among {first.n_methods} methods over {first.n_datasets} OOD sets; "
            "1 is best",
        ),
        columns=[
            *([Column("run", "Run")] if several else []),
            Column("method", "Method"),
            Column("fpr95", "Rank by FPR95", right=True),
            Column("auroc", "Rank by AUROC", right=True),
        ],
        rows=rows,
    )


def _calibration_table(calibration: Sequence[Calibration], digits: int) -> Table:
    return Table(
        title=("calibration of the classifier on the ID test images, in percent",),
        columns=[
            Column("run", "Run"),
            Column("ece", "Calibration error", right=True),
            Column("confidence", "Mean confidence", right=True),
            Column("accuracy", "Accuracy", right=True),
        ],
        rows=[
            {
                "run": Cell(each.run),
                "ece": Cell(percent(each.ece, digits), value=each.ece),
                "confidence": Cell(percent(each.confidence, digits), value=each.confidence),
                "accuracy": Cell(percent(each.accuracy, digits), value=each.accuracy),
            }
            for each in calibration
        ],
    )


def _dataset_name(dataset: str, group: str) -> str:
    """Name a set or an average outside the layouts of papers."""
    if dataset == AVERAGE:
        return "average" if group in ("all", "ood") else f"{group} average"
    return f"{dataset} (full spectrum)" if group in FULL_SPECTRUM.values() else dataset
