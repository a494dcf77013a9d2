"""The end of a command that did without a method that was asked for."""

import sys
from collections.abc import Mapping

import typer


def end_without(reasons: Mapping[str, str]) -> None:
    """Say on stderr why methods that were asked for by name are missing, and end with exit code 1.

    Parameters
    ----------
    reasons
        Why each is not defined, by its name; if there is none, nothing happens.
    """
    from oodcli.workflows.detect import refused

    for name, reason in reasons.items():
        print(f"error: {refused(name, reason)}", file=sys.stderr)
    if reasons:
        raise typer.Exit(1)
