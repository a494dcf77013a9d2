"""Errors that the user can correct.

::

    OodError
    ├── UnknownNameError       a name that is in no registry
    ├── InvalidInputError      a value, file or option that cannot be used
    │   ├── UnreadableImageError   one image that cannot be decoded
    │   └── UndefinedMethodError   a method that is not defined for this network or data
    ├── MissingArtifactError   something that must be created or downloaded first
    ├── CorruptArtifactError   a stored file whose content differs from what was written
    └── DownloadError          a failed download

Each message is one line: what is wrong, with the value, then the cure. The command line prints it
and exits with code 1. Every other exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable
from itertools import takewhile


class OodError(Exception):
    """An error that the user can correct; its text is shown unchanged."""


class UnknownNameError(OodError):
    """A name that is in no registry."""

    @classmethod
    def among(
        cls, kind: str, name: str, known: Iterable[str], *, meant: str | None = None
    ) -> "UnknownNameError":
        """Build the message with the nearest known name, or with all of them.

        Parameters
        ----------
        kind
            Kind of thing that the name denotes, such as ``"method"``.
        name
            The unknown name.
        known
            The names that exist.
        meant
            The name that exists for the same thing, where the unknown one is a common alias of it;
            suggested instead of the nearest one.
        """
        names = sorted(set(known))
        lower = {each.lower(): each for each in names}
        near = meant if meant in names else None
        near = near or _nearest(name, names) or lower.get(_nearest(name.lower(), lower) or "")
        if near is not None:
            return cls(f"no {kind} {name!r}; did you mean {near!r}?")
        if not names:
            return cls(f"no {kind} {name!r}; none exists yet")
        return cls(f"no {kind} {name!r}; there are: {', '.join(names)}")


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar name; among equally similar ones, that with the longest prefix."""

    def similarity(other: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, other, name).ratio()
        equal = (ours == theirs for ours, theirs in zip(name, other, strict=False))
        return ratio, sum(takewhile(bool, equal))

    close = difflib.get_close_matches(name, known, n=9, cutoff=0.6)
    return max(close, key=similarity, default=None)


class InvalidInputError(OodError):
    """A value, file or option that cannot be used as it is."""


class UnreadableImageError(InvalidInputError):
    """An image file that cannot be decoded.

    Parameters
    ----------
    where
        Path of the file.
    reason
        Error message of the decoder; it may name an option that is the cure.
    cure
        What the user can do.
    """

    def __init__(
        self,
        where: str,
        reason: str,
        cure: str = "replace it, or skip such images: --skip-unreadable",
    ) -> None:
        # An image without a file is named "image 3".
        named = where.removeprefix("image ")
        if "--" in reason:
            cure = "or skip such images: --skip-unreadable"
        super().__init__(f"cannot read image {named}: {reason}; {cure}")
        self.where = where
        self.reason = reason


class UndefinedMethodError(InvalidInputError):
    """A method that is not defined for this network or data; within a group it is skipped."""


class MissingArtifactError(OodError):
    """Something that must be created or downloaded first."""


class CorruptArtifactError(OodError):
    """A stored file whose content differs from what was written."""


class DownloadError(OodError):
    """A download that failed: an error of the server or connection, or the wrong content."""
