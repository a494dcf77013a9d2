"""Progress on stderr: a bar where somebody watches, plain lines where a file does."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from oodcli.progress import Task

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console


class _Bar:
    """One line of a Rich progress display."""

    def __init__(self, display: "rich.progress.Progress", task: "rich.progress.TaskID") -> None:
        self._display = display
        self._task = task

    def advance(self, amount: int, /, **fields: str) -> None:
        """Move the bar, and show the fields behind it."""
        if fields:
            self._display.update(self._task, advance=amount, fields=_joined(fields))
        else:
            self._display.advance(self._task, amount)


class _Lines:
    """A task whose steps are worth a line each."""

    def __init__(self, description: str, unit: str) -> None:
        self._description = description
        self._unit = unit
        self._start = time.perf_counter()
        self.done = 0

    def advance(self, amount: int, /, **fields: str) -> None:
        """Count, and print a line when there is something to say."""
        self.done += amount
        if fields:
            print(f"{self._description}: {_joined(fields)}, {self.rate()}", file=sys.stderr)

    def rate(self) -> str:
        """Return units a second so far."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        return f"{self.done / seconds:,.0f} {self._unit}/s"


def _joined(fields: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in fields.items())


class TerminalProgress:
    """Shows notes and progress on stderr."""

    def note(self, message: str, /) -> None:
        """Print one line."""
        print(message, file=sys.stderr)

    @contextmanager
    def task(self, description: str, /, *, total: int | None, unit: str) -> Iterator[Task]:
        """Show the work as a bar on a terminal; elsewhere say how it ended."""
        if not sys.stderr.isatty():
            lines = _Lines(description, unit)
            yield lines
            print(f"{description}: {lines.done:,} {unit}, {lines.rate()}", file=sys.stderr)
            return
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            _RateColumn.column(unit),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[fields]}", markup=False),
            console=_console(),
        )
        with display:
            yield _Bar(display, display.add_task(description, total=total, fields=""))


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


class _RateColumn:
    """Units a second of a task."""

    @staticmethod
    def column(unit: str) -> "rich.progress.ProgressColumn":
        """Return the column for a unit."""
        from rich.progress import ProgressColumn
        from rich.progress import Task as RichTask
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: RichTask) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.0f} {unit}/s" if speed else "", style="dim")

        return Rate()
