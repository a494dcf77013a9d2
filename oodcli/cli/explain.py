"""``ood explain``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oodcli.cli.console import print_stderr, write_result
from oodcli.cli.options import (
    AmpOption,
    BatchOption,
    ColumnsOption,
    DeviceOption,
    JpegDraftOfRunOption,
    MethodOption,
    OverwriteFilesOption,
    RunOption,
    SkipOption,
    StoreOption,
    ThresholdOption,
    TprOption,
    WindowOption,
    output_folder,
)


class ExplainFormat(StrEnum):
    """Format of the explanations on stdout."""

    TABLE = "table"
    JSON = "json"


class PictureFormat(StrEnum):
    """Format of the file of an image."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"
    HTML = "html"


def explain(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, folders with their subfolders, archives, arrays, lists and tables "
            "of images.",
            show_default=False,
        ),
    ],
    run: RunOption = None,
    method: MethodOption = None,
    tpr: TprOption = None,
    threshold: ThresholdOption = None,
    neighbours: Annotated[
        int,
        typer.Option("--neighbours", metavar="K", help="Number of training images to show."),
    ] = 6,
    regions: Annotated[
        bool | None,
        typer.Option(
            "--regions/--no-regions",
            help="Compare regions of images by csd [default: if those of the training images are "
            "stored, or need at most 2 GiB].",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_folder("Write one picture per image, and index.html, into a new or empty folder."),
    ] = None,
    picture: Annotated[
        PictureFormat, typer.Option("--picture", help="A picture or an HTML page per image.")
    ] = PictureFormat.PNG,
    overwrite: OverwriteFilesOption = False,
    format_: Annotated[
        ExplainFormat, typer.Option("--format", help="Format of the explanations on stdout.")
    ] = ExplainFormat.TABLE,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    score_batch_size: BatchOption = None,
    columns: ColumnsOption = None,
    window: WindowOption = None,
    jpeg_draft: JpegDraftOfRunOption = False,
    skip_unreadable: SkipOption = False,
    store: StoreOption = None,
) -> None:
    """Show why images are out of distribution, or are not.

    For every image: methods of several kinds, the nearest training images and regions, and where a
    block of the network is quiet or loud. Exit code 1 if no image can be read.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.explain import (
        explanation_index,
        explanation_page,
        render_explanations,
    )
    from oodcli.compute.compute import Compute
    from oodcli.data.opening import with_columns
    from oodcli.errors import InvalidInputError
    from oodcli.screening.explaining import ExplainSettings
    from oodcli.screening.thresholds import ThresholdRule
    from oodcli.store.store import Store
    from oodcli.workflows.explain import INDEX, ExplainRequest
    from oodcli.workflows.explain import explain as explain_workflow

    (named,) = with_columns(columns, paths)
    result = explain_workflow(
        Store.at(store),
        ExplainRequest(
            paths=named,
            run=run,
            method=method,
            rule=ThresholdRule(tpr, threshold),
            settings=ExplainSettings(neighbours, regions),
            output=output,
            picture=picture.value,
            overwrite=overwrite,
            compute=Compute.of(device, amp=amp, batch_size=score_batch_size),
            skip_unreadable=skip_unreadable,
            window=window,
            jpeg_draft=jpeg_draft,
        ),
        page=explanation_page,
        progress=TerminalProgress(),
    )
    if result.output is None:
        print_stderr("note: for a picture of every image: --output DIR")
    elif result.fault is None:
        write_result(explanation_index(result), result.output / INDEX)
        print_stderr(f"{result.output / INDEX} lists the pictures")
    write_result(render_explanations(result, as_json=format_ is ExplainFormat.JSON), None)
    if result.fault is not None:
        raise InvalidInputError(result.fault)
