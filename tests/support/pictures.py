"""What is written in a picture, and whether any of it lies on another."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from oodcli.reporting.plots import Picture, encoded

LONG = "a name of a data set that is far too long for any axis of any picture, number "


def texts(picture: Picture) -> list[str]:
    """Return all that is written in a picture."""
    return [found.get_text() for found in picture.figure.findobj(Text) if found.get_text()]


def overlaps(picture: Picture) -> list[tuple[str, str]]:
    """Return the pairs of texts of a laid out picture that lie on one another, or beyond its edge.

    Titles, labels of axes and ticks, legends, and texts in the picture; not those of a legend
    among each other.
    """
    encoded(picture, "png")
    picture.figure.draw_without_rendering()  # the file has another resolution
    renderer = FigureCanvasAgg(picture.figure).get_renderer()
    parts = [*picture.figure.texts, *picture.figure.legends]
    for axes in picture.figure.axes:
        parts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_visible() and axes.axison:
                low, high = sorted(axis.get_view_interval())
                places = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
                parts += [label for at, label in places if low <= at <= high]
    named = [
        (part.get_text() if isinstance(part, Text) else "legend", part.get_window_extent(renderer))
        for part in parts
        if not isinstance(part, Text) or part.get_text()
    ]
    whole = Bbox.from_extents(-1, -1, picture.figure.bbox.width + 1, picture.figure.bbox.height + 1)
    outside = [
        (name, "edge")
        for name, box in named
        if box.x0 < whole.x0 or box.y0 < whole.y0 or box.x1 > whole.x1 or box.y1 > whole.y1
    ]
    return outside + [
        (name, other)
        for at, (name, box) in enumerate(named)
        for other, its in named[at + 1 :]
        if box.overlaps(its)
    ]


def smallest_text(picture: Picture) -> float:
    """Return the size in points of the smallest text of a picture."""
    found = picture.figure.findobj(lambda part: isinstance(part, Text) and bool(part.get_text()))
    return min(part.get_fontsize() for part in found)
