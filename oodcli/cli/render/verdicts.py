"""Verdicts of ``ood predict`` as a table, and the lines of their summary."""

from fractions import Fraction
from math import ceil
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
    if threshold.fdr is not None:
        return [*lines, *_discovery_lines(result, threshold.fdr), *_alarm_lines(result)]
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
    lines.append(_threshold_line(result))
    return lines


def _threshold_line(result: "PredictResult") -> str:
    """Return a line on the threshold and its origin."""
    threshold, origin = result.threshold, result.detector
    images = f"{threshold.n:,} {origin['id_part']} images of {origin['id_data']}"
    fitted = f"{origin['method']}, fitted {origin['created'][:10]}"
    if threshold.given:
        return (
            f"threshold {threshold.value:.6g}, as given: it accepts {percent(threshold.tpr)} % of "
            f"{images}"
        )
    if threshold.false_alarms is not None:
        rate = f"{percent(threshold.false_alarms)} %"
        promise = f"p_value of at most {threshold.false_alarms:g}, on average at most {rate} of "
    if threshold.by_class:
        rule = f"for each predicted class ({counted(len(threshold.by_class), 'threshold')})"
        if threshold.false_alarms is None:
            return (
                f"thresholds {rule}: they accept {percent(threshold.tpr)} % of {images}; {fitted}"
            )
        return f"OOD {rule}: {promise}its ID images; from {images}; {fitted}"
    if threshold.false_alarms is not None:
        return (
            f"threshold {threshold.value:.6g} ± {threshold.stderr:.2g} (standard error): OOD with "
            f"{promise}ID images; from {images}; {fitted}"
        )
    return (
        f"threshold {threshold.value:.6g} ± {threshold.stderr:.2g} (standard error): it "
        f"accepts {percent(threshold.tpr)} % of {images}; {fitted}"
    )


def _discovery_lines(result: "PredictResult", fdr: float) -> list[str]:
    """Return lines on verdicts under a false discovery rate, and on what they need."""
    threshold, judged, origin = result.threshold, result.counts.judged, result.detector
    n = min([each.n for each in threshold.by_class], default=threshold.n)
    rate = f"false discovery rate {percent(fdr)} %"
    if threshold.p_cutoff is None:
        lines = [f"{rate}: no image is OOD"]
    else:
        lines = [
            f"{rate}: the images with a p_value of at most {threshold.p_cutoff:.4g} are OOD; on "
            f"average at most {percent(fdr)} % of these are ID"
        ]
    wanted = Fraction(str(fdr))
    together = ceil(judged / (wanted * (n + 1)))
    if together > 1:
        which = "the smallest class has" if threshold.by_class else "the detector has"
        lines.append(
            f"the smallest possible p_value is 1/{n + 1:,}, since {which} {n:,} ID images: of "
            f"{judged:,} images at least {together:,} must have it to be found; to find a single "
            f"one needs {ceil(judged / wanted) - 1:,} ID images"
        )
    by = ", by predicted class" if threshold.by_class else ""
    lines.append(
        f"p_value{by} from {threshold.n:,} {origin['id_part']} images of {origin['id_data']}; "
        f"{origin['method']}, fitted {origin['created'][:10]}"
    )
    return lines


def _alarm_lines(result: "PredictResult") -> list[str]:
    """Return a line on whether chance explains the share of OOD verdicts."""
    p, tested = result.p, result.tested
    if p is None:
        return []
    of = f"{tested.ood:,} of {tested.judged:,}"
    if result.simes is not None:
        if result.alarm:
            return [f"ALARM: not all images are ID (p = {p:.2g}, Simes)"]
        return [f"all images may be ID (p = {p:.2g}, Simes)"]
    if result.alarm:
        return [
            f"ALARM: {of} images are OOD, far above the share among ID images (p = {p:.2g}): they "
            f"are of a different kind from the {result.detector['id_part']} images of "
            f"{result.detector['id_data']}, or were taken or stored in a different way"
        ]
    return [f"{of} images are OOD: not significantly more than among ID images (p = {p:.2g})"]
