"""Progress on stderr: bars on a terminal, plain lines in a file or pipe."""

import atexit
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from oodcli.cli.console import print_stderr, write_result
from oodcli.progress import Silent, Task
from oodcli.text import printable

if TYPE_CHECKING:
    import rich.progress


class _Bar:
    """A task shown as a bar of a Rich progress display."""

    def __init__(self, display: "rich.progress.Progress", task: "rich.progress.TaskID") -> None:
        self._display = display
        self._task = task

    def advance(self, amount: int, /, **fields: str) -> None:
        """Advance the bar and show the fields after it."""
        if fields:
            self._display.update(self._task, advance=amount, fields=_format_fields(fields))
        else:
            self._display.advance(self._task, amount)


class _LineTask:
    """A task shown as plain lines."""

    def __init__(self, description: str, unit: str) -> None:
        self._description = description
        self._unit = unit
        self._start = time.perf_counter()
        self.done = 0

    def advance(self, amount: int, /, **fields: str) -> None:
        """Count the units, and print a line if there are fields to show."""
        self.done += amount
        if fields:
            print_stderr(f"{self._description}: {_format_fields(fields)}, {self.rate()}")

    def rate(self) -> str:
        """Return the mean speed so far, in units per second."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        return f"{_format_amount(self.done / seconds, self._unit)}/s"


def _format_fields(fields: dict[str, str]) -> str:
    return printable("  ".join(f"{name} {value}" for name, value in fields.items()))


class TerminalProgress:
    """Shows notes and progress on stderr; concurrent tasks have one bar each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._display: rich.progress.Progress | None = None
        self._running = 0

    def write(self, text: str) -> None:
        """Print lines of a result, above the bars if stdout and stderr are the same terminal."""
        with self._lock:
            if self._display is not None and sys.stdout.isatty():
                # Unlike print(), this method of Rich neither wraps nor colours the text.
                self._display.console.out(text, end="", highlight=False)
                return
        write_result(text, None)

    def note(self, message: str, /) -> None:
        """Print one line."""
        print_stderr(message)

    @contextmanager
    def task(
        self, description: str, /, *, total: int | None, unit: str, passing: bool = False
    ) -> Iterator[Task]:
        """Show a task as a bar on a terminal; otherwise print a line at its end."""
        if not sys.stderr.isatty():
            if passing:
                with Silent().task(description, total=total, unit=unit) as silent:
                    yield silent
                return
            lines = _LineTask(description, unit)
            yield lines
            noun = unit.removesuffix("s") if lines.done == 1 else unit
            print_stderr(f"{description}: {_format_amount(lines.done, noun)}, {lines.rate()}")
            return
        display = self._begin()
        try:
            task = display.add_task(printable(description), total=total, fields="", unit=unit)
            yield _Bar(display, task)
            if passing:
                display.remove_task(task)
        finally:
            self._end()

    def _begin(self) -> "rich.progress.Progress":
        """Return the display shared by all running tasks."""
        with self._lock:
            if self._display is None:
                self._display = _display()
                self._display.start()
                # Restores the cursor if threads do not end their tasks after Ctrl-C.
                atexit.register(self._display.stop)
            self._running += 1
            return self._display

    def _end(self) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0 and self._display is not None:
                self._display.stop()
                atexit.unregister(self._display.stop)
                self._display = None


def _format_amount(amount: float, unit: str) -> str:
    if unit not in ("byte", "bytes"):
        return f"{amount:,.0f} {unit}"
    from oodcli.cli.render.formats import human_bytes

    return human_bytes(amount)


def _display() -> "rich.progress.Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        """Speed of a task, in units per second."""

        def render(self, task: RichTask) -> Text:
            speed = task.finished_speed or task.speed
            return Text(
                f"{_format_amount(speed, task.fields['unit'])}/s" if speed else "", style="dim"
            )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[fields]}", markup=False),
        console=Console(stderr=True),
        redirect_stdout=False,
    )
