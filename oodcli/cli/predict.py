"""``ood predict``."""

import os
import shlex
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli.alarms import AlarmLevelOption, CsvSafeOption, FailOnAnyOption, FailOption, exit_by
from oodcli.cli.console import print_stderr, write_result
from oodcli.cli.options import (
    AmpOption,
    BatchOption,
    ColumnsOption,
    DeviceOption,
    FalseAlarmsOption,
    FdrOption,
    JpegDraftOfRunOption,
    MethodOption,
    PerClassOption,
    RunOption,
    SkipOption,
    StoreOption,
    ThresholdOption,
    TprOption,
    WindowOption,
    command_line,
    writable_file,
    writable_folder,
)
from oodcli.cli.processes import job_if_any, torchrun_size

if TYPE_CHECKING:
    from oodcli.data.sharding import Shard

_INTERRUPTED = 130


class Engine(StrEnum):
    """What runs network and method."""

    TORCH = "torch"
    ONNX = "onnx"


class VerdictFormat(StrEnum):
    """Format of the verdicts."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


def predict(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Image files, folders with their subfolders, archives, arrays, lists and tables "
            "of images; - reads paths from stdin, one per line.",
            show_default=False,
        ),
    ],
    run: RunOption = None,
    detector: Annotated[
        Path | None,
        typer.Option(
            "--detector",
            metavar="FILE",
            help="A packed detector (ood detector pack) or an export (ood export), instead of a "
            "run and a method; needs no store.",
            show_default=False,
        ),
    ] = None,
    method: MethodOption = None,
    tpr: TprOption = None,
    threshold: ThresholdOption = None,
    false_alarms: FalseAlarmsOption = None,
    fdr: FdrOption = None,
    per_class: PerClassOption = False,
    format_: Annotated[
        VerdictFormat | None,
        typer.Option(
            "--format",
            help="Format of the verdicts [default: by the extension of --output, else table].",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            callback=writable_file,
            help="Write one row per image to FILE (.csv or .jsonl); an existing file is resumed.",
        ),
    ] = None,
    features: Annotated[
        bool,
        typer.Option(
            "--features",
            help="Store the features of the images beside --output, in FILE.features.npy.",
        ),
    ] = False,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="day|exif-day|folder|COLUMN",
            help="Write the group of each image into its row: the day on which its "
            "file was modified (UTC), or on which it was taken by its EXIF data; its folder; or a "
            "column of the table given.",
            show_default=False,
        ),
    ] = None,
    csv_safe: CsvSafeOption = False,
    copy_ood: Annotated[
        Path | None,
        typer.Option(
            "--copy-ood",
            metavar="DIR",
            help="Copy OOD images into a folder.",
            callback=writable_folder,
        ),
    ] = None,
    fail_on_ood: FailOption = False,
    fail_on_any_ood: FailOnAnyOption = False,
    alarm_level: AlarmLevelOption = 0.001,
    summary_: Annotated[
        Path | None,
        typer.Option(
            "--summary",
            metavar="FILE.json",
            callback=writable_file,
            help="Write counts, shares and the test to FILE.json.",
        ),
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            "--engine",
            help="Run network and method in torch, or in ONNX Runtime, which starts faster "
            "[default: torch, or what FILE has].",
            show_default=False,
        ),
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Import the module with your own network that the packed detector names.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    score_batch_size: BatchOption = None,
    columns: ColumnsOption = None,
    window: WindowOption = None,
    jpeg_draft: JpegDraftOfRunOption = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Judge part I, from 1, of N parts of the images; auto: the part that Slurm, "
            "Kubernetes or torchrun gives to this process. FILE becomes FILE-0000I-of-0000N.",
            show_default=False,
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            "--shards",
            metavar="N",
            min=1,
            help="Number of parts for --shard auto, where the scheduler does not say it.",
            show_default=False,
        ),
    ] = None,
    skip_unreadable: SkipOption = False,
    store: StoreOption = None,
) -> None:
    """Flag images that are out of distribution.

    Each image gets a class, a score and a verdict. Exit codes: 0 if images were judged, whatever
    the verdicts; 1 if none could be judged; 3 and 4 as requested by --fail-on-ood and
    --fail-on-any-ood, 3 if both apply.
    """
    import json

    from oodcli.cli.render.verdicts import render_verdicts, summary
    from oodcli.data.opening import with_columns
    from oodcli.screening.thresholds import ThresholdRule
    from oodcli.store.store import Store
    from oodcli.workflows.engines import DetectorRequest
    from oodcli.workflows.predict import PredictRequest, VerdictOutputs, shard_path
    from oodcli.workflows.predict import predict as predict_workflow

    part = _shard_of(context, shard, shards)
    (named,) = with_columns(columns, paths)
    with job_if_any(device) as (processes, own_device, progress):
        request = PredictRequest(
            paths=named,
            listed=_stdin_paths(),
            detector=DetectorRequest(
                file=detector,
                run=run,
                method=method,
                rule=ThresholdRule(tpr, threshold, false_alarms, fdr, per_class),
                engine=None if engine is None else engine.value,
                device=own_device,
                amp=amp,
                batch_size=score_batch_size,
                allow_code=allow_code,
                skip_unreadable=skip_unreadable,
            ),
            outputs=VerdictOutputs(
                format=None if format_ is None else format_.value,
                file=output,
                copy_ood=copy_ood,
                summary=summary_,
                features=features,
                group_by=group_by,
                csv_safe=csv_safe,
            ),
            window=window,
            jpeg_draft=jpeg_draft,
            alarm_level=alarm_level,
            command=command_line(context, shard=None, shards=None),
            shard=part,
        )
        try:
            result = predict_workflow(
                Store.at(store),
                request,
                rows_to=getattr(progress, "write", None),  # one of several writes no rows
                progress=progress,
                processes=processes,
            )
        except KeyboardInterrupt:
            if processes is None or processes.first:
                _report_interruption(None if output is None else shard_path(output, part))
            raise typer.Exit(_INTERRUPTED) from None
    if processes is not None and not processes.first:
        return
    as_table = output is None and format_ in (None, VerdictFormat.TABLE)
    if as_table:
        write_result(render_verdicts(result), None)
    else:
        for line in summary(result):
            print_stderr(line)
    if processes is not None and output is not None:
        count = (1 if part is None else part.count) * processes.size
        pattern = output.with_name(f"{output.stem}-*-of-{count:05d}{output.suffix}")
        print_stderr(
            f"each process wrote its rows; merge them: ood verdicts merge "
            f"{shlex.join([str(pattern), '--output', str(output)])}"
        )
    if summary_ is not None:
        text = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        write_result(text, shard_path(summary_, part))
    exit_by(result, fail_on_ood=fail_on_ood, fail_on_any_ood=fail_on_any_ood)


def _report_interruption(output: Path | None) -> None:
    cure = (
        "without --output FILE it cannot be resumed"
        if output is None
        else f"run the same command to resume after the rows in {output}"
    )
    print_stderr(f"error: interrupted; {cure}")


def _shard_of(context: typer.Context, given: str | None, shards: int | None) -> "Shard | None":
    """Return the shard that options and scheduler give to this job; exit with 2 if none fits."""
    from oodcli.data.sharding import AUTO, Shard, shard_of_job
    from oodcli.errors import InvalidInputError

    if given is None and shards is None:
        return None
    try:
        if given != AUTO:
            if shards is not None:
                context.fail("--shards is the number of shards for --shard auto; give both, or I/N")
            return Shard.parse(given or "")
        size = torchrun_size()
        found = shard_of_job(os.environ, shards)
    except InvalidInputError as error:
        context.fail(str(error))
    if found is None and size is None:
        context.fail(
            "--shard auto finds no task of a Slurm array (SLURM_ARRAY_TASK_ID) or of srun, no "
            "index of a Kubernetes job (JOB_COMPLETION_INDEX) and no process of torchrun; give "
            "--shard I/N"
        )
    if found is None and shards not in (None, size):
        context.fail(f"torchrun started {size} processes, but --shards is {shards}")
    # The processes of torchrun divide the shard among themselves.
    return Shard(1, 1) if found is None and size == 1 else found


def _stdin_paths() -> Iterator[str]:
    """Yield the paths from stdin as they arrive."""
    from oodcli.errors import InvalidInputError

    if sys.stdin is None:
        raise InvalidInputError("stdin is closed, but - reads paths from it; keep it open")
    for line in sys.stdin.buffer:
        yield os.fsdecode(line.rstrip(b"\r\n"))
