"""The end of a command that did without a method that was asked for."""

from collections.abc import Mapping

import typer

from oodcli.cli.speech import say


def end_without(reasons: Mapping[str, str]) -> None:
    """Say on stderr why methods that were asked for by name are missing, and end with exit code 1.

    Parameters
    ----------
    reasons
        Why each is not defined, by its name; if there is none, nothing happens.
    """
    from oodcli.scoring.fitting import refused

    for name, reason in reasons.items():
        say(f"error: {refused(name, reason)}")
    if reasons:
        raise typer.Exit(1)
