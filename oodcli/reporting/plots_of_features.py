"""Pictures of features: t-SNE (MODE), and sums of the largest of them (SCALE); reads no file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oodcli.images import evenly_spaced
from oodcli.metrics import Curve
from oodcli.reporting.embedding import Embedding
from oodcli.reporting.plots import (
    COLOURS,
    COLUMN,
    GREY,
    ID_COLOUR,
    MARKERS,
    OOD_COLOUR,
    PAGE,
    SMALLEST,
    Picture,
    Scores,
    clipped,
    column_figure,
    drawing,
    legend_below,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 21
"""Number of classes up to which every class has a look of its own."""

_NAME = 20  # characters of a line of a title of a panel
_CLASS = 14
_ALL = "in distribution, all classes"
_PER_SET = 1_000  # images of a set in a scatter plot


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of ID images.

    Parameters
    ----------
    labels
        Index of the class of every ID image, ``(n,)``.
    names
        Names of the classes.
    """

    labels: NDArray[np.integer]
    names: Sequence[str]


def tsne_map(run: str, embedding: Embedding, classes: Classes | None) -> Picture:
    """Draw images in two dimensions: ID images by class, then every OOD set over the ID images.

    Parameters
    ----------
    run
        Name of the run.
    embedding
        The result of :func:`oodcli.reporting.embedding.stored_embedding`; the ID set comes first.
    classes
        Classes of the ID images; None where they are not known.
    """
    id_name, *ood = embedding.points
    title = f"t-SNE of the features of {embedding.n_points:,} images: {run}"
    id_points = embedding.points[id_name]
    with drawing():
        figure, panels = _square_panels(title, len(ood) + 1)
        _draw_classes(panels[0], id_points, embedding.rows[id_name], classes)
        heading = clipped(f"{id_name} (ID), {len(id_points):,}", _NAME)
        panels[0].set_title(heading, fontsize=SMALLEST)
        for axes, name in zip(panels[1:], ood, strict=True):
            points = embedding.points[name]
            _draw_pair(axes, id_points, points, _ALL)
            axes.set_title(clipped(f"{name}, {len(points):,}", _NAME), fontsize=SMALLEST)
        limits = np.concatenate(list(embedding.points.values()))
        low, high = limits.min(axis=0), limits.max(axis=0)
        room = 0.04 * (high - low) + 1e-6
        for axes in panels:
            axes.set(xticks=[], yticks=[])
            axes.set_xlim(low[0] - room[0], high[0] + room[0])
            axes.set_ylim(low[1] - room[1], high[1] + room[1])
        _label_outer(panels, "t-SNE 1 (no unit)", "t-SNE 2 (no unit)")
        _legend(figure, panels)
    sets = ", ".join(f"{len(points):,} of {name}" for name, points in embedding.points.items())
    return Picture("tsne", title, f"t-SNE of features: {sets}", figure, many_colours=True)


def _draw_classes(
    axes: "Axes",
    points: NDArray[np.float32],
    rows: NDArray[np.int64],
    classes: Classes | None,
) -> None:
    """Draw ID images, every class with a colour and a marker of its own where they are few."""
    if classes is None or len(classes.names) > MAX_CLASSES:
        _scatter(axes, points, ID_COLOUR, "o", _ALL)
        return
    labels = classes.labels[rows]
    # The seven colours, then again with the next marker.
    for at, name in enumerate(classes.names):
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at // len(COLOURS)]
        _scatter(axes, points[labels == at], colour, marker, clipped(name, _CLASS, 1))


def _draw_pair(axes: "Axes", id_points: NDArray[Any], points: NDArray[Any], id_label: str) -> None:
    _scatter(axes, id_points, ID_COLOUR, "o", id_label)
    _scatter(axes, points, OOD_COLOUR, "^", "out of distribution")


def _scatter(axes: "Axes", points: NDArray[Any], colour: str, marker: str, label: str) -> None:
    """Draw points, in vector formats as pixels: thousands of points make large files."""
    axes.scatter(
        points[:, 0], points[:, 1],
        s=5, c=colour, marker=marker, alpha=0.5, linewidths=0, label=label, rasterized=True,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class TopSums:
    """Sums of the features of images.

    Parameters
    ----------
    total
        Sum of all features of every image, ``(n,)``.
    top
        Sum of the largest, ``(n,)``.
    """

    total: NDArray[np.float64]
    top: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float32], percentile: float) -> "TopSums":
        """Return the sums of features ``(n, d)``.

        Parameters
        ----------
        features
            Features of the images, 0 or more.
        percentile
            Share of features that are not among the largest, in percent.

        References
        ----------
        Xu, Chen, Franchi, Yao. "Scaling for Training Time and Post-hoc Out-of-distribution
        Detection Enhancement". ICLR 2024: ``k = d - round(d p / 100)`` features are the largest,
        at least one; halves are rounded to even.

        Examples
        --------
        >>> found = TopSums.of(np.array([[1, 4, 3, 0]], np.float32), 50)
        >>> found.total.tolist(), found.top.tolist()
        ([8.0], [7.0])
        """
        values = np.sort(features.astype(np.float64), axis=1)
        width = values.shape[1]
        count = max(1, width - round(width * percentile / 100))
        return cls(values.sum(axis=1), values[:, width - count :].sum(axis=1))

    @property
    def ratio(self) -> Scores:
        """Sum of all over the sum of the largest, ``(n,)``; 1 where both are 0."""
        positive = self.top > 0
        return np.divide(self.total, self.top, out=np.ones_like(self.total), where=positive)


def sums_scatter(run: str, sums: Mapping[str, TopSums], percentile: float) -> Picture:
    """Draw the sum of the largest features against the sum of all, one panel per OOD set.

    Parameters
    ----------
    run
        Name of the run.
    sums
        The sums by data set; the ID set comes first.
    percentile
        Share of features that are not among the largest, in percent.

    Notes
    -----
    The title of a panel has AUROC of the ratio of both sums, by which SCALE scales features, as a
    score, larger being ID: of all images, not only of those that are drawn.
    """
    id_name, *ood = sums
    largest = f"largest {100 - percentile:g} % of features"
    title = f"Sum of the {largest} against the sum of all, and AUROC of their ratio: {run}"
    auroc = {name: Curve.of(sums[id_name].ratio, sums[name].ratio).auroc() for name in ood}
    with drawing():
        figure, panels = _square_panels(title, len(ood))
        ends = np.percentile(np.concatenate([each.total for each in sums.values()]), [0, 99.8])
        heights = np.percentile(np.concatenate([each.top for each in sums.values()]), [0, 99.8])
        mean = float(sums[id_name].ratio.mean())
        for axes, name in zip(panels, ood, strict=True):
            pair = [_some(sums[each]) for each in (id_name, name)]
            _draw_pair(axes, pair[0], pair[1], "in distribution")
            axes.plot(
                ends, ends / mean, color=GREY, linestyle="--", linewidth=1.0,
                label="mean ratio of ID images",
            )  # fmt: skip
            axes.set_xlim(0.95 * ends[0], 1.05 * ends[1])
            axes.set_ylim(0.95 * heights[0], 1.05 * heights[1])
            text = f"{clipped(name, _NAME)}\nAUROC {100 * auroc[name]:.1f} %"
            axes.set_title(text, fontsize=SMALLEST)
            axes.tick_params(labelsize=SMALLEST)
            axes.locator_params(nbins=4)
        _label_outer(panels, "sum of all features", f"sum of the\n{largest}")
        _legend(figure, panels)
    values = ", ".join(f"{name} {100 * value:.1f} %" for name, value in auroc.items())
    return Picture(
        "sums",
        title,
        f"sum of the {largest} against the sum of all features; AUROC of their ratio: {values}",
        figure,
        many_colours=True,
    )


def _some(sums: TopSums) -> NDArray[np.float64]:
    """Return the sums of evenly spaced images, ``(m, 2)``."""
    return np.stack([sums.total, sums.top], axis=1)[evenly_spaced(len(sums.total), _PER_SET)]


def _square_panels(title: str, count: int) -> tuple["Figure", list["Axes"]]:
    """Return a figure with panels that are about square, at most four side by side."""
    across = _across(count)
    down = -(-count // across)
    width = COLUMN if across == 1 else PAGE
    side = (width - 0.5) / across
    height = side * (0.8 if across == 1 else 1.0) + 0.25
    figure = column_figure(title, width=width, height=down * height + 0.3)
    grid = figure.subplots(down, across, squeeze=False)
    flat = list(grid.flat)
    for unused in flat[count:]:
        unused.remove()
    for axes in flat[:count]:
        axes.grid(visible=False)
    return figure, flat[:count]


def _across(count: int) -> int:
    """Return the number of panels side by side: with the fewest places left empty."""
    if count <= 3:
        return count
    return min((4, 3), key=lambda each: -(-count // each) * each - count)


def _legend(figure: "Figure", panels: Sequence["Axes"]) -> None:
    """Add the legend below, with points that are larger than those in the panels, and opaque."""
    from matplotlib.collections import PathCollection

    legend_below(figure, panels)
    for handle in figure.legends[-1].legend_handles:
        if isinstance(handle, PathCollection):
            handle.set(sizes=[20], alpha=1)


def _label_outer(panels: Sequence["Axes"], x: str, y: str) -> None:
    """Label the axes at the left and at the bottom; the others are the same."""
    across = _across(len(panels))
    for number, axes in enumerate(panels):
        if number % across == 0:
            axes.set_ylabel(y, fontsize=SMALLEST)
        if number + across >= len(panels):
            axes.set_xlabel(x, fontsize=SMALLEST)
