"""A plot of drift: share of OOD images and distances of every group, in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oodcli.errors import InvalidInputError
from oodcli.reporting.plots import (
    FORMATS,
    ID_COLOUR,
    OOD_COLOUR,
    PAGE,
    Picture,
    clipped,
    column_figure,
    drawing,
    legend_below,
)

_LABELS = 30  # so many groups are named on the axis
_DISTANCES = {
    "scores": ("Kolmogorov-Smirnov distance of scores", "#009E73", "s", "--"),
    "features": ("maximum mean discrepancy of features", "#CC79A7", "D", "-."),
}


@dataclass(frozen=True)
class GroupPoint:
    """A group in the plot.

    Parameters
    ----------
    name
        Its name.
    share
        Share of OOD images.
    interval
        95 % interval of the share.
    expected
        Interval of the share of images like the reference; None if not known.
    distances
        Statistics of other tests, by name.
    changed
        Whether it changed.
    """

    name: str
    share: float
    interval: tuple[float, float]
    expected: tuple[float | None, float | None]
    distances: Mapping[str, float]
    changed: bool


def check_plot(path: Path) -> None:
    """Check that the extension of a file is that of a picture.

    Raises
    ------
    InvalidInputError
        If it is not.
    """
    if path.suffix[1:].lower() not in FORMATS:
        named = ", ".join(f".{each}" for each in FORMATS)
        raise InvalidInputError(f"the extension of {path} must be one of {named}; choose one")


def drift_picture(points: Sequence[GroupPoint], title: str) -> Picture:
    """Return a picture with the share of OOD images above, and distances below.

    Parameters
    ----------
    points
        The groups, in order, at least one.
    title
        Title.
    """
    with drawing():
        from matplotlib.ticker import FixedLocator

        at = np.arange(len(points))
        figure = column_figure(title, width=PAGE, height=4.6)
        shares, distances = figure.subplots(2, 1, sharex=True)
        share = 100 * np.array([each.share for each in points])
        ends = 100 * np.array([each.interval for each in points])
        expected = [each.expected for each in points]
        if all(low is not None and high is not None for low, high in expected):
            band = 100 * np.array(expected, dtype=np.float64)
            shares.fill_between(
                at, band[:, 0], band[:, 1], color=ID_COLOUR, alpha=0.2, step="mid",
                label="expected of images like the reference (95 %)",
            )  # fmt: skip
        spread = np.maximum(np.abs(ends.T - share), 0.0)
        shares.errorbar(
            at, share, spread, fmt="o", color=ID_COLOUR, ms=4, lw=1, label="share (95 % interval)"
        )
        changed = np.array([each.changed for each in points])
        if changed.any():
            shares.plot(at[changed], share[changed], "X", color=OOD_COLOUR, ms=8, label="changed")
        shares.set_ylabel("OOD images (%)")
        for name, (label, colour, marker, style) in _DISTANCES.items():
            values = [each.distances.get(name, np.nan) for each in points]
            if not np.isnan(values).all():
                distances.plot(at, values, style, marker=marker, color=colour, ms=4, label=label)
        distances.set_ylim(bottom=0)
        distances.set_ylabel("distance (no unit)")
        step = -(-len(points) // _LABELS)
        distances.xaxis.set_major_locator(FixedLocator(list(at[::step])))
        distances.set_xticklabels(
            [clipped(each.name, 24, 1) for each in points[::step]], rotation=90
        )
        legend_below(figure, [shares, distances])
    first = next((each.name for each in points if each.changed), None)
    alt = "no group changed" if first is None else f"the first group that changed is {first}"
    return Picture("drift", title, f"Share of OOD images by group; {alt}", figure)
