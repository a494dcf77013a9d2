"""Statistics of a report: tests between methods, mean ranks and calibration."""

from collections.abc import Sequence

from oodcli.cli.render.formats import Cell, Column, Table, percent
from oodcli.cli.render.metrics import format_signed, set_name
from oodcli.reporting.results import Calibration, Comparison, MeanRank, Report


def statistics_tables(report: Report, digits: int = 2) -> list[Table]:
    """Return tables of the tests between methods, of mean ranks and of calibration.

    Parameters
    ----------
    report
        The report.
    digits
        Digits after the decimal point of a percentage.
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
        low, high = (format_signed(end, digits) for end in each.interval)
        winner = each.method_a if each.delta > 0 else each.method_b
        says = f"{winner} separates better" if each.significant else "no significant difference"
        place = set_name(each.dataset, each.group)
        rows.append(
            {
                "run": Cell(each.run),
                "dataset": Cell(place),
                "a": Cell(each.method_a),
                "b": Cell(each.method_b),
                "delta": Cell(format_signed(each.delta, digits), value=each.delta),
                "interval": Cell(f"[{low}, {high}]"),
                "p": Cell(_p_text(each.p_holm), value=each.p_holm),
                "says": Cell(says, bold=each.significant),
            }
        )
    n = comparisons[0].n_compared
    corrected = f", p after Holm's correction for {n} comparisons" if n > 1 else ""
    several = len({each.run for each in comparisons}) > 1
    return Table(
        title=(
            "DeLong's paired test: AUROC of A minus that of B in percentage points, with its 95 "
            f"% interval{corrected}",
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


def _p_text(p: float) -> str:
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
