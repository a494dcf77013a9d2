"""Where the outliers or the mixing set of a training come from, as runs and tables name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from oodcli.records import as_json
from oodcli.text import counted, printable

_SHOWN_DIGITS = 12
# The set of fractals that is computed, see :mod:`oodcli.data.formats.fractals`.
FRACTALS = "fractals"


@dataclass(frozen=True)
class OutlierSource:
    """The outliers that a run is trained with, or its mixing set.

    Parameters
    ----------
    source
        The set, as it is opened again; or the kind of outliers that are made from the training
        images, such as ``jigsaw``.
    name
        Name of the set, or the kind.
    made
        Whether they are made from the training images: an extension of this tool.
    part
        Part of the set that they are; empty if they are made.
    images
        Number of images; 0 if they are made.
    digest
        Digest of their pixels at the size of the run, or, if those are not stored because they are
        too many, of the identity of their files (``of_files``); empty if they are made.
    of_files
        Whether the digest is that of files.
    """

    source: str
    name: str
    made: bool = False
    part: str = ""
    images: int = 0
    digest: str = ""
    of_files: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored with a run."""
        return as_json(self)

    @classmethod
    def of(cls, content: Mapping[str, Any] | None) -> Self | None:
        """Read a stored record; None if there is none.

        Raises
        ------
        TypeError
            If the content has unknown fields.
        """
        return None if content is None else cls(**content)

    @property
    def text(self) -> str:
        """The outliers in words, for tables and notes."""
        if self.made:
            return f"{self.name}, made from its training images (an extension of ood)"
        return self._of_set

    @property
    def of_mixing(self) -> str:
        """The mixing set of PixMix in words."""
        if self.source != FRACTALS:
            return self._of_set
        return f"{self._of_set} (computed by ood; not the published mixing set of PixMix)"

    @property
    def _of_set(self) -> str:
        of = "files" if self.of_files else "pixels"
        return (
            f"{printable(self.name)} {self.part}, {counted(self.images, 'image')}, digest of {of} "
            f"{self.digest[:_SHOWN_DIGITS]}"
        )
