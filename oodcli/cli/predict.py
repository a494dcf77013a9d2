"""``ood predict``."""

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli.options import (
    AmpOption,
    BatchOption,
    DeviceOption,
    RunOption,
    SkipOption,
    StoreOption,
)
from oodcli.cli.render import Cell, Column, Table, percent
from oodcli.cli.render.terminal import write_terminal

if TYPE_CHECKING:
    from oodcli.workflows.predict import PredictResult
    from oodcli.workflows.verdict_file import Verdict

FOUND_OOD = 3
_INTERRUPTED = 130


class VerdictFormat(StrEnum):
    """How verdicts are written."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Images, folders with all images below them, .npz files; - reads paths, one a "
            "line, from stdin.",
            show_default=False,
        ),
    ],
    run: RunOption = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME[:KEY=VALUE,…]",
            help="A method, a combination such as norm+energy, or auto for the recommended one.",
        ),
    ] = "auto",
    tpr: Annotated[
        float | None,
        typer.Option(
            "--tpr", metavar="SHARE", help="Share of ID images to accept [default: 0.95]."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", metavar="SCORE", help="Accept images from this score on."),
    ] = None,
    format_: Annotated[
        VerdictFormat | None,
        typer.Option(
            "--format",
            help="How to write verdicts [default: by the ending of --output, else table].",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write a row an image to FILE, .csv or .jsonl; one that is there is gone on with.",
        ),
    ] = None,
    copy_ood: Annotated[
        Path | None,
        typer.Option("--copy-ood", metavar="DIR", help="Copy the OOD images into a folder."),
    ] = None,
    fail_on_ood: Annotated[
        bool, typer.Option("--fail-on-ood", help="End with exit code 3 if an image is OOD.")
    ] = False,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    score_batch_size: BatchOption = None,
    skip_unreadable: SkipOption = False,
    store: StoreOption = None,
) -> None:
    """Tell images that the classifier should not be trusted on from those that it knows."""
    from oodcli.cli.progress import TerminalProgress
    from oodcli.store import Store
    from oodcli.workflows.predict import PredictRequest
    from oodcli.workflows.predict import predict as predict_workflow

    request = PredictRequest(
        paths=tuple(paths),
        listed=_lines(),
        run=run,
        method=method,
        tpr=tpr,
        threshold=threshold,
        format=None if format_ is None else format_.value,
        output=output,
        copy_ood=copy_ood,
        device=device,
        amp=amp,
        batch_size=score_batch_size,
        skip_unreadable=skip_unreadable,
    )
    try:
        result = predict_workflow(
            Store.at(store), request, rows_to=sys.stdout, progress=TerminalProgress()
        )
    except KeyboardInterrupt:
        cure = (
            "with --output FILE it could go on"
            if output is None
            else f"the same command goes on after the rows in {output}"
        )
        print(f"error: interrupted; {cure}", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None
    as_table = output is None and format_ in (None, VerdictFormat.TABLE)
    if as_table:
        sys.stdout.write(write_terminal(_table(result), to_file=False))
        sys.stdout.flush()
    else:
        for line in summary(result):
            print(line, file=sys.stderr)
    if fail_on_ood and result.counts.ood:
        raise typer.Exit(FOUND_OOD)


def _lines() -> Iterator[str]:
    """Yield the paths on stdin as they come."""
    import os

    for line in sys.stdin.buffer:
        yield os.fsdecode(line.rstrip(b"\r\n"))


_COLUMNS = (
    Column("path", "image"),
    Column("class", "class"),
    Column("probability", "probability", right=True),
    Column("score", "score", right=True),
    Column("percentile", "ID percentile", right=True),
    Column("verdict", "verdict"),
)


def _table(result: "PredictResult") -> Table:
    """Return the rows that there is room for, and the summary below them."""
    shown = len(result.rows)
    title = [f"{result.detector['method']} on {result.detector['run']}"]
    if not result.complete:
        title.append(
            f"the {shown:,} rows of {result.counts.total:,} to look at first: the lowest OOD "
            "scores, then what cannot be read; all rows: --output FILE.csv"
        )
    return Table(
        title,
        _COLUMNS,
        [_row(each) for each in result.rows],
        notes=summary(result),
        droppable=("probability", "percentile"),
    )


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
        "probability": Cell(f"{verdict.probability:.4f}"),
        "score": Cell(f"{verdict.score:.6g}"),
        "percentile": Cell(f"{verdict.percentile:.2f}"),
        "verdict": Cell(verdict.verdict or "", bold=verdict.verdict == "ood"),
    }


def summary(result: "PredictResult") -> list[str]:
    """Return what was found, all in all, and what the threshold is worth."""
    counts, before, threshold = result.counts, result.before, result.threshold
    lines = [f"{counts.total:,} images: {counts.id:,} id, {counts.ood:,} ood"]
    if counts.errors:
        lines[0] += f", {counts.errors:,} unreadable"
    new = counts.total - before.total
    if new and result.seconds:
        lines[0] += f"; {new:,} judged at {new / result.seconds:,.0f} images/s"
    expected = f"of ID images {percent(result.expected)} %"
    if result.share is None:
        lines.append(f"share of OOD verdicts: none could be judged; expected {expected}")
    else:
        error = f" ± {percent(result.share_stderr)} %" if result.share_stderr else ""
        lines.append(
            f"share of OOD verdicts: {percent(result.share)} %; expected {expected}{error} "
            "(standard error)"
            if error
            else f"share of OOD verdicts: {percent(result.share)} %; expected {expected}"
        )
    origin = result.detector
    images = f"{threshold.n:,} {origin['id_part']} images of {origin['id_data']}"
    if threshold.given:
        lines.append(
            f"threshold {threshold.value:.6g}, as given: {percent(threshold.tpr)} % of {images} "
            "score at least that"
        )
    else:
        lines.append(
            f"threshold {threshold.value:.6g} ± {threshold.stderr:.2g} (standard error): "
            f"{percent(threshold.tpr)} % of {images} score at least that; {origin['method']}, "
            f"fitted {origin['created'][:10]}"
        )
    return lines
