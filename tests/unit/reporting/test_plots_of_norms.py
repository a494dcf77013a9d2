"""Pictures of norms: the values behind them, worked by hand, and room for all names."""

import math

import numpy as np
import pytest

from oodcli.reporting.plots import PAGE, Picture, encoded
from oodcli.reporting.plots_of_norms import (
    JIGSAW,
    NormPanel,
    mean_norms,
    norm_by_depth,
    norm_histograms,
    normratio_and_auroc,
)
from oodcli.reporting.sheets import Quadrant, Thumbnail, verdict_sheet
from tests.support.pictures import LONG, overlaps, smallest_text, texts


def panel() -> NormPanel:
    norms = {"id": np.array([2.0, 4.0, 4.0, 6.0]), "ood": np.array([1.0, 3.0]), "zero": np.zeros(2)}
    return NormPanel("last block (3)", "id", norms)


def many(count: int) -> list[Picture]:
    """Return every picture with ``count`` OOD sets of long names."""
    rng = np.random.default_rng(0)
    names = ["cifar10", *(f"{LONG}{at}" if count > 1 else "svhn" for at in range(count))]
    norms = {name: list(rng.gamma(3, 2.0**at, (9, 40))) for at, name in enumerate(names)}
    panels = [
        NormPanel(f"block {block}, which NormRatio selects", names[0],
                  {name: values[block] for name, values in norms.items()})
        for block in (8, 6, 5)
    ]  # fmt: skip
    auroc = {name: list(rng.random(9)) for name in names[1:]}
    image = Thumbnail(np.zeros((8, 8, 3), np.uint8), "a long name…\n→ automobile\n-123.4")
    headings = [f"{kind}: 10,000 of 260,000" for kind in ("OOD rejected (right)", "ID rejected")]
    return [
        norm_histograms("norms", f"FeatureNorm of {LONG}", panels[:1], x="FeatureNorm"),
        norm_histograms("norms", "FeatureNorm", panels, x="norm (no unit)", ratios=True),
        norm_by_depth("run", mean_norms(norms, np.ones((5, 9), np.float32))),
        normratio_and_auroc("run", list(rng.random(9)), [0.01] * 9, auroc, selected=6),
        verdict_sheet("msp", [Quadrant(each, True, [image] * 8) for each in headings * 2]),
    ]


def test_shares_are_of_the_images_of_each_set():
    shares = panel().shares()
    edges = panel().edges()
    assert edges[0] == pytest.approx(0.0)
    assert edges[-1] == pytest.approx(5.988)  # the 99.8th percentile: 4 + 2 (3 x 0.998 - 2)
    for name, values in {
        "id": {2.0: 0.25, 4.0: 0.5, 5.9: 0.25},
        "ood": {1.0: 0.5, 3.0: 0.5},
    }.items():
        expected = np.zeros(60)
        for value, share in values.items():
            expected[np.searchsorted(edges, value, side="right") - 1] = share
        np.testing.assert_array_equal(shares[name], expected)


def test_separability_is_auroc_and_the_ratio_of_means():
    # Of the 8 pairs of id and ood, 2 > 1, 4 > 1 and 3, 4 > 1 and 3, 6 > 1 and 3; 2 < 3 alone.
    assert panel().auroc() == {"ood": 7 / 8, "zero": 1.0}
    ratios = panel().ratios()
    assert ratios["ood"] == 2.0
    assert math.isnan(ratios["zero"])


def test_what_is_drawn_is_what_was_computed():
    norms = {"id": [np.array([1.0, 3.0]), np.array([8.0])], "svhn": [np.array([5.0]), None]}
    jigsaw = np.array([[1, 2], [3, 4]], np.float32)
    lines = norm_by_depth("run", mean_norms(norms, jigsaw)).figure.axes[0].lines
    drawn = {line.get_label(): list(line.get_ydata()) for line in lines}
    assert drawn["id (ID)"] == [2.0, 8.0]
    assert drawn[JIGSAW] == [2.0, 3.0]
    assert drawn["svhn"][0] == 5.0
    assert math.isnan(drawn["svhn"][1])


def test_a_logarithmic_axis_has_numbers_and_no_formulas():
    norms = {"id": [np.array([0.1])], "svhn": [np.array([500.0])]}
    picture = norm_by_depth("run", mean_norms(norms, None))
    encoded(picture)  # ticks come with the layout
    labels = set(texts(picture))
    assert {"0.1", "1", "10", "100"} <= labels
    assert not any("$" in label for label in labels)


def test_the_choice_is_framed_over_bars_of_mean_auroc():
    picture = normratio_and_auroc(
        "run", [1.0, 1.5, 1.2], [0.1] * 3, {"a": [0.5, 0.6, 0.7], "b": [0.7, 1.0, 0.9]}, selected=1
    )
    axes, line = picture.figure.axes
    *bars, frame = axes.patches
    assert [bar.get_height() for bar in bars] == pytest.approx([60, 80, 80])
    assert (frame.get_x(), frame.get_width()) == pytest.approx((0.52, 0.96))
    assert list(line.lines[0].get_ydata()) == [1.0, 1.5, 1.2]
    assert "block 1 is selected, with NormRatio 1.500 and AUROC 80.0 %" in picture.alt


@pytest.mark.parametrize("count", [1, 10, 20])
def test_there_is_room_for_every_name(count):
    for picture in many(count):
        assert overlaps(picture) == [], picture.name
        assert smallest_text(picture) >= 8
        assert picture.figure.get_figwidth() <= PAGE
