"""The picture of an explanation: one figure with the parts of `ood explain` below each other."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.data.formats.ilsvrc2012 import class_word, readable_class
from oodcli.reporting.bands import (
    CROSS,
    DARK,
    GAP,
    LINE,
    MARGIN,
    Draw,
    Place,
    Sheet,
    Tile,
    broken,
    cut_end,
    cut_middle,
    fitted,
    heading,
    paragraphs,
    row,
    show,
)
from oodcli.reporting.explanations import (
    Explanation,
    ExplanationPixels,
    MethodView,
    Neighbour,
    Pixels,
)
from oodcli.reporting.plots import ID_COLOUR, OOD_COLOUR, PAGE, SMALLEST, Picture, drawing
from oodcli.text import counted, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_BAR = 0.62  # the bar of colours with its labels
_PANELS = 5
_PANEL = (PAGE - 2 * MARGIN - _BAR) / _PANELS - GAP
_LONGEST_NAME = 300
_LONGEST_CLASS = 40
_THUMBNAIL_PIXELS = 96
_MAPS = "cividis"


def explanation_picture(explanation: Explanation, pixels: ExplanationPixels) -> Picture:
    """Draw an explanation, as wide as both columns of a paper.

    Parameters
    ----------
    explanation
        The explanation of an image that could be read.
    pixels
        The pixels that belong to it.
    """
    with drawing():
        sheet = Sheet()
        path = cut_middle(printable(explanation.path), _LONGEST_NAME)
        sheet.add(*heading(path))
        lines = (_verdict_line(explanation), explanation.agreement or "")
        sheet.add(*paragraphs([printable(line) for line in lines]))
        sheet.add(*_panels(explanation, pixels))
        sheet.add(*_methods(explanation.methods))
        if explanation.neighbours:
            tiles = neighbour_tiles(
                explanation.neighbours, pixels.neighbours, explanation.predicted
            )
            sheet.add(*heading(_marked("Nearest training images: squared distance", tiles)))
            sheet.add(*row(tiles))
        if explanation.region is not None:
            region = explanation.region
            own = Tile(pixels.image, ("this image", region.region), box=region.box)
            others = neighbour_tiles(
                region.neighbours, pixels.region_neighbours, explanation.predicted
            )
            sheet.add(*heading(_marked("Nearest regions (framed): squared distance", others)))
            sheet.add(*row([own, *others]))
        if explanation.missing:
            notes = [printable(f"not shown: {line}") for line in explanation.missing]
            sheet.add(*paragraphs(notes, color=DARK))
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


def _verdict_line(explanation: Explanation) -> str:
    """Return the verdict with its score, percentile and p-value, and the predicted class."""
    main = explanation.main
    if explanation.predicted is None:
        seen = ""
    else:
        predicted = readable_class(explanation.predicted)
        seen = (
            f"; seen as {cut_end(printable(predicted), _LONGEST_CLASS)} "
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


def _panels(explanation: Explanation, pixels: ExplanationPixels) -> tuple[float, Draw]:
    """Return the image, the energies of the block, and the typical ID image."""
    shown = _shown_panels(explanation, pixels)
    maps = [each.energy for each in shown if each.energy is not None]
    largest = max((float(each.max()) for each in maps), default=0.0)
    above = 2 * LINE + 0.06
    typical = _typical_line(explanation)

    def draw(figure: "Figure", place: Place) -> None:
        for at, panel in enumerate(shown):
            left = MARGIN + at * (_PANEL + GAP)
            place.text(figure, left, 0, panel.caption, fontsize=SMALLEST)
            axes = place.axes(figure, left, above, _PANEL, _PANEL)
            axes.set_axis_off()
            if panel.image is not None:
                show(axes, panel.image)
            elif panel.energy is not None:
                drawn = axes.imshow(
                    panel.energy, cmap=_MAPS, vmin=0, vmax=largest or 1, interpolation="none"
                )
        if maps:
            left = MARGIN + len(shown) * (_PANEL + GAP)
            bar = figure.colorbar(drawn, cax=place.axes(figure, left, above, 0.1, _PANEL))
            bar.set_label("energy", fontsize=SMALLEST)
            bar.ax.tick_params(labelsize=SMALLEST)
            bar.ax.locator_params(nbins=5)
        if typical:
            place.text(
                figure, MARGIN, above + _PANEL + 0.05, typical, fontsize=SMALLEST, color=DARK
            )

    below = (typical.count("\n") + 1) * LINE if typical else 0.0
    return above + _PANEL + below + 0.2, draw


def _shown_panels(explanation: Explanation, pixels: ExplanationPixels) -> list[_Panel]:
    shown = [_Panel("this image, as\nthe network sees it", image=pixels.image)]
    block = explanation.block
    of_class = fitted(_class(explanation.compared_with or "all classes"), _PANEL, SMALLEST)
    if block is not None and pixels.energy is not None:
        name = fitted(printable(block.name), _PANEL - 0.1, SMALLEST)
        shown.append(_Panel(f"energy of block {block.block}\n({name})", energy=pixels.energy))
    if block is not None and pixels.id_energy is not None:
        caption = f"mean, {counted(block.id_images, 'ID image')}\n{of_class}"
        shown.append(_Panel(caption, energy=pixels.id_energy))
    if explanation.typical is not None and pixels.typical is not None:
        shown.append(_Panel(f"typical ID image\n{of_class}", image=pixels.typical))
        if pixels.typical_energy is not None:
            shown.append(_Panel("energy of the\ntypical ID image", energy=pixels.typical_energy))
    return shown


def _typical_line(explanation: Explanation) -> str:
    """Return what is known of the typical ID image; empty without one."""
    typical = explanation.typical
    if typical is None:
        return ""
    name = fitted(printable(typical.name), 3.0, SMALLEST, cut_middle)
    return broken(
        f"typical ID image: {name}, median of {counted(typical.among, 'score')}: "
        f"{typical.score:.4g}, {typical.percentile:.3g} % of ID images score lower",
        SMALLEST,
        width=PAGE - 2 * MARGIN - _BAR,
    )


def _methods(methods: Sequence[MethodView]) -> tuple[float, Draw]:
    """Return the p-values of all methods, on a common logarithmic axis."""
    left, right, line, top = 1.75, 2.75, 0.2, 0.26
    height = line * len(methods) + 0.06
    least = min(1 / (each.id_images + 1) for each in methods)
    title = "What methods of different kinds say"

    def draw(figure: "Figure", place: Place) -> None:
        place.text(figure, MARGIN, 0, title, fontsize=SMALLEST + 1, weight="bold")
        axes = place.axes(figure, left, top, PAGE - left - right, height)
        axes.set(xscale="log", xlim=(least / 1.6, 1.6), ylim=(len(methods) - 0.5, -0.5))
        axes.set_xlabel("p-value: share of ID images\nthat score as low (log scale)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        decades = range(math.ceil(math.log10(least / 1.6)), 1)
        axes.set_xticks(
            [10.0**power for power in decades if (-power) % (1 + len(decades) // 6) == 0]
        )
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
                markersize=7,
                markeredgecolor="white",
                clip_on=False,
                zorder=3,
            )
            text = f"{each.verdict}, score {each.score:.4g}, {each.percentile:.3g} % of ID lower"
            beside = axes.get_yaxis_transform()
            axes.text(1.05, at, text, transform=beside, va="center", color=colour)
        legend = "cross: ood; circle: id; bar: threshold"
        place.text(
            figure, PAGE - right + 0.14, top + height + 0.1, legend, fontsize=SMALLEST, color=DARK
        )

    return top + height + 0.66, draw


def _label(view: MethodView) -> str:
    return f"{fitted(printable(view.method), 0.85, SMALLEST)} ({view.kind})"


def neighbour_tiles(
    neighbours: Sequence[Neighbour], images: Sequence[Pixels | None], predicted: str | None
) -> list[Tile]:
    """Return neighbours as images with distance, region, class and file.

    Parameters
    ----------
    neighbours
        The neighbours.
    images
        Their pixels; None for one that cannot be read.
    predicted
        The predicted class, others than which are marked; None without one.
    """

    def is_other(label: str | None) -> bool:
        return None not in (label, predicted) and label != predicted

    return [
        Tile(
            image,
            (
                f"{each.distance:.4g}",
                *([] if each.region is None else [each.region]),
                *_class_lines(each.label, other=is_other(each.label)),
            ),
            printable(each.name.replace("\\", "/").rpartition("/")[2]),
            each.box,
            is_other(each.label),
        )
        for each, image in zip(neighbours, images, strict=True)
    ]


def _class_lines(label: str | None, *, other: bool) -> list[str]:
    return [] if label is None else [f"{CROSS} {_class(label)}" if other else _class(label)]


def _class(name: str) -> str:
    """Return the name of a class for a narrow place: that of a wnid of ImageNet without it."""
    return printable(class_word(name))


def _marked(text: str, tiles: Sequence[Tile]) -> str:
    """Return a heading that explains the mark if an image has it."""
    if any(each.other_class for each in tiles):
        return f"{text}; {CROSS} and dashed: another class than predicted"
    return text
