"""Pictures of explanations: frames where they belong, and no text over another or cut off."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from oodcli.reporting.bands import cut_end, cut_middle, fitted
from oodcli.reporting.explanation_picture import explanation_picture
from oodcli.reporting.explanations import (
    BlockView,
    Explanation,
    ExplanationPixels,
    MethodView,
    Neighbour,
    RegionMatch,
    TypicalImage,
)
from oodcli.reporting.plots import PAGE, SMALLEST, Picture, encoded

LONG = "W" * 250


def view(method: str, kind: str, verdict: str = "ood") -> MethodView:
    return MethodView(method, kind, -1234.5678, -1200.25, 0.004, 1 / 50_001, verdict, 50_000, 5.0)


def neighbours(count: int, name: str, label: str, *, region: bool) -> tuple[Neighbour, ...]:
    box = (16.0, 0.0, 32.0, 16.0) if region else None
    return tuple(
        Neighbour(f"{name}{at}.png", label, 0.123456 + at, at, "top right" if region else None, box)
        for at in range(count)
    )


def explanation(name: str, label: str, *, count: int) -> Explanation:
    kinds = ("chosen", "softmax", "logits", "subspace", "block norm")
    methods = tuple(view(f"{name[:60]}method", kind) for kind in kinds)
    return Explanation(
        path=f"/folder/{name}.png",
        predicted=label,
        probability=0.5,
        verdict="ood",
        methods=(*methods[:-1], replace(methods[-1], verdict="id", p_value=0.9)),
        flagged=4,
        compared_with=label,
        neighbours=neighbours(count, name, label, region=False),
        region=RegionMatch(
            "bottom left", (0, 16, 16, 32), neighbours(count, name, label, region=True)
        ),
        block=BlockView(3, name, "normratio", ((1.0,),), ((1.0,),), 100),
        typical=TypicalImage(name, label, -0.123456, 45.4, 100),
        missing=("regions: " + "why " * 60,),
    )


def pixels(count: int, side: int, *, maps: int) -> ExplanationPixels:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    energy = rng.random((maps, maps), dtype=np.float32)
    near = [None, *[image] * (count - 1)]
    return ExplanationPixels(image, near, near, energy, 2 * energy, energy, image)


def texts(picture: Picture) -> list[Text]:
    """Return all texts that are seen, of the figure, its axes and their ticks."""
    found = [*picture.figure.findobj(Text)]
    return [each for each in found if each.get_visible() and each.get_text().strip()]


@pytest.mark.parametrize(
    ("name", "label", "side"),
    [("photo", "cat", 32), (LONG, LONG, 32), ("a\x1b[2J\n$\\frac{1}{2}$", "<b>&", 224)],
)
def test_no_text_lies_over_another_or_leaves_the_picture(name: str, label: str, side: int) -> None:
    picture = explanation_picture(
        explanation(name, label, count=10), pixels(10, side, maps=7 if side > 32 else 8)
    )
    canvas = picture.figure.canvas
    renderer = canvas.get_renderer() if hasattr(canvas, "get_renderer") else None
    if renderer is None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        renderer = FigureCanvasAgg(picture.figure).get_renderer()
    picture.figure.draw(renderer)
    width, height = picture.figure.bbox.size
    boxes = [(each.get_text(), each.get_window_extent(renderer)) for each in texts(picture)]
    assert len(boxes) > 40
    outside = {
        text
        for text, box in boxes
        if not (box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1)
    }
    assert outside == set()
    overlaps = {
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    }
    assert overlaps == set()
    assert not any("\x1b" in text for text, _ in boxes)
    assert picture.figure.get_figwidth() == PAGE
    assert min(each.get_fontsize() for each in texts(picture)) >= SMALLEST


def test_frames_are_drawn_in_pixels_of_the_image() -> None:
    picture = explanation_picture(explanation("a", "cat", count=3), pixels(3, 32, maps=8))
    frames = [
        (axes, each)
        for axes in picture.figure.axes
        for each in axes.patches
        if isinstance(each, Rectangle)
    ]
    # The image itself and two neighbours with pixels; a dark and a light line each.
    assert len(frames) == 6
    found = {(*each.get_xy(), each.get_width(), each.get_height()) for _, each in frames}
    assert found == {(0, 16, 16, 16), (16, 0, 16, 16)}
    for axes, _ in frames:
        assert axes.get_images()[0].get_extent() == [0, 32, 32, 0]


def test_neighbours_of_another_class_than_predicted_are_marked() -> None:
    given = explanation("a", "cat", count=3)
    assert given.region is not None
    near = (replace(given.neighbours[1], label="dog"), *given.neighbours[:1])
    region = replace(given.region, neighbours=(replace(given.region.neighbours[2], label="dog"),))
    picture = explanation_picture(
        replace(given, neighbours=near, region=region), replace(pixels(2, 32, maps=8),
            region_neighbours=[pixels(1, 32, maps=8).image]),
    )  # fmt: skip
    dashed = [
        each
        for axes in picture.figure.axes
        for each in axes.patches
        if isinstance(each, Rectangle) and each.get_linestyle() == "--"
    ]
    assert len(dashed) == 2
    shown = "\n".join(each.get_text() for each in texts(picture))
    assert shown.count("\n✗ dog\n") == 2
    assert "✗ cat" not in shown
    assert shown.count("another class than predicted") == 2
    nothing = explanation_picture(replace(given, predicted=None), pixels(3, 32, maps=8))
    assert not any("✗" in each.get_text() for each in texts(nothing))


def test_maps_have_one_scale() -> None:
    drawn = pixels(3, 32, maps=8)
    picture = explanation_picture(explanation("a", "cat", count=3), drawn)
    assert drawn.id_energy is not None
    limits = [
        image.get_clim()
        for axes in picture.figure.axes
        for image in axes.get_images()
        if image.get_cmap().name == "cividis" and image.get_array().shape == (8, 8)
    ]
    assert limits == [(0, float(drawn.id_energy.max()))] * 3


def test_the_same_explanation_gives_the_same_bytes_without_anything_but_methods() -> None:
    bare = Explanation(
        "a.png", verdict="id", methods=(view("knn", "chosen", "id"),), flagged=0
    )  # an encoder, no regions, no blocks, no data
    image = ExplanationPixels(np.zeros((32, 32, 3), np.uint8))
    one, other = (encoded(explanation_picture(bare, image), "png") for _ in range(2))
    assert one == other
    assert one.startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["", "i", "W", "image 17.png", LONG])
def test_text_is_cut_to_a_width_and_no_shorter(text: str) -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    def inches(shown: str) -> float:
        size = FontProperties(size=7)
        return text_to_path.get_text_width_height_descent(shown, size, ismath=False)[0] / 72

    for cut in (cut_end, cut_middle):
        found = fitted(text, 1.0, 7, cut)
        assert inches(found) <= 1 or len(found) <= 1
        if found != text:
            assert math.isclose(inches(found), 1, abs_tol=0.25)
            assert "…" in found
    assert fitted("folder/" * 30 + "end.png", 1.0, 7, cut_middle).endswith("end.png")
