"""Interfaces for reporting progress and notes, independent of any terminal."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One running piece of long work."""

    def advance(self, amount: int, /, **fields: str) -> None:
        """Add finished units; ``fields`` are values to display, such as ``loss="0.412"``."""


class Progress(Protocol):
    """Receiver of progress and notes."""

    def note(self, message: str, /) -> None:
        """Report one line of information to the user."""

    def task(
        self, description: str, /, *, total: int | None, unit: str, passing: bool = False
    ) -> AbstractContextManager[Task]:
        """Report a task of ``total`` units (None: unknown) for the duration of the context.

        A ``passing`` task, one of many parts of longer work, is removed from the display at its
        end.
        """


class _SilentTask:
    """A task without display."""

    def advance(self, amount: int, /, **fields: str) -> None:
        """Do nothing."""


class Silent:
    """Progress without display: the default of every workflow."""

    def note(self, message: str, /) -> None:
        """Do nothing."""

    @contextmanager
    def task(
        self,
        _description: str,
        /,
        *,
        total: int | None,  # noqa: ARG002
        unit: str,  # noqa: ARG002
        passing: bool = False,  # noqa: ARG002
    ) -> Iterator[Task]:
        """Yield a task that does nothing."""
        yield _SilentTask()


SILENT: Progress = Silent()


def format_duration(seconds: float) -> str:
    """Return a duration as text, in seconds, minutes or hours.

    Examples
    --------
    >>> format_duration(75), format_duration(600), format_duration(7200)
    ('75 s', '10 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
