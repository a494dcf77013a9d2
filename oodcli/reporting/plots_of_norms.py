"""Pictures of norms: of blocks (FeatureNorm) and of features (T2FNorm); reads no file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oodcli.metrics import Curve
from oodcli.reporting.plots import (
    CHOSEN,
    COLOURS,
    COLUMN,
    GREY,
    ID_COLOUR,
    MARKERS,
    OOD_COLOUR,
    PAGE,
    SMALLEST,
    STYLES,
    Picture,
    Scores,
    clipped,
    column_figure,
    drawing,
    legend_below,
    plain_ticks,
    width_for_blocks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JIGSAW = "jigsaw puzzles of training images"
MAX_PANELS = 3
"""Maximum number of panels of histograms side by side."""
_BINS = 60
_NAME = 16  # characters of a line of the name of a set


@dataclass(frozen=True, eq=False)
class NormPanel:
    """Histograms of norms by data set, on one axis.

    Parameters
    ----------
    title
        Title of the panel.
    id_name
        Name of the ID set.
    norms
        Norm of every image, ``(n,)``, by data set; the ID set comes first.
    """

    title: str
    id_name: str
    norms: Mapping[str, Scores]

    def edges(self) -> NDArray[np.float64]:
        """Return the edges of the bins, ``(61,)``: the range of all sets but 0.2 % on each side."""
        ends = np.array([np.percentile(values, [0.2, 99.8]) for values in self.norms.values()])
        low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
        if low == high:
            low, high = low - 0.5, high + 0.5
        return np.linspace(low, high, _BINS + 1)

    def shares(self) -> dict[str, NDArray[np.float64]]:
        """Return the share of images in every bin, ``(60,)``, by data set; outliers at the ends."""
        edges = self.edges()
        return {
            name: np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
            for name, values in self.norms.items()
        }

    def auroc(self) -> dict[str, float]:
        """Return AUROC of the norm as a score, larger being ID, by OOD set."""
        id_norms = self.norms[self.id_name]
        return {
            name: Curve.of(id_norms, values).auroc()
            for name, values in self.norms.items()
            if name != self.id_name
        }

    def ratios(self) -> dict[str, float]:
        """Return the mean norm of ID images over that of OOD images, by OOD set; NaN over 0."""
        id_mean = float(np.mean(self.norms[self.id_name]))
        means = {name: float(np.mean(self.norms[name])) for name in self.auroc()}
        return {name: id_mean / mean if mean > 0 else math.nan for name, mean in means.items()}


def norm_histograms(
    name: str, title: str, panels: Sequence[NormPanel], *, x: str, ratios: bool = False
) -> Picture:
    """Draw histograms of norms, one row for each data set and panels side by side.

    Parameters
    ----------
    name, title
        Name and title of the picture.
    panels
        At most three; all of the same ID set and OOD sets.
    x
        Label of the axis.
    ratios
        Whether the ratio of the mean norms of ID and OOD images stands beside AUROC.

    Notes
    -----
    Every row is scaled by its largest bin. The ID images are outlined in the rows of OOD sets.
    """
    sets = list(panels[0].norms)
    with drawing():
        width = COLUMN if len(panels) == 1 else PAGE
        figure = column_figure(title, width=width, height=0.4 * len(sets) + 1.1)
        row_of_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for number, (axes, panel) in enumerate(zip(row_of_axes, panels, strict=True)):
            _draw_rows(axes, panel, ratios=ratios)
            axes.set_xlabel(x if len(panels) < 3 else clipped(x, 28), fontsize=SMALLEST)
            names = [clipped(each, _NAME) for each in sets] if number == 0 else []
            axes.set_yticks([-at for at in range(len(names))], names, fontsize=SMALLEST)
        row_of_axes[0].set_ylabel("share of images", fontsize=SMALLEST)
        legend_below(figure, list(row_of_axes))
    values = "; ".join(
        f"{panel.title}: "
        + ", ".join(f"{each} AUROC {100 * value:.1f} %" for each, value in panel.auroc().items())
        for panel in panels
    )
    return Picture(name, title, f"histograms of norms of {', '.join(sets)}. {values}", figure)


def _draw_rows(axes: "Axes", panel: NormPanel, *, ratios: bool) -> None:
    edges, shares = panel.edges(), panel.shares()
    id_shares = shares[panel.id_name]
    auroc, ratio = panel.auroc(), panel.ratios()
    for at, (name, values) in enumerate(shares.items()):
        is_id = name == panel.id_name
        scale = 0.85 / max(values.max(), id_shares.max())
        base = -at - 0.4
        axes.stairs(
            base + scale * values,
            edges,
            baseline=base,
            fill=True,
            color=ID_COLOUR if is_id else OOD_COLOUR,
            alpha=0.6,
            label="in distribution" if is_id else "out of distribution",
        )
        if is_id:
            continue
        axes.stairs(
            base + scale * id_shares,
            edges,
            baseline=base,
            color=ID_COLOUR,
            linewidth=0.9,
            label="in distribution, for comparison",
        )
        text = f"{100 * auroc[name]:.1f} %" + (f"\n×{ratio[name]:.2f}" if ratios else "")
        axes.text(
            1.02, -at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALLEST
        )
    heading = "AUROC" + ("\nID/OOD" if ratios else "")
    axes.text(1.02, 0, heading, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_ylim(-len(shares) + 0.5, 0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="x", labelsize=SMALLEST)
    axes.tick_params(axis="y", length=0)
    axes.set_title(clipped(panel.title, 34), fontsize=SMALLEST)


def mean_norms(
    norms: Mapping[str, Sequence[Scores | None]], jigsaw: NDArray[np.float32] | None
) -> dict[str, NDArray[np.float64]]:
    """Return the mean FeatureNorm of every block, ``(b,)``, by data set.

    Parameters
    ----------
    norms
        FeatureNorm of every block, ``(n,)``, by data set; None where it is not known.
    jigsaw
        FeatureNorm of jigsaw puzzles, ``(n, b)``; None where it is not known.

    Returns
    -------
    dict
        NaN for an unknown block; :data:`JIGSAW` comes after the first set.

    Examples
    --------
    >>> norms = {"id": [np.array([1.0, 3.0]), None], "svhn": [np.array([5.0]), None]}
    >>> found = mean_norms(norms, np.array([[1, 2], [3, 4]], np.float32))
    >>> {name: values.tolist() for name, values in found.items()}
    {'id': [2.0, nan], 'jigsaw puzzles of training images': [2.0, 3.0], 'svhn': [5.0, nan]}
    """
    means = {
        name: np.array([math.nan if each is None else float(np.mean(each)) for each in blocks])
        for name, blocks in norms.items()
    }
    if jigsaw is None:
        return means
    first = next(iter(means))
    puzzles = jigsaw.mean(axis=0, dtype=np.float64)
    return {first: means.pop(first), JIGSAW: puzzles, **means}


def norm_by_depth(run: str, means: Mapping[str, NDArray[np.float64]]) -> Picture:
    """Draw the mean FeatureNorm of every block, one line for each data set.

    Parameters
    ----------
    run
        Name of the run.
    means
        The result of :func:`mean_norms`; the ID set comes first.
    """
    title = f"Mean FeatureNorm by depth of {run}"
    values = np.array(list(means.values()))
    known = values[np.isfinite(values) & (values > 0)]
    n_blocks = values.shape[1]
    with drawing():
        from matplotlib.ticker import MaxNLocator

        figure = column_figure(title, width=width_for_blocks(n_blocks), height=2.4)
        axes = figure.subplots()
        ood = 0
        for at, (name, line) in enumerate(means.items()):
            look: dict[str, Any]
            if at == 0:
                look = {"color": ID_COLOUR, "linewidth": 2.4, "marker": "o"}
            elif name == JIGSAW:
                look = {"color": "black", "linestyle": "--", "linewidth": 1.4, "marker": "x"}
            else:
                # The colours but those of the ID set and of the puzzles.
                look = {
                    "color": COLOURS[1 + ood % 5],
                    "linestyle": STYLES[(ood // 5) % len(STYLES)],
                    "marker": MARKERS[(1 + ood) % len(MARKERS)],
                }
                ood += 1
            label = clipped(f"{name} (ID)" if at == 0 else name, 34, 1)
            axes.plot(range(n_blocks), line, markersize=3.5, label=label, **look)
        if len(known) and known.max() > 20 * known.min():
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.set_xlabel("block (0 is the first)", fontsize=SMALLEST)
        axes.set_ylabel("mean FeatureNorm\n(units of activation)", fontsize=SMALLEST)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.tick_params(labelsize=SMALLEST)
        legend_below(figure, [axes])
    return Picture(
        "norm-depth",
        title,
        f"lines of the mean FeatureNorm over {n_blocks} blocks for {', '.join(means)}",
        figure,
    )


def normratio_and_auroc(
    run: str,
    ratios: Sequence[float],
    stderrs: Sequence[float],
    auroc: Mapping[str, Sequence[float]],
    *,
    selected: int,
) -> Picture:
    """Draw NormRatio of every block as a line over bars of AUROC, the selected block framed.

    Parameters
    ----------
    run
        Name of the run.
    ratios, stderrs
        NormRatio of every block and its standard error; NaN where it has none.
    auroc
        AUROC of FeatureNorm of every block, a fraction, by OOD set.
    selected
        Index of the selected block.

    Notes
    -----
    Bars are unweighted means over the sets, their whiskers the lowest and the highest set.
    """
    title = f"NormRatio and AUROC of FeatureNorm by block of {run}"
    values = 100 * np.array(list(auroc.values()), dtype=np.float64)  # (sets, b)
    places = np.arange(values.shape[1])
    means = values.mean(axis=0)
    with drawing():
        from matplotlib.patches import Rectangle
        from matplotlib.ticker import MaxNLocator

        figure = column_figure(title, width=width_for_blocks(len(places)), height=2.4)
        axes = figure.subplots()
        sets = "1 OOD set" if len(auroc) == 1 else f"mean of {len(auroc)} OOD sets"
        spread = np.array([means - values.min(axis=0), values.max(axis=0) - means])
        axes.bar(
            places,
            means,
            yerr=spread if len(auroc) > 1 else None,
            color="#BBBBBB",
            edgecolor=GREY,
            linewidth=0.6,
            error_kw={"elinewidth": 0.8, "ecolor": GREY},
            label=f"AUROC, {sets}" + (" (lowest to highest)" if len(auroc) > 1 else ""),
        )
        axes.set_ylim(0, 105)
        frame = Rectangle((selected - 0.48, 1), 0.96, 103, fill=False, edgecolor=CHOSEN)
        frame.set(linewidth=2, label="selected by NormRatio")
        axes.add_patch(frame)
        line = axes.twinx()
        line.errorbar(
            places,
            ratios,
            yerr=2 * np.asarray(stderrs, dtype=np.float64),
            color=ID_COLOUR,
            marker="o",
            markersize=4,
            linewidth=1.5,
            capsize=2,
            label="NormRatio (± 2 standard errors)",
        )
        line.grid(visible=False)
        line.spines["right"].set_visible(True)
        axes.set_xlabel("block (0 is the first)", fontsize=SMALLEST)
        axes.set_ylabel("AUROC (%)", fontsize=SMALLEST)
        line.set_ylabel("NormRatio (no unit)", fontsize=SMALLEST, color=ID_COLOUR)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        for each in (axes, line):
            each.tick_params(labelsize=SMALLEST)
        legend_below(figure, [axes, line])
    return Picture(
        "normratio-auroc",
        title,
        f"bars of AUROC and a line of NormRatio over {len(places)} blocks; block {selected} is "
        f"selected, with NormRatio {ratios[selected]:.3f} and AUROC {means[selected]:.1f} %",
        figure,
    )
