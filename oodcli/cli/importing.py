"""``ood import``."""

from pathlib import Path
from typing import Annotated

import typer

from oodcli.cli.options import DataOption, StoreOption, three_numbers
from oodcli.cli.train import NameOption, ValOption, command_line


def import_(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="State dict: .pt, .pth, .th, .ckpt or .safetensors.", show_default=False
        ),
    ],
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            metavar="ARCH[:KEY=VALUE,…]",
            help="Its architecture, such as resnet18:stem_padding=2.",
            show_default=False,
        ),
    ],
    data: DataOption,
    mean: Annotated[
        str,
        typer.Option("--mean", help="Mean of the pixels it was trained with: one number or three."),
    ] = "0.5",
    std: Annotated[
        str, typer.Option("--std", help="Their standard deviation: one number or three.")
    ] = "0.5",
    name: NameOption = None,
    val_fraction: ValOption = 0.0,
    store: StoreOption = None,
) -> None:
    """Make a run of a checkpoint trained elsewhere."""
    from oodcli.cli.progress import TerminalProgress
    from oodcli.store import Store
    from oodcli.workflows.importing import import_checkpoint

    result = import_checkpoint(
        Store.at(store),
        checkpoint,
        arch=arch,
        data=data,
        name=name,
        mean=three_numbers("--mean", mean),
        std=three_numbers("--std", std),
        val_fraction=val_fraction,
        command=command_line(),
        progress=TerminalProgress(),
    )
    print(result.run)
