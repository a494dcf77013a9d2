"""Plots of scores, blocks and training; reads no file, and imports Matplotlib only to draw.

Colours are those of Okabe and Ito, distinguishable with any common colour blindness; every
line also has its own style or marker. Axes are in percent.
"""

import functools
import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.metrics import Curve
from oodcli.reporting.statistics import threshold_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
COLUMN, PAGE = 3.5, 7.2
"""Width in inches of one column and of both columns of a paper."""
SMALLEST = 8
"""Smallest size of text in points in pictures that are as wide as a column or page."""
MAX_LINES = 6
"""Maximum number of methods in one picture of curves."""

ID_COLOUR, OOD_COLOUR = "#0072B2", "#D55E00"
CHOSEN, GREY = "#009E73", "#666666"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 1)))
MARKERS = "osD^vPX"
_BINS = 50
_DPI = 150
_WEBP_QUALITY = 80
_MAX_POINTS = 200
_LONGEST = 44  # characters of a name before it is broken
_NAME = 26  # characters of a line of the title of a panel
_LABEL = 34  # characters of a name in a legend
_BREAKS = " :+,-_/"  # after which a name may be broken
_FONT = "DejaVu Sans"
# Fonts with characters that the first lacks, where one of them is installed.
_FALLBACKS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR",
    "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback",
    "IPAexGothic", "IPAGothic", "NanumGothic", "Hiragino Sans", "PingFang SC",
    "Apple SD Gothic Neo", "Yu Gothic", "MS Gothic", "Microsoft YaHei", "Malgun Gothic",
    "Noto Sans", "Noto Sans Thai", "Noto Sans Devanagari", "Arial Unicode MS",
)  # fmt: skip

Scores = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn picture.

    Parameters
    ----------
    name
        Name of its file, without extension.
    title
        Caption.
    alt
        Text alternative.
    figure
        The figure of Matplotlib.
    many_colours
        Whether it contains photographs or shades, which need more colours than other drawings.
    """

    name: str
    title: str
    alt: str
    figure: "Figure"
    many_colours: bool = False


def encoded(picture: Picture, how: str = "svg") -> bytes:
    """Return the content of a picture's file; the same picture gives the same bytes.

    Parameters
    ----------
    picture
        The picture.
    how
        ``png``, ``svg`` or ``pdf``; or ``webp`` for photographs in a page, which loses some detail.

    Raises
    ------
    UnknownNameError
        If there is no such format.
    """
    if how not in (*FORMATS, "webp"):
        raise UnknownNameError.among("picture format", how, FORMATS)
    stream = io.BytesIO()
    # Without the time and place of creation.
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with drawing():
        engine = picture.figure.get_layout_engine()
        if engine is not None:
            # Laid out once: a second time moves things by a hair, and bytes would differ. Without
            # an engine, even of no layout, saving does not draw everything twice.
            engine.execute(picture.figure)
            picture.figure.set_layout_engine(None)
        if how == "webp" or (how == "png" and not picture.many_colours):
            picture.figure.savefig(stream, format="rgba", dpi=_DPI)
            drawn = _pixels_of(picture.figure, stream.getvalue())
            return _lossy(drawn) if how == "webp" else _few_colours(drawn)
        picture.figure.savefig(stream, format=how, dpi=_DPI, metadata=undated[how])
    return stream.getvalue()


def _pixels_of(figure: "Figure", pixels: bytes) -> Image.Image:
    """Return the drawn pixels of a figure, which Matplotlib has given without their size."""
    # Whole pixels, as Matplotlib counts them but for the rounding of the product.
    width = int(_DPI * figure.get_size_inches()[0] + 1e-6)
    return Image.frombytes("RGBA", (width, len(pixels) // (4 * width)), pixels).convert("RGB")


def _few_colours(drawn: Image.Image) -> bytes:
    """Return a drawing as PNG with 256 colours, visually the same as full colour."""
    stream = io.BytesIO()
    few = drawn.quantize(256, dither=Image.Dither.NONE)
    few.save(stream, "PNG", compress_level=6, dpi=(_DPI, _DPI))
    return stream.getvalue()


def _lossy(drawn: Image.Image) -> bytes:
    """Return a drawing with photographs as WebP, about a tenth of its PNG."""
    stream = io.BytesIO()
    drawn.save(stream, "WEBP", quality=_WEBP_QUALITY, method=1)
    return stream.getvalue()


def histograms(
    method: str, id_name: str, id_scores: Scores, ood_scores: Mapping[str, Scores]
) -> Picture:
    """Draw histograms of the scores of ID and OOD images, one panel for each OOD set.

    Parameters
    ----------
    method
        Method that computed the scores.
    id_name
        Name of the ID set.
    id_scores
        Scores of ID images, ``(n,)``.
    ood_scores
        Scores by OOD set.

    Notes
    -----
    The axes exclude the outermost 0.2 % of each side; scores beyond are in the outer bins.
    """
    threshold = threshold_at(id_scores)
    title = f"Scores of {method}: {id_name} against OOD"
    with drawing():
        figure, panels = _panels(len(ood_scores), title)
        for number, (axes, (name, scores)) in enumerate(
            zip(panels, ood_scores.items(), strict=True)
        ):
            edges = _bin_edges(id_scores, scores)
            heights = [
                100 * np.histogram(np.clip(s, edges[0], edges[-1]), edges)[0] / len(s)
                for s in (id_scores, scores)
            ]
            axes.stairs(
                heights[0], edges, fill=True, color=ID_COLOUR, alpha=0.45, label="in distribution"
            )
            axes.stairs(
                heights[1], edges, color=OOD_COLOUR, linewidth=1.6, label="out of distribution"
            )
            axes.axvline(
                threshold,
                color="black",
                linestyle="--",
                linewidth=1.2,
                label="threshold: 95 % of ID at or above",
            )
            axes.set_ylim(0, 1.08 * max(map(np.max, heights)))
            accepted = 100 * np.mean(scores >= threshold)
            axes.set_title(f"{clipped(name, _NAME)}\n{accepted:.1f} % of OOD accepted")
            _label(axes, number, len(panels), f"score of {method}", "images (%)")
        legend_below(figure, panels)
    sets = ", ".join(ood_scores)
    return Picture(
        f"histogram-{method}",
        title,
        f"histograms of the scores of {method} on {id_name} and on {sets}, "
        f"with the threshold {threshold:.4g} that 95 % of {id_name} reach",
        figure,
    )


def curves(
    kind: str, id_name: str, scores: Mapping[str, tuple[Scores, Mapping[str, Scores]]]
) -> Picture:
    """Draw ROC or precision-recall curves of several methods, one panel for each OOD set.

    Parameters
    ----------
    kind
        ``roc``, or ``pr`` for precision and recall; ID is positive in both.
    id_name
        Name of the ID set.
    scores
        Scores of ID images and by OOD set, by method; :data:`MAX_LINES` methods at most.

    Raises
    ------
    InvalidInputError
        If there are more methods than can be distinguished.
    """
    if len(scores) > MAX_LINES:
        raise InvalidInputError(
            f"{len(scores)} methods are too many for one plot; choose at most {MAX_LINES}"
        )
    names = list(dict.fromkeys(name for _, sets in scores.values() for name in sets))
    what = "ROC curves" if kind == "roc" else "Precision-recall curves"
    title = f"{what}: {id_name} (positive) against OOD"
    with drawing():
        figure, panels = _panels(len(names), title, square=True)
        for number, (axes, name) in enumerate(zip(panels, names, strict=True)):
            for at, (method, (id_scores, sets)) in enumerate(scores.items()):
                if name not in sets:
                    continue
                curve = Curve.of(id_scores, sets[name], method=method, dataset=name)
                x, y = _roc(curve) if kind == "roc" else _pr(curve)
                axes.plot(
                    100 * x,
                    100 * y,
                    color=COLOURS[at],
                    linestyle=STYLES[at],
                    linewidth=1.4,
                    label=clipped(method, _LABEL, 1),
                )
            _guides(axes, kind, scores, name)
            axes.set(xlim=(-1, 101), ylim=(-1, 101))
            axes.set_title(clipped(name, _NAME))
            labels = (
                ("OOD accepted: FPR (%)", "ID accepted: TPR (%)")
                if kind == "roc"
                else ("recall of ID (%)", "precision (%)")
            )
            _label(axes, number, len(panels), *labels)
        legend_below(figure, panels)
    return Picture(
        kind, title, f"{what} of {', '.join(scores)} on {', '.join(names)}, ID positive", figure
    )


def normratio_bars(
    run: str,
    names: Sequence[str],
    ratios: Sequence[float],
    stderrs: Sequence[float],
    *,
    selected: int,
) -> Picture:
    """Draw NormRatio of every block with two standard errors, the selected block marked.

    Parameters
    ----------
    run
        Name of the run.
    names
        Name of every block.
    ratios, stderrs
        NormRatio of every block and its standard error; NaN where it has none.
    selected
        Index of the selected block.
    """
    title = f"NormRatio of the blocks of {run}"
    with drawing():
        from matplotlib.ticker import MaxNLocator

        figure = column_figure(title, height=0.17 * len(names) + 0.9)
        axes = figure.subplots()
        places = np.arange(len(names))
        widths = np.nan_to_num(np.asarray(ratios, dtype=np.float64))
        errors = np.nan_to_num(2 * np.asarray(stderrs, dtype=np.float64))
        bars = axes.barh(
            places,
            widths,
            xerr=errors,
            capsize=2,
            color=[CHOSEN if at == selected else "#BBBBBB" for at in places],
            edgecolor="black",
            linewidth=0.6,
            ecolor="black",
        )
        bars[selected].set_hatch("//")
        end = float(np.max(widths + errors))
        axes.annotate(
            "selected",
            (widths[selected] + errors[selected], selected),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
        axes.set_xlim(0, 1.35 * end if end > 0 else 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, prune="upper"))
        axes.axvline(1, color=GREY, linewidth=0.9, linestyle=":")
        axes.set_yticks(places, [f"{at}  {clipped(name, 16, 1)}" for at, name in enumerate(names)])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set(ylabel="block", xlabel="NormRatio (no unit)\nlines: ± 2 standard errors")
    return Picture(
        "normratio",
        title,
        f"bars of NormRatio for {len(names)} blocks; block {selected} ({names[selected]}) is "
        f"selected with {widths[selected]:.3f}",
        figure,
    )


def block_auroc(
    run: str, auroc: Mapping[str, Sequence[float]], *, selected: int | None = None
) -> Picture:
    """Draw AUROC of FeatureNorm for every block, one line for each OOD set.

    Parameters
    ----------
    run
        Name of the run.
    auroc
        AUROC of every block, a fraction, by OOD set; NaN where it is not known.
    selected
        Index of the block that NormRatio selects, if known.
    """
    title = f"FeatureNorm of each block of {run}"
    n_blocks = max(map(len, auroc.values()))
    with drawing():
        from matplotlib.ticker import MaxNLocator

        figure = column_figure(title, width=width_for_blocks(n_blocks), height=2.5)
        axes = figure.subplots()
        for at, (name, values) in enumerate(auroc.items()):
            axes.plot(
                np.arange(len(values)),
                100 * np.asarray(values),
                color=COLOURS[at % len(COLOURS)],
                linestyle=STYLES[(at // len(COLOURS)) % len(STYLES)],
                marker=MARKERS[(at + at // len(COLOURS)) % len(MARKERS)],
                markersize=3.5,
                linewidth=1.2,
                label=clipped(name, _LABEL, 1),
            )
        if selected is not None:
            axes.axvspan(
                selected - 0.3,
                selected + 0.3,
                color=CHOSEN,
                alpha=0.18,
                linewidth=0,
                label="selected by NormRatio",
            )
        axes.axhline(50, color=GREY, linewidth=0.9, linestyle=":", label="chance")
        axes.set(xlabel="block (0 is the first)", ylabel="AUROC (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        legend_below(figure, [axes])
    return Picture(
        "blocks",
        title,
        f"lines of AUROC over {n_blocks} blocks for {', '.join(auroc)}",
        figure,
    )


def training_history(run: str, history: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw loss, accuracies and learning rate over the epochs.

    Parameters
    ----------
    run
        Name of the run.
    history
        One record per epoch with ``epoch``, ``loss``, ``train_accuracy``, ``val_accuracy`` (or
        None) and ``lr``.
    """
    title = f"Training of {run}"
    epochs = [line["epoch"] for line in history]
    marker = "o" if len(epochs) <= 30 else ""

    def drawn(axes: "Axes", key: str, at: int, label: str, scale: float = 1.0) -> None:
        known = [(line["epoch"], line[key]) for line in history if line.get(key) is not None]
        if known:
            axes.plot(
                [epoch for epoch, _ in known],
                [scale * value for _, value in known],
                color=COLOURS[at],
                linestyle=STYLES[at],
                marker=marker,
                markersize=3,
                linewidth=1.5,
                label=label,
            )

    with drawing():
        from matplotlib.ticker import MaxNLocator

        figure, (loss, accuracy, rate) = _panels(3, title)
        drawn(loss, "loss", 0, "training")
        drawn(accuracy, "train_accuracy", 0, "training, augmented", 100)
        drawn(accuracy, "val_accuracy", 1, "validation", 100)
        drawn(rate, "lr", 0, "training")
        loss.set(ylabel="cross-entropy (nats)", ylim=(0, None))
        accuracy.set(ylabel="accuracy (%)")
        rate.set(ylabel="learning rate", ylim=(0, None))
        for axes in (loss, accuracy, rate):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        legend_below(figure, [loss, accuracy, rate])
    last = history[-1]
    return Picture(
        "history",
        title,
        f"loss, accuracy and learning rate over {len(epochs)} epochs, ending at a loss of "
        f"{last['loss']:.4f}",
        figure,
    )


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with fixed settings of Matplotlib, independent of those of the user."""
    import matplotlib as mpl

    # The names of settings are a type of their own in newer versions of Matplotlib alone.
    style: dict[Any, Any] = {
        # Of an alias, such as sans-serif, only the first font would be used.
        "font.family": [_FONT, *fallback_fonts()],
        "font.size": SMALLEST,
        "axes.titlesize": SMALLEST,
        "axes.labelsize": SMALLEST,
        "legend.fontsize": SMALLEST,
        "figure.titlesize": SMALLEST + 1,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "svg.hashsalt": "ood",
        # Whole fonts in TrueType, which journals accept; SVG has outlines of the letters.
        "pdf.fonttype": 42,
        # Names come from outside, and a dollar sign in one is no formula.
        "text.parse_math": False,
    }
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(style)
        # A character that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _panels(count: int, title: str, *, square: bool = False) -> tuple["Figure", list["Axes"]]:
    """Return a figure with a grid of panels, at most three across."""
    across = _across(count)
    down = -(-count // across)
    width = COLUMN if across == 1 else PAGE
    side = width / across
    figure = column_figure(title, width=width, height=down * side * (0.95 if square else 0.72))
    grid = figure.subplots(down, across, squeeze=False)
    flat = list(grid.flat)
    for unused in flat[count:]:
        unused.remove()
    return figure, flat[:count]


def _across(count: int) -> int:
    """Return the number of panels side by side."""
    return 2 if count == 4 else min(count, 3)


def _label(axes: "Axes", number: int, count: int, x: str, y: str) -> None:
    """Label only the outer axes of a grid, which are the same in all panels."""
    across = _across(count)
    if number % across == 0:
        axes.set_ylabel(y)
    if number + across >= count:
        axes.set_xlabel(clipped(x, _NAME))


def legend_below(figure: "Figure", panels: Sequence["Axes"]) -> None:
    """Add one legend with every line of all panels, and make the figure taller for it."""
    found = [
        pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    known = {label: handle for handle, label in reversed(found)}
    labels = list(dict.fromkeys(label for _, label in found))
    handles = [known[label] for label in labels]
    longest = max(max(map(len, label.split("\n"))) for label in labels)
    # About eleven characters of this size go into an inch; a sample line takes six more.
    columns = max(1, min(len(labels), int(11 * figure.get_figwidth()) // (longest + 8)))
    lines = -(-len(labels) // columns) * max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.16 * lines)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


@functools.cache
def fallback_fonts() -> tuple[str, ...]:
    """Return the installed fonts for characters that DejaVu Sans lacks, such as those of CJK."""
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return tuple(name for name in _FALLBACKS if name in installed)


def without_glyphs(names: Iterable[str]) -> list[str]:
    """Return the names with characters that no font of pictures has: these are drawn as boxes.

    Parameters
    ----------
    names
        Names in pictures.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    families = (_FONT, *fallback_fonts())
    fonts = [get_font(findfont(FontProperties(family=each))) for each in families]

    @functools.cache
    def is_known(character: str) -> bool:
        return any(font.get_char_index(ord(character)) for font in fonts)

    return [name for name in names if not all(map(is_known, name))]


def width_for_blocks(n_blocks: int) -> float:
    """Return the width in inches of a picture with one place for each block."""
    return COLUMN if n_blocks <= 16 else PAGE


def plain_ticks(axis: "Axis") -> None:
    """Label the decades of a logarithmic axis by numbers; by default labels are formulas."""
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def column_figure(title: str, *, width: float = COLUMN, height: float) -> "Figure":
    """Return a figure as wide as a column (or page) of a paper, to print without scaling.

    Parameters
    ----------
    title
        Its title.
    width, height
        In inches; the lines of the title are added to the height.
    """
    from matplotlib.figure import Figure

    heading = wrapped(title, int(13 * width))
    lines = heading.count("\n") + 1
    figure = Figure(figsize=(width, height + 0.17 * lines), layout="constrained")
    figure.suptitle(heading, fontsize=SMALLEST + 1)
    return figure


def clipped(text: str, width: int, lines: int = 2) -> str:
    r"""Return text in at most ``lines`` lines of ``width`` characters, shortened in the middle.

    Examples
    --------
    >>> clipped("cifar10", 10), clipped("abcdefghijklmnop", 5), clipped("scale+energy", 10)
    ('cifar10', 'abcd…\nmnop', 'scale+\nenergy')
    """
    if lines > 1 and width < len(text) <= 2 * width:
        ends = [at for at in range(width, len(text) - width - 1, -1) if text[at - 1] in _BREAKS]
        if ends:
            return f"{text[: ends[0]].rstrip()}\n{text[ends[0] :]}"
    broken = "\n".join(textwrap.wrap(text, width)) or text
    if broken.count("\n") < lines and len(text) <= width * lines:
        return broken
    if len(text) > width * lines - 2:
        keep = width * lines - 2
        head = -(-keep // 2)
        text = f"{text[:head]}…{text[head - keep :]}"
    pieces = [text[at : at + width] for at in range(0, len(text), width)]
    return "\n".join(pieces)


def wrapped(text: str, width: int = _LONGEST) -> str:
    """Return text broken into lines of at most ``width`` characters."""
    return "\n".join(textwrap.wrap(text, width)) or text


def _bin_edges(first: Scores, second: Scores) -> NDArray[np.float64]:
    ends = np.array([np.percentile(scores, [0.2, 99.8]) for scores in (first, second)])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _BINS + 1)


def _roc(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = curve.false_positives / curve.n_negative, curve.true_positives / curve.n_positive
    keep = _few(x, y)
    return x[keep], y[keep]


def _pr(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    accepted = curve.true_positives[1:] + curve.false_positives[1:]
    x = curve.true_positives[1:] / curve.n_positive
    y = curve.true_positives[1:] / accepted
    keep = _few(x, y)
    return x[keep], y[keep]


def _few(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return as many points as the eye can distinguish, spread evenly along the curve."""
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    at = np.searchsorted(way, np.linspace(0, way[-1], _MAX_POINTS))
    return np.unique(np.minimum(at, len(x) - 1))


def _guides(
    axes: "Axes",
    kind: str,
    scores: Mapping[str, tuple[Scores, Mapping[str, Scores]]],
    name: str,
) -> None:
    """Draw the reference that a curve is compared with."""
    if kind == "roc":
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=":", label="chance")
        axes.axhline(95, color=GREY, linewidth=0.8, label="95 % of ID accepted")
        return
    n_id, n_ood = next(
        (len(id_scores), len(sets[name])) for id_scores, sets in scores.values() if name in sets
    )
    share = 100 * n_id / (n_id + n_ood)
    axes.axhline(share, color=GREY, linewidth=0.8, linestyle=":", label="chance: share of ID")
