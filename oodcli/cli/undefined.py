"""The exit code of a command that skipped a requested method."""

from collections.abc import Mapping

import typer

from oodcli.cli.console import print_stderr


def exit_if_undefined(reasons: Mapping[str, str]) -> None:
    """Report on stderr why requested methods are missing, and exit with code 1.

    Parameters
    ----------
    reasons
        Why a requested method is not defined, by its name; if empty, nothing happens.
    """
    from oodcli.scoring.fitting import reason_with_name

    for name, reason in reasons.items():
        print_stderr(f"error: {reason_with_name(name, reason)}")
    if reasons:
        raise typer.Exit(1)
