"""The grammar of ``--resize``: how images of any size get to one size, and by which filter."""

import re
from dataclasses import dataclass
from typing import Self

from oodcli.errors import InvalidInputError

BILINEAR = "bilinear"
# Pillow's filters on 8-bit pixels, which average when they shrink; and torch's antialiased filter
# on floating-point pixels, which rounds once and not after each axis.
FILTERS = (BILINEAR, "bicubic", "lanczos", "nearest", "bicubic-torchvision")

_GRAMMAR = re.compile(r"(exact|shorter-crop(?::([1-9][0-9]{0,4}))?)(?::([a-z-]+))?")


@dataclass(frozen=True)
class Resize:
    """How images of any size get to one size.

    Parameters
    ----------
    crops
        Whether the shorter side is scaled and the centre is cut out, so that the form is kept; else
        height and width are scaled, each for itself.
    side
        Length of the shorter side before the centre is cut out, in pixels; None for that of what
        comes out.
    filter
        One of :data:`FILTERS`; None where none is named.
    """

    crops: bool
    side: int | None = None
    filter: str | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """Read what was written.

        Parameters
        ----------
        text
            ``exact``, ``shorter-crop`` or ``shorter-crop:SIDE``; a colon and a filter may follow.

        Raises
        ------
        InvalidInputError
            If it is none of these, or there is no such filter.

        Examples
        --------
        >>> Resize.of("shorter-crop:256:bicubic")
        Resize(crops=True, side=256, filter='bicubic')
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None or found[3] not in (None, *FILTERS):
            raise InvalidInputError(
                f"--resize must be exact, shorter-crop or shorter-crop:SIDE, not {text!r}; a "
                f"filter may follow, as in exact:bicubic: {', '.join(FILTERS)}"
            )
        how, side, filter_ = found.groups()
        return cls(how != "exact", None if side is None else int(side), filter_)

    @property
    def how(self) -> str:
        """What is written before the filter."""
        if not self.crops:
            return "exact"
        return "shorter-crop" if self.side is None else f"shorter-crop:{self.side}"

    @property
    def used(self) -> str:
        """The filter; where none is named it is bilinear, as in runs that know no other."""
        return self.filter or BILINEAR

    def __str__(self) -> str:
        """Return it as records have it: bilinear is not written."""
        return self.how if self.used == BILINEAR else f"{self.how}:{self.used}"
