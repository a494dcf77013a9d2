"""What a server says of a file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class State:
    """What a server says of a file.

    Parameters
    ----------
    size
        Number of bytes; -1 for what is like a folder.
    version
        What changes with the file: its ETag, time or the like; empty if the server names nothing.
    content
        All bytes, where the server sends no ranges.
    """

    size: int
    version: str
    content: bytes | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is like a folder."""
        return self.size < 0
