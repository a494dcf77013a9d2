"""Errors that the user can correct.

::

    OodError
    ├── UnknownNameError       a name that is in no registry
    ├── InvalidInputError      a value, file or option that cannot be used
    │   ├── UnreadableImageError   one image that cannot be decoded
    │   └── UndefinedMethodError   a method that means nothing for this network or these data
    ├── MissingArtifactError   something that has to be made, downloaded or put there first
    ├── CorruptArtifactError   a stored file that is not what was written
    └── DownloadError          a server that did not give what was asked for

Each message is one line: what is wrong, with the value, then the cure. The command line prints it
and ends with exit code 1. Every other exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable
from itertools import takewhile


class OodError(Exception):
    """Anything the user can cure; its text is shown as it is."""


class UnknownNameError(OodError):
    """A name that no registry knows."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> "UnknownNameError":
        """Build the message with the nearest known name, or with all of them.

        Parameters
        ----------
        kind
            What the name stands for, such as ``"method"``.
        name
            The name that was given.
        known
            The names that exist.
        """
        names = sorted(set(known))
        lower = {each.lower(): each for each in names}
        near = _nearest(name, names) or lower.get(_nearest(name.lower(), lower) or "")
        if near is not None:
            return cls(f"no {kind} {name!r}; did you mean {near!r}?")
        if not names:
            return cls(f"no {kind} {name!r}; none exists yet")
        return cls(f"no {kind} {name!r}; there are: {', '.join(names)}")


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar name; of those alike, the one that agrees longest from the start."""

    def likeness(other: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, other, name).ratio()
        alike = (ours == theirs for ours, theirs in zip(name, other, strict=False))
        return ratio, sum(takewhile(bool, alike))

    return max(difflib.get_close_matches(name, known, n=9, cutoff=0.6), key=likeness, default=None)


class InvalidInputError(OodError):
    """A value, file or option that cannot be used as it is."""


class UnreadableImageError(InvalidInputError):
    """An image file that cannot be decoded.

    Parameters
    ----------
    where
        Path of the file.
    reason
        What the decoder said.
    cure
        What helps.
    """

    def __init__(
        self,
        where: str,
        reason: str,
        cure: str = "replace it, or skip such images: --skip-unreadable",
    ) -> None:
        # What has no file is called "image 3".
        named = where.removeprefix("image ")
        super().__init__(f"cannot read image {named}: {reason}; {cure}")
        self.where = where
        self.reason = reason


class UndefinedMethodError(InvalidInputError):
    """A method that means nothing for this network or these data; of a group it is left out."""


class MissingArtifactError(OodError):
    """Something that has to be made, downloaded or put there first."""


class CorruptArtifactError(OodError):
    """A stored file that is not what was written."""


class DownloadError(OodError):
    """A server that did not give what was asked for."""
