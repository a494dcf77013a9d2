"""``ood cluster``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oodcli.cli.console import print_stderr, write_result
from oodcli.cli.options import (
    AmpOption,
    BatchOption,
    DeviceOption,
    OverwriteFilesOption,
    RunOption,
    StoreOption,
    output_folder,
)

_AUTO = "auto"


class ClusterFormat(StrEnum):
    """Format of the clusters on stdout."""

    TABLE = "table"
    JSON = "json"


def cluster(
    verdicts: Annotated[
        Path,
        typer.Argument(
            metavar="VERDICTS",
            help="A file of verdicts that ood predict --output wrote.",
            show_default=False,
        ),
    ],
    run: RunOption = None,
    output: Annotated[
        Path | None,
        output_folder(
            "Write a contact sheet per cluster, and clusters.csv, into a new or empty folder."
        ),
    ] = None,
    overwrite: OverwriteFilesOption = False,
    clusters: Annotated[
        str,
        typer.Option(
            "--clusters",
            metavar="K|auto",
            help="Number of clusters; auto: from 2 to 12, by the silhouette.",
        ),
    ] = _AUTO,
    seed: Annotated[int, typer.Option("--seed", help="Seed of k-means.")] = 0,
    format_: Annotated[
        ClusterFormat, typer.Option("--format", help="Format of the clusters on stdout.")
    ] = ClusterFormat.TABLE,
    device: DeviceOption = "auto",
    amp: AmpOption = False,
    score_batch_size: BatchOption = None,
    store: StoreOption = None,
) -> None:
    """Group OOD images by what the network sees in them.

    Near-duplicates are joined first, then k-means on their features. These come from the file of
    ood predict --features, else from one forward pass over the OOD images.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.cluster import render_clusters
    from oodcli.compute.compute import Compute
    from oodcli.errors import InvalidInputError
    from oodcli.store.store import Store
    from oodcli.workflows.cluster import ClusterRequest
    from oodcli.workflows.cluster import cluster as cluster_workflow

    if clusters != _AUTO and not clusters.isdecimal():
        raise InvalidInputError(f"--clusters must be auto or a number, not {clusters!r}")
    result = cluster_workflow(
        Store.at(store),
        ClusterRequest(
            verdicts=verdicts,
            run=run,
            output=output,
            overwrite=overwrite,
            clusters=None if clusters == _AUTO else int(clusters),
            seed=seed,
            compute=Compute.of(device, amp=amp, batch_size=score_batch_size),
        ),
        progress=TerminalProgress(),
    )
    if result.output is None:
        print_stderr("note: for a contact sheet of every cluster: --output DIR")
    write_result(render_clusters(result, as_json=format_ is ClusterFormat.JSON), None)
