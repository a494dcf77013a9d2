"""The picture of an explanation: one figure with the parts of `ood explain` below each other."""

import bisect
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.reporting.explanations import (
    Box,
    Explanation,
    ExplanationPixels,
    MethodView,
    Neighbour,
    Pixels,
)
from oodcli.reporting.plots import ID_COLOUR, OOD_COLOUR, Picture, drawing, wrapped
from oodcli.reporting.sheets import enlarged
from oodcli.text import counted, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
_WIDTH, _MARGIN, _GAP = 10.5, 0.2, 0.12
_LINE, _SMALL_LINE = 0.18, 0.135
_PANEL = 1.7
_LARGEST_THUMBNAIL = 1.15
_LONGEST_NAME = 300
_LONGEST_CLASS = 40
_THUMBNAIL_PIXELS = 96
_FRAME = "#F0E442"
_MAPS = "cividis"
_CROSS = "✗"


def explanation_picture(explanation: Explanation, pixels: ExplanationPixels) -> Picture:
    """Draw an explanation.

    Parameters
    ----------
    explanation
        The explanation of an image that could be read.
    pixels
        The pixels that belong to it.
    """
    with drawing():
        sheet = _Sheet()
        sheet.add(*_heading(explanation))
        sheet.add(*_panels(explanation, pixels))
        sheet.add(*_methods(explanation.methods))
        if explanation.neighbours:
            heading = "Nearest training images, whole (squared distance of features)"
            shown = _thumbnails(explanation.neighbours, pixels.neighbours, explanation.predicted)
            sheet.add(*_row(heading, shown))
        if explanation.region is not None:
            region = explanation.region
            heading = (
                "Nearest regions of training images (framed), to the region that comes nearest"
            )
            own = _Thumbnail(pixels.image, ("this image", region.region), region.box)
            others = _thumbnails(region.neighbours, pixels.region_neighbours, explanation.predicted)
            sheet.add(*_row(heading, [own, *others]))
        if explanation.missing:
            sheet.add(*_notes(explanation.missing))
        figure = sheet.figure()
    return Picture(
        "explanation",
        f"Why {printable(explanation.path)} is {explanation.verdict}",
        f"{_verdict_line(explanation)}; {explanation.agreement}",
        figure,
        many_colours=True,
    )


def thumbnail(image: Pixels) -> bytes:
    """Return a small PNG file of an image ``(h, w, 3)``, for an index."""
    stream = io.BytesIO()
    small = Image.fromarray(np.ascontiguousarray(image))
    small.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    small.save(stream, "PNG")
    return stream.getvalue()


# Draws a band of the sheet; it is given the figure and the distance of the band from the top.
_Draw = Callable[["Figure", "_Place"], None]


@dataclass(frozen=True)
class _Place:
    """Where a band begins on a sheet, in inches from its top, and the height of the sheet."""

    top: float
    height: float

    def axes(
        self, figure: "Figure", left: float, top: float, width: float, height: float
    ) -> "Axes":
        """Add axes; the position is in inches from the left and from the top of the band."""
        bottom = self.height - self.top - top - height
        return figure.add_axes(
            (left / _WIDTH, bottom / self.height, width / _WIDTH, height / self.height)
        )

    def text(
        self, figure: "Figure", left: float, top: float, text: str, **how: str | float
    ) -> None:
        """Add lines of text whose upper left corner is at a position of the band."""
        at = (self.height - self.top - top) / self.height
        figure.text(left / _WIDTH, at, text, va="top", **how)  # type: ignore[arg-type]


@dataclass
class _Sheet:
    """Bands below each other."""

    bands: list[tuple[float, _Draw]] = field(default_factory=list)

    def add(self, height: float, draw: _Draw) -> None:
        """Add a band of a height in inches."""
        self.bands.append((height, draw))

    def figure(self) -> "Figure":
        """Draw all bands."""
        from matplotlib.figure import Figure

        height = sum(each for each, _ in self.bands) + 2 * _MARGIN
        figure = Figure(figsize=(_WIDTH, height))
        top = _MARGIN
        for each, draw in self.bands:
            draw(figure, _Place(top, height))
            top += each
        return figure


def _heading(explanation: Explanation) -> tuple[float, _Draw]:
    """Return name, verdict and agreement."""
    path = _cut_middle(printable(explanation.path), _LONGEST_NAME)
    name = _broken(path, 9.5, weight="bold")
    below = "\n".join(
        _broken(printable(line), 9.5)
        for line in (_verdict_line(explanation), explanation.agreement or "")
    )
    lines = name.count("\n") + 1

    def draw(figure: "Figure", place: _Place) -> None:
        place.text(figure, _MARGIN, 0, name, fontsize=9.5, weight="bold")
        place.text(figure, _MARGIN, 1.15 * lines * _LINE + 0.04, below, fontsize=9.5)

    return (1.15 * lines + 1.1 * (below.count("\n") + 1)) * _LINE + 0.15, draw


def _verdict_line(explanation: Explanation) -> str:
    """Return the verdict with its score, percentile and p-value, and the predicted class."""
    main = explanation.main
    if explanation.predicted is None:
        seen = ""
    else:
        seen = (
            f"; seen as {_cut_end(printable(explanation.predicted), _LONGEST_CLASS)} "
            f"(probability {explanation.probability:.3f})"
        )
    side = "below" if main.verdict == "ood" else "at or above"
    return (
        f"{main.verdict.upper()} by {main.method}: score {main.score:.4g} is {side} the threshold "
        f"{main.threshold:.4g}; {main.percentile:.4g} % of {main.id_images:,} ID images score "
        f"lower, p = {main.p_value:.2g}{seen}"
    )


@dataclass(frozen=True)
class _Panel:
    """A panel of the first row: an image or a map of energies, with lines above it."""

    caption: str
    image: Pixels | None = None
    energy: NDArray[np.float32] | None = None


def _panels(explanation: Explanation, pixels: ExplanationPixels) -> tuple[float, _Draw]:
    """Return the image, the energies of the block, and the typical ID image."""
    shown = [_Panel("this image,\nas the network sees it", image=pixels.image)]
    block, typical = explanation.block, explanation.typical
    of_class = _fitted(printable(explanation.compared_with or "all classes"), _PANEL, 8)
    if block is not None and pixels.energy is not None:
        name = _fitted(printable(block.name), _PANEL - 0.1, 8)
        shown.append(_Panel(f"energy of block {block.block}\n({name})", energy=pixels.energy))
    if block is not None and pixels.id_energy is not None:
        caption = f"mean on {counted(block.id_images, 'ID image')}:\n{of_class}"
        shown.append(_Panel(caption, energy=pixels.id_energy))
    if typical is not None and pixels.typical is not None:
        shown.append(_Panel(f"typical ID image:\n{of_class}", image=pixels.typical))
        if pixels.typical_energy is not None:
            shown.append(_Panel("energy on the\ntypical ID image", energy=pixels.typical_energy))
    maps = [each.energy for each in shown if each.energy is not None]
    largest = max((float(each.max()) for each in maps), default=0.0)
    above = 2.2 * _LINE
    below = 0.0 if typical is None else 1.3 * _LINE

    def draw(figure: "Figure", place: _Place) -> None:
        for at, panel in enumerate(shown):
            left = _MARGIN + at * (_PANEL + _GAP)
            place.text(figure, left, 0, panel.caption, fontsize=8)
            axes = place.axes(figure, left, above, _PANEL, _PANEL)
            axes.set_axis_off()
            if panel.image is not None:
                _show(axes, panel.image)
            elif panel.energy is not None:
                drawn = axes.imshow(
                    panel.energy, cmap=_MAPS, vmin=0, vmax=largest or 1, interpolation="none"
                )
        if maps:
            left = _MARGIN + len(shown) * (_PANEL + _GAP)
            bar = figure.colorbar(drawn, cax=place.axes(figure, left, above, 0.13, _PANEL))
            bar.set_label("energy: quiet (0) to loud", fontsize=8)
            bar.ax.tick_params(labelsize=7)
        if typical is not None:
            name = _fitted(printable(typical.name), 4.2, 8, _cut_middle)
            line = (
                f"typical ID image: {name}, median of "
                f"{counted(typical.among, 'score')}: {typical.score:.4g}, "
                f"{typical.percentile:.3g} % of ID images score lower"
            )
            place.text(figure, _MARGIN, above + _PANEL + 0.05, line, fontsize=8, color="#444444")

    return above + _PANEL + below + 0.15, draw


def _methods(methods: Sequence[MethodView]) -> tuple[float, _Draw]:
    """Return the p-values of all methods, on a common logarithmic axis."""
    left, right, row = 2.2, 3.0, 0.24
    height = row * len(methods) + 0.1
    least = min(1 / (each.id_images + 1) for each in methods)

    def draw(figure: "Figure", place: _Place) -> None:
        place.text(
            figure, _MARGIN, 0, "What methods of different kinds say", fontsize=10, weight="bold"
        )
        axes = place.axes(figure, left, 0.3, _WIDTH - left - right, height)
        axes.set(xscale="log", xlim=(least / 1.6, 1.6), ylim=(len(methods) - 0.5, -0.5))
        axes.set_xlabel("p-value: share of ID images that score as low (log scale)", fontsize=8)
        axes.tick_params(labelsize=7.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set_xticks([10.0**power for power in range(math.ceil(math.log10(least / 1.6)), 1)])
        axes.set_yticks(range(len(methods)), [_label(each) for each in methods])
        for at, each in enumerate(methods):
            n = each.id_images
            ends = (1 + n * each.threshold_percentile / 100) / (n + 1)
            axes.plot([ends, ends], [at - 0.35, at + 0.35], color="black", linewidth=1.4)
            ood = each.verdict == "ood"
            colour = OOD_COLOUR if ood else ID_COLOUR
            axes.plot(
                each.p_value,
                at,
                marker="X" if ood else "o",
                color=colour,
                markersize=8,
                markeredgecolor="white",
                clip_on=False,
                zorder=3,
            )
            text = f"{each.verdict}, score {each.score:.4g}, {each.percentile:.3g} % of ID lower"
            beside = axes.get_yaxis_transform()
            axes.text(1.03, at, text, transform=beside, va="center", fontsize=8, color=colour)
        legend = "cross: ood; circle: id; bar: threshold"
        place.text(
            figure, _WIDTH - right + 0.15, 0.42 + height, legend, fontsize=8, color="#444444"
        )

    return height + 0.95, draw


def _label(view: MethodView) -> str:
    return f"{_fitted(printable(view.method), 1.0, 7.5)} ({view.kind})"


@dataclass(frozen=True)
class _Thumbnail:
    """A small image with lines below it and possibly a frame; grey if it cannot be read.

    One of another class than the predicted one is marked.
    """

    image: Pixels | None
    lines: tuple[str, ...]
    box: Box | None = None
    other_class: bool = False


def _thumbnails(
    neighbours: Sequence[Neighbour], images: Sequence[Pixels | None], predicted: str | None
) -> list[_Thumbnail]:
    def is_other(label: str | None) -> bool:
        return None not in (label, predicted) and label != predicted

    return [
        _Thumbnail(
            image,
            (
                f"{each.distance:.4g}",
                *([] if each.region is None else [each.region]),
                *_class_lines(each.label, other=is_other(each.label)),
                # The end of a path tells files apart.
                printable(each.name.replace("\\", "/").rpartition("/")[2]),
            ),
            each.box,
            is_other(each.label),
        )
        for each, image in zip(neighbours, images, strict=True)
    ]


def _class_lines(label: str | None, *, other: bool) -> list[str]:
    return [] if label is None else [f"{_CROSS} {printable(label)}" if other else printable(label)]


def _row(heading: str, thumbnails: Sequence[_Thumbnail]) -> tuple[float, _Draw]:
    """Return small images side by side."""
    if any(each.other_class for each in thumbnails):
        heading += f"; {_CROSS}: another class than predicted"
    side = min(_LARGEST_THUMBNAIL, (_WIDTH - 2 * _MARGIN + _GAP) / max(len(thumbnails), 1) - _GAP)
    lines = max(len(each.lines) for each in thumbnails)

    def draw(figure: "Figure", place: _Place) -> None:
        place.text(figure, _MARGIN, 0, heading, fontsize=10, weight="bold")
        for at, each in enumerate(thumbnails):
            left = _MARGIN + at * (side + _GAP)
            axes = place.axes(figure, left, 0.25, side, side)
            axes.set(xticks=[], yticks=[])
            if each.image is None:
                axes.set_facecolor("#DDDDDD")
                axes.text(0.5, 0.5, "no pixels", ha="center", va="center", fontsize=8)
            else:
                axes.set_axis_off()
                _show(axes, each.image)
                if each.box is not None:
                    _frame(axes, each.box)
            if each.other_class:
                _mark(axes)
            below = "\n".join(_fitted(line, side, 7) for line in each.lines)
            place.text(figure, left, 0.25 + side + 0.04, below, fontsize=7, linespacing=1.15)

    return 0.25 + side + lines * _SMALL_LINE + 0.22, draw


def _notes(lines: Sequence[str]) -> tuple[float, _Draw]:
    """Return what could not be made, with the reasons."""
    text = "\n".join(_broken(printable(f"not shown: {line}"), 8) for line in lines)

    def draw(figure: "Figure", place: _Place) -> None:
        place.text(figure, _MARGIN, 0, text, fontsize=8, color="#444444")

    return (text.count("\n") + 1) * 0.16 + 0.05, draw


def _show(axes: "Axes", image: Pixels) -> None:
    """Show an image; coordinates are those of its pixels, with the origin at the upper left."""
    height, width = image.shape[:2]
    axes.imshow(enlarged(image), interpolation="none", extent=(0, width, height, 0))


def _frame(axes: "Axes", box: Box) -> None:
    """Draw a frame, visible on light and on dark images."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    for colour, line in (("black", 3.6), (_FRAME, 1.6)):
        frame = Rectangle(
            (left, top), right - left, bottom - top,
            fill=False, edgecolor=colour, linewidth=line, clip_on=False,
        )  # fmt: skip
        axes.add_patch(frame)


def _mark(axes: "Axes") -> None:
    """Draw a dashed frame around an image."""
    from matplotlib.patches import Rectangle

    edge = Rectangle(
        (0, 0), 1, 1, transform=axes.transAxes,
        fill=False, edgecolor=OOD_COLOUR, linewidth=2.2, linestyle="--", clip_on=False,
    )  # fmt: skip
    axes.add_patch(edge)


def _broken(text: str, points: float, weight: str = "normal") -> str:
    """Return text broken into lines that fit into the width of the sheet."""
    for across in range(130, 30, -5):
        found = wrapped(text, across)
        widest = max(_inches(line, points, weight) for line in found.split("\n"))
        if widest <= _WIDTH - 2 * _MARGIN:
            break
    return found


def _fitted(
    text: str, inches: float, points: float, cut: Callable[[str, int], str] | None = None
) -> str:
    """Return a line cut to a width in inches, by default at its end; the font has ``points``."""
    shorten = cut or _cut_end
    lengths = range(2, len(text) + 1)
    too_long = bisect.bisect_left(
        lengths, x=True, key=lambda length: _inches(shorten(text, length), points) > inches
    )
    return shorten(text, too_long + 1)


def _inches(line: str, points: float, weight: str = "normal") -> float:
    """Return the width of a line of text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return float(width) / 72


def _cut_end(text: str, length: int) -> str:
    """Return a line cut to a number of characters at its end."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _cut_middle(text: str, length: int) -> str:
    """Return a line cut to a number of characters in its middle: the end of a path stays."""
    if len(text) <= length:
        return text
    end = 2 * (length - 1) // 3
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"
