"""Progress on stderr: a bar where somebody watches, plain lines where a file does."""

import atexit
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from oodcli.cli.speech import deliver, say
from oodcli.progress import Silent, Task
from oodcli.text import printable

if TYPE_CHECKING:
    import rich.progress


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
            say(f"{self._description}: {_joined(fields)}, {self.rate()}")

    def rate(self) -> str:
        """Return units a second so far."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        return f"{_amount(self.done / seconds, self._unit)}/s"


def _joined(fields: dict[str, str]) -> str:
    return printable("  ".join(f"{name} {value}" for name, value in fields.items()))


class TerminalProgress:
    """Shows notes and progress on stderr; work in several threads has a bar each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._display: rich.progress.Progress | None = None
        self._running = 0

    def write(self, text: str) -> None:
        """Print lines of a result as they come, above the bars where both are on one terminal."""
        with self._lock:
            if self._display is not None and sys.stdout.isatty():
                # Rich would wrap and colour what is printed; this passes it on as it is.
                self._display.console.out(text, end="", highlight=False)
                return
        deliver(text, None)

    def note(self, message: str, /) -> None:
        """Print one line."""
        say(message)

    @contextmanager
    def task(
        self, description: str, /, *, total: int | None, unit: str, passing: bool = False
    ) -> Iterator[Task]:
        """Show the work as a bar on a terminal; elsewhere say how it ended."""
        if not sys.stderr.isatty():
            if passing:
                with Silent().task(description, total=total, unit=unit) as unseen:
                    yield unseen
                return
            lines = _Lines(description, unit)
            yield lines
            one = unit.removesuffix("s") if lines.done == 1 else unit
            say(f"{description}: {_amount(lines.done, one)}, {lines.rate()}")
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
        """Return the one display of all tasks that run now."""
        with self._lock:
            if self._display is None:
                self._display = _display()
                self._display.start()
                # Threads that Ctrl-C leaves behind do not end their tasks; the cursor comes back.
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


def _amount(amount: float, unit: str) -> str:
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
        """Units a second of a task."""

        def render(self, task: RichTask) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{_amount(speed, task.fields['unit'])}/s" if speed else "", style="dim")

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
