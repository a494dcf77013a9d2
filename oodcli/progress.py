"""Progress of long work, reported without knowing a screen."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of long work under way."""

    def advance(self, amount: int, /, **fields: str) -> None:
        """Add finished units, and name values worth showing, such as ``loss="0.412"``."""


class Progress(Protocol):
    """Where long work and notes are announced."""

    def note(self, message: str, /) -> None:
        """Say one line that the user should know."""

    def task(
        self, description: str, /, *, total: int | None, unit: str, passing: bool = False
    ) -> AbstractContextManager[Task]:
        """Announce work of ``total`` units (None: unknown), for as long as the context lasts.

        What is ``passing`` leaves nothing behind: it is one of many parts of longer work.
        """


class _SilentTask:
    """A task that nobody watches."""

    def advance(self, amount: int, /, **fields: str) -> None:
        """Do nothing."""


class Silent:
    """Progress that nobody watches: the default of every workflow."""

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


def lasting(seconds: float) -> str:
    """Return a time in the unit that suits it.

    Examples
    --------
    >>> lasting(75), lasting(600), lasting(7200)
    ('75 s', '10 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
