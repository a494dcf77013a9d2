"""Progress that tests look at."""

from oodcli.progress import Silent


class Notes:
    """Progress that remembers its notes and tasks."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[str] = []

    def note(self, message: str, /) -> None:
        """Remember a note."""
        self.notes.append(message)

    def task(self, description: str, /, *, total: int | None, unit: str, passing: bool = False):
        """Remember a task."""
        self.tasks.append(description)
        return Silent().task(description, total=total, unit=unit)
