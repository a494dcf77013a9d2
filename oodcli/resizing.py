"""The grammar of ``--resize``: how images are resized to one size, and with which filter."""

import re
from dataclasses import dataclass
from typing import Self

from oodcli.errors import InvalidInputError

BILINEAR = "bilinear"
# Pillow's antialiased filters on 8-bit pixels, and torch's antialiased filter on floating-point
# pixels, which rounds once instead of after each axis.
FILTERS = (BILINEAR, "bicubic", "lanczos", "nearest", "bicubic-torchvision")

_GRAMMAR = re.compile(
    r"(exact|shorter-crop(?::([1-9][0-9]{0,4}))?)(?::(?!draft$)([a-z-]+))?(:draft)?"
)


@dataclass(frozen=True)
class Resize:
    """How images of any size are resized to one size.

    Parameters
    ----------
    crops
        Whether the shorter side is scaled and the centre is cropped, which preserves the aspect
        ratio; otherwise height and width are scaled independently.
    side
        Length of the shorter side before the centre crop, in pixels; None for the length of the
        result.
    filter
        One of :data:`FILTERS`; None if not specified.
    draft
        Whether JPEG files are decoded at a reduced size where the filter then still shrinks them to
        half or less, see :func:`oodcli.data.decoding.files.decode`.
    """

    crops: bool
    side: int | None = None
    filter: str | None = None
    draft: bool = False

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse the value of ``--resize``.

        Parameters
        ----------
        text
            ``exact``, ``shorter-crop`` or ``shorter-crop:SIDE``; a colon and a filter may follow,
            then ``:draft``.

        Raises
        ------
        InvalidInputError
            If the text is none of these, or the filter does not exist.

        Examples
        --------
        >>> Resize.of("shorter-crop:256:bicubic")
        Resize(crops=True, side=256, filter='bicubic', draft=False)
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None or found[3] not in (None, *FILTERS):
            raise InvalidInputError(
                f"--resize must be exact, shorter-crop or shorter-crop:SIDE, not {text!r}; a "
                f"filter may follow, as in exact:bicubic: {', '.join(FILTERS)}"
            )
        how, side, filter_, draft = found.groups()
        length = None if side is None else int(side)
        return cls(how != "exact", length, filter_, draft is not None)

    @property
    def how(self) -> str:
        """The specification without the filter and the draft."""
        if not self.crops:
            return "exact"
        return "shorter-crop" if self.side is None else f"shorter-crop:{self.side}"

    @property
    def used(self) -> str:
        """The filter in use: bilinear if not specified, as in runs older than this choice."""
        return self.filter or BILINEAR

    def __str__(self) -> str:
        """Return the specification as stored in records, where bilinear is omitted."""
        how = self.how if self.used == BILINEAR else f"{self.how}:{self.used}"
        return f"{how}:draft" if self.draft else how
