"""Pictures that compare methods: AUROC with intervals, ranks, and correlation; reads no file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodcli.errors import InvalidInputError
from oodcli.metrics import Curve
from oodcli.reporting.plots import (
    COLUMN,
    GREY,
    ID_COLOUR,
    PAGE,
    SMALLEST,
    Picture,
    Scores,
    clipped,
    column_figure,
    drawing,
    legend_below,
)
from oodcli.reporting.statistics import auroc_interval, mean_ranks, placements

MAX_METHODS = 12
"""Maximum number of methods in these pictures, unless more are named."""
FEW_SETS = 10
"""Number of data sets up to which the ranks hardly tell methods apart (Demšar, 2006)."""

_NAME = 18  # characters of a line of the name of a method
_CELL = 0.38  # inches, of the map of correlations
_VALUES = 12  # methods up to which every cell of a correlation has its value

Sets = Mapping[str, tuple[Scores, Mapping[str, Scores]]]
"""Scores of ID images and by OOD set, by method."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """Mean ranks of methods over data sets.

    Parameters
    ----------
    methods
        Methods, the one of the smallest mean rank first.
    ranks
        Mean rank of each; 1 is the best.
    n_sets
        Number of data sets.
    critical_difference
        Difference of mean ranks beyond which two methods differ at a level of 5 %.
    """

    methods: tuple[str, ...]
    ranks: NDArray[np.float64]
    n_sets: int
    critical_difference: float

    @property
    def is_hopeless(self) -> bool:
        """Whether not even the largest possible difference of ranks reaches the critical one."""
        return self.critical_difference > len(self.methods) - 1

    @property
    def as_good_as_first(self) -> tuple[str, ...]:
        """The methods, the first included, that do not differ from the first significantly."""
        near = self.ranks - self.ranks[0] <= self.critical_difference
        return tuple(name for name, close in zip(self.methods, near, strict=True) if close)


def critical_difference(n_methods: int, n_sets: int) -> float:
    """Return the difference of mean ranks beyond which two of all methods differ, at 5 %.

    References
    ----------
    Demšar. "Statistical Comparisons of Classifiers over Multiple Data Sets". JMLR 7, 2006: the test
    of Nemenyi, ``q sqrt(k (k + 1) / (6 N))`` for k methods and N sets, where q is the quantile
    of the studentised range, with infinite degrees of freedom, over the root of 2.

    Examples
    --------
    >>> round(critical_difference(5, 1) / (5 * 6 / 6) ** 0.5, 3)  # his table 5: 2.728
    2.728
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(0.95, n_methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(n_methods * (n_methods + 1) / (6 * n_sets))


def ranks_of(auroc: Mapping[str, Sequence[float]]) -> Ranks:
    """Return the mean ranks of methods by AUROC.

    Parameters
    ----------
    auroc
        AUROC on every OOD set by method; the same sets for all, at least two methods.

    Raises
    ------
    InvalidInputError
        If there are fewer than two methods.
    """
    if len(auroc) < 2:
        raise InvalidInputError("ranks need at least two methods")
    values = np.array(list(auroc.values()), dtype=np.float64)  # (m, s)
    means = mean_ranks(-values.T)
    order = np.argsort(means, kind="stable")
    names = list(auroc)
    return Ranks(
        tuple(names[at] for at in order),
        means[order],
        values.shape[1],
        critical_difference(len(names), values.shape[1]),
    )


def rank_diagram(run: str, ranks: Ranks) -> Picture:
    """Draw mean ranks with bars of the critical difference: where bars do not meet, methods differ.

    Parameters
    ----------
    run
        Name of the run.
    ranks
        The result of :func:`ranks_of`.

    Notes
    -----
    A bar extends by half the critical difference on either side of its mean rank. In contrast to
    the diagram of Demšar, whose lines join groups of methods, there is a row for each method, so
    that any number of names has room.
    """
    title = f"Mean ranks of methods by AUROC on {_sets(ranks.n_sets)}: {run}"
    n, half = len(ranks.methods), ranks.critical_difference / 2
    rows = np.arange(n)
    close = set(ranks.as_good_as_first)
    colours = [ID_COLOUR if name in close else GREY for name in ranks.methods]
    with drawing():
        figure = column_figure(title, height=0.3 * n + 1.1)
        axes = figure.subplots()
        axes.axvspan(
            ranks.ranks[0],
            ranks.ranks[0] + ranks.critical_difference,
            color=ID_COLOUR,
            alpha=0.12,
            linewidth=0,
            label=f"critical difference {ranks.critical_difference:.2f} from the first (Nemenyi)",
        )
        for row, rank, colour in zip(rows, ranks.ranks, colours, strict=True):
            axes.plot([rank - half, rank + half], [row, row], color=colour, linewidth=1.4)
            marker = "o" if colour == ID_COLOUR else "s"
            axes.plot(rank, row, marker, color=colour, markersize=5)
        axes.set_xlim(1 - half - 0.2, n + half + 0.2)
        axes.set_ylim(n - 0.4, -0.6)
        axes.set_yticks(rows, [clipped(name, _NAME) for name in ranks.methods], fontsize=SMALLEST)
        axes.set_xlabel(_rank_label(ranks), fontsize=SMALLEST)
        axes.set_xticks(range(1, n + 1, 1 + n // 12))
        axes.tick_params(labelsize=SMALLEST)
        legend_below(figure, [axes])
    places = ", ".join(
        f"{name} {rank:.2f}" for name, rank in zip(ranks.methods, ranks.ranks, strict=True)
    )
    return Picture(
        "ranks",
        title,
        f"mean ranks: {places}; critical difference {ranks.critical_difference:.2f}",
        figure,
    )


def _rank_label(ranks: Ranks) -> str:
    """Return the label of the axis of ranks, which says where there are too few sets."""
    label = "mean rank (1 is the best)"
    if ranks.is_hopeless:
        return f"{label}\n{_sets(ranks.n_sets)}: too few for\nany difference to show"
    if ranks.n_sets <= FEW_SETS:
        return f"{label}\n{_sets(ranks.n_sets)}: only large\ndifferences show"
    return label


def _sets(count: int) -> str:
    return "1 OOD set" if count == 1 else f"{count} OOD sets"


def rank_correlations(scores: Sets) -> NDArray[np.float64]:
    """Return Spearman's correlation of the scores of every pair of methods, ``(m, m)``.

    Parameters
    ----------
    scores
        Scores of the same images by every method.

    Notes
    -----
    The unweighted mean of the correlations within the ID set and within every OOD set: methods
    that only separate the sets from each other would correlate over all images together. A set on
    which a method has equal scores counts as 0.

    Examples
    --------
    >>> a, b = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    >>> rank_correlations({"m": (a, {"o": a}), "n": (10 * a, {"o": b})}).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    columns = [[id_scores, *sets.values()] for id_scores, sets in scores.values()]
    found = [_spearman([column[at] for column in columns]) for at in range(len(columns[0]))]
    return np.asarray(np.mean(found, axis=0))


def _spearman(scores: Sequence[Scores]) -> NDArray[np.float64]:
    """Return Spearman's correlation of every pair, ``(m, m)``, of scores of the same images."""
    from scipy.stats import rankdata

    ranks = np.array([rankdata(each) for each in scores])  # (m, n)
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1))
    units = np.divide(ranks, norms[:, None], out=np.zeros_like(ranks), where=norms[:, None] > 0)
    correlations = units @ units.T
    np.fill_diagonal(correlations, 1.0)
    return np.asarray(np.round(correlations, 12))


def correlation_map(run: str, methods: Sequence[str], correlations: NDArray[np.float64]) -> Picture:
    """Draw the correlation of the scores of methods.

    Parameters
    ----------
    run
        Name of the run.
    methods
        Names of the methods.
    correlations
        The result of :func:`rank_correlations`.
    """
    title = f"Rank correlation of the scores of methods: {run}"
    n = len(methods)
    with drawing():
        # A cell has room for its number and for a name of two lines; beside and below are names.
        width, height = _CELL * n + 1.6, _CELL * n + 2.5
        figure = column_figure(title, width=max(COLUMN, width), height=height)
        axes = figure.subplots()
        # Purple and orange, which all forms of colour blindness tell apart.
        image = axes.imshow(correlations, cmap="PuOr_r", vmin=-1, vmax=1)
        axes.grid(visible=False)
        names = [clipped(name, _NAME) for name in methods]
        axes.set_xticks(range(n), names, rotation=90, fontsize=SMALLEST)
        axes.set_yticks(range(n), names, fontsize=SMALLEST)
        if n <= _VALUES:
            for row, column in np.ndindex(n, n):
                value = round(float(correlations[row, column]), 2) + 0.0  # no -0.00
                dark = abs(value) > 0.65
                text = (
                    f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.0f}"
                )
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=SMALLEST,
                    color="white" if dark else "black",
                )  # fmt: skip
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=30)
        bar.set_label(
            "Spearman's correlation (no unit),\nmean over the ID set and OOD sets",
            fontsize=SMALLEST,
        )
        bar.ax.tick_params(labelsize=SMALLEST)
    pairs = [
        (correlations[a, b], methods[a], methods[b]) for a in range(n) for b in range(a + 1, n)
    ]
    least, most = min(pairs), max(pairs)
    return Picture(
        "correlation",
        title,
        f"Spearman's correlation of {n} methods, from {least[0]:.2f} ({least[1]} and {least[2]}) "
        f"to {most[0]:.2f} ({most[1]} and {most[2]})",
        figure,
    )


@dataclass(frozen=True)
class Dot:
    """AUROC with its 95 % interval, fractions."""

    value: float
    low: float
    high: float


def auroc_dots(scores: Sets) -> dict[str, dict[str, Dot]]:
    """Return AUROC with its 95 % interval by OOD set and method.

    Parameters
    ----------
    scores
        Scores of ID images and by OOD set, by method.
    """
    names = dict.fromkeys(name for _, sets in scores.values() for name in sets)
    found: dict[str, dict[str, Dot]] = {name: {} for name in names}
    for method, (id_scores, sets) in scores.items():
        for name, values in sets.items():
            low, high = auroc_interval([placements(id_scores, values)])
            found[name][method] = Dot(Curve.of(id_scores, values).auroc(), low, high)
    return found


def dot_plot(run: str, dots: Mapping[str, Mapping[str, Dot]]) -> Picture:
    """Draw AUROC with intervals, one panel for each OOD set and one row for each method.

    Parameters
    ----------
    run
        Name of the run.
    dots
        The result of :func:`auroc_dots`.
    """
    title = f"AUROC with 95 % intervals: {run}"
    methods = list(dict.fromkeys(name for each in dots.values() for name in each))
    across = 2 if len(dots) == 4 else min(3, len(dots))
    down = -(-len(dots) // across)
    with drawing():
        from matplotlib.ticker import MaxNLocator

        figure = column_figure(
            title,
            width=COLUMN if across == 1 else PAGE,
            height=down * (0.31 * len(methods) + 0.75) + 0.3,
        )
        grid = figure.subplots(down, across, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number >= len(dots):
                axes.remove()
                continue
            name = list(dots)[number]
            for row, method in enumerate(methods):
                dot = dots[name].get(method)
                if dot is not None:
                    axes.plot([100 * dot.low, 100 * dot.high], [row, row], color=ID_COLOUR)
                    axes.plot(100 * dot.value, row, "o", color=ID_COLOUR, markersize=4)
            labels = [clipped(each, _NAME) for each in methods] if number % across == 0 else []
            axes.set_yticks(range(len(methods)), labels or [""] * len(methods), fontsize=SMALLEST)
            axes.set_ylim(len(methods) - 0.4, -0.6)
            axes.set_title(clipped(name, 28 if across > 1 else 34), fontsize=SMALLEST)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
            axes.tick_params(labelsize=SMALLEST)
            if number + across >= len(dots):
                axes.set_xlabel("AUROC (%)", fontsize=SMALLEST)
    values = "; ".join(
        f"{name}: " + ", ".join(f"{method} {100 * dot.value:.1f} %" for method, dot in each.items())
        for name, each in dots.items()
    )
    return Picture("auroc", title, f"dots of AUROC with intervals. {values}", figure)
