"""Pictures of tuning: metrics on validation images against a parameter; reads no file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oodcli.reporting.plots import (
    COLOURS,
    MARKERS,
    SMALLEST,
    STYLES,
    Picture,
    clipped,
    column_figure,
    drawing,
    legend_below,
    plain_ticks,
)
from oodcli.store.searches import Candidate, Search

_NAME = 30
_FEWEST = 2  # values of a parameter
_PERCENT = ("percentile", "high", "low", "p")  # parameters in percent


@dataclass(frozen=True)
class TuningLine:
    """Metrics of one method against one parameter.

    Parameters
    ----------
    method
        Name of the method.
    values
        Values of the parameter, ascending.
    auroc, fpr95
        Metrics on validation images, fractions; NaN for FPR95 where it is not known.
    chosen
        The value that was chosen.
    """

    method: str
    values: tuple[float, ...]
    auroc: tuple[float, ...]
    fpr95: tuple[float, ...]
    chosen: float


def tuning_lines(searches: Sequence[Search]) -> dict[str, list[TuningLine]]:
    """Return the lines of all searches by the name of the parameter, such as ``percentile``.

    Methods with several tuned parameters, and values that are not numbers, have no line.

    Parameters
    ----------
    searches
        Searches by the same protocol.
    """
    found: dict[str, list[TuningLine]] = {}
    for search in searches:
        known = [each for each in search.candidates if each.auroc is not None]
        names = {name for each in known for name in each.parameters}
        if len(names) != 1 or any(_numbers(each).keys() != names for each in known):
            continue
        (name,) = names
        ordered = sorted(known, key=lambda each: _numbers(each)[name])
        if len({_numbers(each)[name] for each in ordered}) < _FEWEST:
            continue
        chosen = next(each for each in ordered if each.method == search.chosen)
        line = TuningLine(
            search.method.removesuffix("+energy"),
            tuple(_numbers(each)[name] for each in ordered),
            tuple(each.auroc for each in ordered if each.auroc is not None),
            tuple(float("nan") if each.fpr95 is None else each.fpr95 for each in ordered),
            _numbers(chosen)[name],
        )
        found.setdefault(name.rpartition(".")[2], []).append(line)
    return found


def _numbers(candidate: Candidate) -> Mapping[str, float]:
    return {
        name: float(value)
        for name, value in candidate.parameters.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def tuning_curves(run: str, search: Search, name: str, lines: Sequence[TuningLine]) -> Picture:
    """Draw AUROC and FPR95 on validation images against a parameter, one line per method.

    Parameters
    ----------
    run
        Name of the run.
    search
        One of the searches, for protocol and images, which they share.
    name
        Name of the parameter.
    lines
        The lines of :func:`tuning_lines`.
    """
    title = (
        f"Tuning of {name} on {search.n_id:,} images of {search.id_set} against "
        f"{search.n_ood:,} of {search.ood_set}: {run}"
    )
    values = sorted({value for line in lines for value in line.values})
    with drawing():
        figure = column_figure(title, height=4.0)
        panels = list(figure.subplots(2, 1))
        for at, line in enumerate(lines):
            look = {
                "color": COLOURS[at % len(COLOURS)],
                "linestyle": STYLES[at % len(STYLES)],
                "marker": MARKERS[(at + at // len(MARKERS)) % len(MARKERS)],
                "markersize": 3.5,
                "linewidth": 1.3,
            }
            for axes, metric in zip(panels, (line.auroc, line.fpr95), strict=True):
                percents = [100 * each for each in metric]
                axes.plot(line.values, percents, label=clipped(line.method, _NAME, 1), **look)
        for line in lines:
            for axes, metric in zip(panels, (line.auroc, line.fpr95), strict=True):
                axes.plot(
                    line.chosen, 100 * metric[line.values.index(line.chosen)],
                    "o", markersize=9, markerfacecolor="none", color="black", markeredgewidth=1.0,
                    linestyle="none", label="chosen, by AUROC",
                )  # fmt: skip
        unit = " (%)" if name in _PERCENT else " (no unit)"
        for axes, label in zip(panels, ("AUROC (%)", "FPR95 (%)"), strict=True):
            if values[0] > 0 and values[-1] > 50 * values[0]:
                axes.set_xscale("log")
                plain_ticks(axes.xaxis)
            axes.set_ylabel(label, fontsize=SMALLEST)
            axes.tick_params(labelsize=SMALLEST)
        panels[1].set_xlabel(f"{name}{unit}", fontsize=SMALLEST)
        legend_below(figure, panels)
    told = "; ".join(f"{line.method} {line.chosen:g}" for line in lines)
    return Picture(
        f"tuning-{search.tuning}-{name}",
        title,
        f"lines of AUROC and FPR95 against {name}; chosen: {told}",
        figure,
    )
