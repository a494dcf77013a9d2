"""Pictures of images side by side: what a method misjudges, and its right and wrong verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.reporting.plots import (
    CHOSEN,
    OOD_COLOUR,
    PAGE,
    SMALLEST,
    Picture,
    clipped,
    drawing,
)

ACROSS = 6
"""Number of images side by side on a sheet of errors."""


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """An image with a caption.

    Parameters
    ----------
    pixels
        uint8 ``(h, w, 3)``.
    caption
        A few short lines.
    """

    pixels: NDArray[np.uint8]
    caption: str


def picture_sheet(method: str, rows: Mapping[str, Sequence[Thumbnail]]) -> Picture:
    """Show images side by side, with a caption below each.

    Parameters
    ----------
    method
        Method that computed the scores.
    rows
        Images by heading of their row; all rows are aligned left.
    """
    title = f"Where {method} errs most: file, true and predicted class, and score"
    step, gap, line = (PAGE - 0.2) / ACROSS, 0.1, 0.18  # inches
    side = step - gap
    captions = [each.caption for thumbnails in rows.values() for each in thumbnails]
    band = side + gap + 0.14 * max(caption.count("\n") + 1 for caption in captions)
    lines = [max(1, -(-len(thumbnails) // ACROSS)) for thumbnails in rows.values()]
    heading = clipped(title, 76)
    top = 0.24 + 0.16 * heading.count("\n")
    height = top + sum(line + gap + each * band for each in lines)
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(PAGE, height))
        figure.suptitle(heading, y=1 - 0.04 / height, va="top")
        above = height - top
        for (common, thumbnails), down in zip(rows.items(), lines, strict=True):
            figure.text(gap / PAGE, above / height, clipped(common, 92, 1), va="top", weight="bold")
            for at, thumbnail in enumerate(thumbnails):
                x = gap + at % ACROSS * step
                y = above - line - at // ACROSS * band - side
                axes = figure.add_axes(
                    (x / PAGE, y / height, side / PAGE, side / height), frameon=False
                )
                axes.set_axis_off()
                axes.imshow(enlarged(thumbnail.pixels), interpolation="none")
                axes.set_title(thumbnail.caption, y=-0.03, va="top", pad=0)
            above -= line + gap + down * band
    return Picture(
        f"images-{method}",
        title,
        "; ".join(f"{len(images)} {common}" for common, images in rows.items()),
        figure,
        many_colours=True,
    )


@dataclass(frozen=True, eq=False)
class Quadrant:
    """One of four groups of images by their verdict.

    Parameters
    ----------
    heading
        What these images are and how many.
    right
        Whether the verdict is right.
    thumbnails
        Some of them.
    """

    heading: str
    right: bool
    thumbnails: Sequence[Thumbnail]


def verdict_sheet(method: str, quadrants: Sequence[Quadrant]) -> Picture:
    """Show right and wrong verdicts on ID and OOD images: 2 x 2 groups of two rows of images.

    Parameters
    ----------
    method
        Method that computed the scores.
    quadrants
        ID accepted, ID rejected, OOD accepted, OOD rejected; eight images in each at most.
    """
    title = f"Verdicts of {method}: what it is, → predicted class, score"
    side, step, band, line, top = 0.7, 0.86, 1.15, 0.2, 0.4  # inches
    height = top + 2 * (2 * band + 2 * line)
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        figure = Figure(figsize=(PAGE, height))
        figure.suptitle(clipped(title, 90, 1), fontsize=SMALLEST + 1, y=1 - 0.1 / height, va="top")
        for number, quadrant in enumerate(quadrants):
            left = 0.08 + (number % 2) * PAGE / 2
            above = height - top - (number // 2) * (2 * band + 2 * line)
            colour = CHOSEN if quadrant.right else OOD_COLOUR
            figure.add_artist(
                Rectangle(
                    ((left - 0.04) / PAGE, (above - 2 * band - line) / height),
                    (PAGE / 2 - 0.1) / PAGE,
                    (2 * band + 1.35 * line) / height,
                    fill=False,
                    edgecolor=colour,
                    linewidth=1.5,
                    linestyle="-" if quadrant.right else "--",
                )
            )
            heading = clipped(quadrant.heading, 52, 1)
            figure.text(left / PAGE, above / height, heading, fontsize=SMALLEST, va="top")
            for at, thumbnail in enumerate(quadrant.thumbnails):
                x, y = left + (at % 4) * step, above - line - (at // 4) * band - side
                axes = figure.add_axes(
                    (x / PAGE, y / height, side / PAGE, side / height), frameon=False
                )
                axes.set_axis_off()
                axes.imshow(enlarged(thumbnail.pixels), interpolation="none")
                axes.set_title(thumbnail.caption, fontsize=SMALLEST, y=-0.03, va="top", pad=0)
    return Picture(
        f"verdicts-{method}",
        title,
        "; ".join(quadrant.heading for quadrant in quadrants),
        figure,
        many_colours=True,
    )


def enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a small image enlarged without interpolation, so that viewers do not blur it."""
    times = max(1, -(-96 // max(pixels.shape[:2])))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
