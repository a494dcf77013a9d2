"""Verdicts of ``ood predict`` as a table, and the lines of their summary."""

from typing import TYPE_CHECKING

from oodcli.cli.console import StyledText
from oodcli.cli.render.formats import Cell, Column, Table, percent
from oodcli.cli.render.formats.terminal import write_terminal
from oodcli.text import counted

if TYPE_CHECKING:
    from oodcli.screening.findings import PredictResult
    from oodcli.screening.verdict_file import Verdict

_COLUMNS = (
    Column("path", "image"),
    Column("class", "class"),
    Column("probability", "probability", right=True),
    Column("score", "score", right=True),
    Column("percentile", "ID percentile", right=True),
    Column("verdict", "verdict"),
)


def render_verdicts(result: "PredictResult") -> str:
    """Render the most important rows as a table, and the summary below it."""
    shown = len(result.rows)
    title = [f"{result.detector['method']} on {result.detector['run']}"]
    if not result.complete:
        title.append(
            f"{shown:,} of {result.counts.total:,} rows: the images with the lowest scores, then "
            "unreadable images" + ("" if result.files else "; all rows: --output FILE.csv")
        )
    bare = all(each.predicted is None for each in result.rows)
    table = Table(
        title,
        [each for each in _COLUMNS if not (bare and each.key in ("class", "probability"))],
        [_row(each) for each in result.rows],
        notes=summary(result),
        droppable=("probability", "percentile"),
    )
    return StyledText(write_terminal(table, to_file=False))


def _row(verdict: "Verdict") -> dict[str, Cell]:
    if verdict.error is not None:
        cells = {column.key: Cell("") for column in _COLUMNS}
        return cells | {
            "path": Cell(verdict.path),
            "verdict": Cell(f"unreadable: {verdict.error}"),
        }
    return {
        "path": Cell(verdict.path),
        "class": Cell(verdict.predicted or ""),
        "probability": Cell("" if verdict.probability is None else f"{verdict.probability:.4f}"),
        "score": Cell(f"{verdict.score:.6g}"),
        "percentile": Cell(f"{verdict.percentile:.2f}"),
        "verdict": Cell(verdict.verdict or "", bold=verdict.verdict == "ood"),
    }


def summary(result: "PredictResult") -> list[str]:
    """Return the lines of a summary: counts, shares of OOD verdicts, alarm and threshold."""
    counts, before, threshold = result.counts, result.before, result.threshold
    lines = [f"{counted(counts.total, 'image')}: {counts.id:,} id, {counts.ood:,} ood"]
    if counts.errors:
        lines[0] += f", {counts.errors:,} unreadable"
    new = counts.total - before.total
    if new and result.seconds:
        lines[0] += f"; {new:,} processed at {new / result.seconds:,.0f} images/s"
    expected = f"of ID images {percent(result.expected)} %"
    if result.share is None:
        lines.append(f"share of OOD verdicts: no image could be judged; expected {expected}")
    else:
        error = f" ± {percent(result.share_stderr)} %" if result.share_stderr else ""
        lines.append(
            f"share of OOD verdicts: {percent(result.share)} %; expected {expected}{error} "
            "(standard error)"
            if error
            else f"share of OOD verdicts: {percent(result.share)} %; expected {expected}"
        )
    lines += _alarm_lines(result)
    origin = result.detector
    images = f"{threshold.n:,} {origin['id_part']} images of {origin['id_data']}"
    if threshold.given:
        lines.append(
            f"threshold {threshold.value:.6g}, as given: it accepts {percent(threshold.tpr)} % of "
            f"{images}"
        )
    else:
        lines.append(
            f"threshold {threshold.value:.6g} ± {threshold.stderr:.2g} (standard error): it "
            f"accepts {percent(threshold.tpr)} % of {images}; {origin['method']}, fitted "
            f"{origin['created'][:10]}"
        )
    return lines


def _alarm_lines(result: "PredictResult") -> list[str]:
    """Return a line on whether chance explains the share of OOD verdicts."""
    p, tested = result.p, result.tested
    if p is None:
        return []
    of = f"{tested.ood:,} of {tested.judged:,}"
    if result.alarm:
        return [
            f"ALARM: {of} images are OOD, far above the share among ID images (p = {p:.2g}): they "
            f"are of a different kind from the {result.detector['id_part']} images of "
            f"{result.detector['id_data']}, or were taken or stored in a different way"
        ]
    return [f"{of} images are OOD: not significantly more than among ID images (p = {p:.2g})"]
