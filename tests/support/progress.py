"""Progress that records notes and tasks, for tests."""

from oodcli.progress import Silent


class RecordingProgress:
    """Progress that records its notes and tasks."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[str] = []

    def note(self, message: str, /) -> None:
        """Record a note."""
        self.notes.append(message)

    def task(self, description: str, /, *, total: int | None, unit: str, passing: bool = False):
        """Record a task."""
        self.tasks.append(description)
        return Silent().task(description, total=total, unit=unit)
