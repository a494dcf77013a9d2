"""``ood normratio``."""

from typing import Annotated

import typer

from oodcli.cli.console import write_result
from oodcli.cli.options import (
    AmpOption,
    BatchOption,
    DeviceOption,
    Format,
    FormatOption,
    OutputOption,
    RunOption,
    SkipOption,
    StoreOption,
)


def normratio(
    run: RunOption = None,
    max_images: Annotated[
        int | None,
        typer.Option(
            "--max-images", metavar="N", help="Use N training images, evenly spaced [default: all]."
        ),
    ] = None,
    no_normalise: Annotated[
        bool,
        typer.Option(
            "--no-normalise", help="Do not normalise the images, as in the released script."
        ),
    ] = False,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    score_batch_size: BatchOption = None,
    skip_unreadable: SkipOption = False,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Select a block by NormRatio, without OOD images.

    The norms of training images are compared with those of their jigsaw puzzles.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.normratio import render_normratio
    from oodcli.compute.compute import Compute
    from oodcli.store.store import Store
    from oodcli.workflows.normratio import normratio as normratio_workflow

    result = normratio_workflow(
        Store.at(store),
        run=run,
        max_images=max_images,
        normalise=not no_normalise,
        compute=Compute.of(device, amp=amp, batch_size=score_batch_size),
        skip_unreadable=skip_unreadable,
        progress=TerminalProgress(),
    )
    write_result(render_normratio(result, format_, to_file=output is not None), output)
