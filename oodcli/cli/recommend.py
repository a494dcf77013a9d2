"""``ood recommend``."""

from typing import Annotated

import typer

from oodcli.cli import completion
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


def recommend(
    run: RunOption = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            autocompletion=completion.methods,
            metavar="NAME[:KEY=VALUE,…]",
            help="Choose among these methods; can be repeated [default: every method that works "
            "from stored activations, and ensembles].",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Use N ID images, evenly spaced."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of noise, jigsaws and bootstrap samples.")
    ] = 0,
    every: Annotated[
        bool,
        typer.Option("--all", help="Show every candidate, not only the best of the best methods."),
    ] = False,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    score_batch_size: BatchOption = None,
    skip_unreadable: SkipOption = False,
    format_: FormatOption = Format.TABLE,
    output: OutputOption = None,
    store: StoreOption = None,
) -> None:
    """Choose a method without OOD images.

    Candidates are compared on validation images and corrupted copies of them.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.recommend import render_recommendation
    from oodcli.cli.undefined import exit_if_undefined
    from oodcli.compute.compute import Compute
    from oodcli.store.store import Store
    from oodcli.workflows.recommend import RecommendRequest
    from oodcli.workflows.recommend import recommend as recommend_workflow

    found = recommend_workflow(
        Store.at(store),
        RecommendRequest(
            run=run,
            methods=tuple(method or ()),
            limit=limit,
            seed=seed,
            compute=Compute.of(device, amp=amp, batch_size=score_batch_size),
            skip_unreadable=skip_unreadable,
        ),
        progress=TerminalProgress(),
    )
    text = render_recommendation(found, format_, every=every, to_file=output is not None)
    write_result(text, output)
    exit_if_undefined(found.undefined(method) if method else {})
