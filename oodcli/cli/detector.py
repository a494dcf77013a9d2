"""``ood detector``: pack a fitted detector into one file, and show what is in it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oodcli.cli.console import write_result
from oodcli.cli.options import (
    AmpOption,
    DeviceOption,
    FalseAlarmsOption,
    FdrOption,
    Format,
    FormatOption,
    MethodOption,
    OutputOption,
    PerClassOption,
    RunOption,
    SkipOption,
    StoreOption,
    ThresholdOption,
    TprOption,
    writable_file,
)

app = typer.Typer(
    help="Pack a fitted detector into one file, and show what is in it.", no_args_is_help=True
)


class Engines(StrEnum):
    """What a packed detector can be used with."""

    TORCH = "torch"
    ONNX = "onnx"
    BOTH = "both"


@app.command("pack")
def pack(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            metavar="FILE",
            callback=writable_file,
            help="The file; safetensors, without code.",
            show_default=False,
        ),
    ],
    run: RunOption = None,
    method: MethodOption = None,
    tpr: TprOption = None,
    threshold: ThresholdOption = None,
    false_alarms: FalseAlarmsOption = None,
    fdr: FdrOption = None,
    per_class: PerClassOption = False,
    engine: Annotated[
        Engines,
        typer.Option(
            "--engine",
            help="What the file can be used with: torch, onnx (a graph for ONNX Runtime), or both.",
        ),
    ] = Engines.TORCH,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is not a packed detector.")
    ] = False,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    skip_unreadable: SkipOption = False,
    format_: FormatOption = Format.TABLE,
    store: StoreOption = None,
) -> None:
    """Write a fitted detector to one file, for ood predict --detector FILE on any machine.

    The file has weights, fitted method, ID scores, threshold, preprocessing and classes; it needs
    no store and no training data.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.detector import render_packed
    from oodcli.compute.compute import Compute
    from oodcli.screening.thresholds import ThresholdRule
    from oodcli.store.store import Store
    from oodcli.workflows.packing import PackRequest
    from oodcli.workflows.packing import pack as pack_workflow

    request = PackRequest(
        method=method,
        output=output,
        compute=Compute.of(device, amp=amp),
        run=run,
        rule=ThresholdRule(tpr, threshold, false_alarms, fdr, per_class),
        engines=engine.value,
        overwrite=overwrite,
        skip_unreadable=skip_unreadable,
    )
    found = pack_workflow(Store.at(store), request, progress=TerminalProgress())
    write_result(render_packed(found, format_, to_file=False), None)


@app.command("show")
def show(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A packed detector.", show_default=False)
    ],
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Show what is in a packed detector, after verifying the digests of all of it."""
    from oodcli.cli.render.detector import render_packed
    from oodcli.workflows.packing import show as show_workflow

    found = show_workflow(file)
    write_result(render_packed(found, format_, to_file=output is not None), output)
