"""``ood drift``."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodcli.cli.alarms import ALARM
from oodcli.cli.console import print_stderr, write_result
from oodcli.cli.options import StoreOption, writable_file

if TYPE_CHECKING:
    from oodcli.screening.drift import DriftResult


class DriftFormat(StrEnum):
    """Format of the result."""

    TABLE = "table"
    JSON = "json"


def drift(
    verdicts: Annotated[
        list[Path],
        typer.Argument(
            metavar="VERDICTS…",
            help="Files of verdicts that ood predict --group-by wrote, all shards of a screening, "
            "or a folder of them.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="VERDICTS|DETECTOR|RUN",
            help="Compare with the images of another file of verdicts, or with the ID images of a "
            "packed detector, an export or a run [default: the ID images behind the threshold, in "
            "the run that judged].",
            show_default=False,
        ),
    ] = None,
    level: Annotated[
        float,
        typer.Option(
            "--level",
            metavar="P",
            help="Probability of reporting any group if none changed: for all tests together.",
        ),
    ] = 0.05,
    format_: Annotated[
        DriftFormat, typer.Option("--format", help="Format of the result.")
    ] = DriftFormat.TABLE,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            callback=writable_file,
            help="Also draw the groups, to FILE.png, FILE.svg or FILE.pdf.",
        ),
    ] = None,
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="Exit with code 3 if a group changed.")
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of samples and permutations.")
    ] = 0,
    store: StoreOption = None,
) -> None:
    """Report which groups of judged images, such as days, differ from ID images.

    Compares the share of OOD images, the scores, the predicted classes and, if stored, the
    features of every group. Exit codes: 0, or with --fail-on-drift 3 if a group changed.
    """
    from oodcli.cli.progress import TerminalProgress
    from oodcli.cli.render.drift import render_drift
    from oodcli.cli.render.formats import write_json
    from oodcli.reporting.drift_plot import check_plot
    from oodcli.store.store import Store
    from oodcli.workflows.drift import DriftRequest
    from oodcli.workflows.drift import drift as drift_workflow

    if plot is not None:
        check_plot(plot)
    request = DriftRequest(verdicts, reference, level, seed)
    result = drift_workflow(Store.at(store), request, progress=TerminalProgress())
    if format_ is DriftFormat.JSON:
        write_result(write_json(result.to_json()), None)
    else:
        write_result(render_drift(result), None)
    if plot is not None:
        _write_plot(result, plot)
    if fail_on_drift and result.changed:
        raise typer.Exit(ALARM)


def _write_plot(result: "DriftResult", path: Path) -> None:
    from oodcli.reporting.drift_plot import GroupPoint, drift_picture
    from oodcli.reporting.plots import encoded
    from oodcli.store.store import open_output_file

    points = [
        GroupPoint(
            each.group,
            each.share,
            (each.share_low, each.share_high),
            (each.expected_low, each.expected_high),
            {test.name: test.statistic for test in each.tests if test.name != "share"},
            each.changed,
        )
        for each in result.groups
        if each.share is not None and each.share_low is not None and each.share_high is not None
    ]
    title = f"{result.detector['method']} against {result.reference}"
    with open_output_file(path) as stream:
        stream.write(encoded(drift_picture(points, title), path.suffix[1:].lower()))
    print_stderr(f"plot: {path}")
