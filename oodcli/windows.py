"""The grammar of ``--window``: which values of medical images are black, and which are white."""

import math
import re
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError

AXES = ("axial", "coronal", "sagittal")
"""Directions in which a volume is sliced; the first unless another is named."""

_NUMBER = r"[+-]?[0-9]{1,9}(?:\.[0-9]{1,9})?"
_GRAMMAR = re.compile(
    rf"(?:(?P<center>{_NUMBER})/(?P<width>{_NUMBER})|(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER}))"
    rf"(?::(?P<axis>{'|'.join(AXES)}))?"
)
# Values windowed at a time, so that no array of 8 bytes a pixel is held of a large image.
_BLOCK = 2**20


@dataclass(frozen=True)
class Window:
    """Values of an image that become grey levels; those below are black, those above white.

    Parameters
    ----------
    low
        The largest value that is black.
    high
        The smallest value that is white; not below ``low``.
    text
        The window as it was written, without the axis.
    axis
        Direction in which volumes are sliced, one of :data:`AXES`.
    """

    low: float
    high: float
    text: str
    axis: str = AXES[0]

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse the value of ``--window``.

        Parameters
        ----------
        text
            ``CENTER/WIDTH`` or ``LOW..HIGH`` in the units of the file (Hounsfield units of CT); a
            colon and one of :data:`AXES` may follow.

        Raises
        ------
        InvalidInputError
            If the text is neither, or the window has no width.

        Notes
        -----
        ``CENTER/WIDTH`` is the function LINEAR of DICOM PS3.3, C.11.2.1.2.1: black up to
        ``c - 0.5 - (w - 1) / 2``, white above ``c - 0.5 + (w - 1) / 2``. ``LOW..HIGH`` is black up
        to LOW and white from HIGH on, as LINEAR_EXACT (C.11.2.1.3.2) with the same ends.

        Examples
        --------
        >>> Window.of("40/400")
        Window(low=-160.0, high=239.0, text='40/400', axis='axial')
        >>> str(Window.of("-160..240:coronal"))
        '-160..240:coronal'
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None:
            raise InvalidInputError(
                f"--window must be CENTER/WIDTH or LOW..HIGH, such as 40/400 or -160..240, not "
                f"{text!r}; a direction of slices may follow, as in 40/400:coronal: "
                f"{', '.join(AXES)}"
            )
        values, axis = found.groupdict(), found["axis"] or AXES[0]
        plain = text.partition(":")[0]
        if values["center"] is not None:
            center, width = float(values["center"]), float(values["width"])
            if width < 1:
                raise InvalidInputError(
                    f"--window {text}: the width must be at least 1, not {width:g}; for values of "
                    "a smaller range, write LOW..HIGH"
                )
            half = (width - 1) / 2
            return cls(center - 0.5 - half, center - 0.5 + half, plain, axis)
        low, high = float(values["low"]), float(values["high"])
        if low >= high:
            raise InvalidInputError(
                f"--window {text}: LOW must be below HIGH; to show high values dark is not possible"
            )
        return cls(low, high, plain, axis)

    def __str__(self) -> str:
        """Return the window as stored in records, where ``axial`` is omitted."""
        return self.text if self.axis == AXES[0] else f"{self.text}:{self.axis}"

    def apply(
        self, values: NDArray[np.generic], *, slope: float = 1.0, intercept: float = 0.0
    ) -> NDArray[np.uint8]:
        """Return values as grey levels from 0 (black) to 255 (white), uint8 of the same shape.

        Parameters
        ----------
        values
            Stored values, ``(h, w)``.
        slope, intercept
            Stored values times ``slope`` plus ``intercept`` are in the units of the window.

        Notes
        -----
        Levels are rounded to the nearest, a half to the even one. What is not a number is black.
        """
        levels = np.empty(values.shape, dtype=np.uint8)
        rows = max(1, _BLOCK // max(1, math.prod(values.shape[1:])))
        for at in range(0, len(values), rows):
            some = values[at : at + rows].astype(np.float64) * slope + intercept
            if self.high == self.low:
                shares = (some > self.low).astype(np.float64)
            else:
                shares = (some - self.low) / (self.high - self.low)
            grey = np.rint(np.nan_to_num(shares, nan=0.0).clip(0, 1) * 255)
            levels[at : at + rows] = grey.astype(np.uint8)
        return levels


def axis_of(window: Window | None) -> str:
    """Return the direction in which volumes are sliced."""
    return AXES[0] if window is None else window.axis


def canonical(text: str | None) -> str:
    """Return the value of ``--window`` as records have it; empty if there is none."""
    return str(window_of(text) or "")


def window_of(text: str | None) -> Window | None:
    """Return the window of an option or a record; None if there is none.

    Parameters
    ----------
    text
        As for :meth:`Window.of`; empty or None for no window.

    Raises
    ------
    InvalidInputError
        If it is no window.
    """
    return Window.of(text) if text else None
