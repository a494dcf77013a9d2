"""Options and exit codes of commands whose result is verdicts."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from oodcli.screening.findings import PredictResult

ALARM = 3
FOUND_OOD = 4

CsvSafeOption = Annotated[
    bool,
    typer.Option(
        "--csv-safe",
        help="Write CSV whose text no spreadsheet takes for a formula, with an apostrophe before "
        "=, +, -, @ and apostrophes.",
    ),
]
FailOption = Annotated[
    bool,
    typer.Option(
        "--fail-on-ood",
        help="Exit with code 3 if the share of OOD images is far above that of ID images (see "
        "--alarm-level).",
    ),
]
FailOnAnyOption = Annotated[
    bool, typer.Option("--fail-on-any-ood", help="Exit with code 4 if a single image is OOD.")
]
AlarmLevelOption = Annotated[
    float,
    typer.Option(
        "--alarm-level",
        metavar="P",
        help="Alarm if ID images alone would reach the share of OOD images with a probability "
        "below P.",
    ),
]


def exit_by(result: "PredictResult", *, fail_on_ood: bool, fail_on_any_ood: bool) -> None:
    """Exit with the code that a screening requires; return if that is 0.

    Raises
    ------
    InvalidInputError
        If no image could be judged.
    """
    from oodcli.errors import InvalidInputError

    if result.fault is not None:
        raise InvalidInputError(result.fault)
    if fail_on_ood and result.alarm:
        raise typer.Exit(ALARM)
    if fail_on_any_ood and result.tested.ood:
        raise typer.Exit(FOUND_OOD)
