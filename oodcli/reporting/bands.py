"""Sheets of bands below each other, as wide as a page of a paper: rows of images, lines of text."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from oodcli.reporting.explanations import Box, Pixels
from oodcli.reporting.plots import OOD_COLOUR, PAGE, SMALLEST, wrapped
from oodcli.reporting.sheets import enlarged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN, GAP = 0.1, 0.11
"""Inches at the edges of a sheet, and between images."""
LINE = 0.15
"""Height in inches of a line of text of the smallest size."""
ACROSS = 7
"""Number of images side by side in a full row."""
SIDE = (PAGE - 2 * MARGIN + GAP) / ACROSS - GAP
"""Width and height of an image in inches."""
CROSS = "✗"
"""The mark of another class."""
DARK = "#444444"

_FRAME = "#F0E442"

Draw = Callable[["Figure", "Place"], None]
"""Draws a band; it is given the figure and the distance of the band from the top."""


@dataclass(frozen=True)
class Place:
    """Where a band begins on a sheet, in inches from its top, and the height of the sheet."""

    top: float
    height: float

    def axes(
        self, figure: "Figure", left: float, top: float, width: float, height: float
    ) -> "Axes":
        """Add axes; the position is in inches from the left and from the top of the band."""
        bottom = self.height - self.top - top - height
        return figure.add_axes(
            (left / PAGE, bottom / self.height, width / PAGE, height / self.height)
        )

    def text(
        self, figure: "Figure", left: float, top: float, text: str, **how: str | float
    ) -> None:
        """Add lines of text whose upper left corner is at a position of the band."""
        at = (self.height - self.top - top) / self.height
        figure.text(left / PAGE, at, text, va="top", **how)  # type: ignore[arg-type]


@dataclass
class Sheet:
    """Bands below each other."""

    bands: list[tuple[float, Draw]] = field(default_factory=list)

    def add(self, height: float, draw: Draw) -> None:
        """Add a band of a height in inches."""
        self.bands.append((height, draw))

    def figure(self) -> "Figure":
        """Draw all bands."""
        from matplotlib.figure import Figure

        height = sum(each for each, _ in self.bands) + 2 * MARGIN
        figure = Figure(figsize=(PAGE, height))
        top = MARGIN
        for each, draw in self.bands:
            draw(figure, Place(top, height))
            top += each
        return figure


@dataclass(frozen=True, eq=False)
class Tile:
    """An image with lines below it.

    Parameters
    ----------
    image
        uint8 ``(h, w, 3)``; None if it cannot be read, which is drawn as a grey square.
    lines
        Lines, which are cut to the width of the image at their ends.
    file
        The last line: the name of its file, which is cut at its start; empty without one.
    box
        A region to be framed, in pixels of the image; None without one.
    other_class
        Whether it is of another class than the predicted one, which is marked by a dashed edge.
    """

    image: Pixels | None
    lines: tuple[str, ...]
    file: str = ""
    box: Box | None = None
    other_class: bool = False

    def caption(self, width: float) -> str:
        """Return the lines, cut to a width in inches."""
        lines = [fitted(line, width, SMALLEST) for line in self.lines]
        if self.file:
            lines.append(fitted(self.file, width, SMALLEST, cut_start))
        return "\n".join(lines)


def heading(text: str) -> tuple[float, Draw]:
    """Return a band with a heading, broken into lines."""
    lines = broken(text, SMALLEST + 1, weight="bold")

    def draw(figure: "Figure", place: Place) -> None:
        place.text(figure, MARGIN, 0, lines, fontsize=SMALLEST + 1, weight="bold")

    return 0.17 * (lines.count("\n") + 1) + 0.07, draw


def paragraphs(lines: Sequence[str], **how: str | float) -> tuple[float, Draw]:
    """Return a band with text, each line of which is broken where it is too long."""
    text = "\n".join(broken(line, SMALLEST) for line in lines)

    def draw(figure: "Figure", place: Place) -> None:
        place.text(figure, MARGIN, 0, text, fontsize=SMALLEST, **how)

    return LINE * (text.count("\n") + 1) + 0.08, draw


def row(tiles: Sequence[Tile], *, extra: float = 0.0, after: int = 0) -> tuple[float, Draw]:
    """Return a band with images side by side, in two rows of about the same length if need be.

    Parameters
    ----------
    tiles
        The images.
    extra, after
        Inches of additional room after the first ``after`` images, which makes all smaller.
    """
    down = -(-len(tiles) // ACROSS)
    across = -(-len(tiles) // down)
    side = SIDE - extra / ACROSS
    lines = max(len(each.lines) + bool(each.file) for each in tiles)
    band = side + 0.05 + lines * LINE + 0.07

    def draw(figure: "Figure", place: Place) -> None:
        for at, tile in enumerate(tiles):
            column = at % across
            left = MARGIN + column * (side + GAP) + (extra if column >= after else 0.0)
            top = at // across * band
            draw_tile(place.axes(figure, left, top, side, side), tile)
            below = tile.caption(side + GAP / 2)
            place.text(figure, left, top + side + 0.05, below, fontsize=SMALLEST)

    return down * band, draw


def draw_tile(axes: "Axes", tile: Tile) -> None:
    """Draw an image with its frame and its mark."""
    axes.set(xticks=[], yticks=[])
    if tile.image is None:
        axes.set_facecolor("#DDDDDD")
        axes.text(0.5, 0.5, "no pixels", ha="center", va="center", fontsize=SMALLEST)
    else:
        axes.set_axis_off()
        show(axes, tile.image)
        if tile.box is not None:
            _frame(axes, tile.box)
    if tile.other_class:
        _mark(axes)


def show(axes: "Axes", image: Pixels) -> None:
    """Show an image; coordinates are those of its pixels, with the origin at the upper left."""
    height, width = image.shape[:2]
    axes.imshow(enlarged(image), interpolation="none", extent=(0, width, height, 0))


def _frame(axes: "Axes", box: Box) -> None:
    """Draw a frame, visible on light and on dark images; no wider than the image."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    for colour, line in (("black", 4.4), (_FRAME, 2.2)):
        frame = Rectangle(
            (left, top), right - left, bottom - top,
            fill=False, edgecolor=colour, linewidth=line,
        )  # fmt: skip
        axes.add_patch(frame)


def _mark(axes: "Axes") -> None:
    """Draw a dashed edge around an image, outside of it."""
    from matplotlib.patches import Rectangle

    beyond = 0.02
    edge = Rectangle(
        (-beyond, -beyond), 1 + 2 * beyond, 1 + 2 * beyond, transform=axes.transAxes,
        fill=False, edgecolor=OOD_COLOUR, linewidth=1.6, linestyle="--", clip_on=False,
    )  # fmt: skip
    axes.add_patch(edge)


def broken(text: str, points: float, weight: str = "normal", width: float | None = None) -> str:
    """Return text broken into lines of a width in inches, by default that of the sheet."""
    room = PAGE - 2 * MARGIN if width is None else width
    whole = inches(text, points, weight)
    if whole <= room:
        return text
    most = int(1.2 * len(text) * room / whole)
    for across in range(most, most // 2, -2):
        found = wrapped(text, across)
        if max(inches(line, points, weight) for line in found.split("\n")) <= room:
            break
    return found


def fitted(
    text: str, width: float, points: float, cut: Callable[[str, int], str] | None = None
) -> str:
    """Return a line cut to a width in inches, by default at its end; the font has ``points``."""
    shorten = cut or cut_end
    lengths = range(2, len(text) + 1)
    too_long = bisect.bisect_left(
        lengths, x=True, key=lambda length: inches(shorten(text, length), points) > width
    )
    return shorten(text, too_long + 1)


def inches(line: str, points: float, weight: str = "normal") -> float:
    """Return the width of a line of text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return float(width) / 72


def cut_end(text: str, length: int) -> str:
    """Return a line cut to a number of characters at its end."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def cut_start(text: str, length: int) -> str:
    """Return a line cut to a number of characters at its start: the end of a file name stays."""
    return text if len(text) <= length else f"…{text[len(text) - length + 1 :]}"


def cut_middle(text: str, length: int) -> str:
    """Return a line cut to a number of characters in its middle: the end of a path stays."""
    if len(text) <= length:
        return text
    end = 2 * (length - 1) // 3
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"
