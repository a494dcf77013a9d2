"""``ood export``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oodcli.cli import completion
from oodcli.cli.console import write_result
from oodcli.cli.options import (
    DeviceOption,
    FalseAlarmsOption,
    Format,
    FormatOption,
    RunOption,
    SkipOption,
    StoreOption,
    ThresholdOption,
    TprOption,
    writable_folder,
)


class InputKind(StrEnum):
    """Data type of the input pixels."""

    UINT8 = "uint8"
    FLOAT32 = "float32"


def export(
    method: Annotated[
        str,
        typer.Option(
            "--method",
            autocompletion=completion.methods,
            metavar="NAME[:KEY=VALUE,…]",
            help="The method; auto is the one that ood recommend chose, or chooses now.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            metavar="DIR",
            callback=writable_folder,
            help="Folder for model.onnx and model.json.",
            show_default=False,
        ),
    ],
    run: RunOption = None,
    tpr: TprOption = None,
    threshold: ThresholdOption = None,
    false_alarms: FalseAlarmsOption = None,
    input_: Annotated[
        InputKind,
        typer.Option(
            "--input", help="Type of the pixels: from 0 to 255 as uint8, or from 0 to 1 as float32."
        ),
    ] = InputKind.UINT8,
    input_size: Annotated[
        str | None,
        typer.Option(
            "--input-size",
            metavar="HxW",
            help="Take images of this size, and resize them in the model [default: that of the "
            "network].",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files that ood did not export.")
    ] = False,
    device: DeviceOption = "auto",
    skip_unreadable: SkipOption = False,
    format_: FormatOption = Format.TABLE,
    store: StoreOption = None,
) -> None:
    """Write classifier and detector as one ONNX file.

    The file is compared with ood in ONNX Runtime on real images before it is written.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.export import render_export
    from oodcli.compute.compute import Compute
    from oodcli.screening.thresholds import ThresholdRule
    from oodcli.store.store import Store
    from oodcli.workflows.export import ExportRequest
    from oodcli.workflows.export import export as export_workflow

    request = ExportRequest(
        method=method,
        output=output,
        run=run,
        rule=ThresholdRule(tpr, threshold, false_alarms),
        input="uint8" if input_ is InputKind.UINT8 else "float32",
        input_size=None if input_size is None else _size(input_size),
        overwrite=overwrite,
        compute=Compute.of(device),
        skip_unreadable=skip_unreadable,
    )
    found = export_workflow(Store.at(store), request, progress=TerminalProgress())
    write_result(render_export(found, format_), None)


def _size(text: str) -> tuple[int, int]:
    """Parse height and width, or one number for both."""
    from oodcli.errors import InvalidInputError

    pieces = text.lower().split("x")
    if len(pieces) > 2 or not all(piece.isascii() and piece.isdecimal() for piece in pieces):
        raise InvalidInputError(
            f"--input-size must be height and width, such as 480x640, not {text!r}"
        )
    return int(pieces[0]), int(pieces[-1])
